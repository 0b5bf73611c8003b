//! An append-only file of sealed blocks. A node keeps in it what it must remember whatever happens to the log.
//!
//! ```text
//! file   = "rekindle sealed\n" id[16] nonce[24] tag[16] block*
//! block  = length[4] !length[4] nonce[24] sealed[length] tag[16]        numbers are big endian
//! ```
//!
//! Each block is sealed with XChaCha20-Poly1305 and bound to the file's random id, the file's name and the block's
//! number. So reading notices changed, moved and copied blocks. It cannot notice that blocks were cut off at the end,
//! or that the whole file is an older copy. The length is stored twice, so that a damaged length is not mistaken for
//! the end of the file.
//!
//! The key is `node.key` in the same folder: 32 bytes in hex. All sealed files of a folder share it.

use crate::place::{self, Lock};
use crate::LogError;
use chacha20poly1305::aead::{AeadInOut, Generate, KeyInit};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Most bytes of a block.
pub const MAX_BLOCK_BYTES: usize = 1 << 20;

const KEY: &str = "node.key";
const KEY_BYTES: usize = 32;
const MAGIC: &[u8; 16] = b"rekindle sealed\n";
const ID_BYTES: usize = 16;
const NONCE_BYTES: usize = 24;
const TAG_BYTES: usize = 16;
const HEADER_BYTES: usize = MAGIC.len() + ID_BYTES + NONCE_BYTES + TAG_BYTES;
/// A block's length, twice.
const LENGTH_BYTES: usize = 8;
/// Bytes of a block besides its content.
const OVERHEAD_BYTES: usize = LENGTH_BYTES + NONCE_BYTES + TAG_BYTES;
/// Takes the place of a block's number in the seal of the header.
const HEADER_NUMBER: u64 = u64::MAX;
/// How many damaged files `move_aside` keeps.
const DAMAGED_KEPT: usize = 2;

/// A block's bytes, wiped when dropped.
pub type Block = Zeroizing<Vec<u8>>;

/// A file of sealed blocks, open for one process. After an error it can still be used, and contains all blocks that
/// were appended successfully.
pub struct SealedFile {
    folder: PathBuf,
    name: String,
    cipher: XChaCha20Poly1305,
    content: Content,
    cut_bytes: u64,
    _lock: Lock,
}

/// The file that blocks are appended to.
struct Content {
    file: File,
    id: [u8; ID_BYTES],
    /// Number of blocks.
    blocks: u64,
    /// Length of the file up to the end of these blocks.
    bytes: u64,
    /// Whether a block that could not be written may have left bytes behind them.
    has_rest: bool,
}

impl SealedFile {
    /// Opens a file, or makes it, and returns its blocks in order.
    pub fn open(
        folder: impl AsRef<Path>,
        name: &str,
    ) -> Result<(SealedFile, Vec<Block>), LogError> {
        let mut blocks = Vec::new();
        let file = Self::for_each_block(folder, name, |block| {
            blocks.push(Block::new(block.to_vec()));
        })?;
        Ok((file, blocks))
    }

    /// Opens a file, or makes it, and calls `each` with its blocks in order. After an error, `each` has had the blocks
    /// before the damaged one.
    ///
    /// Cuts off a last block that was not fully written. Other damage is an error.
    pub fn for_each_block(
        folder: impl AsRef<Path>,
        name: &str,
        each: impl FnMut(&[u8]),
    ) -> Result<SealedFile, LogError> {
        let folder = folder.as_ref();
        Self::try_open(folder, name, each).map_err(|why| log_error("open", &folder.join(name), why))
    }

