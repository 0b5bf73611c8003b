//! Any revocation lists, well-formed or not: they are read without harm, and what is read of them is sorted and of them.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    let Ok(lists) = rekindle_crl::parse(file) else {
        return;
    };
    for list in &lists {
        let hashes = || list.revoked.iter().map(|(_, hashes)| hashes);
        assert!(hashes().all(|hashes| hashes.is_sorted()));
        // An entry of an indirect list can be of several authorities.
        assert!(list.revoked.len() <= 1 + list.entries * file.len());
        assert!(list.entries <= file.len() / 4);
        assert!(list.issuer_name.len() <= file.len() && list.part.len() <= file.len());
    }
    // What follows is seen.
    if let [0x30, 0x80..=0xff, ..] = file {
        assert!(rekindle_crl::parse(&[file, b"\n"].concat()).is_err());
    }
});
