use super::*;
use crate::testing::{crl, entry, extension, name, pem, tlv, Crl};
use rekindle_core::IssuerHash;
use rustix::time::{clock_gettime, ClockId};
use std::os::unix::fs::symlink;
use tempfile::{tempdir, TempDir};

/// Writes a file and makes it look settled, so that it is read again only if it changes.
fn write(folder: &TempDir, file: &str, content: &[u8]) -> PathBuf {
    let path = folder.path().join(file);
    fs::write(&path, content).unwrap();
    path
}

fn list(serials: &[u8]) -> Vec<u8> {
    dated(serials, b"260102030405Z")
}

fn dated(serials: &[u8], this_update: &'static [u8]) -> Vec<u8> {
    let of = Crl {
        this_update,
        ..Crl::default()
    };
    list_of("ca", serials, of)
}

fn list_of(issuer: &str, serials: &[u8], of: Crl) -> Vec<u8> {
    let entries: Vec<_> = serials
        .iter()
        .map(|serial| entry(&[*serial], &[]))
        .collect();
    pem(&crl(issuer, &entries, of))
}

/// Which of these serial numbers are in the lists that hold.
fn revoked(sources: &mut Sources) -> Vec<u8> {
    let lists = sources.lists();
    let issuer = IssuerHash::of(&name("ca"));
    let has = |serial: &u8| {
        let mut parts = lists.iter().flat_map(|held| &held.list.revoked);
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
    // Another program may still be writing it.
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
        [Change::Failed(bad, "it is not a revocation list".into())]
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
fn a_list_that_is_cut_off_a_file_holds_until_there_is_another_one_of_its_issuer() {
    let (other, ca) = (list_of("other", &[1], Crl::default()), list(&[1]));
    let certificate = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let folder = tempdir().unwrap();
    let mut sources = Sources::new(vec![folder.path().into()]);
    for rest in [&other[..], certificate] {
        let path = write(&folder, "all", &[&other[..], &ca].concat());
        look_until_settled(&mut sources);
        write(&folder, "all", rest);
        // Another program may still be writing it.
        assert_eq!(sources.look(), [Change::Read(path.clone())]);
        assert_eq!(revoked(&mut sources), [1]);
        assert_eq!(
            look_until_settled(&mut sources),
            [Change::Failed(path.clone(), LOST.into())]
        );
        assert_eq!(sources.look(), []);
        assert_eq!(revoked(&mut sources), [1]);
    }
    // A list in another file has the place of the lost one.
    let path = write(&folder, "all", &other);
    look_until_settled(&mut sources);
    assert_eq!(sources.files[&path].error.as_deref(), Some(LOST));
    write(&folder, "ca", &dated(&[2], b"260103030405Z"));
    look_until_settled(&mut sources);
    assert_eq!(revoked(&mut sources), [2]);
    assert_eq!(sources.files[&path].error, None);
}

#[test]
fn a_list_that_is_taken_out_of_a_file_holds_although_the_file_has_another_one_of_its_issuer() {
    let of = |serial: u8, this_update, extensions: &[Vec<u8>]| {
        let of = Crl {
            this_update,
            extensions: extensions.to_vec(),
            ..Crl::default()
        };
        list_of("ca", &[serial], of)
    };
    let (old, new) = (b"260102030405Z", b"260103030405Z");
    let delta = extension(&[0x55, 0x1d, 27], true, &tlv(2, &[1]));
    let part = |number| extension(&[0x55, 0x1d, 28], true, &tlv(0x30, &[number]));
    let folder = tempdir().unwrap();
    for (kept, lost) in [
        ([].to_vec(), [delta.clone()].to_vec()),
        ([delta.clone()].to_vec(), [].to_vec()),
        ([part(1)].to_vec(), [part(2)].to_vec()),
        ([part(1)].to_vec(), [delta.clone(), part(1)].to_vec()),
        ([part(1)].to_vec(), [].to_vec()),
    ] {
        let both = [of(1, old, &kept), of(2, old, &lost)].concat();
        let path = write(&folder, "ca", &both);
        let mut sources = Sources::new(vec![path.clone()]);
        look_until_settled(&mut sources);
        assert_eq!(revoked(&mut sources), [1, 2]);
        write(&folder, "ca", &of(1, old, &kept));
        let changes = look_until_settled(&mut sources);
        assert_eq!(revoked(&mut sources), [1, 2], "{kept:?} {lost:?}");
        assert_eq!(changes[1], Change::Failed(path.clone(), LOST.into()));
        // A newer list for all certificates replaces both.
        write(
            &folder,
            "ca",
            &[of(3, new, &[]), of(4, new, &kept)].concat(),
        );
        let changes = look_until_settled(&mut sources);
        assert_eq!(changes, [Change::Read(path.clone())]);
        assert_eq!(revoked(&mut sources), [3, 4]);
        assert_eq!(sources.files[&path].error, None);
    }
}

#[test]
fn changes_that_are_gone_hold_until_there_is_a_newer_list() {
    let delta = || extension(&[0x55, 0x1d, 27], true, &tlv(2, &[1]));
    let changes = |this_update| {
        let of = Crl {
            this_update,
            extensions: vec![delta()],
            ..Crl::default()
        };
        list_of("ca", &[1], of)
    };
    let folder = tempdir().unwrap();
    write(&folder, "whole", &dated(&[], b"260101030405Z"));
    let path = write(&folder, "changes", &changes(b"260102030405Z"));
    let mut sources = Sources::new(vec![folder.path().into()]);
    sources.look();
    fs::remove_file(path).unwrap();
    sources.look();
    assert_eq!(revoked(&mut sources), [1]);
    write(&folder, "whole", &dated(&[], b"260103030405Z"));
    sources.look();
    assert_eq!(revoked(&mut sources), []);
}

/// The CPU time for a look at a folder with this many files that have not changed.
fn look_ms(files: usize) -> f64 {
    let folder = tempdir().unwrap();
    for number in 0..files {
        write(
            &folder,
            &number.to_string(),
            b"-----BEGIN CERTIFICATE-----\n",
        );
    }
    let mut sources = Sources::new(vec![folder.path().into()]);
    look_until_settled(&mut sources);
    let cpu_ms = || {
        let now = clock_gettime(ClockId::ThreadCPUTime);
        now.tv_sec as f64 * 1000.0 + now.tv_nsec as f64 / 1_000_000.0
    };
    let looks = (0..3).map(|_| {
        let begun_ms = cpu_ms();
        assert_eq!(sources.look(), []);
        cpu_ms() - begun_ms
    });
    looks.fold(f64::MAX, f64::min)
}

#[test]
fn a_look_takes_as_long_for_each_file_of_a_large_folder_as_of_a_small_one() {
    let (small, large) = (look_ms(300), look_ms(3000));
    assert!(large < 30.0 * small, "{small} ms, {large} ms");
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
