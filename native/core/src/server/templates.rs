//! The parts that many sessions share, kept once.
//!
//! A template has a number of 16 bits, which is all that a session keeps of it. Each session, and each [`Held`], is a hold.
//! With the last hold the template goes. Several templates can share a part: all templates of one listener share its
//! certificates. The store counts such a part once.

#![allow(unsafe_code)]

use super::pages::Zeroed;
use crate::sync::Mutex;
use std::collections::HashMap;
use std::ops::Deref;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering::*};

/// Most templates of a scope. Numbers go from 1 to this.
pub(crate) const MAX_TEMPLATES: usize = u16::MAX as usize;

/// Bytes of a template beside those that its maker counts: its entry, and its places in the tables.
const ENTRY_BYTES: u64 = 160;

/// Distinguishes templates, also those of different scopes and times.
static NEXT_SERIAL: AtomicU64 = AtomicU64::new(1);

/// Describes a template without making one.
pub trait Pattern<T> {
    /// A hash, which is equal for all patterns that the same template matches.
    fn hash(&self) -> u64;
    /// Whether `template` is the described one.
    fn matches(&self, template: &T) -> bool;
    /// Makes the template. `None` if sessions like this must not have one.
    fn make(&self) -> Option<Made<T>>;
}

/// A template that a [`Pattern`] made.
pub struct Made<T> {
    /// The template.
    pub template: T,
    /// Bytes that it takes alone.
    pub bytes: u64,
    /// The part that it shares with others.
    pub part: Option<Part>,
}

/// A part that several templates share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Identifies the part.
    pub key: usize,
    /// Bytes that it takes.
    pub bytes: u64,
}

/// A template in a store.
pub struct Template<T> {
    value: T,
    serial: u64,
    number: u16,
    hash: u64,
    bytes: u64,
    part: Option<Part>,
    /// The number of sessions and [`Held`]s. It is raised from 0 only under the lock of the table.
    holds: AtomicU64,
}

impl<T> Template<T> {
    /// A number that no other template of this process has or had.
    pub fn serial(&self) -> u64 {
        self.serial
    }
}

impl<T> Deref for Template<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// The name of a template. It does not hold the template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TemplateName {
    number: u16,
    serial: u64,
}

/// A hold on a template, for a session to be inserted.
pub struct Held<'a, T> {
    templates: &'a Templates<T>,
    number: u16,
}

impl<T> Held<'_, T> {
    /// The template's name, for [`hold_template`](crate::ServerStore::hold_template).
    pub fn name(&self) -> TemplateName {
        TemplateName {
            number: self.number,
            serial: self.serial,
        }
    }

    pub(crate) fn number(&self) -> u16 {
        self.number
    }

    /// Passes the hold to a session.
    pub(crate) fn into_number(self) -> u16 {
        std::mem::ManuallyDrop::new(self).number
    }
}

impl<T> Deref for Held<'_, T> {
    type Target = Template<T>;

    fn deref(&self) -> &Template<T> {
        // SAFETY: it is held.
        unsafe { self.templates.get(self.number) }
    }
}

impl<T> Drop for Held<'_, T> {
    fn drop(&mut self) {
        self.templates.release(self.number);
    }
}

pub(crate) struct Templates<T> {
    /// Templates by number. Null if there is none.
    table: Zeroed<AtomicPtr<Template<T>>>,
    kept: Mutex<Kept>,
    bytes: AtomicU64,
}

struct Kept {
    /// Numbers by the hash of the pattern. Different patterns can have the same hash.
    by_hash: HashMap<u64, Vec<u16>>,
    /// How many templates have each part.
    parts: HashMap<usize, u32>,
    /// The template that was asked for last, which is mostly the next one as well.
    recent: u16,
    free: Vec<u16>,
    /// The largest number in use so far.
    last: u16,
    length: usize,
}

impl<T> Templates<T> {
    pub fn new() -> Self {
        Templates {
            table: Zeroed::new(),
            kept: Mutex::new(Kept {
                by_hash: HashMap::new(),
                parts: HashMap::new(),
                recent: 0,
                free: Vec::new(),
                last: 0,
                length: 0,
            }),
            bytes: AtomicU64::new(0),
        }
    }

