//! Tests of what a sealed file notices, and what it survives.

use super::*;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::Instant;
use tempfile::TempDir;

const NAME: &str = "revocations";

fn all(folder: &Path) -> Result<Vec<Vec<u8>>, String> {
    let (_, blocks) = SealedFile::open(folder, NAME).map_err(|error| error.0)?;
    Ok(blocks.iter().map(|block| block.to_vec()).collect())
}

fn path(folder: &TempDir) -> PathBuf {
    folder.path().join(NAME)
}

/// A folder with these blocks.
fn with(blocks: &[&[u8]]) -> TempDir {
    let folder = TempDir::new().unwrap();
    let (mut file, _) = SealedFile::open(folder.path(), NAME).unwrap();
    for block in blocks {
        file.append(block, false).unwrap();
    }
    folder
}

/// Where each block begins in a file, and where the last one ends.
fn starts(blocks: &[&[u8]]) -> Vec<usize> {
    let mut starts = vec![HEADER_BYTES];
    for block in blocks {
        starts.push(starts[starts.len() - 1] + OVERHEAD_BYTES + block.len());
    }
    starts
}

const BLOCKS: [&[u8]; 4] = [b"first", b"", b"the third block", b"later"];

#[test]
fn blocks_are_there_in_their_order_when_the_file_is_opened_again() {
    let folder = TempDir::new().unwrap();
    let (mut file, blocks) = SealedFile::open(folder.path(), NAME).unwrap();
    assert!(blocks.is_empty());
    for n in 0..20 {
        file.append(&[n], n % 2 == 0).unwrap();
        assert_eq!(file.bytes(), fs::metadata(path(&folder)).unwrap().len());
    }
    assert_eq!(file.blocks(), 20);
    drop(file);
    let (mut file, blocks) = SealedFile::open(folder.path(), NAME).unwrap();
    let expected: Vec<_> = (0..20).map(|n| vec![n]).collect();
    assert!(blocks.iter().map(|block| &**block).eq(&expected));
    assert_eq!((file.blocks(), file.cut_bytes()), (20, 0));

    file.rewrite((5..8).map(|n| vec![n; 100])).unwrap();
    file.append(b"more", true).unwrap();
    assert_eq!(file.bytes(), fs::metadata(path(&folder)).unwrap().len());
    drop(file);
    let expected = [vec![5; 100], vec![6; 100], vec![7; 100], b"more".to_vec()];
    assert_eq!(all(folder.path()).unwrap(), expected);
}

#[test]
fn nothing_is_readable_in_the_files_and_only_their_owner_has_rights() {
    let folder = with(&[b"a rare sequence of bytes"]);
    let bytes = fs::read(path(&folder)).unwrap();
    assert!(!bytes.windows(8).any(|window| window == b"sequence"));
    let key = fs::read_to_string(folder.path().join(KEY)).unwrap();
    assert_eq!(key.trim_end().len(), 64);
    let mut names = Vec::new();
    for entry in fs::read_dir(folder.path()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().mode() & 0o777, 0o600);
        names.push(entry.file_name().into_string().unwrap());
    }
    names.sort();
    assert_eq!(names, ["node.key", "revocations", "revocations.lock"]);
    let made = folder.path().join("a/b");
    SealedFile::open(&made, NAME).unwrap();
    assert_eq!(fs::metadata(made).unwrap().mode() & 0o777, 0o700);
}

#[test]
fn a_change_to_any_byte_is_noticed_and_changes_nothing() {
    let folder = with(&BLOCKS);
    let good = fs::read(path(&folder)).unwrap();
    let starts = starts(&BLOCKS);
    assert_eq!(*starts.last().unwrap(), good.len());
    for at in 0..good.len() {
        for change in [1, 0x80, 0xff] {
            let mut bytes = good.clone();
            bytes[at] ^= change;
            fs::write(path(&folder), &bytes).unwrap();
            let mut read = Vec::new();
            let opened = SealedFile::for_each_block(folder.path(), NAME, |block| {
                read.push(block.to_vec());
            });
            let error = opened.err().expect("an error").0;
            let expected = match starts.iter().rposition(|start| *start <= at) {
                None => {
                    assert!(read.is_empty());
                    "its header is damaged".into()
                }
                Some(block) => {
                    assert_eq!(read, BLOCKS[..block]);
                    format!("block {block}, at byte {}, is damaged", starts[block])
                }
            };
            assert!(error.contains(&expected), "byte {at}: {error}");
            assert_eq!(fs::read(path(&folder)).unwrap(), bytes);
        }
    }
}

