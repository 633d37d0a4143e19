//! A map of bounded size that forgets what was touched longest ago.

use std::{collections::HashMap, hash::Hash, time::Duration};

/// The map. Times are of the monotonic clock.
#[derive(Debug)]
pub(super) struct Recent<K, V> {
    max: usize,
    entries: HashMap<K, (Duration, V)>,
}

impl<K: Eq + Hash + Clone, V: Default> Recent<K, V> {
    /// Room for `max` entries, which is made as they come.
    pub(super) fn new(max: usize) -> Self {
        Self {
            max,
            entries: HashMap::new(),
        }
    }

    /// The entry of `key`, new if it has none, and the one that was forgotten for it. That takes a look at each: the
    /// map is for keys that come again.
    pub(super) fn touch(&mut self, now: Duration, key: K) -> (&mut V, Option<V>) {
        let mut forgotten = None;
        if self.entries.len() >= self.max && !self.entries.contains_key(&key) {
            let oldest = self.entries.iter().min_by_key(|(_, (touched, _))| *touched);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                forgotten = self.entries.remove(&oldest).map(|(_, value)| value);
            }
        }
        let (touched, value) = self.entries.entry(key).or_default();
        *touched = now;
        (value, forgotten)
    }

    /// Forgets the entries whose key is none that `is_kept`.
    pub(super) fn retain(&mut self, is_kept: impl Fn(&K) -> bool) {
        self.entries.retain(|key, _| is_kept(key));
    }

    /// The entry of `key`, left as old as it is.
    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|(_, value)| value)
    }

    /// All entries, those touched last first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        let mut entries: Vec<_> = self.entries.iter().collect();
        entries.sort_unstable_by_key(|(_, (touched, _))| std::cmp::Reverse(*touched));
        entries.into_iter().map(|(key, (_, value))| (key, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_touched_longest_ago_goes() {
        let mut recent: Recent<&str, u32> = Recent::new(2);
        let mut touch = |second, key| {
            let (value, forgotten) = recent.touch(Duration::from_secs(second), key);
            *value += 1;
            (*value, forgotten)
        };
        assert_eq!(touch(1, "a"), (1, None));
        assert_eq!(touch(2, "b"), (1, None));
        assert_eq!(touch(3, "a"), (2, None));
        assert_eq!(touch(4, "c"), (1, Some(1)));
        assert_eq!((recent.get(&"a"), recent.get(&"b")), (Some(&2), None));
        assert_eq!(recent.iter().collect::<Vec<_>>(), [(&"c", &1), (&"a", &2)]);
    }
}