    fn try_open(folder: &Path, name: &str, each: impl FnMut(&[u8])) -> Result<SealedFile, String> {
        let lock = take(folder, name)?;
        let path = folder.join(name);
        // The process may have been killed while it wrote this file.
        let _ = fs::remove_file(new_path(folder, name));
        let found = match File::options().read(true).write(true).open(&path) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error.to_string()),
        };
        let cipher = load_key(folder, found.is_none())?;
        let (content, cut_bytes) = match found {
            Some(file) => {
                let found = file.metadata().map_err(|error| error.to_string())?;
                place::check_rights(&path, &found)?;
                read(file, found.len(), &cipher, name, each)?
            }
            None => {
                let content = write_new(folder, name, &cipher, std::iter::empty())?;
                sync_folder(folder)?;
                (content, 0)
            }
        };
        Ok(SealedFile {
            folder: folder.into(),
            name: name.into(),
            cipher,
            content,
            cut_bytes,
            _lock: lock,
        })
    }

    /// Appends a block. With `sync`, this block and all before it outlive a power cut once the call has returned;
    /// without, they outlive the process.
    pub fn append(&mut self, block: &[u8], sync: bool) -> Result<(), LogError> {
        self.try_append(block, sync)
            .map_err(|why| log_error("append to", &self.folder.join(&self.name), why))
    }

    fn try_append(&mut self, block: &[u8], sync: bool) -> Result<(), String> {
        self.check()?;
        let content = &mut self.content;
        let sealed = seal(&self.cipher, &content.id, &self.name, content.blocks, block)?;
        content.cut_rest().map_err(|error| error.to_string())?;
        content.has_rest = true;
        let written = content
            .file
            .write_all_at(&sealed, content.bytes)
            .and_then(|()| match sync {
                true => content.file.sync_data(),
                false => Ok(()),
            });
        if let Err(error) = written {
            // If this fails as well, the next call repeats it.
            let _ = content.cut_rest();
            return Err(error.to_string());
        }
        content.has_rest = false;
        content.blocks += 1;
        content.bytes += sealed.len() as u64;
        Ok(())
    }

    /// Fails if the file is gone, so that writing to it would have no effect, or if others can write to it as well.
    fn check(&self) -> Result<(), String> {
        place::check_folder(&self.folder)?;
        let path = self.folder.join(&self.name);
        let (found, own) = match (fs::metadata(&path), self.content.file.metadata()) {
            (Ok(found), Ok(own)) => (found, own),
            (Err(error), _) if error.kind() == io::ErrorKind::NotFound => {
                return Err("somebody has removed it; it must be written again".into());
            }
            (Err(error), _) | (_, Err(error)) => return Err(error.to_string()),
        };
        place::check_rights(&path, &found)?;
        let is_own = (found.dev(), found.ino()) == (own.dev(), own.ino());
        if !is_own || found.len() < self.content.bytes {
            return Err(
                "somebody has replaced it, or cut it short; it must be written again".into(),
            );
        }
        Ok(())
    }

    /// Replaces all blocks by these. After a power cut the file has either the old blocks or the new ones. After an
    /// error it has the old ones, or the new ones if only syncing the folder failed.
    pub fn rewrite(&mut self, blocks: impl Iterator<Item = Vec<u8>>) -> Result<(), LogError> {
        self.try_rewrite(blocks)
            .map_err(|why| log_error("rewrite", &self.folder.join(&self.name), why))
    }

    fn try_rewrite(&mut self, blocks: impl Iterator<Item = Vec<u8>>) -> Result<(), String> {
        place::check_folder(&self.folder)?;
        self.content = write_new(&self.folder, &self.name, &self.cipher, blocks)?;
        sync_folder(&self.folder)
    }

    /// How many bytes the file takes.
    pub fn bytes(&self) -> u64 {
        self.content.bytes
    }

    /// How many blocks the file has.
    pub fn blocks(&self) -> u64 {
        self.content.blocks
    }

    /// How many bytes `open` cut off because the last block was not fully written.
    pub fn cut_bytes(&self) -> u64 {
        self.cut_bytes
    }

    /// Renames a file that cannot be opened, so that a new one can be made. Returns its new path. Keeps the two newest
    /// of such files.
    pub fn move_aside(folder: impl AsRef<Path>, name: &str) -> Result<PathBuf, LogError> {
        let folder = folder.as_ref();
        Self::try_move_aside(folder, name)
            .map_err(|why| log_error("move aside", &folder.join(name), why))
    }

    fn try_move_aside(folder: &Path, name: &str) -> Result<PathBuf, String> {
        let _lock = take(folder, name)?;
        let prefix = format!("{name}.damaged-");
        let entries = fs::read_dir(folder).map_err(|error| error.to_string())?;
        let mut kept: Vec<(u64, PathBuf)> = entries
            .flatten()
            .filter_map(|entry| {
                let found = entry.file_name();
                let number = found.to_str()?.strip_prefix(&prefix)?.parse().ok()?;
                Some((number, entry.path()))
            })
            .collect();
        kept.sort_unstable();
        let newest = kept.last().map_or(0, |(number, _)| *number);
        let aside = folder.join(format!("{prefix}{}", newest.saturating_add(1)));
        fs::rename(folder.join(name), &aside).map_err(|error| error.to_string())?;
        kept.truncate((kept.len() + 1).saturating_sub(DAMAGED_KEPT));
        for (_, path) in kept {
            // If this fails, the next call tries it again.
            let _ = fs::remove_file(path);
        }
        sync_folder(folder)?;
        Ok(aside)
    }
}

