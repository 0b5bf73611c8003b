//! Reads any revocation lists, well-formed or not. Reading does no harm, and the entries that it returns are sorted and come from
//! the lists.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    let Ok(lists) = rekindle_crl::parse(file) else {
        return;
    };
    for list in &lists {
        let hashes = || list.revoked.iter().map(|(_, hashes)| hashes);
        assert!(hashes().all(|hashes| hashes.is_sorted()));
        // An entry of an indirect list names a few authorities at most.
        assert!(list.revoked.len() <= 1 + list.entries * 16);
        assert!(list.entries <= file.len() / 4);
        assert!(list.issuer_name.len() <= file.len() && list.part.len() <= file.len());
    }
    // The parser must notice trailing bytes.
    if let [0x30, 0x80..=0xff, ..] = file {
        assert!(rekindle_crl::parse(&[file, b"\n"].concat()).is_err());
    }
});