    /// Bytes that all templates take.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    pub fn len(&self) -> usize {
        self.kept.lock().length
    }

    /// Calls `visit` with each template, under the lock of the table.
    pub fn for_each(&self, mut visit: impl FnMut(&T)) {
        let kept = self.kept.lock();
        for number in 1..=kept.last {
            if let Some(template) = self.find(number) {
                visit(&template.value);
            }
        }
    }

    /// The template with this number.
    ///
    /// # Safety
    /// The template is held for as long as the reference is used.
    pub unsafe fn get(&self, number: u16) -> &Template<T> {
        // SAFETY: the caller guarantees that it is held. Its place was reserved when it was made.
        unsafe { &*(*self.table.at(usize::from(number))).load(Acquire) }
    }

    /// The template that matches. Makes it if there is none. `None` if there are as many as there may be, or the pattern makes
    /// none.
    pub fn intern(&self, pattern: &impl Pattern<T>) -> Option<Held<'_, T>> {
        let mut kept = self.kept.lock();
        if let Some(recent) = self.find(kept.recent) {
            if pattern.matches(recent) {
                return Some(self.hold(recent));
            }
        }
        let hash = pattern.hash();
        for number in kept.by_hash.get(&hash).into_iter().flatten() {
            if let Some(template) = self.find(*number) {
                if pattern.matches(template) {
                    kept.recent = *number;
                    return Some(self.hold(template));
                }
            }
        }
        let number = match kept.free.last() {
            Some(number) => *number,
            None if usize::from(kept.last) < MAX_TEMPLATES => kept.last + 1,
            None => return None,
        };
        if !self.table.reserve(usize::from(number)) || !kept.reserve() {
            return None;
        }
        let made = pattern.make()?;
        let template = Box::new(Template {
            value: made.template,
            serial: NEXT_SERIAL.fetch_add(1, Relaxed),
            number,
            hash,
            bytes: made.bytes + ENTRY_BYTES,
            part: made.part,
            holds: AtomicU64::new(1),
        });
        kept.enter(&template, &self.bytes);
        // SAFETY: the place was reserved.
        unsafe { (*self.table.at(number.into())).store(Box::into_raw(template), Release) };
        Some(Held {
            templates: self,
            number,
        })
    }

    /// Takes a hold on a template, if it still exists.
    pub fn hold_again(&self, name: TemplateName) -> Option<Held<'_, T>> {
        let _kept = self.kept.lock();
        let template = self.find(name.number)?;
        (template.serial == name.serial).then(|| self.hold(template))
    }

    /// Gives up a hold.
    pub fn release(&self, number: u16) {
        // SAFETY: the caller has a hold, which ends here.
        let before = unsafe { self.get(number) }.holds.fetch_sub(1, AcqRel);
        if before > 1 {
            return;
        }
        let mut kept = self.kept.lock();
        // Before this thread had the lock, another one may have taken a hold, or may have released the template here; then the
        // number may even be another template's. Whichever it is, no thread has it if it has no holds under the lock.
        let unheld = self
            .find(number)
            .filter(|template| template.holds.load(Acquire) == 0);
        if let Some(template) = unheld {
            kept.leave(template, &self.bytes);
            // SAFETY: its place was reserved, `Box::into_raw` made the pointer, and no thread holds the template.
            let template = unsafe {
                let place = &*self.table.at(number.into());
                Box::from_raw(place.swap(null_mut(), AcqRel))
            };
            drop(template);
        }
    }

    /// Under the lock of the table.
    fn find(&self, number: u16) -> Option<&Template<T>> {
        if number == 0 || !self.table.reserve(number.into()) {
            return None;
        }
        // SAFETY: the place is reserved, and a template in it stays while the lock is held.
        unsafe { (*self.table.at(number.into())).load(Acquire).as_ref() }
    }

    /// Under the lock of the table.
    fn hold(&self, template: &Template<T>) -> Held<'_, T> {
        template.holds.fetch_add(1, Relaxed);
        Held {
            templates: self,
            number: template.number,
        }
    }
}

impl<T> Drop for Templates<T> {
    fn drop(&mut self) {
        for number in 1..=self.kept.lock().last {
            if let Some(template) = self.find(number) {
                // SAFETY: `Box::into_raw` made the pointer, and no other thread has the table.
                drop(unsafe { Box::from_raw((template as *const Template<T>).cast_mut()) });
            }
        }
    }
}