impl Content {
    /// Cuts off bytes behind the last block.
    fn cut_rest(&mut self) -> io::Result<()> {
        if self.has_rest {
            self.file.set_len(self.bytes)?;
            self.has_rest = false;
        }
        Ok(())
    }
}

fn log_error(task: &str, path: &Path, why: String) -> LogError {
    LogError(format!("cannot {task} {}: {why}", path.display()))
}

fn new_path(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.new"))
}

/// Makes and checks the folder of a file, and locks the file.
fn take(folder: &Path, name: &str) -> Result<Lock, String> {
    place::make_folder(folder)?;
    place::check_folder(folder)?;
    place::lock(&folder.join(format!("{name}.lock")))?
        .ok_or_else(|| "it is in use by another process".into())
}

fn sync_folder(folder: &Path) -> Result<(), String> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| format!("cannot write the folder to the disk: {error}"))
}

// ---- blocks ----

/// The associated data that a block's seal covers.
fn associated(id: &[u8; ID_BYTES], name: &str, number: u64) -> Vec<u8> {
    [&MAGIC[..], id, &number.to_be_bytes(), name.as_bytes()].concat()
}

fn random<const N: usize>() -> Result<[u8; N], String> {
    <[u8; N]>::try_generate().map_err(|error| format!("the system gives no random bytes: {error}"))
}

/// A block as it stands in the file: lengths, nonce, sealed content and tag.
fn seal(
    cipher: &XChaCha20Poly1305,
    id: &[u8; ID_BYTES],
    name: &str,
    number: u64,
    block: &[u8],
) -> Result<Vec<u8>, String> {
    if block.len() > MAX_BLOCK_BYTES {
        return Err(format!(
            "a block has {} bytes; allowed: up to {MAX_BLOCK_BYTES}",
            block.len()
        ));
    }
    let nonce = random::<NONCE_BYTES>()?;
    let length = block.len() as u32;
    let mut sealed = Vec::with_capacity(OVERHEAD_BYTES + block.len());
    sealed.extend_from_slice(&length.to_be_bytes());
    sealed.extend_from_slice(&(!length).to_be_bytes());
    sealed.extend_from_slice(&nonce);
    // Sealed in place, so that no copy of the content stays behind in memory.
    let start = sealed.len();
    sealed.extend_from_slice(block);
    let tag = cipher
        .encrypt_inout_detached(
            &XNonce::from(nonce),
            &associated(id, name, number),
            (&mut sealed[start..]).into(),
        )
        .map_err(|_| "a block cannot be sealed")?;
    sealed.extend_from_slice(&tag);
    Ok(sealed)
}

/// Opens a block in place. `block` contains the sealed bytes and the tag behind them.
fn unseal(
    cipher: &XChaCha20Poly1305,
    nonce: [u8; NONCE_BYTES],
    associated: &[u8],
    block: &mut Vec<u8>,
) -> bool {
    cipher
        .decrypt_in_place(&XNonce::from(nonce), associated, block)
        .is_ok()
}

/// Writes a new file beside the existing one, and then replaces that.
fn write_new(
    folder: &Path,
    name: &str,
    cipher: &XChaCha20Poly1305,
    blocks: impl Iterator<Item = Vec<u8>>,
) -> Result<Content, String> {
    let path = new_path(folder, name);
    let _ = fs::remove_file(&path);
    let written = write_blocks(&path, name, cipher, blocks).and_then(|content| {
        fs::rename(&path, folder.join(name)).map_err(|error| error.to_string())?;
        Ok(content)
    });
    if written.is_err() {
        let _ = fs::remove_file(&path);
    }
    written
}

