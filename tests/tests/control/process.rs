//! The agent as a process: its configuration read again, how it ends, what it leaves.

use std::{
    fs,
    net::TcpStream,
    os::unix::net::UnixStream,
    process::{Command, Output, Stdio},
};

use anyhow::{Result, ensure};
use imds_tests::{
    agent::{Agent, HostFiles},
    client::{exchange, wait_for},
    control::{ask, imdsctl, imdsctl_json, run},
    host::{Host, program},
    netns::Namespace,
    records,
};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

use super::{instance_path, json_of, seen_text};

/// The configuration of a host, written anew.
fn configure(files: &HostFiles, change: impl FnOnce(String) -> String) -> Result<()> {
    let text = fs::read_to_string(files.config())?;
    Ok(fs::write(files.config(), change(text))?)
}

#[test]
fn configuration_is_reloaded_on_a_signal_and_by_the_socket() -> Result<()> {
    let mut host = Host::new("", |record| record["MetadataOptions"] = json!({}))?;
    let guest = host.guest()?;
    let untokened = || {
        let ask = || exchange("GET /latest/meta-data/instance-id HTTP/1.1\r\n\r\n");
        guest.namespace.enter(ask).map(|response| response.status)
    };
    assert_eq!(untokened()?, 401);
    configure(&host.files, |text| {
        text + "[metadata_options]\nHttpTokens = \"optional\"\n"
    })?;
    kill(host.agent.pid()?, Signal::SIGHUP)?;
    wait_for("tokens are optional", untokened, |status| *status == 200)?;

    // With a mistake in it nothing changes, and the mistake is named.
    configure(&host.files, |text| {
        text.replace("\"optional\"", "\"required\"\nHttpToken = 1")
    })?;
    let refused = json_of(&host, 422, "POST", "/v1/reload", &Value::Null)?;
    assert!(
        refused["message"]
            .as_str()
            .is_some_and(|text| text.contains("metadata_options.HttpToken")),
        "{refused}"
    );
    kill(host.agent.pid()?, Signal::SIGHUP)?;
    host.agent
        .wait_for_log("SIGHUP: the configuration stays as it is")?;
    assert_eq!(untokened()?, 200);

    // What cannot change on a running agent is named, and the rest changes.
    configure(&host.files, |text| {
        let text = text
            .replace("\nHttpToken = 1", "")
            .replace("state_directory = \"", "state_directory = \"/elsewhere");
        format!("user_data_bytes_max = 4\npackets_per_second = 500\nlog_level = \"debug\"\n{text}")
    })?;
    let reloaded = imdsctl_json(&host.files, "reload")?;
    let changed = json!([
        "log_level",
        "packets_per_second",
        "user_data_bytes_max",
        "metadata_options"
    ]);
    assert_eq!(
        (&reloaded["changed"], &reloaded["needsRestart"]),
        (&changed, &json!(["state_directory"]))
    );
    wait_for("tokens are required", untokened, |status| *status == 401)?;
    let status = || imdsctl(&host.files)?.arg("status").output().map_err(Into::into);
    // The record's user data is longer; it goes on being served, and is a problem from now on.
    let is_told = |output: &Output| String::from_utf8_lossy(&output.stdout).contains("more than 4");
    wait_for("the problem", status, is_told)?;
    assert_eq!(seen_text(&guest, "user-data")?, records::USER_DATA);
    let long = ask(
        &host.files.socket(),
        "PUT",
        &instance_path("/user-data"),
        &[],
        b"12345",
    )?;
    assert_eq!(long.status, 400, "{}", long.text());
    assert_eq!(
        ask(
            &host.files.socket(),
            "PUT",
            &instance_path("/user-data"),
            &[],
            b"1234"
        )?
        .status,
        200
    );

    // Taps that are no longer the agent's business are left alone, and taken back.
    let taps = || {
        Ok(imdsctl_json(&host.files, "status")?["taps"]
            .as_array()
            .map_or(0, Vec::len))
    };
    configure(&host.files, |text| format!("taps = [\"other*\"]\n{text}"))?;
    imdsctl_json(&host.files, "reload")?;
    wait_for("no tap", taps, |count| *count == 0)?;
    configure(&host.files, |text| text.replace("other*", "tap?"))?;
    imdsctl_json(&host.files, "reload")?;
    wait_for("the tap", taps, |count| *count == 1)?;
    // Until then the guest's ARP has no answer.
    wait_for(
        "the guest is served",
        || Ok(untokened().unwrap_or(0)),
        |status| *status == 401,
    )?;
    Ok(())
}

/// Runs the agent until it ends by itself.
fn ends(
    namespace: &Namespace,
    files: &HostFiles,
    wrap: &[&str],
    arguments: &str,
) -> Result<(Option<i32>, String)> {
    let program = program()?;
    let mut command = match wrap {
        [] => namespace.command(&program),
        [wrapper, options @ ..] => {
            let mut command = namespace.command(wrapper);
            command.args(options).arg(&program);
            command
        }
    };
    command
        .args(arguments.split_whitespace())
        .arg("--config")
        .arg(files.config());
    let output = command.stdin(Stdio::null()).env_remove("RUST_LOG").output()?;
    let text = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    Ok((output.status.code(), text.into_owned()))
}

