//! Faults that a test asks for. In any other build nothing is left of them.

/// Fails if a test has asked for it.
#[cfg(not(feature = "testing"))]
pub fn strike() -> rustler::NifResult<()> {
    Ok(())
}

#[cfg(feature = "testing")]
pub use injected::strike;

#[cfg(feature = "testing")]
mod injected {
    use rustler::{Atom, Error, NifResult};
    use std::sync::atomic::{AtomicU32, AtomicU8, Ordering::Relaxed};

    const NONE: u8 = 0;
    const PANIC: u8 = 1;
    const REFUSAL: u8 = 2;

    static MODE: AtomicU8 = AtomicU8::new(NONE);

    /// How many calls are spared before the one that fails.
    static SPARED: AtomicU32 = AtomicU32::new(EVERY_CALL_FAILS);
    const EVERY_CALL_FAILS: u32 = u32::MAX;

    mod atoms {
        rustler::atoms! { ok, none, panic, refusal }
    }

    /// Makes every later call fail in the way that `mode` names.
    #[rustler::nif]
    fn inject_fault(mode: Atom) -> NifResult<Atom> {
        inject(mode, EVERY_CALL_FAILS)
    }

    /// Spares the next calls, and makes one fail: in the middle of what somebody does with several.
    #[rustler::nif]
    fn inject_one_fault(mode: Atom, spared: u32) -> NifResult<Atom> {
        inject(mode, spared)
    }

    fn inject(mode: Atom, spared: u32) -> NifResult<Atom> {
        let mode = match mode {
            mode if mode == atoms::none() => NONE,
            mode if mode == atoms::panic() => PANIC,
            mode if mode == atoms::refusal() => REFUSAL,
            _ => return Err(Error::BadArg),
        };
        SPARED.store(spared, Relaxed);
        MODE.store(mode, Relaxed);
        Ok(atoms::ok())
    }

    pub fn strike() -> NifResult<()> {
        let mode = MODE.load(Relaxed);
        if mode == NONE {
            return Ok(());
        }
        match SPARED.load(Relaxed) {
            EVERY_CALL_FAILS => {}
            0 => MODE.store(NONE, Relaxed),
            spared => {
                SPARED.store(spared - 1, Relaxed);
                return Ok(());
            }
        }
        match mode {
            PANIC => panic!("injected"),
            REFUSAL => Err(Error::RaiseAtom("injected")),
            _ => Ok(()),
        }
    }
}