fn write_blocks(
    path: &Path,
    name: &str,
    cipher: &XChaCha20Poly1305,
    blocks: impl Iterator<Item = Vec<u8>>,
) -> Result<Content, String> {
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| error.to_string())?;
    let id = random()?;
    let mut out = BufWriter::with_capacity(1 << 16, &file);
    let mut write = |bytes: &[u8]| out.write_all(bytes).map_err(|error| error.to_string());
    write(MAGIC)?;
    write(&id)?;
    // An empty block seals the header.
    write(&seal(cipher, &id, name, HEADER_NUMBER, &[])?[LENGTH_BYTES..])?;
    let (mut count, mut bytes) = (0, HEADER_BYTES as u64);
    for block in blocks {
        let block = Block::new(block);
        let sealed = seal(cipher, &id, name, count, &block)?;
        write(&sealed)?;
        count += 1;
        bytes += sealed.len() as u64;
    }
    let flushed = out.flush().and_then(|()| file.sync_all());
    flushed.map_err(|error| error.to_string())?;
    std::mem::drop(out);
    Ok(Content {
        file,
        id,
        blocks: count,
        bytes,
        has_rest: false,
    })
}

/// Reads all blocks, and cuts off a last one that was not fully written. Returns how many bytes it cut off.
fn read(
    file: File,
    length: u64,
    cipher: &XChaCha20Poly1305,
    name: &str,
    mut each: impl FnMut(&[u8]),
) -> Result<(Content, u64), String> {
    let mut from = Reading {
        file: BufReader::with_capacity(1 << 16, &file),
        left: length,
    };
    let id = read_header(&mut from, cipher, name)?;
    let mut block = Block::new(Vec::with_capacity(MAX_BLOCK_BYTES + TAG_BYTES));
    let (mut count, mut bytes) = (0, HEADER_BYTES as u64);
    while from.left > 0 {
        let damage = || format!("block {count}, at byte {bytes}, is damaged");
        let before = from.left;
        match read_block(&mut from, cipher, &associated(&id, name, count), &mut block)? {
            Found::Whole => {}
            Found::Torn => break,
            Found::Damaged => return Err(damage()),
        }
        each(&block);
        count += 1;
        bytes += before - from.left;
    }
    std::mem::drop(from);
    let cut_bytes = length - bytes;
    if cut_bytes > 0 {
        file.set_len(bytes)
            .and_then(|()| file.sync_all())
            .map_err(|error| format!("cannot cut off an incomplete block: {error}"))?;
    }
    let content = Content {
        file,
        id,
        blocks: count,
        bytes,
        has_rest: false,
    };
    Ok((content, cut_bytes))
}

/// A file, and how many bytes are still to be read.
struct Reading<'a> {
    file: BufReader<&'a File>,
    left: u64,
}

