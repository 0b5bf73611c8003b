use std::fmt;
use zeroize::Zeroize;

/// Bytes that are overwritten when dropped and never shown by `Debug`.
pub struct Secret(Box<[u8]>);

impl Secret {
    /// Copies `bytes`. The caller wipes its own copy.
    pub fn new(bytes: &[u8]) -> Self {
        Secret(Box::from(bytes))
    }

    /// The bytes themselves.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_byte() {
        let secret = Secret::new(b"master secret");
        assert_eq!(format!("{secret:?}"), "Secret(13 bytes)");
    }
}
