//! Credentials from a program, by the `credential_process` contract of the AWS SDKs.
//!
//! Read first: AWS SDKs and Tools reference guide, "Process credential provider". Here the contract is narrower in one
//! point: `SessionToken` and `Expiration` must be there. Without them a set is a long-term key, and no guest is ever handed
//! one.
//!
//! The program runs without a shell, in `/`, in a process group of its own, with nothing on its standard input and only
//! these variables: `PATH`, what the configuration adds, and `IMDS_ROLE_ARN`, `IMDS_ROLE_NAME`, `IMDS_INSTANCE_ID`,
//! `IMDS_DURATION_SECONDS`. When it takes too long or prints too much, its whole group is killed.

use std::{collections::BTreeMap, fmt, process::Stdio, time::Duration};

use jiff::Timestamp;
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, Command},
};
use zeroize::Zeroizing;

use super::{Deliveries, FetchError, RoleCredentials, RoleSessionRequest, whole_seconds};

/// Where programs are looked for by the program that is run; itself it is named by its absolute path.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Most bytes that the program may print. A set takes about two thousand.
const OUTPUT_BYTES_MAX: usize = 64 * 1024;

/// A program to ask.
#[derive(Clone, Copy, Debug)]
pub struct Program<'a> {
    /// Its absolute path and its arguments.
    pub command: &'a [String],
    /// How long it may take.
    pub timeout: Duration,
    /// Variables that it gets besides ours.
    pub environment: &'a Environment,
}

/// Variables by name. Their values may be secrets, so `Debug` shows the names alone.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Environment(pub BTreeMap<String, String>);

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Runs the program once.
pub async fn fetch(
    program: Program<'_>,
    request: &RoleSessionRequest,
) -> Result<RoleCredentials, FetchError> {
    let child = spawn(program, request)?;
    let mut group = Group::of(&child);
    let ran = tokio::time::timeout(program.timeout, run(child, &mut group)).await;
    // Unless it ended by itself, nothing of it goes on running.
    drop(group);
    let output = ran.unwrap_or_else(|_| unavailable(format!("no answer within {:?}", program.timeout)))?;
    parse(&output, request.now)
}

/// The answer of the contract. Numbers and names only: a field's content is nobody's business.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    version: u64,
    access_key_id: Option<String>,
    secret_access_key: Option<Zeroizing<String>>,
    session_token: Option<Zeroizing<String>>,
    expiration: Option<String>,
}

/// A process group that is killed when it goes out of scope, unless its leader has ended and been waited for.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        Self(
            child
                .id()
                .and_then(|id| i32::try_from(id).ok())
                .map(Pid::from_raw),
        )
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // The leader has not been waited for, so the number is still this group's.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

fn spawn(program: Program<'_>, request: &RoleSessionRequest) -> Result<Child, FetchError> {
    let Some((path, arguments)) = program.command.split_first() else {
        return unavailable("no program is configured");
    };
    let spawned = Command::new(path)
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .envs(&program.environment.0)
        .env("IMDS_ROLE_ARN", &request.role.arn)
        .env("IMDS_ROLE_NAME", request.role.role_name.as_str())
        .env("IMDS_INSTANCE_ID", request.instance.as_str())
        .env("IMDS_DURATION_SECONDS", request.duration_seconds.to_string())
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    spawned.or_else(|error| unavailable(format!("{path} cannot be run: {error}")))
}

async fn run(mut child: Child, group: &mut Group) -> Result<Zeroizing<Vec<u8>>, FetchError> {
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return unavailable("its output cannot be read");
    };
    let (output, complaint_bytes) = tokio::try_join!(read_output(stdout), count_bytes(stderr))?;
    let status = child.wait().await;
    group.0 = None;
    match status {
        Ok(status) if status.success() => Ok(output),
        // What it wrote may hold secrets, so only that it wrote is told.
        Ok(status) => unavailable(format!(
            "{status}, with {complaint_bytes} bytes on its standard error"
        )),
        Err(error) => unavailable(format!("its end cannot be waited for: {error}")),
    }
}

async fn read_output(stdout: impl AsyncRead + Unpin) -> Result<Zeroizing<Vec<u8>>, FetchError> {
    // Room for all of it beforehand: growing would leave copies behind.
    let mut output = Zeroizing::new(Vec::with_capacity(OUTPUT_BYTES_MAX + 1));
    let mut limited = stdout.take(OUTPUT_BYTES_MAX as u64 + 1);
    while output.len() <= OUTPUT_BYTES_MAX {
        match limited.read_buf(&mut *output).await {
            Ok(0) => return Ok(output),
            Ok(_) => {}
            Err(error) => return unavailable(format!("its output cannot be read: {error}")),
        }
    }
    unavailable(format!("it printed more than {OUTPUT_BYTES_MAX} bytes"))
}

async fn count_bytes(mut stderr: impl AsyncRead + Unpin) -> Result<u64, FetchError> {
    let read = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
    read.or_else(|error| unavailable(format!("its standard error cannot be read: {error}")))
}

fn parse(output: &[u8], now: Timestamp) -> Result<RoleCredentials, FetchError> {
    // The reader's own message would quote what it read.
    let answer: Answer = serde_json::from_slice(output).or_else(|error| {
        let (line, column) = (error.line(), error.column());
        unavailable(format!(
            "its output is not the JSON of the contract (line {line}, column {column})"
        ))
    })?;
    if answer.version != 1 {
        return unavailable(format!("its output has version {}, not 1", answer.version));
    }
    let missing = |field: &str| FetchError::Unavailable(format!("its output has no {field}"));
    let access_key_id = answer
        .access_key_id
        .filter(|id| !id.is_empty())
        .ok_or_else(|| missing("AccessKeyId"))?;
    let secret = |field: &str, value: Option<Zeroizing<String>>| {
        let value = value
            .filter(|value| !value.is_empty())
            .ok_or_else(|| missing(field))?;
        Ok::<_, FetchError>(value.as_str().into())
    };
    let secret_access_key = secret("SecretAccessKey", answer.secret_access_key)?;
    let session_token = secret("SessionToken", answer.session_token)?;
    let expiration: Timestamp = answer
        .expiration
        .ok_or_else(|| missing("Expiration"))?
        .parse()
        .or_else(|_| unavailable("its output's Expiration is not an ISO 8601 time with a time zone"))?;
    let expiration = whole_seconds(expiration);
    if expiration <= now {
        return unavailable(format!("its output expired already, at {expiration}"));
    }
    Ok(RoleCredentials {
        access_key_id,
        secret_access_key,
        session_token,
        last_updated: whole_seconds(now),
        expiration,
        without_token: None,
        deliveries: Deliveries::default(),
    })
}

fn unavailable<T>(why: impl Into<String>) -> Result<T, FetchError> {
    Err(FetchError::Unavailable(why.into()))
}

#[cfg(test)]
mod tests;
