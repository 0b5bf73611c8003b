//! Faults that tests inject. Other builds contain none of this.

/// Fails if a test has injected a fault.
#[cfg(not(feature = "testing"))]
pub fn fail_point() -> rustler::NifResult<()> {
    Ok(())
}

#[cfg(feature = "testing")]
pub use injected::fail_point;

#[cfg(feature = "testing")]
mod injected {
    use rustler::{Atom, Error, NifResult};
    use std::sync::atomic::{AtomicU32, AtomicU8, Ordering::Relaxed};

    const NONE: u8 = 0;
    const PANIC: u8 = 1;
    const REFUSAL: u8 = 2;

    static MODE: AtomicU8 = AtomicU8::new(NONE);

    /// How many calls succeed before the one that fails.
    static SPARED: AtomicU32 = AtomicU32::new(EVERY_CALL_FAILS);
    const EVERY_CALL_FAILS: u32 = u32::MAX;

    mod atoms {
        rustler::atoms! { ok, none, panic, refusal }
    }

    /// Makes every later call fail as `mode` says.
    #[rustler::nif]
    fn inject_fault(mode: Atom) -> NifResult<Atom> {
        inject(mode, EVERY_CALL_FAILS)
    }

    /// Lets the next `spared` calls succeed, and makes the one after them fail, to hit the middle of an operation.
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

    pub fn fail_point() -> NifResult<()> {
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
