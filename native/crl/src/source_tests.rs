use super::*;
use crate::testing::{crl, entry, name, pem, Crl};
use rekindle_core::IssuerHash;
use std::os::unix::fs::symlink;
use tempfile::{tempdir, TempDir};

/// Writes a file and makes it look settled: it is looked at again only if it changes.
fn write(folder: &TempDir, file: &str, content: &[u8]) -> PathBuf {
    let path = folder.path().join(file);
    fs::write(&path, content).unwrap();
    path
}

fn list(serials: &[u8]) -> Vec<u8> {
    dated(serials, b"260102030405Z")
}

fn dated(serials: &[u8], this_update: &'static [u8]) -> Vec<u8> {
    let entries: Vec<_> = serials
        .iter()
        .map(|serial| entry(&[*serial], &[]))
        .collect();
    let of = Crl {
        this_update,
        ..Crl::default()
    };
    pem(&crl("ca", &entries, of))
}

/// Which of these serial numbers are in the lists that hold.
fn revoked(sources: &mut Sources) -> Vec<u8> {
    let lists = sources.lists();
    let issuer = IssuerHash::of(&name("ca"));
    let has = |serial: &u8| {
        let mut parts = lists.iter().flat_map(|list| &list.revoked);
        parts.any(|(of, hashes)| *of == issuer && hashes.contains(&issuer.certificate(&[*serial])))
    };
    (1..10).filter(has).collect()
}

/// Looks until a file that was written just now would be told as damaged.
fn look_until_settled(sources: &mut Sources) -> Vec<Change> {
    let mut changes = sources.look();
    std::thread::sleep(SETTLED + Duration::from_millis(100));
    changes.extend(sources.look());
    changes
}

#[test]
fn a_file_is_read_again_however_it_is_replaced() {
    let folder = tempdir().unwrap();
    let path = write(&folder, "ca.crl", &list(&[1]));
    let mut sources = Sources::new(vec![path.clone()]);
    assert!(!sources.is_complete());
    assert_eq!(sources.look(), [Change::Read(path.clone())]);
    assert!(sources.is_complete());
    assert_eq!(revoked(&mut sources), [1]);
    assert_eq!(sources.look(), []);
    // In place, of the same length, within the same tick of the clock.
    write(&folder, "ca.crl", &list(&[2]));
    assert_eq!(sources.look(), [Change::Read(path.clone())]);
    assert_eq!(revoked(&mut sources), [2]);
    let other = write(&folder, "new", &list(&[3, 4]));
    fs::rename(other, &path).unwrap();
    assert_eq!(sources.look(), [Change::Read(path)]);
    assert_eq!(revoked(&mut sources), [3, 4]);
}

#[test]
fn what_was_read_holds_when_a_file_is_damaged_or_gone() {
    let folder = tempdir().unwrap();
    let path = write(&folder, "ca.crl", &list(&[1]));
    let mut sources = Sources::new(vec![path.clone()]);
    sources.look();
    let whole = list(&[2]);
    write(&folder, "ca.crl", &whole[..whole.len() - 30]);
    // It may still be being written.
    assert_eq!(sources.look(), []);
    let failed = |error: &str| [Change::Failed(path.clone(), error.into())];
    assert_eq!(
        look_until_settled(&mut sources),
        failed("it ends too early")
    );
    assert_eq!(
        (revoked(&mut sources), sources.is_complete()),
        (vec![1], true)
    );
    assert_eq!(sources.look(), []);
    fs::remove_file(&path).unwrap();
    assert_eq!(sources.look(), failed("it is not there"));
    assert_eq!(
        (revoked(&mut sources), sources.is_complete()),
        (vec![1], true)
    );
    fs::create_dir(&path).unwrap();
    sources.look();
    assert_eq!(revoked(&mut sources), [1]);
    fs::remove_dir(&path).unwrap();
    sources.look();
    write(&folder, "ca.crl", &whole);
    assert!(sources.look().contains(&Change::Read(path)));
    assert_eq!(revoked(&mut sources), [2]);
}

#[test]
fn what_was_never_read_is_missing() {
    let folder = tempdir().unwrap();
    let lists = write(&folder, "ca.crl", &list(&[1]));
    let missing = folder.path().join("missing");
    let text = write(&folder, "text", b"no list");
    let certificates = write(&folder, "ca.pem", b"-----BEGIN CERTIFICATE-----\n");
    for path in [missing, text, certificates] {
        let mut sources = Sources::new(vec![lists.clone(), path.clone()]);
        let changes = look_until_settled(&mut sources);
        assert!(matches!(&changes[..], [Change::Read(_), Change::Failed(of, _)] if *of == path));
        assert_eq!(
            (revoked(&mut sources), sources.is_complete()),
            (vec![1], false)
        );
    }
}

#[test]
fn all_files_of_a_folder_are_read_but_hidden_ones_and_folders() {
    let folder = tempdir().unwrap();
    let mut sources = Sources::new(vec![folder.path().into()]);
    assert_eq!(sources.look(), []);
    assert!(sources.is_complete());
    write(&folder, "1.r0", &list(&[1]));
    write(&folder, ".2.r0", &list(&[2]));
    write(&folder, "ca.pem", b"-----BEGIN CERTIFICATE-----\n");
    fs::create_dir(folder.path().join("more")).unwrap();
    let elsewhere = tempdir().unwrap();
    let linked = write(&elsewhere, "ca.crl", &list(&[3]));
    symlink(&linked, folder.path().join("3.r0")).unwrap();
    symlink("nowhere", folder.path().join("4.r0")).unwrap();
    assert_eq!(sources.look().len(), 3);
    assert_eq!(
        (revoked(&mut sources), sources.is_complete()),
        (vec![1, 3], true)
    );
    write(&elsewhere, "ca.crl", &list(&[4]));
    sources.look();
    assert_eq!(revoked(&mut sources), [1, 4]);
    let bad = write(&folder, "bad", b"<html>");
    let changes = look_until_settled(&mut sources);
    assert_eq!(
        changes,
        [Change::Failed(bad, "it is no revocation list".into())]
    );
    assert!(!sources.is_complete());
}

#[test]
fn a_list_that_is_gone_holds_until_there_is_a_newer_one() {
    let folder = tempdir().unwrap();
    let old = write(&folder, "old", &dated(&[1], b"260102030405Z"));
    let mut sources = Sources::new(vec![folder.path().into()]);
    sources.look();
    fs::remove_file(&old).unwrap();
    assert_eq!(sources.look(), [Change::Gone(old)]);
    assert_eq!(revoked(&mut sources), [1]);
    assert_eq!(sources.look(), []);
    write(&folder, "older", &dated(&[2], b"260101030405Z"));
    sources.look();
    assert_eq!(revoked(&mut sources), [1, 2]);
    write(&folder, "newer", &dated(&[3], b"260103030405Z"));
    sources.look();
    assert_eq!(revoked(&mut sources), [2, 3]);
    let gone = folder.path().to_owned();
    drop(folder);
    let changes = sources.look();
    assert_eq!(changes, [Change::Failed(gone, "it is not there".into())]);
    assert_eq!(
        (revoked(&mut sources), sources.is_complete()),
        (vec![2, 3], true)
    );
}

#[test]
fn what_blocks_its_reader_is_not_read() {
    let folder = tempdir().unwrap();
    let made = std::process::Command::new("mkfifo")
        .arg(folder.path().join("pipe"))
        .status();
    assert!(made.unwrap().success());
    let mut sources = Sources::new(vec![folder.path().into(), folder.path().join("pipe")]);
    assert_eq!(sources.look().len(), 2);
    assert!(!sources.is_complete());
}