#[test]
fn the_file_may_end_anywhere_and_loses_only_its_last_block() {
    let folder = with(&BLOCKS);
    let good = fs::read(path(&folder)).unwrap();
    let starts = starts(&BLOCKS);
    for length in 0..good.len() {
        fs::write(path(&folder), &good[..length]).unwrap();
        let Some(whole) = starts.iter().rposition(|start| *start <= length) else {
            let error = all(folder.path()).unwrap_err();
            assert!(error.ends_with("its header is damaged"), "{error}");
            continue;
        };
        let (mut file, blocks) = SealedFile::open(folder.path(), NAME).unwrap();
        let expected = BLOCKS[..whole].iter().map(|block| block.to_vec());
        assert!(blocks
            .iter()
            .map(|block| block.to_vec())
            .eq(expected.clone()));
        assert_eq!(file.cut_bytes() as usize, length - starts[whole]);
        file.append(b"new", true).unwrap();
        drop(file);
        let expected: Vec<_> = expected.chain([b"new".to_vec()]).collect();
        assert_eq!(all(folder.path()).unwrap(), expected);
    }
}

#[test]
fn zeros_that_a_power_cut_leaves_at_the_end_are_cut_off() {
    let folder = with(&BLOCKS);
    let good = fs::read(path(&folder)).unwrap();
    let last = starts(&BLOCKS)[BLOCKS.len() - 1];
    for from in last..=good.len() - TAG_BYTES {
        // A partly written length is damage.
        if (last + 1..last + LENGTH_BYTES).contains(&from) {
            continue;
        }
        let mut bytes = good.clone();
        bytes[from..].fill(0);
        fs::write(path(&folder), &bytes).unwrap();
        assert_eq!(all(folder.path()).unwrap(), BLOCKS[..3], "from {from}");
    }
    let long = [&good[..], &[0; 10_000]].concat();
    fs::write(path(&folder), &long).unwrap();
    assert_eq!(all(folder.path()).unwrap(), BLOCKS);
    assert_eq!(fs::read(path(&folder)).unwrap(), good);
}

#[test]
fn blocks_that_are_moved_copied_or_of_another_file_are_noticed() {
    let folder = with(&BLOCKS);
    let good = fs::read(path(&folder)).unwrap();
    let starts = starts(&BLOCKS);
    let block = |n: usize| &good[starts[n]..starts[n + 1]];
    let header = &good[..HEADER_BYTES];
    let fails = |parts: &[&[u8]], number: usize| {
        fs::write(path(&folder), parts.concat()).unwrap();
        let error = all(folder.path()).unwrap_err();
        assert!(error.contains(&format!("block {number}, ")), "{error}");
    };
    fails(&[header, block(3), block(1), block(2), block(0)], 0);
    fails(&[header, block(0), block(2), block(3)], 1);
    fails(&[&good, block(0)], 4);
    fails(&[&good, block(3)], 4);

    // A block with the same number, from before the file was rewritten.
    fs::write(path(&folder), &good).unwrap();
    let (mut file, _) = SealedFile::open(folder.path(), NAME).unwrap();
    file.rewrite(BLOCKS.iter().map(|block| block.to_vec()))
        .unwrap();
    drop(file);
    let new = fs::read(path(&folder)).unwrap();
    fails(&[&new[..starts[2]], block(2), &new[starts[3]..]], 2);
    fails(&[header, &new[HEADER_BYTES..]], 0);

    // The same file under another name.
    fs::write(folder.path().join("other"), &good).unwrap();
    let error = SealedFile::open(folder.path(), "other").err().unwrap().0;
    assert!(error.contains("its header is damaged"), "{error}");
}

