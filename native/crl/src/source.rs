//! The files that lists come from, and what was read of them.

use crate::{parse, List};
use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Most bytes of a file: some three million entries.
const MAX_FILE_BYTES: u64 = 128 << 20;

/// Most files of a folder.
const MAX_FILES: usize = 10_000;

/// A file that was changed this long ago may still be being written, and may change again without another time.
const SETTLED: Duration = Duration::from_secs(1);

/// By which a file is known to have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version {
    device: u64,
    inode: u64,
    changed: (i64, i64),
    bytes: u64,
}

impl Version {
    fn of(found: &Metadata) -> Self {
        Version {
            device: found.dev(),
            inode: found.ino(),
            // By the inode: copies may keep the time of the content.
            changed: (found.ctime(), found.ctime_nsec()),
            bytes: found.len(),
        }
    }

    fn is_settled(&self) -> bool {
        let (seconds, nanoseconds) = self.changed;
        let changed = Duration::new(seconds.max(0) as u64, nanoseconds.max(0) as u32);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        // A file out of the future is looked at once.
        now.is_ok_and(|now| now < changed || now - changed > SETTLED)
    }
}

/// A file with lists, and what was last read of it.
#[derive(Debug, Default)]
pub struct Source {
    /// The version that was read, or tried. `None` if it is to be read again.
    version: Option<Version>,
    /// What holds, also if the file is no longer there or can no longer be read.
    pub lists: Vec<Arc<List>>,
    /// Whether it was read at least once.
    pub is_known: bool,
    /// What is wrong with it now.
    pub error: Option<String>,
    /// Whether it was there when its folder was last looked at.
    pub is_there: bool,
}

/// What a look at a file or a folder has changed.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// A file was read.
    Read(PathBuf),
    /// A file or a folder that an operator has named can be read again.
    Recovered(PathBuf),
    /// A file or a folder cannot be read, or is not what it is to be.
    Failed(PathBuf, String),
    /// A file that was read is not there any more.
    Gone(PathBuf),
}

/// The files and folders that an operator has named.
#[derive(Debug)]
pub struct Sources {
    paths: Vec<PathBuf>,
    /// What is wrong with a path that is no file.
    pub errors: BTreeMap<PathBuf, String>,
    /// The folders among the paths that were listed at least once.
    listed: Vec<PathBuf>,
    pub files: BTreeMap<PathBuf, Source>,
}

impl Sources {
    pub fn new(paths: Vec<PathBuf>) -> Self {
        Sources {
            paths,
            errors: BTreeMap::new(),
            listed: Vec::new(),
            files: BTreeMap::new(),
        }
    }

    /// Looks at all of them, and reads what has changed.
    pub fn look(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        for path in self.paths.clone() {
            if let Err(error) = self.look_at(&path, &mut changes) {
                self.fail(path, error, &mut changes);
            } else if self.errors.remove(&path).is_some() {
                changes.push(Change::Recovered(path));
            }
        }
        changes
    }

    /// Whether all that there is to be was read at least once.
    pub fn is_complete(&self) -> bool {
        let is_known = |path: &PathBuf| self.listed.contains(path) || self.files.contains_key(path);
        let mut there = self.files.values().filter(|file| file.is_there);
        self.paths.iter().all(is_known) && there.all(|file| file.is_known)
    }

    fn fail(&mut self, path: PathBuf, error: String, changes: &mut Vec<Change>) {
        if self.errors.get(&path) != Some(&error) {
            changes.push(Change::Failed(path.clone(), error.clone()));
            self.errors.insert(path, error);
        }
    }

    fn look_at(&mut self, path: &Path, changes: &mut Vec<Change>) -> Result<(), String> {
        let found = fs::metadata(path).map_err(|error| told(&error))?;
        if found.is_dir() {
            return self.look_into(path, changes);
        }
        if !found.is_file() {
            return Err("it is neither a file nor a folder".into());
        }
        let file = self.files.entry(path.into()).or_default();
        file.is_there = true;
        file.look(path, &found, true, changes);
        Ok(())
    }

