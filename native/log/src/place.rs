//! Folders and files that belong to this process alone: makes, checks and locks them.

use rustix::fs::{flock, FlockOperation};
use std::fs::{self, DirBuilder, File, Metadata};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Makes a folder that only its owner can use, unless it exists.
pub(crate) fn make_folder(path: &Path) -> Result<(), String> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| format!("cannot make the folder: {error}"))
}

/// Fails if somebody else can write to the folder.
pub(crate) fn check_folder(path: &Path) -> Result<(), String> {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => check_rights(path, &found),
        Ok(_) => Err(format!("{} is not a folder", path.display())),
        Err(error) => Err(format!("cannot look at {}: {error}", path.display())),
    }
}

/// Fails if a file or folder belongs to another user, or if its group or others can write to it.
pub(crate) fn check_rights(path: &Path, found: &Metadata) -> Result<(), String> {
    let (path, uid) = (path.display(), rustix::process::geteuid().as_raw());
    if found.uid() != uid {
        return Err(format!(
            "{path} belongs to user {}; allowed: user {uid}, who runs this process",
            found.uid()
        ));
    }
    let mode = found.mode() & 0o7777;
    if mode & 0o022 != 0 {
        let example = if found.is_dir() { "700" } else { "600" };
        return Err(format!(
            "{path} has mode {mode:o}; allowed: modes without write access for group and others, for example {example}"
        ));
    }
    Ok(())
}

/// A lock on a folder or file. It also ends with the process.
pub(crate) struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough: a process that was just forked still has the file open.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

/// Locks a file, and makes it if it is missing. `None` if another process has the lock.
pub(crate) fn lock(path: &Path) -> Result<Option<Lock>, String> {
    let opened = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .and_then(|file| Ok((file.metadata()?, file)));
    let (found, file) = opened.map_err(|error| format!("cannot open the lock file: {error}"))?;
    check_rights(path, &found)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(Lock(file))),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(format!("cannot lock {}: {error}", path.display())),
    }
}
