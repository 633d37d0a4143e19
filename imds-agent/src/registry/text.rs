//! Texts of records that many records have in common: images, zones, groups, keys and so on. Those that are read together are
//! kept once, so that an instance costs what it alone says.

use std::{
    borrow::Borrow, cell::RefCell, collections::HashSet, fmt, marker::PhantomData, ops::Deref, str::FromStr,
};

use arcstr::ArcStr;
use serde::{Deserialize, Deserializer, de};

/// A text that may be shared: one word in a record, where `Arc<str>` would be two.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Text(ArcStr);

/// The texts that are known.
#[derive(Default, Debug)]
pub(super) struct Texts {
    known: HashSet<ArcStr>,
    /// How many make it worth to look which of them nobody has any more.
    enough: usize,
}

/// Fewer are not looked through.
const ENOUGH_MIN: usize = 1024;

thread_local! {
    /// What the record that is being read by this thread may share; nothing where nobody reads records for long.
    static READING: RefCell<Option<Texts>> = const { RefCell::new(None) };
}

impl Texts {
    /// Lets what `read` reads share its texts with what was read before.
    pub fn share<T>(&mut self, read: impl FnOnce() -> T) -> T {
        READING.set(Some(std::mem::take(self)));
        let read = read();
        *self = READING.take().unwrap_or_default();
        if self.known.len() > self.enough.max(ENOUGH_MIN) {
            self.known.retain(|text| ArcStr::strong_count(text) > Some(1));
            self.enough = self.known.len() * 2;
        }
        read
    }

    /// What both know. A text that either knew by itself stays there twice, as long as somebody has it.
    pub fn merge(&mut self, other: Self) {
        self.known.extend(other.known);
    }

    fn get(&mut self, text: &str) -> ArcStr {
        if let Some(known) = self.known.get(text) {
            return known.clone();
        }
        let new = ArcStr::from(text);
        self.known.insert(new.clone());
        new
    }
}

impl Text {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Text {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        let shared = READING.with_borrow_mut(|texts| Some(texts.as_mut()?.get(text)));
        Self(shared.unwrap_or_else(|| text.into()))
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl FromStr for Text {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(text.into())
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse(deserializer)
    }
}

/// Reads what is written as a string, without a copy of that.
pub(super) fn parse<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: FromStr<Err: fmt::Display>,
    D: Deserializer<'de>,
{
    struct Visitor<T>(PhantomData<T>);

    impl<T: FromStr<Err: fmt::Display>> de::Visitor<'_> for Visitor<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            text.parse().map_err(E::custom)
        }
    }

    deserializer.deserialize_str(Visitor(PhantomData))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Vec<Text> {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn read_together_they_are_kept_once() {
        let mut texts = Texts::default();
        let first = texts.share(|| read(r#"["ami-1", "ami-1", "a\"b"]"#));
        let second = texts.share(|| read(r#"["ami-1", "a\"b"]"#));
        let outside = read(r#"["ami-1"]"#);
        assert!(ArcStr::ptr_eq(&first[0].0, &first[1].0) && ArcStr::ptr_eq(&first[0].0, &second[0].0));
        assert!(ArcStr::ptr_eq(&first[2].0, &second[1].0));
        assert!(first[0] == outside[0] && !ArcStr::ptr_eq(&first[0].0, &outside[0].0));
    }

    #[test]
    fn what_nobody_has_any_more_is_forgotten() {
        let mut texts = Texts::default();
        let kept = texts.share(|| read(r#"["kept"]"#));
        for number in 0..10 * ENOUGH_MIN {
            texts.share(|| read(&format!(r#"["{number}"]"#)));
            assert!(texts.known.len() <= ENOUGH_MIN + 1);
        }
        assert!(ArcStr::ptr_eq(
            &texts.share(|| read(r#"["kept"]"#))[0].0,
            &kept[0].0
        ));
    }
}
