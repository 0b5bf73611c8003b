//! The keys that records are sealed with, and the file they are in.

use base64ct::{Base64, Encoding};
use chacha20poly1305::aead::{Generate, KeyInit};
use chacha20poly1305::XChaCha20Poly1305;
use sha2::{Digest, Sha256};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

const KEY_BYTES: usize = 32;

/// Longest name of a key, in bytes.
const MAX_ID: usize = 16;

/// Largest key file, in bytes: room for some hundred keys.
const MAX_FILE: u64 = 8 * 1024;

const FORMAT: &str =
    "one key per line: a name of up to 16 letters, digits, '-', '_' or '.', a space, 32 bytes in base64";

/// The keys in force, the newest last. Wiped when dropped.
pub struct Keys(Vec<Key>);

struct Key {
    id: Box<str>,
    fingerprint: [u8; 32],
    cipher: XChaCha20Poly1305,
}

impl Keys {
    /// Reads the lines of a key file. Skips empty lines and those that begin with `#`.
    pub fn parse(text: &str) -> Result<Keys, String> {
        // Has its full size from the start, as in `try_load`.
        let mut keys: Vec<Key> = Vec::with_capacity(text.lines().count());
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let key = parse_line(line)
                .ok_or_else(|| format!("line {} is not a key; allowed: {FORMAT}", number + 1))?;
            if keys.iter().any(|other| other.id == key.id) {
                return Err(format!("there are two keys called {}", key.id));
            }
            keys.push(key);
        }
        if keys.is_empty() {
            return Err(format!("there is no key; allowed: {FORMAT}"));
        }
        Ok(Keys(keys))
    }

    /// The key to seal with, and its name: the second-to-last key, so that every node knows a key before any node uses
    /// it; or the only key.
    pub fn sealing(&self) -> (&str, &XChaCha20Poly1305) {
        let key = self.sealing_key();
        (&key.id, &key.cipher)
    }

    fn sealing_key(&self) -> &Key {
        match self.0.as_slice() {
            [.., sealing, _] => sealing,
            [only] => only,
            [] => unreachable!("there is no Keys without a key"),
        }
    }

    /// Whether these keys and the others seal with the same key.
    pub fn seal_like(&self, others: &Keys) -> bool {
        self.sealing_key().is(others.sealing_key())
    }

    /// Whether the others' sealing key is among these.
    pub fn have_sealing_key_of(&self, others: &Keys) -> bool {
        self.0.iter().any(|key| key.is(others.sealing_key()))
    }

    /// The key with this name, to open records with.
    pub fn find(&self, id: &[u8]) -> Option<&XChaCha20Poly1305> {
        let key = self.0.iter().find(|key| key.id.as_bytes() == id)?;
        Some(&key.cipher)
    }

    /// Whether this is the sealing key or a newer one, so that records sealed with it stay readable as long as new
    /// ones.
    pub fn is_current(&self, id: &[u8]) -> bool {
        let sealing = self.0.len().saturating_sub(2);
        self.0[sealing..].iter().any(|key| key.id.as_bytes() == id)
    }

    /// The name of a key that is another one than the former key with this name.
    pub fn replaced(&self, former: &Keys) -> Option<&str> {
        let is_replaced = |key: &&Key| {
            let mut others = former.0.iter();
            others.any(|other| other.id == key.id && !other.is(key))
        };
        self.0.iter().find(is_replaced).map(|key| &*key.id)
    }

    /// The names of all keys, the newest last.
    pub fn ids(&self) -> Vec<&str> {
        self.0.iter().map(|key| &*key.id).collect()
    }
}

impl Key {
    fn is(&self, other: &Key) -> bool {
        self.id == other.id && self.fingerprint == other.fingerprint
    }
}

/// Whether a key can have this name.
pub fn is_id(name: &[u8]) -> bool {
    let is_allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    (1..=MAX_ID).contains(&name.len()) && name.iter().all(is_allowed)
}

fn parse_line(line: &str) -> Option<Key> {
    let (id, encoded) = line.split_once(char::is_whitespace)?;
    if !is_id(id.as_bytes()) {
        return None;
    }
    let mut bytes = Zeroizing::new([0; KEY_BYTES + 3]);
    let key = Base64::decode(encoded.trim(), &mut *bytes).ok()?;
    Some(Key {
        id: Box::from(id),
        fingerprint: Sha256::digest(key).into(),
        cipher: XChaCha20Poly1305::new_from_slice(key).ok()?,
    })
}

