//! What can be wrong with a record that is well-formed JSON of the right types.

use std::{collections::HashSet, net::IpAddr};

use imds_ebpf::abi::{IMDS_MAC, MacAddr};

use super::{
    events::Events,
    instance::{
        Instance, InstanceMetadataTags, InstanceMetadataTagsIndex, NetworkInterface, check_name,
        is_metadata_tag_key,
    },
    problem::Finding,
    record::Rules,
    role::{IamArn, InstanceProfile, Role, RoleSource},
};

/// Collects findings about one record.
#[derive(Default)]
pub(super) struct Check {
    pub errors: Vec<Finding>,
    pub warnings: Vec<Finding>,
}

impl Check {
    pub fn instance(&mut self, instance: &Instance, rules: &Rules) {
        let (mut macs, mut taps) = (HashSet::new(), HashSet::new());
        for (index, interface) in instance.network_interfaces.iter().enumerate() {
            let field = format!("NetworkInterfaces[{index}]");
            if !macs.insert(interface.mac_address) {
                self.error(
                    format!("{field}.MacAddress"),
                    "is another interface's of this instance",
                );
            }
            if interface.tap.as_ref().is_some_and(|tap| !taps.insert(tap)) {
                self.error(format!("{field}.Tap"), "is another interface's of this instance");
            }
            self.interface(&field, interface);
        }
        if instance.network_interfaces.is_empty() {
            self.warning(
                "NetworkInterfaces",
                "is empty, so nobody can ask as this instance",
            );
        }
        if let Some(profile) = &instance.iam_instance_profile
            && IamArn::parse(&profile.arn, "instance-profile").is_none()
        {
            self.error(
                "IamInstanceProfile.Arn",
                "is not arn:<partition>:iam::<account>:instance-profile/<name>",
            );
        }
        let user_data_bytes = instance
            .user_data
            .as_ref()
            .map_or(0, |user_data| user_data.0.len());
        if user_data_bytes > rules.user_data_bytes_max {
            let max = rules.user_data_bytes_max;
            self.error(
                "UserData",
                format!("is {user_data_bytes} bytes before base64, more than {max}"),
            );
        }
        self.names(instance);
        self.accelerators(instance);
        self.tags(instance, rules);
        self.events(instance.events());
    }

    pub fn role(&mut self, role: &Role) {
        match IamArn::parse(&role.arn, "role") {
            None => self.error("Arn", "is not arn:<partition>:iam::<account>:role/<name>"),
            Some(arn) => self.arn_matches(&arn, role.role_name.as_str(), "RoleName", role.path.as_deref()),
        }
        if role
            .max_session_duration
            .is_some_and(|seconds| !(900..=43200).contains(&seconds))
        {
            self.error("MaxSessionDuration", "is not 900 to 43200 seconds");
        }
        if let Some(RoleSource::Process {
            command,
            timeout_seconds,
        }) = &role.credentials
        {
            if !command.first().is_some_and(|program| program.starts_with('/')) {
                self.error("Credentials.Command", "does not begin with an absolute path");
            }
            if command.iter().any(|argument| argument.contains('\0')) {
                self.error("Credentials.Command", "holds a NUL character");
            }
            if timeout_seconds.is_some_and(|seconds| !(1..=300).contains(&seconds)) {
                self.error("Credentials.TimeoutSeconds", "is not 1 to 300");
            }
        }
    }

    pub fn instance_profile(&mut self, profile: &InstanceProfile) {
        match IamArn::parse(&profile.arn, "instance-profile") {
            None => self.error(
                "Arn",
                "is not arn:<partition>:iam::<account>:instance-profile/<name>",
            ),
            Some(arn) => {
                let name = profile.instance_profile_name.as_str();
                self.arn_matches(&arn, name, "InstanceProfileName", profile.path.as_deref());
            }
        }
        if profile.roles.len() > 1 {
            self.error(
                "Roles",
                "holds more than the one role that an instance profile can have",
            );
        }
        for (index, role) in profile.roles.iter().enumerate() {
            if let Some(arn) = &role.arn
                && IamArn::parse(arn, "role").is_none_or(|arn| arn.name != role.role_name.as_str())
            {
                self.error(
                    format!("Roles[{index}].Arn"),
                    "is not the ARN of a role of that name",
                );
            }
        }
    }

    /// What listings of the metadata tree show.
    fn names(&mut self, instance: &Instance) {
        for (index, key) in instance.public_keys.iter().enumerate() {
            if key.key_name.chars().any(char::is_control) {
                let field = format!("PublicKeys[{index}].KeyName");
                self.error(field, "holds a control character, such as a line break");
            }
        }
        for (index, mapping) in instance.block_device_mappings.iter().enumerate() {
            let name = mapping.virtual_name.as_deref().filter(|name| !name.is_empty());
            if let Some(Err(error)) = name.map(check_name) {
                let field = format!("BlockDeviceMappings[{index}].VirtualName");
                self.warning(
                    field,
                    format!("cannot be shown under block-device-mapping: {error}"),
                );
            }
        }
    }

