//! Where the last panic was, for the log line about its fault.

use std::panic::{self, PanicHookInfo};
use std::sync::{Mutex, PoisonError};

static LAST: Mutex<Option<String>> = Mutex::new(None);

/// Makes panics of this library remember their place, and write nothing to the node's standard error: that could block a
/// scheduler, and the message could contain a part of a session.
pub fn note_quietly() {
    panic::set_hook(Box::new(note));
}

fn note(panic: &PanicHookInfo) {
    let place = panic
        .location()
        .map(|place| format!("{}:{}", place.file(), place.line()));
    *LAST.lock().unwrap_or_else(PoisonError::into_inner) = place;
}

/// File and line of the last panic.
pub fn last() -> Option<String> {
    LAST.lock().unwrap_or_else(PoisonError::into_inner).clone()
}
