//! Why a tap is bound to nobody, in words for the log.

use std::{fmt, sync::Arc};

use imds_ebpf::abi::MacAddr;

use crate::registry::{InstanceId, snapshot::Member};

/// Why a tap is bound to nobody.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Nobody {
    /// No record names it, and its own MAC points to no record's interface.
    Unnamed,
    /// Its own MAC points to an interface whose record names another tap.
    NamesAnother {
        /// Whose interface.
        instance: InstanceId,
        /// The tap that the record names.
        tap: String,
    },
    /// Its own MAC points to several interfaces.
    SeveralInterfaces(Vec<(InstanceId, MacAddr)>),
    /// Several taps' own MACs point to the same interface.
    SeveralTaps {
        /// The interface's.
        mac: MacAddr,
        /// The names of all of them, in the order of their indices.
        taps: Vec<String>,
    },
}

impl Nobody {
    pub(super) fn several_interfaces(interfaces: &[(Arc<Member>, usize)]) -> Self {
        let named = interfaces.iter().filter_map(|(member, index)| {
            let interface = member.instance.network_interfaces.get(*index)?;
            Some((member.instance.instance_id.clone(), interface.mac_address))
        });
        let mut named: Vec<_> = named.collect();
        // The snapshot has them in no order, and the same ones in another order are no news.
        named.sort_unstable_by_key(|(_, mac)| mac.0);
        Self::SeveralInterfaces(named)
    }

    /// Whether somebody should look: the host says two things at once.
    pub fn is_ambiguous(&self) -> bool {
        matches!(self, Self::SeveralInterfaces(_) | Self::SeveralTaps { .. })
    }
}

impl fmt::Display for Nobody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unnamed => f.write_str("no record names it or has the MAC that it shows"),
            Self::NamesAnother { instance, tap } => {
                write!(f, "its MAC points to {instance}, whose record names tap {tap}")
            }
            Self::SeveralInterfaces(interfaces) => {
                f.write_str("its MAC points to several interfaces:")?;
                let mut separator = "";
                for (instance, mac) in interfaces {
                    write!(f, "{separator} {mac} of {instance}")?;
                    separator = ",";
                }
                f.write_str("; name the tap in a record")
            }
            Self::SeveralTaps { mac, taps } => {
                write!(
                    f,
                    "the MACs of several taps point to {mac}: {}; name one in its record",
                    taps.join(", ")
                )
            }
        }
    }
}