/// The key file, and whether it may be made.
#[derive(Debug, Clone)]
pub struct KeyFile {
    /// The file. Only its owner may have rights on it.
    pub path: PathBuf,
    /// Whether to make a file with one new key if there is none.
    pub make: bool,
    /// But not if one of these exists: then a key was used before, and has to come back.
    pub unless: Vec<PathBuf>,
}

/// A file's version, to notice that it has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    inode: u64,
    /// The inode's time of change. It also shows changed rights, and copies that keep the time of the content.
    changed: (i64, i64),
    size: u64,
}

impl KeyFile {
    /// Reads the file. An error is a line that names the file and what is wrong with it, without any of its content.
    pub fn load(&self) -> Result<(Keys, Version), String> {
        self.try_load()
            .map_err(|error| format!("key file {}: {error}", self.path.display()))
    }

    /// The file's present version, or `None` if there is no file to look at.
    pub fn version(&self) -> Option<Version> {
        fs::metadata(&self.path).ok().map(|found| version(&found))
    }

    fn try_load(&self) -> Result<(Keys, Version), String> {
        let file = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.make => {
                if let Some(used) = self.unless.iter().find(|path| path.exists()) {
                    return Err(format!(
                        "is missing, and {} was written with it: bring it back, or remove both",
                        used.display()
                    ));
                }
                make(&self.path).map_err(|error| format!("cannot be made: {error}"))?;
                File::open(&self.path)
            }
            opened => opened,
        }
        .map_err(|error| error.to_string())?;
        check_folder(&self.path)?;
        let found = file.metadata().map_err(|error| error.to_string())?;
        if !found.is_file() {
            return Err("is not a file".into());
        }
        check_owner(&found)?;
        if found.mode() & 0o077 != 0 {
            let mode = found.mode() & 0o777;
            return Err(format!(
                "users other than its owner have rights on it (mode {mode:o}); allowed: 600 or 400"
            ));
        }
        if found.len() > MAX_FILE {
            return Err(format!("is larger than {MAX_FILE} bytes"));
        }
        // Has its full size from the start: a string that grows would leave its bytes behind in memory.
        let mut text = Zeroizing::new(String::with_capacity(MAX_FILE as usize + 1));
        file.take(MAX_FILE)
            .read_to_string(&mut text)
            .map_err(|error| error.to_string())?;
        Ok((Keys::parse(&text)?, version(&found)))
    }
}

/// Anyone who can write to the folder can replace the key file.
fn check_folder(path: &Path) -> Result<(), String> {
    let Some(folder) = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
    else {
        return Ok(());
    };
    let found = fs::metadata(folder).map_err(|error| error.to_string())?;
    check_owner(&found).map_err(|error| format!("its folder {error}"))?;
    let is_sticky = found.mode() & 0o1000 != 0;
    if found.mode() & 0o022 != 0 && !is_sticky {
        let mode = found.mode() & 0o777;
        return Err(format!(
            "others can write to its folder (mode {mode:o}); allowed: 755 or less"
        ));
    }
    Ok(())
}

fn check_owner(found: &fs::Metadata) -> Result<(), String> {
    let user = rustix::process::geteuid().as_raw();
    match found.uid() {
        owner if owner == user || owner == 0 => Ok(()),
        owner => Err(format!(
            "belongs to user {owner}; allowed: user {user}, which runs this node, or root"
        )),
    }
}

fn version(found: &fs::Metadata) -> Version {
    Version {
        inode: found.ino(),
        changed: (found.ctime(), found.ctime_nsec()),
        size: found.len(),
    }
}

