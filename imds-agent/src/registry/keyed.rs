//! Lists that are asked for one item by its key, as often as a guest likes: a list in the order of its record, with an
//! index that is made once, so that an item of thousands costs a request no more than one of a few.

use std::{cmp::Ordering, ops::Deref};

use serde::{Deserialize, Deserializer};

/// What items of a list are told apart by.
pub trait HasKey {
    /// The key's type, without the reference to it where there is one.
    type Key: ?Sized + Ord;

    /// The key.
    fn key(&self) -> &Self::Key;
}

/// A list in the order of its record. Of items with the same key the first one is found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Keyed<T> {
    items: Box<[T]>,
    /// Places in `items`, sorted by key; none for a single item, which most lists are.
    by_key: Box<[usize]>,
}

impl<T: HasKey> Keyed<T> {
    /// Makes the index.
    pub fn new(items: Vec<T>) -> Self {
        let indexed = if items.len() > 1 { items.len() } else { 0 };
        let mut by_key: Box<[usize]> = (0..indexed).collect();
        by_key.sort_by_key(|place| items.get(*place).map(HasKey::key));
        let items = items.into();
        Self { items, by_key }
    }

    /// The item whose key compares as equal, and its place in the list. `compare` orders a key and what is sought.
    pub fn find(&self, mut compare: impl FnMut(&T::Key) -> Ordering) -> Option<(usize, &T)> {
        if self.by_key.is_empty() {
            let single = self.items.first().filter(|item| compare(item.key()).is_eq());
            return single.map(|item| (0, item));
        }
        let mut is_less =
            |place: &usize| matches!(self.items.get(*place), Some(item) if compare(item.key()).is_lt());
        let first = self.by_key.partition_point(&mut is_less);
        let place = *self.by_key.get(first)?;
        let item = self.items.get(place)?;
        compare(item.key()).is_eq().then_some((place, item))
    }
}

impl<T> Deref for Keyed<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.items
    }
}

impl<'a, T> IntoIterator for &'a Keyed<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.items.iter()
    }
}

impl<T> Default for Keyed<T> {
    fn default() -> Self {
        Self {
            items: Box::default(),
            by_key: Box::default(),
        }
    }
}

impl<'de, T: HasKey + Deserialize<'de>> Deserialize<'de> for Keyed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::deserialize(deserializer).map(Self::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl HasKey for (u32, char) {
        type Key = u32;

        fn key(&self) -> &u32 {
            &self.0
        }
    }

    #[test]
    fn order_stays_and_the_first_of_equals_is_found() {
        let list = Keyed::new(vec![(3, 'a'), (1, 'b'), (3, 'c'), (2, 'd')]);
        let find = |key: u32| list.find(|other| other.cmp(&key));
        assert_eq!(list.iter().map(|(_, letter)| *letter).collect::<String>(), "abcd");
        assert_eq!(find(3), Some((0, &(3, 'a'))));
        assert_eq!(find(1), Some((1, &(1, 'b'))));
        assert_eq!((find(0), find(4)), (None, None));
        let single = Keyed::new(vec![(3, 'a')]);
        assert_eq!(single.find(|other| other.cmp(&3)), Some((0, &(3, 'a'))));
        assert_eq!(single.find(|other| other.cmp(&2)), None);
        assert_eq!(Keyed::<(u32, char)>::default().find(|_| Ordering::Equal), None);
    }

    #[test]
    fn one_of_thousands_takes_a_dozen_looks() {
        let list = Keyed::new((0..4096).rev().map(|key| (key, ' ')).collect());
        for key in [0, 1, 2047, 4095, 5000] {
            let mut looks = 0;
            list.find(|other| {
                looks += 1;
                other.cmp(&key)
            });
            assert!(looks <= 14, "{looks} looks for {key}");
        }
    }
}
