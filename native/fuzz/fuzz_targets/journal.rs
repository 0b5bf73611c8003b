//! Reads what anyone with access to a log could put there: any bytes, and changed records of another node. Nothing of
//! it may change anything. Also any bodies sealed with a key of the fleet, which must do no harm.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rekindle_journal::hostile::{check, Feed};

fuzz_target!(|feeds: Vec<Feed>| check(&feeds));
