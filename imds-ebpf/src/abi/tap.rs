//! Which tap: its interface index, and in which network namespace that is.

use core::{fmt, str::FromStr};

/// A network namespace: zero is the agent's own, any other number the inode that the kernel knows it by, which no two living
/// namespaces share.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Debug)]
pub struct NamespaceNumber(pub u32);

/// A tap: the kernel's interface index, which is unique within one network namespace, and above its 32 bits the
/// [`NamespaceNumber`]. So a tap of the agent's own namespace is its interface index and nothing else.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct TapIndex(pub u64);

impl NamespaceNumber {
    /// The agent's own network namespace.
    pub const OWN: Self = Self(0);
}

impl TapIndex {
    /// The device with this interface index in a network namespace.
    pub const fn within(namespace: NamespaceNumber, ifindex: u32) -> Self {
        Self((namespace.0 as u64) << 32 | ifindex as u64)
    }

    /// Where it is.
    pub const fn namespace(self) -> NamespaceNumber {
        NamespaceNumber((self.0 >> 32) as u32)
    }

    /// What it is called by in there.
    pub const fn ifindex(self) -> u32 {
        self.0 as u32
    }
}

impl fmt::Display for TapIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace() {
            NamespaceNumber::OWN => write!(f, "{}", self.ifindex()),
            NamespaceNumber(namespace) => write!(f, "{namespace}_{}", self.ifindex()),
        }
    }
}

/// The text is not what [`TapIndex`] prints.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TapIndexError;

impl FromStr for TapIndex {
    type Err = TapIndexError;

    fn from_str(text: &str) -> Result<Self, TapIndexError> {
        let (namespace, ifindex) = text.split_once('_').unwrap_or(("0", text));
        match (namespace.parse(), ifindex.parse()) {
            (Ok(namespace), Ok(ifindex)) => Ok(Self::within(NamespaceNumber(namespace), ifindex)),
            _ => Err(TapIndexError),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tap_is_its_index_here_and_a_pair_elsewhere() {
        extern crate std;
        use std::string::ToString as _;
        let (here, there) = (TapIndex(7), TapIndex::within(NamespaceNumber(u32::MAX), 7));
        assert_eq!((here.namespace(), here.ifindex()), (NamespaceNumber::OWN, 7));
        assert_eq!(
            (there.namespace(), there.ifindex()),
            (NamespaceNumber(u32::MAX), 7)
        );
        assert_eq!(
            (here.to_string(), there.to_string()),
            ("7".into(), "4294967295_7".into())
        );
        for tap in [here, there] {
            assert_eq!(tap.to_string().parse(), Ok(tap));
        }
        for text in ["", "_", "7_", "_7", "1_2_3", "x", "7-inbound"] {
            assert_eq!(text.parse::<TapIndex>(), Err(TapIndexError), "{text}");
        }
    }
}
