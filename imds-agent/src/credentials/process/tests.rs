use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use proptest::prelude::*;
use secrecy::ExposeSecret as _;

use super::*;

const GOOD: &str = r#"{"Version":1,"AccessKeyId":"ASIAX","SecretAccessKey":"s3cr3t","SessionToken":"t0k3n","Expiration":"2026-11-21T10:00:00.123456789+01:00"}"#;

fn request() -> RoleSessionRequest {
    let role = r#"{"RoleName":"web","Arn":"arn:aws:iam::123456789012:role/web"}"#;
    RoleSessionRequest::of(role)
}

/// Runs a shell script as the program: the shell is the test's, not the source's.
async fn run_script(script: &str, timeout: Duration) -> Result<RoleCredentials, FetchError> {
    let command = ["/bin/sh", "-c", script].map(str::to_owned);
    let environment = Environment([("EXTRA".to_owned(), "more".to_owned())].into());
    let program = Program {
        command: &command,
        timeout,
        environment: &environment,
    };
    fetch(program, &request()).await
}

async fn error_of(script: &str) -> String {
    run_script(script, Duration::from_secs(60))
        .await
        .unwrap_err()
        .to_string()
}

#[tokio::test]
async fn good_set_comes_through_with_normalised_times() {
    let set = run_script(&format!("echo '{GOOD}'"), Duration::from_secs(60))
        .await
        .unwrap();
    assert_eq!(set.access_key_id, "ASIAX");
    assert_eq!(set.secret_access_key.expose_secret(), "s3cr3t");
    assert_eq!(set.session_token.expose_secret(), "t0k3n");
    assert_eq!(set.expiration.to_string(), "2026-11-21T09:00:00Z");
    assert_eq!(set.last_updated.to_string(), "2026-11-21T08:00:00Z");
}

#[tokio::test]
async fn environment_is_clean_but_for_what_is_documented() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("environment");
    let script = format!(
        "/usr/bin/env > {}; pwd >> {0}; cat; echo '{GOOD}'",
        file.display()
    );
    run_script(&script, Duration::from_secs(60)).await.unwrap();
    let mut lines: Vec<String> = std::fs::read_to_string(&file)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect();
    // The shell's own.
    lines.retain(|line| {
        !["PWD=", "OLDPWD=", "_=", "SHLVL="]
            .iter()
            .any(|own| line.starts_with(own))
    });
    lines.sort();
    assert_eq!(
        lines,
        [
            "/",
            "EXTRA=more",
            "IMDS_DURATION_SECONDS=3600",
            "IMDS_INSTANCE_ID=i-1",
            "IMDS_ROLE_ARN=arn:aws:iam::123456789012:role/web",
            "IMDS_ROLE_NAME=web",
            &format!("PATH={PATH}"),
        ]
    );
}

#[tokio::test]
async fn failure_tells_the_status_and_never_the_output() {
    let error = error_of("echo TOP-SECRET; echo TOP-SECRET >&2; exit 3").await;
    assert!(
        error.contains("exit status: 3, with 11 bytes on its standard error"),
        "{error}"
    );
    assert!(!error.contains("TOP-SECRET"), "{error}");
    let error = error_of("kill -TERM $$").await;
    assert!(error.contains("signal: 15"), "{error}");
}

