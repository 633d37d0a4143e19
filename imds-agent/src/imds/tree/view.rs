//! What the tree says of one instance where it takes more than one field of the record to say it.
//!
//! A record that comes from `describe-instances` has empty strings where nothing is known; they count as absent.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use crate::{
    credentials::{Asked, RoleCredentials, RoleState},
    imds::{
        Caller, ExtendedCredentials,
        identity::{self, Part, Signatures},
    },
    now::Now,
    registry::{
        Instance, NetworkInterface,
        events::AutoScalingState,
        instance::{Placement, SecurityGroup},
        snapshot::Member,
    },
};

/// One instance at one time.
#[derive(Clone, Copy, Debug)]
pub struct View<'v> {
    /// The record, and what the registry says about it.
    pub member: &'v Member,
    /// The record.
    pub instance: &'v Instance,
    /// The state of the role session.
    pub role_state: Option<&'v RoleState>,
    /// The state of the session of the instance identity role.
    pub identity_state: Option<&'v RoleState>,
    /// The signed identity documents, for whoever may see them.
    identities: Option<&'v identity::Published>,
    /// Since the Unix epoch.
    pub now: Duration,
    /// How the guest asks.
    pub asked: Asked,
    /// Whether the undocumented form of role credentials is there.
    pub extended_credentials: ExtendedCredentials,
}

/// An interface, and its place in the record.
#[derive(Clone, Copy, Debug)]
pub struct Interface<'v> {
    /// The interface.
    pub record: &'v NetworkInterface,
    /// What the record says, else the place in the record: *ours*, so that the simplest record works with cloud-init.
    pub device_number: u32,
}

impl<'v> View<'v> {
    /// What `caller` sees.
    pub fn new(now: Now, caller: &Caller<'v>) -> Self {
        Self {
            member: caller.member,
            instance: &caller.member.instance,
            role_state: caller.role_state.map(|state| &**state),
            identity_state: caller.identity_state.map(|state| &**state),
            identities: Some(caller.identities),
            now: now.unix,
            asked: Asked::WithToken,
            extended_credentials: ExtendedCredentials::default(),
        }
    }

    /// The same for a guest that asks so.
    pub fn asked(self, asked: Asked, extended_credentials: ExtendedCredentials) -> Self {
        Self {
            asked,
            extended_credentials,
            ..self
        }
    }

    /// What depends on the record alone: no role session, and no time at which one could have ended.
    pub fn of_record(member: &'v Member) -> Self {
        Self {
            member,
            instance: &member.instance,
            role_state: None,
            identity_state: None,
            identities: None,
            now: Duration::ZERO,
            asked: Asked::WithToken,
            extended_credentials: ExtendedCredentials::default(),
        }
    }

    /// The signatures of `document`, the instance's current identity document; nothing while `part` is being made.
    pub fn signatures(&self, document: &[u8], part: Part) -> Option<Arc<Signatures>> {
        self.identities?.get(&self.instance.instance_id, document, part)
    }

