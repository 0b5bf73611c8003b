use crate::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};

/// Most templates a scope keeps. What fits none of them when there are as many goes the general way.
const MAX_TEMPLATES: usize = 1024;

/// What many sessions have in common, kept once for all of them.
///
/// Each session that is made from a template holds it; with the last of them it goes.
pub(crate) struct Templates<T> {
    kept: Mutex<Kept<T>>,
    bytes: AtomicU64,
}

struct Kept<T> {
    templates: Vec<Template<T>>,
    /// Place of the one that was asked for last: most often the next to be asked for.
    recent: usize,
}

struct Template<T> {
    hash: u64,
    bytes: u64,
    template: Arc<T>,
}

/// What a template has to be, without making one.
pub trait Pattern<T> {
    /// Equal for all patterns that the same template matches.
    fn hash(&self) -> u64;
    /// Whether `template` is what is looked for.
    fn matches(&self, template: &T) -> bool;
    /// Makes the template that matches, and says how many bytes it takes. `None` if there must be none.
    fn make(&self) -> Option<(T, u64)>;
}

impl<T> Templates<T> {
    pub fn new() -> Self {
        Templates {
            kept: Mutex::new(Kept {
                templates: Vec::new(),
                recent: 0,
            }),
            bytes: AtomicU64::new(0),
        }
    }

    /// What all templates take.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    pub fn len(&self) -> usize {
        self.kept.lock().templates.len()
    }

    pub fn for_each(&self, mut visit: impl FnMut(&T)) {
        for kept in &self.kept.lock().templates {
            visit(&kept.template);
        }
    }

    /// The template that matches, made if there is none. `None` if there are as many as there may be, or
    /// there must be none like this.
    pub fn intern(&self, pattern: &impl Pattern<T>) -> Option<Arc<T>> {
        let mut kept = self.kept.lock();
        if let Some(recent) = kept.templates.get(kept.recent) {
            if pattern.matches(&recent.template) {
                return Some(Arc::clone(&recent.template));
            }
        }
        let hash = pattern.hash();
        let is_it = |other: &Template<T>| other.hash == hash && pattern.matches(&other.template);
        if let Some(place) = kept.templates.iter().position(is_it) {
            kept.recent = place;
            return Some(Arc::clone(&kept.templates[place].template));
        }
        if kept.templates.len() == MAX_TEMPLATES {
            return None;
        }
        let (template, bytes) = pattern.make()?;
        let template = Arc::new(template);
        self.bytes.fetch_add(bytes, Relaxed);
        kept.recent = kept.templates.len();
        kept.templates.push(Template {
            hash,
            bytes,
            template: Arc::clone(&template),
        });
        Some(template)
    }

    /// Takes a hold on a template that still has others.
    pub fn hold(&self, template: &Weak<T>) -> Option<Arc<T>> {
        // Under the lock, or it could be taken while the last other hold is given up.
        let _kept = self.kept.lock();
        template.upgrade()
    }

    /// Gives up a session's hold on its template.
    pub fn release(&self, template: Arc<T>) {
        let mut kept = self.kept.lock();
        // One hold is the caller's, one is the table's. New ones are only taken under this lock.
        if Arc::strong_count(&template) == 2 {
            let is_it = |other: &Template<T>| Arc::ptr_eq(&other.template, &template);
            if let Some(place) = kept.templates.iter().position(is_it) {
                let removed = kept.templates.swap_remove(place);
                self.bytes.fetch_sub(removed.bytes, Relaxed);
            }
        }
        // Under the lock, or two who give up the last two holds would both see another.
        drop(template);
        drop(kept);
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
        fn make(&self) -> Option<(String, u64)> {
            Some((self.0.into(), 3))
        }
    }

    #[test]
    fn a_template_is_kept_once_and_while_it_is_held() {
        let templates = Templates::new();
        let first = templates.intern(&Word("one")).unwrap();
        let second = templates.intern(&Word("two")).unwrap();
        let again = templates.intern(&Word("one")).unwrap();
        assert!(Arc::ptr_eq(&first, &again));
        assert_eq!((templates.len(), templates.bytes()), (2, 6));
        templates.release(first);
        assert_eq!(templates.len(), 2);
        templates.release(again);
        assert_eq!(templates.len(), 1);
        templates.release(second);
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
        fn make(&self) -> Option<(usize, u64)> {
            Some((self.0, 8))
        }
    }

    #[test]
    fn there_is_a_bound() {
        let templates = Templates::new();
        let held: Vec<_> = (0..MAX_TEMPLATES)
            .map(|n| templates.intern(&Number(n)).unwrap())
            .collect();
        assert!(templates.intern(&Number(MAX_TEMPLATES)).is_none());
        assert!(templates.intern(&Number(7)).is_some());
        for template in held {
            templates.release(template);
        }
        assert!(templates.intern(&Number(MAX_TEMPLATES)).is_some());
    }
}