#[tokio::test]
async fn answers_outside_the_contract_are_refused_without_quoting_them() {
    for (from, to, expected) in [
        (GOOD, "", "not the JSON of the contract"),
        (GOOD, "TOP-SECRET", "not the JSON of the contract"),
        ("\"Version\":1", "\"Version\":2", "version 2, not 1"),
        (
            "\"Version\":1",
            "\"Version\":\"TOP-SECRET\"",
            "not the JSON of the contract",
        ),
        ("\"Version\":1,", "", "not the JSON of the contract"),
        ("\"ASIAX\"", "\"\"", "no AccessKeyId"),
        ("\"ASIAX\"", "[\"TOP-SECRET\"]", "not the JSON of the contract"),
        ("\"s3cr3t\"", "null", "no SecretAccessKey"),
        ("\"s3cr3t\"", "17", "not the JSON of the contract"),
        ("SessionToken", "Session", "no SessionToken"),
        ("Expiration", "Expires", "no Expiration"),
        (
            "2026-11-21T10:00:00.123456789+01:00",
            "TOP-SECRET",
            "Expiration is not",
        ),
        (
            "2026-11-21T10",
            "2026-11-21T09",
            "expired already, at 2026-11-21T08:00:00Z",
        ),
    ] {
        let error = error_of(&format!("echo '{}'", GOOD.replace(from, to))).await;
        assert!(error.contains(expected), "{to}: {error}");
        assert!(!error.contains("TOP-SECRET"), "{to}: {error}");
    }
}

#[tokio::test]
async fn endless_output_is_cut_off() {
    let started = Instant::now();
    assert!(
        error_of("exec /usr/bin/yes")
            .await
            .contains("more than 65536 bytes")
    );
    assert!(started.elapsed() < Duration::from_secs(30));
}

#[tokio::test]
async fn much_on_standard_error_does_not_block() {
    let script = format!("head -c 1000000 /dev/zero >&2; echo '{GOOD}'");
    run_script(&script, Duration::from_secs(60)).await.unwrap();
}

#[tokio::test]
async fn timeout_kills_the_whole_group() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pids");
    let script = format!("sleep 1000 & echo $! > {}; echo $$ >> {0}; wait", file.display());
    let error = run_script(&script, Duration::from_millis(700)).await.unwrap_err();
    assert!(error.to_string().contains("no answer within 700ms"), "{error}");
    let pids = std::fs::read_to_string(&file).unwrap();
    assert_eq!(pids.lines().count(), 2, "the program had begun");
    for pid in pids.lines() {
        gone(pid).await;
    }
}

/// The answer is there, but somebody who may go on writing is, too.
#[tokio::test]
async fn timeout_kills_who_outlives_the_program() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pid");
    let script = format!("sleep 1000 & echo $! > {}; echo '{GOOD}'", file.display());
    let error = run_script(&script, Duration::from_millis(700)).await.unwrap_err();
    assert!(error.to_string().contains("no answer within 700ms"), "{error}");
    gone(std::fs::read_to_string(&file).unwrap().trim()).await;
}

#[tokio::test]
async fn dropped_fetch_kills_the_program() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pid");
    let fifo = directory.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let script = format!(
        "echo $$ > {}; echo > {}; exec sleep 1000",
        file.display(),
        fifo.display()
    );
    let begun = tokio::task::spawn_blocking(move || std::fs::read(fifo));
    tokio::select! {
        outcome = run_script(&script, Duration::from_secs(60)) => panic!("{outcome:?}"),
        begun = begun => assert_eq!(begun.unwrap().unwrap(), b"\n"),
    }
    gone(std::fs::read_to_string(&file).unwrap().trim()).await;
}

/// Waits until a process is no more, or only waits to be buried.
async fn gone(pid: &str) {
    let stat = PathBuf::from(format!("/proc/{pid}/stat"));
    let deadline = Instant::now() + Duration::from_secs(30);
    while let Ok(stat) = std::fs::read_to_string(&stat) {
        if stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')) {
            return;
        }
        assert!(Instant::now() < deadline, "process {pid} goes on running: {stat}");
        tokio::task::yield_now().await;
    }
}

#[test]
fn debug_shows_no_value_of_the_environment() {
    let environment = Environment([("TOKEN".to_owned(), "s3cr3t".to_owned())].into());
    assert_eq!(format!("{environment:?}"), r#"{"TOKEN"}"#);
}

proptest! {
    #[test]
    fn any_output_is_parsed_or_refused(output in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse(&output, Timestamp::UNIX_EPOCH);
    }
}
