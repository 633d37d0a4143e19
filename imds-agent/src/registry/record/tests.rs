use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::registry::instance::check_name;

const INSTANCE: &[u8] = include_bytes!("../../../../docs/examples/instances/web-1.json");
const ROLE: &[u8] = include_bytes!("../../../../docs/examples/roles/web.json");
const INSTANCE_PROFILE: &[u8] =
    include_bytes!("../../../../docs/examples/instance-profiles/web-servers.json");

fn example(kind: Kind) -> Value {
    let bytes = match kind {
        Kind::Instance => INSTANCE,
        Kind::Role => ROLE,
        Kind::InstanceProfile => INSTANCE_PROFILE,
    };
    let mut value: Value = serde_json::from_slice(bytes).unwrap();
    for wrapper in ["Role", "InstanceProfile"] {
        if let Some(inner) = value.get_mut(wrapper) {
            return inner.take();
        }
    }
    value
}

/// What is said about the example of `kind` with one change: errors if it is refused, else warnings.
fn findings(kind: Kind, change: impl FnOnce(&mut Value)) -> Result<Vec<Finding>, Vec<Finding>> {
    let mut value = example(kind);
    change(&mut value);
    let text = serde_json::to_vec_pretty(&value).unwrap();
    parse(kind, &text, &Rules::default()).map(|(_, warnings)| warnings)
}

fn refused_field(kind: Kind, change: impl FnOnce(&mut Value)) -> String {
    let errors = findings(kind, change).unwrap_err();
    assert_eq!(errors.len(), 1, "{errors:?}");
    errors[0].field.clone()
}

#[test]
fn examples_are_good_to_the_last_field() {
    for kind in Kind::ALL {
        assert_eq!(findings(kind, |_| {}), Ok(vec![]), "{kind:?}");
    }
    for (kind, wrapped) in [(Kind::Role, ROLE), (Kind::InstanceProfile, INSTANCE_PROFILE)] {
        let (from_wrapped, warnings) = parse(kind, wrapped, &Rules::default()).unwrap();
        assert_eq!(warnings, []);
        let bare = serde_json::to_vec(&example(kind)).unwrap();
        assert_eq!(parse(kind, &bare, &Rules::default()).unwrap().0, from_wrapped);
    }
}

/// Every block of JSON there is a piece of a record.
#[test]
fn documentation_of_records_is_true() {
    let document = include_str!("../../../../docs/instance-records.md");
    let blocks: Vec<_> = document
        .split("```json\n")
        .skip(1)
        .filter_map(|rest| rest.split_once("```"))
        .map(|(block, _)| block)
        .collect();
    assert!(blocks.len() >= 5, "{}", blocks.len());
    for block in blocks {
        let Value::Object(fields) = serde_json::from_str(block).unwrap() else {
            panic!("{block}");
        };
        let findings = findings(Kind::Instance, |instance| {
            instance.as_object_mut().unwrap().extend(fields);
        });
        assert_eq!(findings, Ok(vec![]), "{block}");
    }
}

#[test]
fn describe_instances_output_gives_reservation_and_owner() {
    let wrap = |instances: Value| {
        let output = json!({"Reservations": [
            {"ReservationId": "r-empty", "Groups": [], "Instances": []},
            {"ReservationId": "r-1", "OwnerId": "210987654321", "Groups": [], "Instances": instances},
        ]});
        parse(
            Kind::Instance,
            &serde_json::to_vec(&output).unwrap(),
            &Rules::default(),
        )
    };
    let mut instance = example(Kind::Instance);
    instance
        .as_object_mut()
        .unwrap()
        .retain(|key, _| key != "ReservationId" && key != "OwnerId");
    let (record, warnings) = wrap(json!([instance])).unwrap();
    let Record::Instance(record) = record else {
        panic!("{record:?}")
    };
    assert_eq!(record.reservation_id.as_deref(), Some("r-1"));
    assert_eq!(record.owner_id.as_deref(), Some("210987654321"));
    assert_eq!(
        (record.public_dns_name, record.placement.group_name),
        (None, None)
    );
    assert_eq!(warnings, []);
    for (instances, count) in [(json!([]), 0), (json!([instance, instance]), 2)] {
        let errors = wrap(instances).unwrap_err();
        assert_eq!(errors[0].field, "Reservations");
        assert!(
            errors[0].message.contains(&format!("holds {count} instances")),
            "{errors:?}"
        );
    }
}