/// Makes the file under another name first, so that the key file is always whole and another process's file is not
/// overwritten.
fn make(path: &Path) -> io::Result<()> {
    let key = Zeroizing::new(<[u8; KEY_BYTES]>::try_generate().map_err(io::Error::other)?);
    let line = Zeroizing::new(format!(
        "# Made by Rekindle. Anyone who has this file can read the sessions in the log.\n1 {}\n",
        *Zeroizing::new(Base64::encode_string(&*key))
    ));
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let made = path.with_extension(format!("{}.new", std::process::id()));
    let _ = fs::remove_file(&made);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&made)?;
    file.write_all(line.as_bytes())?;
    file.sync_all()?;
    match fs::hard_link(&made, path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            let _ = fs::remove_file(&made);
            Err(error)
        }
        _ => fs::remove_file(&made),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn line(id: &str, byte: u8) -> String {
        format!("{id} {}\n", Base64::encode_string(&[byte; KEY_BYTES]))
    }

    fn error(text: &str) -> String {
        Keys::parse(text).err().expect("an error")
    }

    #[test]
    fn the_second_to_last_key_seals_and_all_open() {
        let sealing = |ids: &[&str]| {
            let text: String = ids.iter().map(|id| line(id, 7)).collect();
            Keys::parse(&text).unwrap().sealing().0.to_owned()
        };
        assert_eq!(sealing(&["a"]), "a");
        assert_eq!(sealing(&["a", "b"]), "a");
        assert_eq!(sealing(&["a", "b", "c"]), "b");
        assert_eq!(sealing(&["a", "b", "c", "d"]), "c");
        let keys = Keys::parse(&format!("# old\n{}\n{}", line("a", 1), line("b", 2))).unwrap();
        assert!(keys.find(b"a").is_some() && keys.find(b"b").is_some());
        assert!(keys.find(b"c").is_none());
        assert_eq!(keys.ids(), ["a", "b"]);
    }

    #[test]
    fn a_wrong_line_is_named_and_not_shown() {
        assert!(error("").contains("no key"));
        assert!(error(&(line("a", 1) + &line("a", 2))).contains("two keys called a"));
        let short = Base64::encode_string(&[1; 31]);
        for wrong in [
            short.as_str(),
            &format!("a {short}"),
            "a !!!!",
            &line("a name that is too long", 1),
            &line("ä", 1),
        ] {
            let message = error(&(line("x", 1) + wrong));
            assert!(message.starts_with("line 2 is not a key"), "{message}");
            assert!(!message.contains(&short));
        }
    }

    #[test]
    fn a_key_is_made_where_there_is_none_and_only_its_owner_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new").join("keys");
        let missing = KeyFile {
            path: path.clone(),
            make: false,
            unless: Vec::new(),
        };
        assert!(missing.load().err().unwrap().contains("No such file"));
        let file = KeyFile {
            path: path.clone(),
            make: true,
            unless: Vec::new(),
        };
        let (keys, version) = file.load().unwrap();
        assert_eq!(keys.ids(), ["1"]);
        assert_eq!(file.version(), Some(version));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        let before = fs::read(&path).unwrap();
        file.load().unwrap();
        assert_eq!(fs::read(&path).unwrap(), before);
    }

    #[test]
    fn no_key_is_made_where_one_was_used() {
        let folder = tempfile::tempdir().unwrap();
        let file = KeyFile {
            path: folder.path().join("keys"),
            make: true,
            unless: vec![folder.path().join("nothing"), folder.path().join("log")],
        };
        fs::create_dir(folder.path().join("log")).unwrap();
        let error = file.load().err().unwrap();
        assert!(
            error.contains("bring it back") && error.contains("/log "),
            "{error}"
        );
        assert!(!file.path.exists());
        fs::remove_dir(folder.path().join("log")).unwrap();
        assert!(file.load().is_ok());
    }

    #[test]
    fn a_folder_that_others_can_write_to_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let file = KeyFile {
            path,
            make: true,
            unless: Vec::new(),
        };
        for (mode, is_allowed) in [
            (0o775, false),
            (0o757, false),
            (0o1777, true),
            (0o755, true),
        ] {
            fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(file.load().is_ok(), is_allowed, "{mode:o}");
        }
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        fs::write(&path, line("a", 1)).unwrap();
        for mode in [0o644, 0o640, 0o604, 0o620] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let file = KeyFile {
                path: path.clone(),
                make: true,
                unless: Vec::new(),
            };
            let error = file.load().err().unwrap();
            assert!(error.contains(&format!("mode {mode:o}")), "{error}");
        }
    }
}