impl Reading<'_> {
    /// Fills the buffer. `false` if fewer bytes are left.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<bool, String> {
        if self.left < buffer.len() as u64 {
            return Ok(false);
        }
        let read = self.file.read_exact(buffer);
        read.map_err(|error| format!("cannot read: {error}"))?;
        self.left -= buffer.len() as u64;
        Ok(true)
    }

    /// Whether all remaining bytes are zeros.
    fn is_zero(&mut self) -> Result<bool, String> {
        let mut buffer = [0; 4096];
        while self.left > 0 {
            let length = self.left.min(buffer.len() as u64) as usize;
            self.fill(&mut buffer[..length])?;
            if buffer[..length].iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn read_header(
    from: &mut Reading,
    cipher: &XChaCha20Poly1305,
    name: &str,
) -> Result<[u8; ID_BYTES], String> {
    let mut magic = [0; MAGIC.len()];
    let (mut id, mut nonce) = ([0; ID_BYTES], [0; NONCE_BYTES]);
    let mut tag = vec![0; TAG_BYTES];
    let is_whole = from.fill(&mut magic)?
        && from.fill(&mut id)?
        && from.fill(&mut nonce)?
        && from.fill(&mut tag)?;
    if !is_whole || magic != *MAGIC {
        return Err("its header is damaged".into());
    }
    let associated = associated(&id, name, HEADER_NUMBER);
    if !unseal(cipher, nonce, &associated, &mut tag) {
        return Err(format!(
            "its header is damaged, or {KEY} is not the key that it was sealed with"
        ));
    }
    Ok(id)
}

enum Found {
    Whole,
    /// The block was not fully written: the file, or its written part, ends before the block does.
    Torn,
    Damaged,
}

/// Reads and opens a block. After a power cut, a block that did not reach the disk may be zeros.
fn read_block(
    from: &mut Reading,
    cipher: &XChaCha20Poly1305,
    associated: &[u8],
    block: &mut Block,
) -> Result<Found, String> {
    let mut lengths = [0; LENGTH_BYTES];
    if !from.fill(&mut lengths)? {
        return Ok(Found::Torn);
    }
    let lengths = u64::from_be_bytes(lengths);
    let (length, inverse) = ((lengths >> 32) as u32, lengths as u32);
    if lengths == 0 && from.is_zero()? {
        return Ok(Found::Torn);
    }
    if length != !inverse || length as usize > MAX_BLOCK_BYTES {
        return Ok(Found::Damaged);
    }
    let mut nonce = [0; NONCE_BYTES];
    if !from.fill(&mut nonce)? {
        return Ok(Found::Torn);
    }
    block.resize(length as usize + TAG_BYTES, 0);
    if !from.fill(block)? {
        return Ok(Found::Torn);
    }
    let is_end_unwritten = from.left == 0 && block.ends_with(&[0; TAG_BYTES]);
    if unseal(cipher, nonce, associated, block) {
        Ok(Found::Whole)
    } else if is_end_unwritten {
        Ok(Found::Torn)
    } else {
        Ok(Found::Damaged)
    }
}

// ---- key ----

/// Reads the key, or makes one if `may_make` is true.
fn load_key(folder: &Path, may_make: bool) -> Result<XChaCha20Poly1305, String> {
    let path = folder.join(KEY);
    let file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if !may_make {
                return Err(format!("its key {} is missing", path.display()));
            }
            make_key(folder, &path)
                .and_then(|()| File::open(&path))
                .map_err(|error| format!("cannot make {}: {error}", path.display()))?
        }
        opened => opened.map_err(|error| format!("cannot open {}: {error}", path.display()))?,
    };
    let found = file.metadata().map_err(|error| error.to_string())?;
    place::check_rights(&path, &found)?;
    let mode = found.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(format!(
            "{} has mode {mode:o}; allowed: 600 or 400",
            path.display()
        ));
    }
    // Room for the line's end, and for one byte more, so that a longer file is noticed.
    let mut text = Zeroizing::new([0; 2 * KEY_BYTES + 2]);
    let mut length = 0;
    let mut file = file;
    loop {
        match file.read(&mut text[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(format!("cannot read {}: {error}", path.display())),
        }
    }
    parse_key(text[..length].trim_ascii_end())
        .ok_or_else(|| format!("{} is not 32 bytes in hex", path.display()))
}

fn parse_key(text: &[u8]) -> Option<XChaCha20Poly1305> {
    if text.len() != 2 * KEY_BYTES {
        return None;
    }
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    for (byte, digits) in key.iter_mut().zip(text.chunks_exact(2)) {
        let digit = |digit: u8| char::from(digit).to_digit(16);
        *byte = (digit(digits[0])? << 4 | digit(digits[1])?) as u8;
    }
    XChaCha20Poly1305::new_from_slice(&*key).ok()
}

/// Makes the key under another name first: so the key file is always whole, and an existing key is not overwritten.
fn make_key(folder: &Path, path: &Path) -> io::Result<()> {
    let key = Zeroizing::new(<[u8; KEY_BYTES]>::try_generate().map_err(io::Error::other)?);
    let mut line = Zeroizing::new([b'\n'; 2 * KEY_BYTES + 1]);
    for (digits, byte) in line.chunks_exact_mut(2).zip(key.iter()) {
        let digit = |value: u8| b"0123456789abcdef"[usize::from(value)];
        digits.copy_from_slice(&[digit(byte >> 4), digit(byte & 15)]);
    }
    let made = folder.join(format!("{KEY}.{}.new", std::process::id()));
    let _ = fs::remove_file(&made);
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&made)?;
    let linked = file
        .write_all(&*line)
        .and_then(|()| file.sync_all())
        .and_then(|()| match fs::hard_link(&made, path) {
            // The first use of another sealed file in this folder has just made it.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            linked => linked,
        });
    let removed = fs::remove_file(&made);
    linked.and(removed)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests;