#[test]
fn error_names_field_line_and_column() {
    let text = "{\n  \"InstanceId\": \"i-1\",\n  \"NetworkInterfaces\": [\n    {\"MacAddress\": \"nonsense\"}\n  ]\n}";
    let errors = parse(Kind::Instance, text.as_bytes(), &Rules::default()).unwrap_err();
    assert_eq!(errors[0].field, "NetworkInterfaces[0].MacAddress");
    assert_eq!(errors[0].place.unwrap().0, 4);
    assert!(errors[0].message.contains("octets"), "{errors:?}");
    assert!(!errors[0].message.contains(" at line "), "{errors:?}");

    let errors = parse(
        Kind::Role,
        b"{\"Role\":\n{\"RoleName\":\"a/b\"}}",
        &Rules::default(),
    )
    .unwrap_err();
    assert_eq!(
        (errors[0].field.as_str(), errors[0].place.unwrap().0),
        ("Role.RoleName", 2)
    );

    let errors = parse(Kind::Role, b"", &Rules::default()).unwrap_err();
    assert!(errors[0].message.contains("EOF"), "{errors:?}");
    let trailing = [ROLE, b"x"].concat();
    assert!(
        parse(Kind::Role, &trailing, &Rules::default()).unwrap_err()[0]
            .message
            .contains("trailing")
    );
}

#[test]
fn unknown_fields_are_warned_about_and_those_of_aws_are_not() {
    let warnings = findings(Kind::Instance, |instance| {
        instance["Tapp"] = json!("x");
        instance["CpuOptions"] = json!({"CoreCount": 1, "Sockets": 2});
        instance["NetworkInterfaces"][0]["Mtu"] = json!(1500);
        instance["MetadataOptions"]["HttpToken"] = json!("optional");
        instance["MetadataOptions"]["State"] = json!("applied");
    })
    .unwrap();
    assert_eq!(
        warnings,
        [Finding::whole(
            "unknown fields without effect: MetadataOptions.HttpToken, NetworkInterfaces[0].Mtu, Tapp"
        )]
    );
    let warnings = findings(Kind::Role, |role| {
        for number in 0..20 {
            role[format!("X{number}")] = json!(0);
        }
    })
    .unwrap();
    assert!(warnings[0].message.ends_with("and 12 more"), "{warnings:?}");
}

#[test]
fn instance_checks() {
    let mac = |mac: &'static str| {
        refused_field(Kind::Instance, move |instance| {
            instance["NetworkInterfaces"][0]["MacAddress"] = json!(mac);
        })
    };
    for wrong in [
        "00:00:00:00:00:00",
        "01:00:5e:00:00:01",
        "ff:ff:ff:ff:ff:ff",
        "02:00:a9:fe:a9:fe",
    ] {
        assert_eq!(mac(wrong), "NetworkInterfaces[0].MacAddress", "{wrong}");
    }
    let twice = |field: &'static str| {
        refused_field(Kind::Instance, move |instance| {
            let mut second = instance["NetworkInterfaces"][0].clone();
            let other = if field == "Tap" { "MacAddress" } else { "Tap" };
            second[other] = if other == "Tap" {
                json!("tap9")
            } else {
                json!("02:00:00:00:00:99")
            };
            instance["NetworkInterfaces"].as_array_mut().unwrap().push(second);
        })
    };
    assert_eq!(twice("MacAddress"), "NetworkInterfaces[1].MacAddress");
    assert_eq!(twice("Tap"), "NetworkInterfaces[1].Tap");
    for right in ["tap0", "fc-1/tap0", "a network namespace of any name/tap0"] {
        let set = |instance: &mut Value| instance["NetworkInterfaces"][0]["Tap"] = json!(right);
        assert_eq!(findings(Kind::Instance, set), Ok(vec![]), "{right}");
    }
    for (pointer, wrong) in [
        ("/NetworkInterfaces/0/Tap", json!("a-name-of-sixteen")),
        ("/NetworkInterfaces/0/Tap", json!("a/b/c")),
        ("/NetworkInterfaces/0/Tap", json!("/tap0")),
        ("/NetworkInterfaces/0/Tap", json!("fc-1/")),
        ("/NetworkInterfaces/0/Tap", json!("../tap0")),
        ("/NetworkInterfaces/0/Tap", json!("fc-1/a-name-of-sixteen")),
        ("/NetworkInterfaces/0/SubnetIpv4CidrBlock", json!("10.0.0.0/33")),
        ("/NetworkInterfaces/0/SubnetIpv4CidrBlock", json!("fd00::/64")),
        ("/IamInstanceProfile/Arn", json!("web-servers")),
        ("/MetadataOptions/HttpPutResponseHopLimit", json!(65)),
        ("/LaunchTime", json!("yesterday")),
        ("/InstanceId", json!("")),
        ("/UserData", json!("not base64!")),
    ] {
        let field = refused_field(Kind::Instance, |instance| {
            *instance.pointer_mut(pointer).unwrap() = wrong;
        });
        assert_eq!(
            field.replace(['.', '['], "/").replace(']', ""),
            pointer[1..],
            "{pointer}"
        );
    }
    let warnings = findings(Kind::Instance, |instance| {
        instance["Tags"] = json!([{"Key": "a b", "Value": ""}, {"Key": "ok", "Value": "a b"}, {"Key": "_index", "Value": ""}]);
    })
    .unwrap();
    let fields: Vec<_> = warnings.iter().map(|warning| warning.field.as_str()).collect();
    assert_eq!(fields, ["Tags[0].Key", "Tags[2].Key"]);
}