    fn look_into(&mut self, folder: &Path, changes: &mut Vec<Change>) -> Result<(), String> {
        let mut there = Vec::new();
        for entry in fs::read_dir(folder).map_err(|error| told(&error))? {
            let name = entry.map_err(|error| told(&error))?.file_name();
            // Those are of programs that write files, and of Kubernetes.
            if !name.as_encoded_bytes().starts_with(b".") {
                there.push(folder.join(name));
            }
        }
        if there.len() > MAX_FILES {
            return Err(format!("it has more than {MAX_FILES} files"));
        }
        for (path, file) in &mut self.files {
            if path.parent() == Some(folder) && !self.paths.contains(path) {
                file.is_there &= there.contains(path);
            }
        }
        for path in there {
            // A link to nothing is not there, as for OpenSSL, and what is in a folder's folders is not looked at.
            let found = match fs::metadata(&path) {
                Ok(found) if found.is_dir() => continue,
                Ok(found) => Ok(found),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    if let Some(file) = self.files.get_mut(&path) {
                        file.is_there = false;
                    }
                    continue;
                }
                Err(error) => Err(told(&error)),
            };
            let file = self.files.entry(path.clone()).or_default();
            file.is_there = true;
            match found {
                Ok(found) if found.is_file() => file.look(&path, &found, false, changes),
                Ok(_) => file.fail(&path, "it is no file".into(), changes),
                Err(error) => file.fail(&path, error, changes),
            }
        }
        if !self.listed.iter().any(|listed| listed == folder) {
            self.listed.push(folder.into());
        }
        self.note_gone(folder, changes);
        Ok(())
    }

    fn note_gone(&mut self, folder: &Path, changes: &mut Vec<Change>) {
        let is_gone = |path: &Path, file: &Source| path.parent() == Some(folder) && !file.is_there;
        for (path, file) in &mut self.files {
            if is_gone(path, file) && file.error.as_deref() != Some(GONE) {
                if !file.lists.is_empty() {
                    changes.push(Change::Gone(path.clone()));
                }
                (file.error, file.version) = (Some(GONE.into()), None);
            }
        }
        self.files
            .retain(|path, file| !is_gone(path, file) || !file.lists.is_empty());
    }

    /// Forgets files that are gone and say nothing that others do not say. All lists that hold are the answer.
    pub fn lists(&mut self) -> Vec<Arc<List>> {
        let of = |is_there: bool, files: &BTreeMap<PathBuf, Source>| {
            let files = files.values().filter(|file| file.is_there == is_there);
            files
                .flat_map(|file| file.lists.iter().map(Arc::clone))
                .collect::<Vec<_>>()
        };
        let mut lists = of(true, &self.files);
        for file in self.files.values_mut().filter(|file| !file.is_there) {
            file.lists
                .retain(|list| !crate::merge::is_superseded(list, &lists));
        }
        self.files
            .retain(|_, file| file.is_there || !file.lists.is_empty());
        lists.append(&mut of(false, &self.files));
        lists
    }
}

/// What there is to say of a file that is no longer in its folder.
const GONE: &str = "it is no longer there";

impl Source {
    fn look(&mut self, path: &Path, found: &Metadata, has_to_be: bool, changes: &mut Vec<Change>) {
        if self.version == Some(Version::of(found)) {
            return;
        }
        match read(path, has_to_be) {
            Ok((version, lists)) => {
                self.version = version.is_settled().then_some(version);
                let lists: Vec<_> = lists.into_iter().map(Arc::new).collect();
                if !self.is_known || self.lists != lists || self.error.is_some() {
                    changes.push(Change::Read(path.into()));
                    self.lists = lists;
                }
                (self.is_known, self.error) = (true, None);
            }
            // It may be about to be written.
            Err(_) if !Version::of(found).is_settled() => {}
            Err(Failure::Content(error)) => {
                self.fail(path, error, changes);
                // As long as it stays as it is, so does what is wrong with it.
                self.version = Some(Version::of(found));
            }
            Err(Failure::System(error)) => self.fail(path, error, changes),
        }
    }

    fn fail(&mut self, path: &Path, error: String, changes: &mut Vec<Change>) {
        self.version = None;
        if self.error.as_ref() != Some(&error) {
            changes.push(Change::Failed(path.into(), error.clone()));
            self.error = Some(error);
        }
    }
}

/// Why a file cannot be read.
enum Failure {
    /// It would be the same the next time.
    Content(String),
    System(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::System(told(&error))
    }
}

/// The lists of a file, and its version before they were read. A file that an operator has named has to have some.
fn read(path: &Path, has_to_be: bool) -> Result<(Version, Vec<List>), Failure> {
    let file = File::open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(Failure::System("it is no file".into()));
    }
    if found.len() > MAX_FILE_BYTES {
        let error = format!("it has more than {} MiB", MAX_FILE_BYTES >> 20);
        return Err(Failure::Content(error));
    }
    let mut bytes = Vec::with_capacity(found.len() as usize);
    file.take(MAX_FILE_BYTES).read_to_end(&mut bytes)?;
    let lists = parse(&bytes).map_err(Failure::Content)?;
    if lists.is_empty() && has_to_be {
        let error = "it has no revocation list".into();
        return Err(Failure::Content(error));
    }
    Ok((Version::of(&found), lists))
}

fn told(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "it is not there".into(),
        io::ErrorKind::PermissionDenied => "it may not be read".into(),
        _ => format!("it cannot be read: {error}"),
    }
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