impl Kept {
    /// Reserves places for one more template in the tables. `false` if the system has no memory.
    fn reserve(&mut self) -> bool {
        let may_become_free = usize::from(self.last) + 1 - self.free.len();
        self.by_hash.try_reserve(1).is_ok()
            && self.parts.try_reserve(1).is_ok()
            && self.free.try_reserve(may_become_free).is_ok()
    }

    fn enter<T>(&mut self, template: &Template<T>, bytes: &AtomicU64) {
        match self.free.pop() {
            Some(_) => {}
            None => self.last = template.number,
        }
        self.by_hash
            .entry(template.hash)
            .or_default()
            .push(template.number);
        self.recent = template.number;
        self.length += 1;
        let mut added = template.bytes;
        if let Some(part) = template.part {
            let templates = self.parts.entry(part.key).or_insert(0);
            *templates += 1;
            added += if *templates == 1 { part.bytes } else { 0 };
        }
        bytes.fetch_add(added, Relaxed);
    }

    fn leave<T>(&mut self, template: &Template<T>, bytes: &AtomicU64) {
        if let Some(numbers) = self.by_hash.get_mut(&template.hash) {
            numbers.retain(|number| *number != template.number);
            if numbers.is_empty() {
                self.by_hash.remove(&template.hash);
            }
        }
        self.free.push(template.number);
        self.length -= 1;
        let mut removed = template.bytes;
        if let Some(part) = template.part {
            if let Some(templates) = self.parts.get_mut(&part.key) {
                *templates -= 1;
                if *templates == 0 {
                    self.parts.remove(&part.key);
                    removed += part.bytes;
                }
            }
        }
        bytes.fetch_sub(removed, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Word(&'static str);

    impl Pattern<String> for Word {
        fn hash(&self) -> u64 {
            self.0.len() as u64
        }
        fn matches(&self, template: &String) -> bool {
            template == self.0
        }
        fn make(&self) -> Option<Made<String>> {
            Some(Made {
                template: self.0.into(),
                bytes: 3,
                part: Some(Part {
                    key: 1,
                    bytes: 1000,
                }),
            })
        }
    }

    #[test]
    fn a_template_is_kept_once_and_while_it_is_held() {
        let templates = Templates::new();
        let first = templates.intern(&Word("one")).unwrap();
        let second = templates.intern(&Word("two")).unwrap();
        let again = templates.intern(&Word("one")).unwrap();
        assert_eq!(first.name(), again.name());
        assert_ne!(first.serial(), second.serial());
        assert_eq!(
            (templates.len(), templates.bytes()),
            (2, 1006 + 2 * ENTRY_BYTES)
        );
        let name = first.name();
        drop(first);
        assert!(templates.hold_again(name).is_some());
        drop(again);
        assert!(templates.hold_again(name).is_none());
        assert_eq!(
            (templates.len(), templates.bytes()),
            (1, 1003 + ENTRY_BYTES)
        );
        // A number that is used again belongs to another template.
        let third = templates.intern(&Word("three")).unwrap();
        assert_eq!(third.number(), name.number);
        assert!(templates.hold_again(name).is_none());
        drop((second, third));
        assert_eq!((templates.len(), templates.bytes()), (0, 0));
    }

    struct Number(usize);

    impl Pattern<usize> for Number {
        fn hash(&self) -> u64 {
            self.0 as u64
        }
        fn matches(&self, template: &usize) -> bool {
            *template == self.0
        }
        fn make(&self) -> Option<Made<usize>> {
            Some(Made {
                template: self.0,
                bytes: 8,
                part: None,
            })
        }
    }

    #[cfg(not(miri))]
    #[test]
    fn there_is_a_bound() {
        let templates = Templates::new();
        let mut held: Vec<_> = (0..MAX_TEMPLATES)
            .map(|n| templates.intern(&Number(n)).unwrap())
            .collect();
        assert!(templates.intern(&Number(MAX_TEMPLATES)).is_none());
        assert!(templates.intern(&Number(7)).is_some());
        held.pop();
        assert!(templates.intern(&Number(MAX_TEMPLATES)).is_some());
        drop(held);
        assert_eq!(templates.len(), 0);
    }
}
