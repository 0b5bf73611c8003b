//! Any calls on a server's store, which has to agree with a naive one after each of them. Keys and tails of
//! all lengths go in, and are read out of their slots again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rekindle_core::model::{check, Bounds, Call};

fuzz_target!(|input: (Bounds, Vec<Call>)| {
    let (bounds, calls) = input;
    check(&bounds, &calls);
});
