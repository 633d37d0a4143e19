//! `taps`: which taps are the agent's business.

use std::fmt;

use serde::{Deserialize, Deserializer, de};

use crate::glob;

/// Which taps are the agent's business.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Taps {
    /// Every tap device of the host.
    #[default]
    Auto,
    /// Those whose name matches one of these patterns.
    Named(Vec<String>),
}

impl Taps {
    /// Whether the tap of this name is the agent's business. One in another network namespace (`namespace/tap`) is selected by its
    /// own name, too.
    pub fn select(&self, name: &str) -> bool {
        let tap = name.split_once('/').map_or(name, |(_, tap)| tap);
        let is_selected = |pattern: &String| {
            let whole = pattern.contains('/');
            glob::matches(pattern, if whole { name } else { tap })
        };
        match self {
            Self::Auto => true,
            Self::Named(patterns) => patterns.iter().any(is_selected),
        }
    }
}

impl<'de> Deserialize<'de> for Taps {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Taps;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"auto\" or a list of names and patterns")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Taps, E> {
                match text {
                    "auto" => Ok(Taps::Auto),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Taps, A::Error> {
                let mut patterns = Vec::new();
                while let Some(pattern) = list.next_element()? {
                    patterns.push(pattern);
                }
                Ok(Taps::Named(patterns))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}
