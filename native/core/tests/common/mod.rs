//! A template that is a number, which the tests of the crate share.

use rekindle_core::{Made, Pattern};

/// The template with this number.
pub struct Common(pub u8);

impl Pattern<u8> for Common {
    fn hash(&self) -> u64 {
        0
    }
    fn matches(&self, template: &u8) -> bool {
        *template == self.0
    }
    fn make(&self) -> Option<Made<u8>> {
        Some(Made {
            template: self.0,
            bytes: 100,
            part: None,
        })
    }
}