#[test]
fn a_missing_or_wrong_key_is_an_error_and_not_made_again() {
    let folder = with(&BLOCKS);
    let key = folder.path().join(KEY);
    let good = fs::read(&key).unwrap();
    fs::remove_file(&key).unwrap();
    let error = all(folder.path()).unwrap_err();
    let expected = format!(
        "cannot open {}: its key {} is missing",
        path(&folder).display(),
        key.display()
    );
    assert_eq!(error, expected);
    assert!(!key.exists());
    let long = [&good[..64], b"00"].concat();
    for (content, mode, why) in [
        (
            &[b'0'; 64][..],
            0o600,
            "is not the key that it was sealed with",
        ),
        (&[], 0o600, "is not 32 bytes in hex"),
        (&good[..63], 0o600, "is not 32 bytes in hex"),
        (&long, 0o600, "is not 32 bytes in hex"),
        (&[b'g'; 64], 0o600, "is not 32 bytes in hex"),
        (&good, 0o640, "has mode 640; allowed: 600 or 400"),
        (
            &good,
            0o622,
            "has mode 622; allowed: modes without write access",
        ),
    ] {
        fs::write(&key, content).unwrap();
        fs::set_permissions(&key, Permissions::from_mode(mode)).unwrap();
        let error = all(folder.path()).unwrap_err();
        assert!(error.contains(why), "{error}");
        assert!(!error.contains(std::str::from_utf8(&good[..16]).unwrap()));
    }
    fs::write(&key, &good[..64]).unwrap();
    fs::set_permissions(&key, Permissions::from_mode(0o400)).unwrap();
    assert_eq!(all(folder.path()).unwrap(), BLOCKS);
}

#[test]
fn files_of_a_folder_share_its_key_and_each_is_open_once() {
    let folder = with(&BLOCKS);
    let (_file, _) = SealedFile::open(folder.path(), NAME).unwrap();
    let (mut other, blocks) = SealedFile::open(folder.path(), "other").unwrap();
    assert!(blocks.is_empty());
    other.append(b"x", true).unwrap();
    let error = all(folder.path()).unwrap_err();
    assert!(
        error.ends_with("it is in use by another process"),
        "{error}"
    );
    let error = SealedFile::move_aside(folder.path(), NAME).unwrap_err().0;
    assert!(
        error.ends_with("it is in use by another process"),
        "{error}"
    );
    drop(_file);
    assert_eq!(all(folder.path()).unwrap(), BLOCKS);
}

#[test]
fn a_file_that_others_can_write_to_is_refused() {
    let folder = with(&BLOCKS);
    let (mut file, _) = SealedFile::open(folder.path(), NAME).unwrap();
    for (path, mode, good) in [
        (folder.path().to_path_buf(), 0o770, 0o700),
        (path(&folder), 0o602, 0o600),
    ] {
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        let expected = format!("{} has mode {mode:o}; allowed: ", path.display());
        let error = file.append(b"x", true).unwrap_err().0;
        assert!(error.contains(&expected), "{error}");
        drop(file);
        let error = all(folder.path()).unwrap_err();
        assert!(error.contains(&expected), "{error}");
        fs::set_permissions(&path, Permissions::from_mode(good)).unwrap();
        file = SealedFile::open(folder.path(), NAME).unwrap().0;
    }
    file.append(b"x", true).unwrap();
}

#[test]
fn a_file_that_is_removed_or_replaced_is_noticed_and_can_be_written_again() {
    let folder = with(&BLOCKS);
    let path = path(&folder);
    let aside = folder.path().join("aside");
    let (mut file, _) = SealedFile::open(folder.path(), NAME).unwrap();
    for (damage, why) in [
        (0, "somebody has removed it"),
        (1, "somebody has replaced it"),
        (2, "somebody has replaced it, or cut it short"),
    ] {
        match damage {
            0 => fs::remove_file(&path).unwrap(),
            1 => {
                fs::copy(&path, &aside).unwrap();
                fs::rename(&aside, &path).unwrap();
            }
            _ => {
                let open = File::options().write(true).open(&path).unwrap();
                open.set_len(100).unwrap();
            }
        }
        for _ in 0..2 {
            let error = file.append(b"x", true).unwrap_err().0;
            assert!(error.contains(why), "{error}");
        }
        file.rewrite([b"again".to_vec()].into_iter()).unwrap();
        file.append(b"x", true).unwrap();
    }
    drop(file);
    assert_eq!(all(folder.path()).unwrap(), [&b"again"[..], b"x"]);
}

