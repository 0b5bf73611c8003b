//! The files with lists, and what was read from them.

use crate::merge::{is_superseded, newest, Held, Newest};
use crate::{parse, List};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Most bytes of a file, which is about three million entries.
const MAX_FILE_BYTES: u64 = 128 << 20;

/// Most files of a folder.
const MAX_FILES: usize = 10_000;

/// A file that was changed more recently may still be written to, and may change again without a new time stamp.
const SETTLED: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 1 });

/// Identifies the content of a file: if it has changed, the version has changed.
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
            // The time of the inode's change, because a copy may keep the time of the content.
            changed: (found.ctime(), found.ctime_nsec()),
            bytes: found.len(),
        }
    }

    fn is_settled(&self) -> bool {
        let (seconds, nanoseconds) = self.changed;
        let changed = Duration::new(seconds.max(0) as u64, nanoseconds.max(0) as u32);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        // A file from the future is read once.
        now.is_ok_and(|now| now < changed || now - changed > SETTLED)
    }
}

/// A file with lists, and what was last read from it.
#[derive(Debug, Default)]
pub struct Source {
    /// The version of the last attempt. `None` if the file is to be read again.
    version: Option<Version>,
    /// What was last read from it. It holds even if the file can no longer be read.
    pub lists: Vec<Arc<List>>,
    /// Lists that it had, while it now has none for the same certificates: it may be cut off between two lists, or gone. They
    /// hold, too.
    pub lost: Vec<Arc<List>>,
    /// Whether the file was read at least once.
    pub is_known: bool,
    /// What is wrong with it now.
    pub error: Option<String>,
    /// Whether the file was there when its folder was last listed.
    pub is_there: bool,
}

/// A change that was found when a file or a folder was checked.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// A file was read.
    Read(PathBuf),
    /// A file or a folder of the option can be read again.
    Recovered(PathBuf),
    /// A file or a folder cannot be read, or is of the wrong kind.
    Failed(PathBuf, String),
    /// A file that was read is no longer there.
    Gone(PathBuf),
}

/// The files and folders of the option.
#[derive(Debug)]
pub struct Sources {
    paths: Vec<PathBuf>,
    /// What is wrong with the folders, and with paths that are missing.
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

    /// Checks all of them, and reads the files that have changed.
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

    /// Whether each path, and each file in the folders, was read at least once.
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
        let found = fs::metadata(path).map_err(|error| described(&error))?;
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
        let mut there = BTreeSet::new();
        for entry in fs::read_dir(folder).map_err(|error| described(&error))? {
            let name = entry.map_err(|error| described(&error))?.file_name();
            // Programs that write files, and Kubernetes, use such names.
            if !name.as_encoded_bytes().starts_with(b".") {
                there.insert(folder.join(name));
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
            // A dangling link counts as missing, as for OpenSSL. Folders in the folder are skipped.
            let found = match fs::metadata(&path) {
                Ok(found) if found.is_dir() => continue,
                Ok(found) => Ok(found),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    if let Some(file) = self.files.get_mut(&path) {
                        file.is_there = false;
                    }
                    continue;
                }
                Err(error) => Err(described(&error)),
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
                file.lost.append(&mut file.lists);
                if !file.lost.is_empty() {
                    changes.push(Change::Gone(path.clone()));
                }
                (file.error, file.version) = (Some(GONE.into()), None);
            }
        }
        self.files
            .retain(|path, file| !is_gone(path, file) || !file.lost.is_empty());
    }

    /// Forgets lists that are gone and superseded by others. Returns all lists that hold.
    pub fn lists(&mut self) -> Vec<Held> {
        let present: Vec<_> = self.present().cloned().collect();
        for file in self.files.values_mut() {
            file.lost.retain(|list| !is_superseded(list, &present));
            if file.lost.is_empty() && file.error.as_deref() == Some(LOST) {
                file.error = None;
            }
        }
        self.files
            .retain(|_, file| file.is_there || !file.lost.is_empty());
        let newest = self.newest();
        let files = self.files.values();
        files.flat_map(|file| file.held(&newest)).collect()
    }

    /// The newest of the lists that are there.
    pub fn newest(&self) -> Newest {
        newest(self.present())
    }

    fn present(&self) -> impl Iterator<Item = &Arc<List>> {
        self.files.values().flat_map(|file| &file.lists)
    }
}

/// The error of a file that no longer has a list.
pub const LOST: &str = "a list is no longer in it";

/// The error of a file that is no longer in its folder.
const GONE: &str = "it is no longer there";

impl Source {
    /// The lists that hold.
    pub fn held(&self, newest: &Newest) -> Vec<Held> {
        let lost = self.lost.iter().map(|list| Held::gone(list, newest));
        self.lists.iter().map(Held::present).chain(lost).collect()
    }

    fn look(&mut self, path: &Path, found: &Metadata, has_to_be: bool, changes: &mut Vec<Change>) {
        if self.version == Some(Version::of(found)) {
            return;
        }
        match read(path, has_to_be) {
            Ok((version, lists)) => {
                let is_settled = version.is_settled();
                self.version = is_settled.then_some(version);
                let lists: Vec<_> = lists.into_iter().map(Arc::new).collect();
                let former = self.lists.iter().chain(&self.lost);
                // The file decides which list it has for the same certificates, even if that is an older one.
                let is_lost = |list: &List| {
                    !lists.iter().any(|other| other.is_alike(list)) && !is_superseded(list, &lists)
                };
                let lost: Vec<_> = former.filter(|list| is_lost(list)).cloned().collect();
                if !self.is_known || self.lists != lists || self.error.is_some() {
                    changes.push(Change::Read(path.into()));
                }
                (self.lists, self.lost) = (lists, lost);
                (self.is_known, self.error) = (true, None);
                // Another program may still be writing it.
                if !self.lost.is_empty() && is_settled {
                    self.error = Some(LOST.into());
                    changes.push(Change::Failed(path.into(), LOST.into()));
                }
            }
            // Another program may still be writing it.
            Err(_) if !Version::of(found).is_settled() => {}
            Err(Failure::Content(error)) => {
                self.fail(path, error, changes);
                // The error stays as long as the file does not change.
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
    /// The content is wrong, so retrying cannot help before the file changes.
    Content(String),
    System(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::System(described(&error))
    }
}

/// The lists of a file, and its version before they were read. With `has_to_be`, a file without a list is an error.
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
        let error = "it contains no revocation list".into();
        return Err(Failure::Content(error));
    }
    Ok((Version::of(&found), lists))
}

fn described(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "it is not there".into(),
        io::ErrorKind::PermissionDenied => "this node's user may not read it".into(),
        _ => format!("it cannot be read: {error}"),
    }
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
