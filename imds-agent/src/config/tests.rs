use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::registry::role::{RoleSource, StsRole};

const EXAMPLE: &str = include_str!("../../../docs/examples/config.toml");

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(Path::new("c.toml"), text).map_err(|error| error.to_string())
}

#[test]
fn example_says_the_defaults_and_every_field() {
    assert_eq!(parse(EXAMPLE).unwrap(), Config::default());
    assert_eq!(parse("").unwrap(), Config::default());
    // A field that the example does not mention would still be found by this list.
    let shown = format!("{:?}", Config::default());
    let fields = shown.split([' ', '{']).filter_map(|word| word.strip_suffix(':'));
    for field in fields {
        let pascal: String = field
            .split('_')
            .map(|word| word[..1].to_uppercase() + &word[1..])
            .collect();
        assert!(EXAMPLE.contains(field) || EXAMPLE.contains(&pascal), "{field}");
    }
}

#[test]
fn all_that_can_be_said() {
    let config = parse(
        r#"
        state_directory = "/s"
        taps = ["tap*", "vnet0", "fc-1/web?"]
        network_namespaces = ["fc-*"]
        user_data_bytes_max = 65536
        packets_per_second = 0
        requests_per_second = 50
        log_level = "debug"
        [metadata_options]
        HttpTokens = "optional"
        HttpPutResponseHopLimit = 2
        InstanceMetadataTags = "enabled"
        [credentials]
        source = "process"
        duration_seconds = 3600
        [credentials.process]
        command = ["/usr/bin/helper", "--fast"]
        timeout_seconds = 5
        environment = { HOME = "/root" }
        "#,
    )
    .unwrap();
    assert_eq!(config.token_key_path(), Path::new("/s/keys/token"));
    assert_eq!(config.bpf_directory, Path::new("/sys/fs/bpf/imds-agent"));
    assert_eq!(log::LevelFilter::from(config.log_level), log::LevelFilter::Debug);
    assert!(config.network_namespaces.select("fc-1") && config.taps.select("fc-1/web1"));
    assert_eq!(config.packets_per_second(), 0);
    assert_eq!(Config::default().packets_per_second(), 1024);
    assert_eq!(config.requests_per_second(), 50);
    assert_eq!(Config::default().requests_per_second(), 256);
    let rules = config.rules();
    assert_eq!(rules.user_data_bytes_max, 65536);
    assert_eq!(rules.options.http_tokens, HttpTokens::Optional);
    assert_eq!(rules.options.http_put_response_hop_limit, 2);
    assert_eq!(rules.options.http_endpoint, HttpEndpoint::Enabled);
    let credentials = config.credentials();
    let command = vec!["/usr/bin/helper".to_owned(), "--fast".to_owned()];
    assert_eq!(
        credentials.default_source,
        RoleSource::Process {
            command,
            timeout_seconds: None
        }
    );
    assert_eq!(credentials.duration_seconds, 3600);
    assert_eq!(credentials.process_timeout, Duration::from_secs(5));
    assert_eq!(credentials.process_environment.0["HOME"], "/root");
}

#[test]
fn what_programs_log_in_with_is_in_no_error() {
    for wrong in [
        r#"environment = "hunter2""#,
        r#"environment = ["hunter2"]"#,
        r#"environment = { IMDS_X = "hunter2" }"#,
        r#"environment = { A = { B = "hunter2" } }"#,
        r#"environment = { "A=B" = "hunter2", N = 1 }"#,
        r#"environment = { A = "hunter2""#,
    ] {
        let error = parse(&format!("[credentials.process]\n{wrong}"))
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("c.toml:2:") && !error.contains("hunter2"),
            "{error}"
        );
    }
}

