//! Who may do what, told from the other end of the socket.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::PermissionsExt as _,
    process::{Child, Command, Output, Stdio},
    sync::Arc,
};

use anyhow::{Context as _, Result};
use imds_tests::{
    agent::{Agent, HostFiles},
    client::wait_for,
    control::ask,
    host::{ADDRESS, Host, INSTANCE_ID, program, program_called},
    netns::Namespace,
    tap::Tap,
};
use serde_json::Value;

/// A host whose agent sees no process of other users in `/proc`, as in its unit (`ProtectProc=invisible`).
fn host_that_sees_no_process(config: &str) -> Result<Host> {
    let namespace = Namespace::new()?;
    let tap = Arc::new(namespace.enter(|| Tap::new("tap0"))?);
    let files = HostFiles::new(config)?;
    files.put_guest(INSTANCE_ID, "tap0", ADDRESS, |_| ())?;
    let mut command = namespace.command("unshare");
    command
        .args(["--mount", "sh", "-ec"])
        .arg("mount -t proc -o hidepid=2 proc /proc; exec \"$0\" \"$@\"")
        .arg(program()?);
    let agent = Agent::start_by(command, &files)?;
    Ok(Host {
        agent,
        files,
        tap,
        namespace,
    })
}

#[test]
fn the_peers_user_and_groups_decide_what_it_may() -> Result<()> {
    let config = "control.read_group = \"5000\"\ncontrol.admin_group = \"5001\"";
    let mut host = host_that_sees_no_process(config)?;
    let socket = host.files.socket();
    let directory = socket.parent().context("no directory")?;
    // Others than root have to reach socket and program.
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
    let program = directory.join("imdsctl");
    fs::copy(program_called("imdsctl")?, &program)?;
    let as_user = |groups: &str, arguments: &str| -> Result<Output> {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=4000", "--regid=4000", groups])
            .arg(&program)
            .arg("--socket")
            .arg(&socket);
        Ok(command.args(arguments.split_whitespace()).output()?)
    };
    let (none, reader, admin) = ("--clear-groups", "--groups=4001,5000", "--groups=5001");
    let many: Vec<_> = (6000..6200)
        .chain([5000])
        .map(|group| group.to_string())
        .collect();
    let many = format!("--groups={}", many.join(","));
    let tag = format!("tags create {INSTANCE_ID} team=red");
    let user_data = format!("get {INSTANCE_ID} user-data");
    let secrets = format!("get {INSTANCE_ID} meta-data/ --show-secrets");
    let record = format!("instance show {INSTANCE_ID}");
    for (groups, arguments, is_allowed) in [
        (none, "status", false),
        (none, record.as_str(), false),
        (none, tag.as_str(), false),
        (reader, "status", true),
        (reader, record.as_str(), true),
        (reader, tag.as_str(), false),
        (reader, user_data.as_str(), false),
        (reader, secrets.as_str(), false),
        (reader, "reload", false),
        (many.as_str(), "status", true),
        (many.as_str(), tag.as_str(), false),
        (admin, "status", true),
        (admin, tag.as_str(), true),
        (admin, user_data.as_str(), true),
        (admin, secrets.as_str(), true),
    ] {
        let output = as_user(groups, arguments)?;
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            output.status.success(),
            is_allowed,
            "{groups} {arguments}: {errors}"
        );
        assert!(
            is_allowed || errors.contains("control.admin_group") || errors.contains("the admin group"),
            "{errors}"
        );
    }
    let shown =
        |groups: &str| -> Result<Value> { Ok(serde_json::from_slice(&as_user(groups, &record)?.stdout)?) };
    assert!(shown(admin)?.get("UserData").is_some());
    assert!(
        shown(reader)?.get("UserData").is_none(),
        "readers are shown user data"
    );

    // However many connections a stranger or a reader holds, others get theirs.
    let hold = "
import socket, sys
held = [socket.socket(socket.AF_UNIX) for _ in range(int(sys.argv[2]))]
for one in held: one.connect(sys.argv[1])
# Answers that nobody reads.
for one in held[:-1]:
    try: one.sendall(b'GET /v1/openapi.json HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n' * 20)
    except OSError: pass
held[-1].settimeout(10)
try:
    held[-1].sendall(b'GET /healthz HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n')
    answer = held[-1].recv(1)
except OSError:
    answer = b''
print('answered' if answer else 'turned away', flush=True)
sys.stdin.read()
";
    let hold = |groups: &str, count: &str| -> Result<Child> {
        let mut holder = Command::new("setpriv")
            .args(["--reuid=4000", "--regid=4000", groups])
            .args(["/usr/bin/python3", "-c", hold])
            .arg(&socket)
            .arg(count)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut told = String::new();
        BufReader::new(holder.stdout.take().context("no output")?).read_line(&mut told)?;
        assert_eq!(told.trim(), "turned away");
        Ok(holder)
    };
    let holders = [hold(none, "40")?, hold(reader, "600")?];
    assert!(as_user(admin, "status")?.status.success());
    assert!(!as_user(reader, "status")?.status.success());
    // Strangers do not keep their seats from each other for long.
    let probe = format!(
        "curl --silent --fail --unix-socket {} http://x/healthz",
        socket.display()
    );
    let probe = || {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=4001", "--regid=4001", none]);
        Ok(command.args(probe.split_whitespace()).output()?.status.success())
    };
    wait_for("a stranger's seat", probe, |is_answered| *is_answered)?;
    for mut holder in holders {
        drop(holder.stdin.take());
        holder.wait()?;
    }
    let look = || Ok(as_user(reader, "status")?.status.success());
    wait_for("a reader's seat", look, |is_answered| *is_answered)?;

    // Who changed something is in the log, and who tried to.
    for status in [403, 200] {
        let line = format!("user 4000: PATCH /v1/instances/{INSTANCE_ID}/tags: {status}");
        host.agent.wait_for_log(&line)?;
    }

    // However often somebody tries who may not, the log gets no longer for it than twenty lines, and a few later.
    for _ in 0..60 {
        assert!(!as_user(reader, "reload")?.status.success());
    }
    // Who looked at secrets is in the log, however the question is spelled.
    let path = format!("/v1/instances/{INSTANCE_ID}/metadata/latest/meta-data/?%73ecrets=true");
    assert_eq!(ask(&host.files.socket(), "GET", &path, &[], b"")?.status, 200);
    host.agent.wait_for_log(&format!("GET {path}: 200"))?;
    let tries = host
        .agent
        .log
        .iter()
        .filter(|line| line.contains("/v1/reload: 403"));
    let tries = tries.count();
    assert!((10..40).contains(&tries), "{tries}");

    // Without groups nobody but root gets through the file's mode.
    let host = Host::new("", |_| ())?;
    let mode = fs::metadata(host.files.socket())?.permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    Ok(())
}