#[test]
fn each_way_to_fail_has_its_code_and_its_sentence() -> Result<()> {
    let host = Host::new("", |_| ())?;
    let namespace = Namespace::new()?;
    let files = || HostFiles::new("");
    let fails = |files: &HostFiles, wrap: &[&str], code: i32, sentence: &str| -> Result<()> {
        let (ended, text) = ends(&namespace, files, wrap, "run")?;
        assert_eq!(ended, Some(code), "{text}");
        let last = text.lines().last().unwrap_or_default();
        assert!(
            last.starts_with("imds-agent: ") && last.contains(sentence),
            "{text}"
        );
        Ok(())
    };

    let unknown = files()?;
    configure(&unknown, |text| text + "tap = \"auto\"\n")?;
    fails(&unknown, &[], 3, "unknown field `tap`")?;

    let plain = HostFiles::of_user("", "")?;
    let without = ["setpriv", "--inh-caps=-all", "--bounding-set=-all"];
    fails(&plain, &without, 4, "CAP_BPF")?;

    let occupied = files()?;
    let socket = host.files.socket();
    configure(&occupied, |text| {
        text.replace(
            &occupied.socket().display().to_string(),
            &socket.display().to_string(),
        )
    })?;
    fails(&occupied, &[], 5, "is in use by another agent")?;
    // And the one that was there is still there.
    assert_eq!(ask(&socket, "GET", "/healthz", &[], b"")?.status, 200);

    let unreadable = files()?;
    fs::remove_dir_all(unreadable.state())?;
    fs::write(unreadable.state(), "not a directory")?;
    fails(&unreadable, &[], 6, "can be neither read nor made")?;

    let groupless = files()?;
    configure(&groupless, |text| {
        format!("control.read_group = \"nobody-has-this\"\n{text}")
    })?;
    fails(&groupless, &[], 3, "control.read_group: there is no group")?;
    let (ended, text) = ends(&namespace, &groupless, &[], "check")?;
    assert!(ended == Some(1) && text.contains("control.read_group"), "{text}");

    // Before the first run there are no directories, and that is fine.
    let fresh = files()?;
    fs::remove_dir_all(fresh.state())?;
    let (ended, text) = ends(&namespace, &fresh, &[], "check")?;
    assert_eq!(ended, Some(0), "{text}");
    assert!(
        text.contains("roles is not there yet") && text.contains("0 errors"),
        "{text}"
    );
    Ok(())
}

#[test]
fn what_a_killed_agent_left_of_its_socket_is_replaced() -> Result<()> {
    let Host {
        agent,
        files,
        tap: _tap,
        namespace,
    } = Host::new("", |_| ())?;
    agent.kill()?;
    ensure!(files.socket().exists(), "a killed agent leaves its socket");
    let error = run(imdsctl(&files)?.arg("status")).unwrap_err().to_string();
    assert!(error.contains("no agent can be reached at"), "{error}");
    let agent = Agent::start(&program()?, &namespace, &files)?;
    assert_eq!(ask(&files.socket(), "GET", "/readyz", &[], b"")?.status, 200);
    agent.stop()?;
    ensure!(!files.socket().exists(), "a stopped agent leaves its socket");
    Ok(())
}

#[test]
fn want_of_descriptors_is_told_once_by_each_listener_and_outlasted() -> Result<()> {
    let namespace = Namespace::new()?;
    namespace.ip("address add 10.0.0.1/32 dev lo")?;
    let config = "sts_endpoint.http = [\"10.0.0.1:8980\"]";
    // Whose limits its own user may change.
    let files = HostFiles::of_user("", config)?;
    let mut agent = Agent::start(&program()?, &namespace, &files)?;
    let pid = agent.pid()?.to_string();
    let limit = |descriptors: &str| -> Result<()> {
        let mut prlimit = Command::new("prlimit");
        run(prlimit.args(["--pid", &pid, &format!("--nofile={descriptors}:")]))?;
        Ok(())
    };
    limit("3")?;
    let paths = [files.metrics(), files.socket()];
    let _waiting = paths.map(UnixStream::connect);
    let _waiting = namespace.enter(|| TcpStream::connect("10.0.0.1:8980"))?;
    let listeners = ["metrics", "control socket", "security token service"];
    for listener in listeners {
        let told = agent.logged(&format!("{listener}: no connection can be accepted"))?;
        ensure!(
            told.contains("WARN") && told.contains("Too many open files"),
            "{told}"
        );
    }
    limit("1024")?;
    for listener in listeners {
        agent.logged(&format!("{listener}: connections are accepted again"))?;
    }
    ensure!(imdsctl_json(&files, "status")?.is_object());
    let told = agent
        .log
        .iter()
        .filter(|line| line.contains("no connection can be"));
    ensure!(told.count() == listeners.len(), "{:#?}", agent.log);
    Ok(())
}