#[test]
fn host_may_ask_a_security_token_service() {
    let text = r#"
        [credentials]
        source = "sts"
        [credentials.sts]
        endpoint = "https://sts.cloud.example"
        source_identity = "{instance-id}"
        instance_tags = ["team"]
        session_tags = { cloud = "ours" }
        "#;
    let settings = parse(text).unwrap().credentials();
    assert_eq!(settings.default_source, RoleSource::Sts(StsRole::default()));
    assert_eq!(
        settings.sts.endpoint.as_deref(),
        Some("https://sts.cloud.example")
    );
    assert_eq!(settings.sts.ca_file, None);
    assert_eq!(settings.sts.source_identity.as_deref(), Some("{instance-id}"));
    assert_eq!(settings.sts.instance_tags, ["team"]);
    assert_eq!(settings.sts.session_tags["cloud"], "ours");
}

#[test]
fn metrics_are_on_a_socket_and_nowhere_else_unless_told() {
    let settings = |text: &str| parse(&format!("[metrics]\n{text}")).unwrap().metrics();
    let default = settings("").unwrap();
    assert_eq!(default.socket.unwrap(), Path::new("/run/imds-agent/metrics.sock"));
    assert_eq!(default.addresses, []);
    assert_eq!(settings("socket = \"\""), None);
    let address = settings("socket = \"\"\naddresses = [\"[::1]:9254\"]").unwrap();
    assert_eq!(
        (address.socket, address.addresses),
        (None, vec!["[::1]:9254".parse().unwrap()])
    );
    assert!(!parse("").unwrap().has_metrics_per_tap());
    assert!(parse("[metrics]\nper_tap = true").unwrap().has_metrics_per_tap());
    let error = parse("[metrics]\naddresses = [\"localhost:9254\"]").unwrap_err();
    assert!(error.contains("metrics.addresses"), "{error}");
}