#[test]
fn accelerator_checks() {
    let gpu = |id: &str| json!({"ElasticGpuId": id});
    let arn = |id: &str| {
        let arn =
            format!("arn:aws:elastic-inference:us-east-1:123456789012:elastic-inference-accelerator/{id}");
        json!({"ElasticInferenceAcceleratorArn": arn})
    };
    let (gpus, inference) = (
        "ElasticGpuAssociations",
        "ElasticInferenceAcceleratorAssociations",
    );
    for (part, wrong, expected) in [
        (gpus, json!([gpu("egpu-1"), gpu("egpu-1")]), "[1].ElasticGpuId"),
        (gpus, json!([gpu("egpu/1")]), "[0].ElasticGpuId"),
        (
            gpus,
            json!([{"ElasticGpuId": "egpu-1", "ConnectionConfig": {"Ipv4Address": "fd00::1"}}]),
            "[0].ConnectionConfig.Ipv4Address",
        ),
        (inference, json!([arn("")]), "[0].ElasticInferenceAcceleratorArn"),
        (
            inference,
            json!([arn("eia-1"), arn("eia-1")]),
            "[1].ElasticInferenceAcceleratorArn",
        ),
    ] {
        let field = refused_field(Kind::Instance, |instance| instance[part] = wrong.clone());
        assert_eq!(field, format!("{part}{expected}"), "{wrong}");
    }
    let told = |id: &str| {
        let errors = findings(Kind::Instance, |instance| instance[inference] = json!([arn(id)]));
        errors.unwrap_err().remove(0).message
    };
    assert_eq!(told(""), "does not end in /<id>");
    let name = check_name("eia 1").unwrap_err().to_string();
    assert_eq!(told("eia 1"), format!("ends in no id: {name}"));
    // As `describe-instances` prints them.
    let described = findings(Kind::Instance, |instance| {
        instance[gpus] = json!([{
            "ElasticGpuId": "egpu-1",
            "ElasticGpuAssociationId": "egpu-assoc-1",
            "ElasticGpuAssociationState": "ASSOCIATED",
            "ElasticGpuAssociationTime": "2019-01-21T09:00:43Z"
        }]);
        instance[inference] = json!([{
            "ElasticInferenceAcceleratorArn": arn("eia-1")["ElasticInferenceAcceleratorArn"],
            "ElasticInferenceAcceleratorAssociationId": "eia-assoc-1",
            "ElasticInferenceAcceleratorAssociationState": "associated",
            "ElasticInferenceAcceleratorAssociationTime": "2019-01-21T09:00:43Z"
        }]);
    });
    assert_eq!(described, Ok(vec![]));
}