#[test]
fn a_damaged_file_is_moved_aside_on_request_and_two_are_kept() {
    let folder = TempDir::new().unwrap();
    for round in 1..=12 {
        fs::write(path(&folder), format!("damage {round}")).unwrap();
        if round == 1 {
            // A key exists already.
            fs::remove_file(path(&folder)).unwrap();
            SealedFile::open(folder.path(), NAME).unwrap();
            fs::write(path(&folder), "damage 1").unwrap();
        }
        all(folder.path()).unwrap_err();
        let aside = SealedFile::move_aside(folder.path(), NAME).unwrap();
        let expected = folder.path().join(format!("{NAME}.damaged-{round}"));
        assert_eq!(aside, expected);
        assert_eq!(
            fs::read(aside).unwrap(),
            format!("damage {round}").as_bytes()
        );
        assert!(all(folder.path()).unwrap().is_empty());
    }
    let names = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap());
    let names = names.map(|entry| entry.file_name().into_string().unwrap());
    let mut kept: Vec<_> = names.filter(|name| name.contains("damaged")).collect();
    kept.sort();
    assert_eq!(kept, [11, 12].map(|n| format!("{NAME}.damaged-{n}")));
}

#[test]
fn a_block_has_a_largest_size() {
    let folder = with(&[]);
    let (mut file, _) = SealedFile::open(folder.path(), NAME).unwrap();
    let largest = vec![7; MAX_BLOCK_BYTES];
    file.append(&largest, true).unwrap();
    let too_large = vec![8; MAX_BLOCK_BYTES + 1];
    let expected = "a block has 1048577 bytes; allowed: up to 1048576";
    let error = file.append(&too_large, true).unwrap_err().0;
    assert!(error.ends_with(expected), "{error}");
    let blocks = [b"x".to_vec(), too_large];
    let error = file.rewrite(blocks.into_iter()).unwrap_err().0;
    assert!(error.ends_with(expected), "{error}");
    file.append(b"y", true).unwrap();
    drop(file);
    assert_eq!(all(folder.path()).unwrap(), [&largest[..], b"y"]);
}

#[test]
fn what_a_process_left_that_ended_in_the_midst_of_writing_again_is_removed() {
    let folder = with(&BLOCKS);
    let left = folder.path().join("revocations.new");
    fs::write(&left, "half").unwrap();
    assert_eq!(all(folder.path()).unwrap(), BLOCKS);
    assert!(!left.exists());
}

#[test]
fn a_full_disk_leaves_the_file_usable() {
    let place = TempDir::new().unwrap();
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", "size=256k,mode=700", "tmpfs"]);
    let mounted = mount.arg(place.path()).stderr(Stdio::null()).status();
    if !mounted.is_ok_and(|status| status.success()) {
        println!("not tried: this user cannot mount a file system");
        return;
    }
    let tried = std::panic::catch_unwind(|| {
        let (mut file, _) = SealedFile::open(place.path(), NAME).unwrap();
        let block = [9; 10_000];
        let mut count = 0;
        let error = loop {
            match file.append(&block, true) {
                Ok(()) => count += 1,
                Err(error) => break error.0,
            }
        };
        assert!(
            error.ends_with("No space left on device (os error 28)"),
            "{error}"
        );
        assert!(count > 10);
        let length = fs::metadata(place.path().join(NAME)).unwrap().len();
        assert_eq!(length, file.bytes());
        let error = file.rewrite((0..30).map(|_| block.to_vec())).unwrap_err().0;
        assert!(
            error.ends_with("No space left on device (os error 28)"),
            "{error}"
        );
        assert!(!place.path().join("revocations.new").exists());
        // There is room for a smaller block.
        file.append(b"small", true).unwrap();
        drop(file);
        let found = all(place.path()).unwrap();
        assert_eq!(found.len(), count + 1);
        assert_eq!(found[count], b"small");
    });
    let unmounted = Command::new("umount").arg(place.path()).status();
    assert!(unmounted.unwrap().success());
    tried.unwrap();
}

/// Run it with `--release -- --ignored --nocapture`.
#[test]
#[ignore = "it writes 128 MiB, to print how long opening them takes"]
fn a_large_file_is_opened() {
    let folder = with(&[]);
    let (mut file, _) = SealedFile::open(folder.path(), NAME).unwrap();
    for size in [1 << 16, 1 << 20] {
        file.rewrite((0..(128 << 20) / size).map(|_| vec![1; size]))
            .unwrap();
        drop(file);
        let begun = Instant::now();
        let mut bytes = 0;
        file =
            SealedFile::for_each_block(folder.path(), NAME, |block| bytes += block.len()).unwrap();
        println!("{bytes} bytes in blocks of {size}: {:?}", begun.elapsed());
    }
}