#[test]
fn taps_are_selected_by_pattern() {
    let taps = |text: &str| parse(&format!("taps = {text}")).unwrap().taps;
    assert!(taps("\"auto\"").select("anything"));
    let named = taps("[\"tap*\", \"vnet0\"]");
    assert_eq!(
        ["tap", "tap12", "vnet0", "vnet1", "xtap"].map(|name| named.select(name)),
        [true, true, true, false, false]
    );
    assert!(!taps("[]").select("tap0"));
    // In another network namespace a tap is selected by its own name, or by a pattern that says the namespace.
    let elsewhere = taps(r#"["tap?", "fc-*/web*"]"#);
    for (name, is_selected) in [
        ("fc-1/tap0", true),
        ("fc-1/web-1", true),
        ("other/web-1", false),
        ("web-1", false),
        ("tap0/x", false),
    ] {
        assert_eq!(elsewhere.select(name), is_selected, "{name}");
    }
}

#[test]
fn errors_name_file_line_field_and_what_is_legal() {
    for (text, expected) in [
        (
            "\n\nstate = 1",
            vec!["c.toml:3:1", "unknown field `state`", "`state_directory`"],
        ),
        (
            "log_level = \"loud\"",
            vec![
                "c.toml:1:13: log_level: ",
                "`loud`",
                "`error`, `warn`, `info`, `debug`, `trace`",
            ],
        ),
        (
            "[credentials]\nsource = \"vault\"",
            vec!["c.toml:2:10: credentials.source: ", "`issuer`, `process`, `sts`"],
        ),
        (
            "[credentials]\nduration_seconds = 60",
            vec!["c.toml:2:20: credentials.duration_seconds: 60 is not 900 to 43200"],
        ),
        (
            "[credentials]\nduration_seconds = -1",
            vec!["credentials.duration_seconds: -1 is not 900 to 43200"],
        ),
        (
            "packets_per_second = 1000001",
            vec!["packets_per_second: 1000001 is not 0 to 1000000"],
        ),
        (
            "requests_per_second = -1",
            vec!["c.toml:1:23: requests_per_second: -1 is not 0 to 1000000"],
        ),
        (
            "[metadata_options]\nHttpTokens = true",
            vec!["c.toml:2:14: metadata_options.HttpTokens: "],
        ),
        (
            "[metadata_options]\nHttpPutResponseHopLimit = 65",
            vec!["HttpPutResponseHopLimit: 65 is not 1 to 64"],
        ),
        (
            "[metadata_options]\nhttp_tokens = \"optional\"",
            vec!["unknown field `http_tokens`", "`HttpTokens`"],
        ),
        (
            "taps = \"all\"",
            vec!["c.toml:1:8: taps: ", "\"auto\" or a list of names and patterns"],
        ),
        ("taps = 3", vec!["taps: ", "\"auto\" or a list"]),
        (
            "state_directory = \"here\"",
            vec!["state_directory: not an absolute path"],
        ),
        (
            "[credentials.process]\ncommand = [\"helper\"]",
            vec!["credentials.process.command: does not begin with an absolute path"],
        ),
        (
            "[credentials.process.environment]\nIMDS_ROLE_ARN = \"x\"",
            vec!["credentials.process.environment: a name is"],
        ),
        (
            "[credentials]\nsource = \"process\"",
            vec!["c.toml: credentials.process.command: names no program"],
        ),
        (
            "[credentials.sts]\nendpoint = \"sts.cloud.example\"",
            vec!["credentials.sts.endpoint: does not begin with https://"],
        ),
        (
            "[credentials.sts]\nca_file = \"ca.pem\"",
            vec!["credentials.sts.ca_file: not an absolute path"],
        ),
        ("a = = b", vec!["c.toml:1:5: "]),
    ] {
        let error = parse(text).unwrap_err();
        for part in expected {
            assert!(error.contains(part), "{text:?}: {error}");
        }
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn absent_file_is_an_error_when_named() {
    let directory = tempfile::tempdir().unwrap();
    let error = Config::load(&directory.path().join("absent.toml")).unwrap_err();
    assert!(
        matches!(&error, ConfigError::Read { source, .. } if source.kind() == io::ErrorKind::NotFound),
        "{error}"
    );
    let path = directory.path().join("c.toml");
    std::fs::write(&path, EXAMPLE).unwrap();
    assert_eq!(Config::load(&path).unwrap(), Config::default());
}

#[test]
fn what_can_be_made_out_of_an_invalid_file_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c.toml");
    let made_out = |text: &str| {
        std::fs::write(&path, text).unwrap();
        assert!(Config::load(&path).is_err(), "{text}");
        let (config, lost) = Config::made_out_of(&path);
        (config, lost.contains(&"state_directory"))
    };
    let there = "state_directory = \"/a\"\nbpf_directory = \"/b\"\nnetwork_namespaces = [\"c\"]\n\
                 user_data_bytes_max = 9\ntaps = [\"d\"]\nmetadata_options.HttpTokens = \"optional\"\n";
    let whole = parse(there).unwrap();
    let expected = Config {
        taps: Taps::default(),
        ..whole
    };
    for wrong in [
        "tapps = 1",
        "workers = 0",
        "user = ",
        "user = \"x",
        "= 1",
        "user imds",
        "us",
        "[credentials\n",
    ] {
        for text in [format!("{there}{wrong}\n"), format!("{wrong}\n{there}")] {
            assert_eq!(made_out(&text), (expected.clone(), false), "{text}");
        }
    }
    let elsewhere =
        made_out("state_directory = \"a\"\nbpf_directory = \"/b\"\nmetadata_options.HttpTokens = 1");
    let pins = Config {
        bpf_directory: "/b".into(),
        ..Config::default()
    };
    assert_eq!(elsewhere, (pins.clone(), true));
    assert_eq!(made_out("a = = b"), (Config::default(), false));
    // What is being written still, or went wrong in itself.
    for half in [
        "\"/var/lib/im",
        "\"/a\" \"/b\"",
        "'/a",
        "[\"/a\"",
        "\"/a\" x",
        "\"\"\"/a\nworkers = 2",
    ] {
        assert_eq!(
            made_out(&format!("bpf_directory = \"/b\"\nstate_directory = {half}")),
            (pins.clone(), true),
            "{half}"
        );
    }
}

proptest! {
    #[test]
    fn whatever_is_made_out_of_any_text_is_a_configuration(text in "(?s).{0,200}") {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c.toml");
        std::fs::write(&path, text).unwrap();
        let _ = Config::made_out_of(&path);
    }

    #[test]
    fn any_text_is_parsed_or_refused(text in "(?s).{0,200}") {
        let _ = parse(&text);
    }
}
