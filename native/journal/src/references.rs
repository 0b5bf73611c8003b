//! Records that sessions in a log refer to.

use crate::clock::now_ms;
use crate::record::ContentHash;
use crate::revocations::Knowledge;
use crate::suites::Suite;
use rekindle_core::TemplateName;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

/// Limits on the templates, and on each other kind of record that sessions refer to.
const MAX_TEMPLATES: usize = 4096;
pub(crate) const MAX_REFERENCES: usize = if cfg!(test) { 1024 } else { 65_536 };

/// Records that sessions refer to when they are read.
#[derive(Default)]
pub(crate) struct References {
    pub templates: HashMap<ContentHash, KnownTemplate>,
    pub knowledge: HashMap<ContentHash, Learned<Arc<Knowledge>>>,
    pub clocks: HashMap<u64, Learned<(i64, u64)>>,
}

/// A record to refer to, and until when sessions may do so, by the monotonic clock.
pub(crate) struct Learned<V> {
    pub value: V,
    until_ms: u64,
}

/// A template that the log has.
pub(crate) struct KnownTemplate {
    pub content: Box<[u8]>,
    until_ms: u64,
    /// Its name in the store, while sessions use it.
    pub template: Option<TemplateName>,
    /// The cipher suite of its sessions, once it was used.
    pub suite: Option<Suite>,
}

impl References {
    /// Learns a template for `keep_ms`. `false` if there are too many.
    pub fn learn_template(&mut self, hash: ContentHash, content: &[u8], keep_ms: u64) -> bool {
        let now_ms = now_ms();
        let until_ms = now_ms.saturating_add(keep_ms);
        if let Some(known) = self.templates.get_mut(&hash) {
            known.until_ms = known.until_ms.max(until_ms);
            return true;
        }
        if self.templates.len() >= MAX_TEMPLATES {
            self.templates.retain(|_, known| known.until_ms > now_ms);
        }
        if self.templates.len() >= MAX_TEMPLATES {
            return false;
        }
        let known = KnownTemplate {
            content: content.into(),
            until_ms,
            template: None,
            suite: None,
        };
        self.templates.insert(hash, known);
        true
    }

    /// Learns what a node knew, for `keep_ms`. `is_new` says whether the record is newer than those that are known.
    pub fn learn_knowledge(
        &mut self,
        hash: ContentHash,
        knowledge: Knowledge,
        keep_ms: u64,
        is_new: bool,
    ) {
        let knowledge = Arc::new(knowledge);
        insert(&mut self.knowledge, hash, knowledge, keep_ms, is_new);
    }

    /// Likewise learns a writer's clock. If it is newer than a known one, returns the known one.
    pub fn learn_clock(
        &mut self,
        writer: u64,
        clock: (i64, u64),
        keep_ms: u64,
        is_new: bool,
    ) -> Option<i64> {
        let former = self.clocks.get(&writer).map(|learned| learned.value);
        if former.is_some_and(|(_, revision)| revision > clock.1) {
            return None;
        }
        insert(&mut self.clocks, writer, clock, keep_ms, is_new);
        former.map(|(zero_ms, _)| zero_ms)
    }
}

fn insert<K: Copy + Hash + Eq, V>(
    learned: &mut HashMap<K, Learned<V>>,
    key: K,
    value: V,
    keep_ms: u64,
    is_new: bool,
) {
    let now_ms = now_ms();
    if learned.len() >= MAX_REFERENCES && !learned.contains_key(&key) {
        learned.retain(|_, known| known.until_ms > now_ms);
        // A replay begins with the newest records, so the others can be missed.
        if is_new {
            make_room(learned, |known| known.until_ms);
        } else if learned.len() >= MAX_REFERENCES {
            return;
        }
    }
    let until_ms = now_ms.saturating_add(keep_ms);
    learned.insert(key, Learned { value, until_ms });
}

/// If there are too many references, drops a part of them: those with the smallest times.
pub(crate) fn make_room<K: Copy + Hash + Eq, V>(
    references: &mut HashMap<K, V>,
    time_ms: impl Fn(&V) -> u64,
) {
    if references.len() < MAX_REFERENCES {
        return;
    }
    let times = references.iter().map(|(key, value)| (time_ms(value), *key));
    let mut times: Vec<(u64, K)> = times.collect();
    let count = MAX_REFERENCES / 16;
    times.select_nth_unstable_by_key(count, |(at_ms, _)| *at_ms);
    for (_, key) in &times[..count] {
        references.remove(key);
    }
}