    fn accelerators(&mut self, instance: &Instance) {
        let mut ids = HashSet::new();
        for (index, association) in instance.elastic_gpu_associations.iter().enumerate() {
            if !ids.insert(association.elastic_gpu_id.as_str()) {
                let field = format!("ElasticGpuAssociations[{index}].ElasticGpuId");
                self.error(field, "is another association's of this instance");
            }
        }
        let associations = &instance.elastic_inference_accelerator_associations;
        for (index, association) in associations.iter().enumerate() {
            let field =
                format!("ElasticInferenceAcceleratorAssociations[{index}].ElasticInferenceAcceleratorArn");
            match association.end_of_arn().map(|id| (id, check_name(id))) {
                None => self.error(field, "does not end in /<id>"),
                Some((_, Err(error))) => self.error(field, format!("ends in no id: {error}")),
                Some((id, Ok(()))) if !ids.insert(id) => {
                    self.error(field, "is another association's of this instance");
                }
                Some((_, Ok(()))) => {}
            }
        }
    }

    fn tags(&mut self, instance: &Instance, rules: &Rules) {
        for (index, tag) in instance.tags.iter().enumerate() {
            let first = instance.tags.find(|key| key.cmp(&tag.key));
            if first.is_some_and(|(first, _)| first != index) {
                self.error(format!("Tags[{index}].Key"), "is another tag's of this instance");
            }
        }
        let options = instance.metadata_options.or(rules.options);
        let is_index_on = options.instance_metadata_tags_index == InstanceMetadataTagsIndex::Enabled;
        if options.instance_metadata_tags == InstanceMetadataTags::Disabled {
            if instance.metadata_options.instance_metadata_tags_index
                == Some(InstanceMetadataTagsIndex::Enabled)
            {
                self.warning(
                    "MetadataOptions.InstanceMetadataTagsIndex",
                    "is without effect while InstanceMetadataTags is disabled",
                );
            }
            return;
        }
        for (index, tag) in instance.tags.iter().enumerate() {
            if !is_index_on && !is_metadata_tag_key(&tag.key) {
                self.warning(
                    format!("Tags[{index}].Key"),
                    "cannot be shown under tags/instance: a key there is 1 to 255 of the characters \
                     a-z A-Z 0-9 - _ + = , . @ : and not '.', '..' or '_index'; with InstanceMetadataTagsIndex it \
                     can be had nevertheless",
                );
            }
        }
    }

    fn events(&mut self, events: &Events) {
        for (index, event) in events.maintenance.iter().enumerate() {
            if event
                .not_after
                .is_some_and(|not_after| not_after < event.not_before)
            {
                self.error(
                    format!("Events.Maintenance[{index}].NotAfter"),
                    "is before NotBefore",
                );
            }
        }
    }

    fn interface(&mut self, field: &str, interface: &NetworkInterface) {
        let mac = interface.mac_address;
        if mac == MacAddr::default() || mac.0[0] & 1 == 1 || mac == IMDS_MAC {
            self.error(
                format!("{field}.MacAddress"),
                "is zero, a multicast address or the service's own",
            );
        }
        if interface.tap.as_deref().is_some_and(|tap| !is_tap_name(tap)) {
            self.error(
                format!("{field}.Tap"),
                "is not a network device's name (1 to 15 characters without '/', ':' and spaces), with or without a network namespace and '/' before it",
            );
        }
        let blocks = [
            (
                "SubnetIpv4CidrBlock",
                interface.subnet_ipv4_cidr_block.as_slice(),
                true,
            ),
            ("SubnetIpv6CidrBlocks", &interface.subnet_ipv6_cidr_blocks, false),
            ("VpcIpv4CidrBlocks", &interface.vpc_ipv4_cidr_blocks, true),
            ("VpcIpv6CidrBlocks", &interface.vpc_ipv6_cidr_blocks, false),
        ];
        for (name, blocks, ipv4) in blocks {
            if !blocks.iter().all(|block| is_cidr_block(block, ipv4)) {
                self.error(
                    format!("{field}.{name}"),
                    "is not a block in CIDR notation, such as 10.0.0.0/24 or fd00::/64",
                );
            }
        }
    }

    fn arn_matches(&mut self, arn: &IamArn<'_>, name: &str, name_field: &str, path: Option<&str>) {
        if arn.name != name {
            self.error("Arn", format!("does not end in {name_field}"));
        }
        if path.is_some_and(|path| path != arn.path) {
            self.error("Path", "is not the path in Arn");
        }
    }

    fn error(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.errors.push(Finding::field(field, message));
    }

    fn warning(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.warnings.push(Finding::field(field, message));
    }
}

/// A device of the agent's own network namespace, or `namespace/device`. A namespace is called by the name of a file.
fn is_tap_name(name: &str) -> bool {
    let Some((namespace, device)) = name.split_once('/') else {
        return is_device_name(name);
    };
    let is_file_name = (1..=255).contains(&namespace.len())
        && !matches!(namespace, "." | "..")
        && !namespace.bytes().any(|byte| byte.is_ascii_control());
    is_file_name && is_device_name(device)
}

/// The kernel's `dev_valid_name`.
fn is_device_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && !matches!(name, "." | "..")
        && !name
            .bytes()
            .any(|byte| byte == b'/' || byte == b':' || byte == 0 || byte.is_ascii_whitespace())
}

fn is_cidr_block(text: &str, ipv4: bool) -> bool {
    let Some((address, length)) = text.split_once('/') else {
        return false;
    };
    let (Ok(address), Ok(length)) = (address.parse::<IpAddr>(), length.parse::<u8>()) else {
        return false;
    };
    address.is_ipv4() == ipv4 && length <= if ipv4 { 32 } else { 128 }
}
