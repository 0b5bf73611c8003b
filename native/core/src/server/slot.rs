//! The layout of a session's slot.
//!
//! A plain session takes 96 bytes, [`Header`]. If it has a certificate, [`Chain`] follows; if it has a tail, two
//! bytes with its length and the tail itself follow that.

#![allow(unsafe_code)]

use super::slab::SlotRef;
use super::SessionKey;
use std::marker::PhantomData;
use std::mem::size_of;
use std::ptr::addr_of;
use std::slice;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use zeroize::Zeroize;

/// The policy keeps the session: it is on the clock.
pub(crate) const KEPT: u8 = 1;
/// The session is among the newest of its certificate, and so in the class of certified sessions.
pub(crate) const CERTIFIED: u8 = 2;
/// A [`Chain`] follows the header.
pub(crate) const HAS_CERTIFICATE: u8 = 4;
/// The key is no id. The tail begins with the key and its length in two bytes.
pub(crate) const OTHER_KEY: u8 = 8;
/// A tail follows the header, or the chain.
pub(crate) const HAS_TAIL: u8 = 16;

#[repr(C)]
struct Header {
    id: [u8; 32],
    secret: [u8; 48],
    newer: SlotRef,
    older: SlotRef,
    /// In ticks; see [`super::age_of_birth`].
    born: u32,
    /// The number of the template, or 0.
    template: u16,
    /// The code of the age at the last use; see [`super::policy::code_of`].
    used: AtomicU8,
    flags: AtomicU8,
}

const _: () = assert!(size_of::<Header>() == 96);

/// A session's place among those of its certificate, which has a number.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Chain {
    pub certificate: u32,
    pub newer: SlotRef,
    pub older: SlotRef,
}

const _: () = assert!(size_of::<Chain>() == 12);

const LENGTH: usize = size_of::<u16>();

/// The content of a slot.
pub(crate) struct Content<'a> {
    pub key: SessionKey<'a>,
    pub secret: &'a [u8; 48],
    pub tail: &'a [u8],
    pub template: u16,
    pub born: u32,
    pub flags: u8,
}

impl Content<'_> {
    /// How many bytes the slot needs.
    pub fn bytes(&self) -> usize {
        let chain = match self.flags & HAS_CERTIFICATE {
            0 => 0,
            _ => size_of::<Chain>(),
        };
        let tail = match self.tail_bytes() {
            0 => 0,
            tail => LENGTH + tail,
        };
        size_of::<Header>() + chain + tail
    }

    /// Bytes of the tail, which includes a key that is no id.
    pub fn tail_bytes(&self) -> usize {
        match self.key {
            SessionKey::Id(_) => self.tail.len(),
            SessionKey::Other(key) => LENGTH + key.len() + self.tail.len(),
        }
    }
}

/// A slot that holds a session.
///
/// The caller of [`SlotPtr::new`] guarantees that the slot is allocated, and holds the locks that [`super`] demands for each
/// access.
#[derive(Clone, Copy)]
pub(crate) struct SlotPtr<'a> {
    place: *mut Header,
    _store: PhantomData<&'a ()>,
}

// SAFETY of all methods: the caller of `new` guarantees that the slot is allocated, and accesses its parts as the module above
// allows. No method makes a reference to the whole header, because `used` and `flags` change under readers.
#[allow(
    clippy::undocumented_unsafe_blocks,
    reason = "one argument holds for all"
)]
impl<'a> SlotPtr<'a> {
    /// # Safety `place` is the address of an allocated slot, which stays allocated for `'a`. The caller holds the order lock,
    /// or visits the slot's bucket, and writes only what is allowed then.
    pub unsafe fn new(place: *mut u8) -> Self {
        SlotPtr {
            place: place.cast(),
            _store: PhantomData,
        }
    }

    /// Fills an empty slot. Copies the secret directly to its place, and makes no other copy.
    pub fn fill(self, content: &Content) {
        let mut flags = content.flags;
        unsafe {
            if let SessionKey::Id(id) = content.key {
                (*self.place).id = *id;
            }
            let secret = std::ptr::addr_of_mut!((*self.place).secret);
            secret
                .cast::<u8>()
                .copy_from_nonoverlapping(content.secret.as_ptr(), 48);
            (*self.place).born = content.born;
            (*self.place).template = content.template;
            let tail = self.after_chain(flags);
            if content.tail_bytes() > 0 {
                flags |= HAS_TAIL;
                tail.cast::<u16>()
                    .write_unaligned(content.tail_bytes() as u16);
                let mut place = tail.add(LENGTH);
                if let SessionKey::Other(key) = content.key {
                    flags |= OTHER_KEY;
                    place.cast::<u16>().write_unaligned(key.len() as u16);
                    place
                        .add(LENGTH)
                        .copy_from_nonoverlapping(key.as_ptr(), key.len());
                    place = place.add(LENGTH + key.len());
                }
                place.copy_from_nonoverlapping(content.tail.as_ptr(), content.tail.len());
            }
            (*self.place).flags = AtomicU8::new(flags);
        }
    }