#[test]
fn tags_with_any_key_are_fine_with_the_index_and_the_same_key_twice_never_is() {
    let tags = json!([{"Key": "a b", "Value": ""}, {"Key": "ok", "Value": ""}, {"Key": "a/b", "Value": ""}]);
    let with_options = |options: Value| {
        let tags = tags.clone();
        findings(Kind::Instance, |instance| {
            instance["Tags"] = tags;
            instance["MetadataOptions"] = options;
        })
    };
    let both = json!({"InstanceMetadataTags": "enabled", "InstanceMetadataTagsIndex": "enabled"});
    assert_eq!(with_options(both), Ok(vec![]));
    let index_alone = json!({"InstanceMetadataTags": "disabled", "InstanceMetadataTagsIndex": "enabled"});
    assert_eq!(
        with_options(index_alone).unwrap()[0].field,
        "MetadataOptions.InstanceMetadataTagsIndex"
    );
    let field = refused_field(Kind::Instance, |instance| {
        instance["Tags"] =
            json!([{"Key": "a", "Value": "1"}, {"Key": "b", "Value": ""}, {"Key": "a", "Value": "2"}]);
    });
    assert_eq!(field, "Tags[2].Key");
}

#[test]
fn event_checks() {
    for (part, wrong, expected) in [
        (
            "SpotInterruption",
            json!({"Action": "reboot", "Time": "2026-11-21T08:22:00Z"}),
            "SpotInterruption.Action",
        ),
        ("SpotInterruption", json!({"Action": "stop"}), "SpotInterruption"),
        (
            "RebalanceRecommendation",
            json!({"NoticeTime": "soon"}),
            "RebalanceRecommendation.NoticeTime",
        ),
        (
            "AutoScaling",
            json!([{"TargetLifecycleState": "inservice"}]),
            "AutoScaling[0].TargetLifecycleState",
        ),
        (
            "Maintenance",
            json!([{"Code": "reboot", "NotBefore": "2026-11-21T08:22:00Z"}]),
            "Maintenance[0].Code",
        ),
        (
            "Maintenance",
            json!([{"Code": "system-reboot", "NotBefore": "2026-11-21T08:22:00Z", "NotAfter": "2026-11-21T08:21:00Z"}]),
            "Maintenance[0].NotAfter",
        ),
    ] {
        let field = refused_field(Kind::Instance, |instance| {
            instance["Events"][part] = wrong.clone();
        });
        assert_eq!(field, format!("Events.{expected}"), "{wrong}");
    }
    let warnings = findings(Kind::Instance, |instance| {
        instance["Events"] = json!({"SpotInteruption": {}});
    })
    .unwrap();
    assert!(
        warnings[0].message.contains("Events.SpotInteruption"),
        "{warnings:?}"
    );
}

#[test]
fn user_data_is_bounded_and_never_shown() {
    use base64::Engine as _;
    let encoded = |bytes: usize| json!(base64::engine::general_purpose::STANDARD.encode(vec![b's'; bytes]));
    assert!(
        findings(Kind::Instance, |instance| instance["UserData"] =
            encoded(USER_DATA_BYTES_MAX))
        .is_ok()
    );
    let field = refused_field(Kind::Instance, |instance| {
        instance["UserData"] = encoded(USER_DATA_BYTES_MAX + 1);
    });
    assert_eq!(field, "UserData");
    let wrapped = json!("c2VjcmV0IGFu\nZCBsb25n\n");
    assert!(findings(Kind::Instance, |instance| instance["UserData"] = wrapped).is_ok());
    for leak in [json!("#!secret"), json!({"secret": "secret"}), json!(["secret"])] {
        let errors = findings(Kind::Instance, |instance| instance["UserData"] = leak).unwrap_err();
        assert!(!format!("{errors:?}").contains("secret"), "{errors:?}");
    }
}