    /// Every interface, in the order of the record.
    pub fn interfaces(&self) -> impl Iterator<Item = Interface<'v>> {
        let records = self.instance.network_interfaces.iter().enumerate();
        records.map(|(place, record)| Interface::new(place, record))
    }

    /// The interface whose device number is 0: the one that the instance's own MAC, addresses and names are those of.
    pub fn primary(&self) -> Option<Interface<'v>> {
        self.interfaces().find(|interface| interface.device_number == 0)
    }

    /// Whether `interface` is the primary one.
    pub fn is_primary(&self, interface: Interface<'v>) -> bool {
        self.primary()
            .is_some_and(|primary| std::ptr::eq(primary.record, interface.record))
    }

    /// The account that owns the instance.
    pub fn account(&self) -> Option<&'v str> {
        let primary = || self.primary()?.record.owner_id.as_deref();
        said(self.instance.owner_id.as_deref()).or_else(|| said(primary()))
    }

    /// EC2 says `(unknown)` of images that are backed by EBS.
    pub fn ami_manifest_path(&self) -> Option<&'v str> {
        said(self.instance.ami_manifest_path.as_deref()).or(Some("(unknown)"))
    }

    /// `describe-instances` says nothing of an on-demand instance.
    pub fn life_cycle(&self) -> Option<&'v str> {
        said(self.instance.instance_lifecycle.as_deref()).or(Some("on-demand"))
    }

    /// The virtualization. `describe-instances` says `xen` of Nitro instances too, so that says nothing.
    pub fn system(&self) -> Option<&'v str> {
        let system = self.instance.hypervisor.as_deref();
        system.filter(|system| matches!(*system, "nitro" | "xen-on-nitro"))
    }

    /// EC2's undocumented name for the way of virtualization.
    pub fn profile(&self) -> Option<&'static str> {
        match self.instance.virtualization_type.as_deref()? {
            "hvm" => Some("default-hvm"),
            "paravirtual" => Some("default-paravirtual"),
            _ => None,
        }
    }

    /// Whether the instance can hibernate, in the word that Amazon's agents in the guest parse.
    pub fn hibernation_configured(&self) -> Option<&'static str> {
        Some(match self.instance.hibernation_options.as_ref()?.configured {
            true => "true",
            false => "false",
        })
    }

    /// The state that the instance's Auto Scaling group wants it in.
    pub fn auto_scaling_state(&self) -> Option<&'v AutoScalingState> {
        let mut states = self.instance.events().auto_scaling.iter();
        states.rfind(|state| state.visibility().includes(self.now))
    }

    /// Where the instance runs.
    pub fn placement(&self) -> &'v Placement {
        &self.instance.placement
    }

    /// The availability zone.
    pub fn availability_zone(&self) -> Option<&'v str> {
        said(self.instance.placement.availability_zone.as_deref())
    }

    /// The region.
    pub fn region(&self) -> Option<&'v str> {
        self.instance.placement.region()
    }

    /// The partition that EC2 has the region in, and its domain.
    pub fn partition(&self) -> (&'static str, &'static str) {
        let region = self.region().unwrap_or_default();
        match region {
            _ if region.starts_with("cn-") => ("aws-cn", "amazonaws.com.cn"),
            _ if region.starts_with("us-gov-") => ("aws-us-gov", "amazonaws.com"),
            _ => ("aws", "amazonaws.com"),
        }
    }

    /// The private host name.
    pub fn local_hostname(&self) -> Option<&'v str> {
        let primary = || self.primary()?.record.private_dns_name.as_deref();
        said(self.instance.private_dns_name.as_deref()).or_else(|| said(primary()))
    }

    /// The private IPv4 address.
    pub fn local_ipv4(&self) -> Option<Ipv4Addr> {
        let primary = || self.primary()?.local_ipv4s().next();
        self.instance.private_ip_address.or_else(primary)
    }

    /// The IPv6 address.
    pub fn ipv6(&self) -> Option<Ipv6Addr> {
        let primary = || Some(self.primary()?.record.ipv6_addresses.first()?.ipv6_address);
        self.instance.ipv6_address.or_else(primary)
    }

    /// The public host name.
    pub fn public_hostname(&self) -> Option<&'v str> {
        let primary = || self.primary()?.public_hostname();
        said(self.instance.public_dns_name.as_deref()).or_else(primary)
    }

    /// The public IPv4 address.
    pub fn public_ipv4(&self) -> Option<Ipv4Addr> {
        let primary = || self.primary()?.public_ipv4s().next();
        self.instance.public_ip_address.or_else(primary)
    }

    /// The instance's security groups, which are those of its primary interface.
    pub fn security_groups(&self) -> &'v [SecurityGroup] {
        match (&*self.instance.security_groups, self.primary()) {
            ([], Some(primary)) => &primary.record.groups,
            (groups, _) => groups,
        }
    }

    /// The security groups of `interface`.
    pub fn interface_security_groups(&self, interface: Interface<'v>) -> &'v [SecurityGroup] {
        if interface.record.groups.is_empty() && self.is_primary(interface) {
            &self.instance.security_groups
        } else {
            &interface.record.groups
        }
    }

    /// The private host name of `interface`.
    pub fn interface_local_hostname(&self, interface: Interface<'v>) -> Option<&'v str> {
        let instance = || {
            self.instance
                .private_dns_name
                .as_deref()
                .filter(|_| self.is_primary(interface))
        };
        said(interface.record.private_dns_name.as_deref()).or_else(|| said(instance()))
    }

    /// Whether `credentials` are still of use.
    pub fn is_current(&self, credentials: &RoleCredentials) -> bool {
        let expiration = u64::try_from(credentials.expiration.as_second()).unwrap_or_default();
        self.now.as_secs() < expiration
    }
}

impl<'v> Interface<'v> {
    /// The interface that is at `place` in its instance's record.
    pub fn new(place: usize, record: &'v NetworkInterface) -> Self {
        let said = record.attachment.as_ref();
        let device_number = said.map_or_else(
            || u32::try_from(place).unwrap_or(u32::MAX),
            |attachment| attachment.device_index,
        );
        Self {
            record,
            device_number,
        }
    }

    /// Its private IPv4 addresses, the primary one first.
    pub fn local_ipv4s(self) -> impl Iterator<Item = Ipv4Addr> {
        let record = self.record;
        let listed = || record.private_ip_addresses.iter();
        let said = listed()
            .find(|address| address.primary)
            .map(|address| address.private_ip_address);
        let primary = record.private_ip_address.or(said);
        let others = listed().map(|address| address.private_ip_address);
        primary
            .into_iter()
            .chain(others.filter(move |address| Some(*address) != primary))
    }

    /// Its public IPv4 addresses, that of the primary private one first.
    pub fn public_ipv4s(self) -> impl Iterator<Item = Ipv4Addr> + 'v {
        let first = self
            .record
            .association
            .as_ref()
            .and_then(|association| association.public_ip);
        let others = self.associations().map(|(_, public_ip)| public_ip);
        first
            .into_iter()
            .chain(others.filter(move |public_ip| Some(*public_ip) != first))
    }

    /// The private IPv4 addresses that `public_ip` maps to.
    pub fn associated_with(self, public_ip: Ipv4Addr) -> impl Iterator<Item = Ipv4Addr> + 'v {
        let own = self
            .record
            .association
            .as_ref()
            .and_then(|association| association.public_ip);
        let primary = self.local_ipv4s().next().filter(|_| own == Some(public_ip));
        let listed = self.associations();
        let others = listed.filter_map(move |(private, public)| (public == public_ip).then_some(private));
        primary
            .into_iter()
            .chain(others.filter(move |private| Some(*private) != primary))
    }

    /// Its public host name.
    pub fn public_hostname(self) -> Option<&'v str> {
        let listed = self
            .record
            .private_ip_addresses
            .iter()
            .filter_map(|address| address.association.as_ref());
        let mut associations = self.record.association.iter().chain(listed);
        associations.find_map(|association| said(association.public_dns_name.as_deref()))
    }

    /// Its network card, if the record says one.
    pub fn network_card(self) -> Option<u32> {
        self.record.attachment.as_ref()?.network_card_index
    }

    fn associations(self) -> impl Iterator<Item = (Ipv4Addr, Ipv4Addr)> + 'v {
        self.record.private_ip_addresses.iter().filter_map(|address| {
            let public_ip = address.association.as_ref()?.public_ip?;
            Some((address.private_ip_address, public_ip))
        })
    }
}

/// `text`, unless it says nothing.
pub fn said(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.is_empty())
}