    /// Overwrites all `bytes` bytes of the slot with zeros.
    pub fn wipe(self, bytes: usize) {
        unsafe { slice::from_raw_parts_mut(self.place.cast::<u8>(), bytes) }.zeroize();
    }

    /// Copies all `bytes` bytes of the slot to an empty one.
    pub fn copy_to(self, other: SlotPtr, bytes: usize) {
        let (from, to) = (self.place.cast::<u8>(), other.place.cast::<u8>());
        unsafe { to.copy_from_nonoverlapping(from, bytes) };
    }

    pub fn newer(self) -> SlotRef {
        unsafe { (*self.place).newer }
    }

    pub fn older(self) -> SlotRef {
        unsafe { (*self.place).older }
    }

    pub fn set_newer(self, slot: SlotRef) {
        unsafe { (*self.place).newer = slot };
    }

    pub fn set_older(self, slot: SlotRef) {
        unsafe { (*self.place).older = slot };
    }

    pub fn born(self) -> u32 {
        unsafe { (*self.place).born }
    }

    pub fn template(self) -> u16 {
        unsafe { (*self.place).template }
    }

    pub fn used(self) -> &'a AtomicU8 {
        unsafe { &*addr_of!((*self.place).used) }
    }

    pub fn flags(self) -> u8 {
        self.atomic_flags().load(Relaxed)
    }

    /// Under the order lock.
    pub fn set_flag(self, flag: u8, is_set: bool) {
        let flags = self.flags();
        let flags = if is_set { flags | flag } else { flags & !flag };
        self.atomic_flags().store(flags, Relaxed);
    }

    fn atomic_flags(self) -> &'a AtomicU8 {
        unsafe { &*addr_of!((*self.place).flags) }
    }

    pub fn secret(self) -> &'a [u8; 48] {
        unsafe { &*addr_of!((*self.place).secret) }
    }

    /// The number of the session's certificate, if it has one.
    pub fn certificate(self) -> Option<u32> {
        let chain = self.chain_place()?;
        Some(unsafe { (*chain).certificate })
    }

    /// Only before a reader can find the session, or while its bucket is seized.
    pub fn set_certificate(self, certificate: u32) {
        if let Some(chain) = self.chain_place() {
            unsafe { (*chain).certificate = certificate };
        }
    }

    /// The session's place among those of its certificate, if it has one. Under the order lock.
    pub fn chain(self) -> Option<Chain> {
        let chain = self.chain_place()?;
        Some(unsafe { chain.read() })
    }

    /// Under the order lock.
    pub fn set_chain_newer(self, newer: SlotRef) {
        if let Some(chain) = self.chain_place() {
            unsafe { (*chain).newer = newer };
        }
    }

    /// Under the order lock.
    pub fn set_chain_older(self, older: SlotRef) {
        if let Some(chain) = self.chain_place() {
            unsafe { (*chain).older = older };
        }
    }

    fn chain_place(self) -> Option<*mut Chain> {
        let has_chain = self.flags() & HAS_CERTIFICATE != 0;
        has_chain.then(|| unsafe { self.place.add(1).cast() })
    }

    pub fn key(self) -> SessionKey<'a> {
        if self.flags() & OTHER_KEY == 0 {
            return SessionKey::Id(unsafe { &*addr_of!((*self.place).id) });
        }
        SessionKey::Other(self.split_tail().0)
    }

    /// The tail that the session was inserted with.
    pub fn tail(self) -> &'a [u8] {
        self.split_tail().1
    }

    /// The number of bytes that the slot was allocated for.
    pub fn bytes(self) -> usize {
        let flags = self.flags();
        let before = self.after_chain(flags) as usize - self.place as usize;
        match flags & HAS_TAIL {
            0 => before,
            _ => before + LENGTH + self.whole_tail().len(),
        }
    }

    fn after_chain(self, flags: u8) -> *mut u8 {
        let header_end = self.place.wrapping_add(1).cast::<u8>();
        match flags & HAS_CERTIFICATE {
            0 => header_end,
            _ => header_end.wrapping_add(size_of::<Chain>()),
        }
    }

    fn whole_tail(self) -> &'a [u8] {
        let flags = self.flags();
        if flags & HAS_TAIL == 0 {
            return &[];
        }
        let tail = self.after_chain(flags);
        unsafe {
            let length = tail.cast::<u16>().read_unaligned();
            slice::from_raw_parts(tail.add(LENGTH), length.into())
        }
    }

    fn split_tail(self) -> (&'a [u8], &'a [u8]) {
        let tail = self.whole_tail();
        if self.flags() & OTHER_KEY == 0 {
            return (&[], tail);
        }
        let (length, rest) = tail.split_at(LENGTH);
        let length = u16::from_ne_bytes([length[0], length[1]]);
        rest.split_at(length.into())
    }
}