#[test]
fn role_and_instance_profile_checks() {
    for (pointer, wrong, expected) in [
        ("/Arn", json!("arn:aws:iam::123456789012:user/web"), "Arn"),
        ("/Arn", json!("arn:aws:iam::123456789012:role/other"), "Arn"),
        ("/Path", json!("/else/"), "Path"),
        ("/MaxSessionDuration", json!(60), "MaxSessionDuration"),
        (
            "/Credentials",
            json!({"Source": "process", "Command": ["helper"]}),
            "Credentials.Command",
        ),
        (
            "/Credentials",
            json!({"Source": "process", "Command": []}),
            "Credentials.Command",
        ),
        (
            "/Credentials",
            json!({"Source": "process", "Command": ["/x"], "TimeoutSeconds": 0}),
            "Credentials.TimeoutSeconds",
        ),
        ("/Credentials", json!({"Source": "magic"}), "Credentials"),
    ] {
        let field = refused_field(Kind::Role, |role| {
            *role.pointer_mut(pointer).unwrap() = wrong.clone();
        });
        assert!(field.starts_with(expected), "{field}: {wrong}");
    }
    let two = json!([{"RoleName": "a"}, {"RoleName": "b"}]);
    assert_eq!(
        refused_field(Kind::InstanceProfile, |profile| profile["Roles"] = two),
        "Roles"
    );
    let other = json!([{"RoleName": "a", "Arn": "arn:aws:iam::123456789012:role/b"}]);
    assert_eq!(
        refused_field(Kind::InstanceProfile, |profile| profile["Roles"] = other),
        "Roles[0].Arn"
    );
}

#[test]
fn long_file_is_refused() {
    let errors = parse(Kind::Role, &vec![b' '; RECORD_BYTES_MAX + 1], &Rules::default()).unwrap_err();
    assert!(errors[0].message.contains("longer than"), "{errors:?}");
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        for kind in Kind::ALL {
            let _ = parse(kind, &bytes, &Rules::default());
        }
    }

    #[test]
    fn any_damage_to_an_example_is_parsed_or_refused(
        at in any::<prop::sample::Index>(),
        length in 0_usize..40,
        patch in prop::collection::vec(any::<u8>(), 0..10),
    ) {
        for (kind, example) in [(Kind::Instance, INSTANCE), (Kind::Role, ROLE), (Kind::InstanceProfile, INSTANCE_PROFILE)] {
            let mut bytes = example.to_vec();
            let start = at.index(bytes.len());
            let end = (start + length).min(bytes.len());
            bytes.splice(start..end, patch.clone());
            if let Err(errors) = parse(kind, &bytes, &Rules::default()) {
                prop_assert!(!errors.is_empty());
            }
        }
    }
}

/// What a listing of the metadata tree names a path has to be able to say.
#[test]
fn names_in_listings_are_names_in_paths() {
    for wrong in ["a?b", "a%41", "a b", "a/b", "a#b", ".", "..", "", "a\nb", "é"] {
        let field = refused_field(Kind::Role, |role| {
            role["RoleName"] = wrong.into();
            role["Arn"] = format!("arn:aws:iam::123456789012:role/{wrong}").into();
        });
        assert_eq!(field, "RoleName", "{wrong}");
        let field = refused_field(Kind::Instance, |instance| {
            instance["ElasticGpuAssociations"] = json!([{ "ElasticGpuId": wrong }]);
        });
        assert_eq!(field, "ElasticGpuAssociations[0].ElasticGpuId", "{wrong}");
    }
    for right in ["web", "web.2_x-y+=,@z"] {
        let set = |role: &mut Value| {
            role["RoleName"] = right.into();
            role["Arn"] = format!("arn:aws:iam::123456789012:role/{right}").into();
            role.as_object_mut().unwrap().remove("Path");
        };
        assert_eq!(findings(Kind::Role, set), Ok(vec![]), "{right}");
    }
    let key = json!([{ "KeyName": "ops\n1=other", "PublicKeyMaterial": "ssh-ed25519 AAAA ops" }]);
    let set = |instance: &mut Value| instance["PublicKeys"] = key;
    assert_eq!(refused_field(Kind::Instance, set), "PublicKeys[0].KeyName");
    // This one is only not shown.
    let devices = json!([{ "DeviceName": "/dev/sdb", "VirtualName": "ephemeral?0" }]);
    let warnings = findings(Kind::Instance, |instance| {
        instance["BlockDeviceMappings"] = devices;
    })
    .unwrap();
    assert_eq!(warnings[0].field, "BlockDeviceMappings[0].VirtualName");
}
