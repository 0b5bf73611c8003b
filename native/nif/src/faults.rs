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
    use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

    const NONE: u8 = 0;
    const PANIC: u8 = 1;
    const REFUSAL: u8 = 2;

    static MODE: AtomicU8 = AtomicU8::new(NONE);

    mod atoms {
        rustler::atoms! { ok, none, panic, refusal }
    }

    /// Makes every later call fail in the way that `mode` names.
    #[rustler::nif]
    fn inject_fault(mode: Atom) -> NifResult<Atom> {
        let mode = match mode {
            mode if mode == atoms::none() => NONE,
            mode if mode == atoms::panic() => PANIC,
            mode if mode == atoms::refusal() => REFUSAL,
            _ => return Err(Error::BadArg),
        };
        MODE.store(mode, Relaxed);
        Ok(atoms::ok())
    }

    pub fn strike() -> NifResult<()> {
        match MODE.load(Relaxed) {
            PANIC => panic!("injected"),
            REFUSAL => Err(Error::RaiseAtom("injected")),
            _ => Ok(()),
        }
    }
}
