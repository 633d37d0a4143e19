//! Records of the kind that an operator writes, for tests to start from.

use imds_ebpf::abi::MacAddr;
use serde_json::{Value, json};

/// The account of every record here.
pub const ACCOUNT: &str = "123456789012";

/// The instance's role; its instance profile is called otherwise on purpose.
pub const ROLE: &str = "web-server";

/// The instance profile around [`ROLE`].
pub const INSTANCE_PROFILE: &str = "web-server-profile";

/// The user data, before base64: `#!/bin/sh\necho hello from user data\n`.
pub const USER_DATA: &str = "#!/bin/sh\necho hello from user data\n";

/// The MAC of guest number `number`.
pub fn guest_mac(number: u8) -> MacAddr {
    MacAddr([0x06, 0, 0, 0, 0, number])
}

/// An instance with one interface on `tap`, tokens required.
pub fn instance(id: &str, mac: MacAddr, tap: &str, address: &str) -> Value {
    json!({
        "InstanceId": id,
        "ImageId": "ami-0abcdef1234567890",
        "InstanceType": "m5.large",
        "AmiLaunchIndex": 0,
        "Architecture": "x86_64",
        "LaunchTime": "2026-11-21T08:00:00+00:00",
        "KeyName": "operator",
        "PublicKeys": [{ "KeyName": "operator", "PublicKeyMaterial": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExample operator" }],
        "ReservationId": "r-0123456789abcdef0",
        "OwnerId": ACCOUNT,
        "Placement": { "AvailabilityZone": "eu-central-1a" },
        "PrivateDnsName": format!("ip-{}.eu-central-1.compute.internal", address.replace('.', "-")),
        "PrivateIpAddress": address,
        "SecurityGroups": [{ "GroupId": "sg-0123456789abcdef0", "GroupName": "web" }],
        "IamInstanceProfile": {
            "Arn": format!("arn:aws:iam::{ACCOUNT}:instance-profile/{INSTANCE_PROFILE}"),
            "Id": "AIPAABCDEFGHIJKLMNOPQ"
        },
        "MetadataOptions": { "HttpTokens": "required", "InstanceMetadataTags": "enabled" },
        "Tags": [{ "Key": "Name", "Value": "web-1" }, { "Key": "team", "Value": "blue" }],
        "NetworkInterfaces": [{
            "NetworkInterfaceId": "eni-0123456789abcdef0",
            "MacAddress": mac.to_string(),
            "Tap": tap,
            "OwnerId": ACCOUNT,
            "SubnetId": "subnet-0123456789abcdef0",
            "VpcId": "vpc-0123456789abcdef0",
            "PrivateIpAddress": address,
            "PrivateIpAddresses": [{ "PrivateIpAddress": address, "Primary": true }],
            "Groups": [{ "GroupId": "sg-0123456789abcdef0", "GroupName": "web" }],
            "Attachment": { "DeviceIndex": 0, "NetworkCardIndex": 0 },
            "SubnetIpv4CidrBlock": "10.0.0.0/24",
            "VpcIpv4CidrBlocks": ["10.0.0.0/16"]
        }],
        "UserData": "IyEvYmluL3NoCmVjaG8gaGVsbG8gZnJvbSB1c2VyIGRhdGEK"
    })
}

/// The role, with the trust policy that EC2 makes.
pub fn role() -> Value {
    json!({
        "Path": "/",
        "RoleName": ROLE,
        "RoleId": "AROAABCDEFGHIJKLMNOPQ",
        "Arn": format!("arn:aws:iam::{ACCOUNT}:role/{ROLE}"),
        "AssumeRolePolicyDocument": {
            "Version": "2012-10-17",
            "Statement": [{
                "Effect": "Allow",
                "Principal": { "Service": "ec2.amazonaws.com" },
                "Action": "sts:AssumeRole"
            }]
        },
        "MaxSessionDuration": 3600
    })
}

/// The instance profile.
pub fn instance_profile() -> Value {
    json!({
        "Path": "/",
        "InstanceProfileName": INSTANCE_PROFILE,
        "InstanceProfileId": "AIPAABCDEFGHIJKLMNOPQ",
        "Arn": format!("arn:aws:iam::{ACCOUNT}:instance-profile/{INSTANCE_PROFILE}"),
        "Roles": [{ "RoleName": ROLE }]
    })
}
