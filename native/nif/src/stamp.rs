//! The time stamp of a session that is handed out, in OTP's native monotonic time.
//!
//! `erlang:monotonic_time/0` takes a lock in the BEAM, and a fifth of a lookup. OTP only wants a stamp
//! that is younger than the sessions' lifetime, which it counts in seconds: so OTP's clock is read once a
//! second, and the library's own tells what has passed since.

#![allow(unsafe_code)]

use crate::words::{make_integer, Word};
use rustler::sys::{enif_monotonic_time, ErlNifTimeUnit};
use rustler::Env;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

/// How long a comparison of the clocks holds.
const COMPARE_EVERY_MS: u64 = 1000;

/// The library's clock goes in steps of some milliseconds. The stamp is put back by more, so as not to be
/// in the future.
const STEP_MS: i64 = 20;

/// OTP's native time units in a millisecond.
static NATIVE_PER_MS: AtomicI64 = AtomicI64::new(0);

/// What OTP's clock is ahead of the library's, and when that was found.
static AHEAD_MS: AtomicI64 = AtomicI64::new(0);
static COMPARED_AT_MS: AtomicU64 = AtomicU64::new(NEVER);
const NEVER: u64 = u64::MAX;

/// Takes note of OTP's unit. For the library's load function.
pub fn set_unit(native_per_ms: i64) {
    NATIVE_PER_MS.store(native_per_ms, Relaxed);
}

/// The present, which is `now_ms` by the library's clock, or some milliseconds before. For a thread of
/// the BEAM.
pub fn present(env: Env<'_>, now_ms: u64) -> Word<'_> {
    let compared_at = COMPARED_AT_MS.load(Relaxed);
    if compared_at == NEVER || now_ms.saturating_sub(compared_at) >= COMPARE_EVERY_MS {
        // SAFETY: takes a unit of time and returns a number.
        let otp_now_ms = unsafe { enif_monotonic_time(ErlNifTimeUnit::ERL_NIF_MSEC) };
        // A test that puts the library's clock forward means OTP's as well.
        let otp_now_ms = otp_now_ms + rekindle_core::advanced_ms() as i64;
        AHEAD_MS.store(otp_now_ms - now_ms as i64 - STEP_MS, Relaxed);
        COMPARED_AT_MS.store(now_ms, Relaxed);
    }
    let stamp_ms = now_ms as i64 + AHEAD_MS.load(Relaxed);
    make_integer(env, stamp_ms * NATIVE_PER_MS.load(Relaxed))
}
