//! What the host can ask the guest to do.

use std::{fmt, str::FromStr, thread};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    container, demo,
    metadata::{Connection, Reply, Session, get_without_token, put_token, silent},
    test_programs,
};

/// A path that every instance has.
const PATH: &str = "/latest/meta-data/instance-id";

/// One thing to do. The text forms are the variants' documentation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// `demo`: shows what an instance does with the service.
    Demo,
    /// `get=<path>`: a session token, then `path` with it. Prints `got <path>: <status> <body>`, the body quoted.
    Get(String),
    /// `get-v1=<path>`: `path` without a token, printed in the same way.
    GetWithoutToken(String),
    /// `big-request`: a request of several segments, which the guest's offload merges into one frame.
    BigRequest,
    /// `keep-alive=<requests>`: so many requests on one connection.
    KeepAlive(u32),
    /// `at-once=<connections>`: so many connections at the same time.
    AtOnce(u32),
    /// `other-port=<port>`: the service's address is silent on this port.
    OtherPort(u16),
    /// `container-v1`: a container gets an answer without a token.
    ContainerWithoutToken,
    /// `container-token=refused`: a container's token request is never answered.
    ContainerTokenRefused,
    /// `container-token=given`: a container gets a token.
    ContainerTokenGiven,
    /// `shell`: a shell on the console, until it ends.
    Shell,
    /// `tests`: the host's test programs on this kernel, see [`test_programs`].
    Tests,
}

impl Step {
    pub fn run(&self) -> Result<()> {
        match self {
            Self::Demo => demo::show(),
            Self::Get(path) => Session::open()?.get(path).map(|reply| print(path, &reply)),
            Self::GetWithoutToken(path) => get_without_token(path).map(|reply| print(path, &reply)),
            Self::BigRequest => Session::open()?.get_at_length(PATH, 6 * 1024)?.ok().map(drop),
            Self::KeepAlive(requests) => keep_alive(*requests),
            Self::AtOnce(connections) => at_once(*connections),
            Self::OtherPort(port) => silent(Connection::open(*port).map(drop)),
            Self::ContainerWithoutToken => container::inside(|| get_without_token(PATH)?.ok().map(drop)),
            Self::ContainerTokenRefused => container::inside(|| silent(put_token(60).map(drop))),
            Self::ContainerTokenGiven => container::inside(|| put_token(60)?.ok().map(drop)),
            Self::Shell => shell(),
            Self::Tests => test_programs::run(),
        }
    }
}

impl FromStr for Step {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        let number = || {
            value
                .parse::<u32>()
                .with_context(|| format!("step {text:?} needs a number"))
        };
        Ok(match (name, value) {
            ("demo", "") => Self::Demo,
            ("get", path) => Self::Get(path.to_owned()),
            ("get-v1", path) => Self::GetWithoutToken(path.to_owned()),
            ("big-request", "") => Self::BigRequest,
            ("keep-alive", _) => Self::KeepAlive(number()?),
            ("at-once", _) => Self::AtOnce(number()?),
            ("other-port", _) => Self::OtherPort(u16::try_from(number()?)?),
            ("container-v1", "") => Self::ContainerWithoutToken,
            ("container-token", "refused") => Self::ContainerTokenRefused,
            ("container-token", "given") => Self::ContainerTokenGiven,
            ("shell", "") => Self::Shell,
            ("tests", "") => Self::Tests,
            _ => bail!("there is no step {text:?}"),
        })
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Demo => f.write_str("demo"),
            Self::Get(path) => write!(f, "get={path}"),
            Self::GetWithoutToken(path) => write!(f, "get-v1={path}"),
            Self::BigRequest => f.write_str("big-request"),
            Self::KeepAlive(requests) => write!(f, "keep-alive={requests}"),
            Self::AtOnce(connections) => write!(f, "at-once={connections}"),
            Self::OtherPort(port) => write!(f, "other-port={port}"),
            Self::ContainerWithoutToken => f.write_str("container-v1"),
            Self::ContainerTokenRefused => f.write_str("container-token=refused"),
            Self::ContainerTokenGiven => f.write_str("container-token=given"),
            Self::Shell => f.write_str("shell"),
            Self::Tests => f.write_str("tests"),
        }
    }
}

fn print(path: &str, reply: &Reply) {
    println!("got {path}: {} {:?}", reply.status, reply.text());
}

fn keep_alive(requests: u32) -> Result<()> {
    let session = Session::open()?;
    let mut connection = Connection::open(80)?;
    let first = session.get_on(&mut connection, PATH)?.ok()?;
    for request in 1..requests {
        let again = session.get_on(&mut connection, PATH)?.ok()?;
        ensure!(again == first, "answer {request} is {again:?}, not {first:?}");
    }
    Ok(())
}

fn at_once(connections: u32) -> Result<()> {
    let session = Session::open()?;
    // All are open before the first one asks.
    let opened = (0..connections)
        .map(|_| Connection::open(80))
        .collect::<Result<Vec<_>>>()?;
    thread::scope(|scope| {
        let asked: Vec<_> = opened
            .into_iter()
            .map(|mut connection| {
                let session = &session;
                scope.spawn(move || session.get_on(&mut connection, PATH)?.ok())
            })
            .collect();
        for answer in asked {
            answer.join().unwrap_or_else(|_| bail!("a client panicked"))?;
        }
        Ok(())
    })
}

fn shell() -> Result<()> {
    let console = || {
        std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/ttyS0")
    };
    std::process::Command::new("/bin/busybox")
        .args(["sh", "-c", "busybox --install -s /bin; exec setsid -c sh -l"])
        .env_clear()
        .envs([
            ("PATH", "/bin"),
            ("HOME", "/"),
            ("TERM", "linux"),
            ("PS1", "guest# "),
        ])
        .stdin(console()?)
        .stdout(console()?)
        .stderr(console()?)
        .status()
        .context("cannot start the shell")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The host finds a step's line by the text that it asked for.
    #[test]
    fn steps_are_written_as_they_are_read() {
        for text in [
            "demo",
            "get=/latest/meta-data/",
            "get-v1=/latest/user-data",
            "big-request",
            "keep-alive=50",
            "at-once=16",
            "other-port=81",
            "container-v1",
            "container-token=refused",
            "container-token=given",
            "shell",
            "tests",
        ] {
            assert_eq!(text.parse::<Step>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_step_is_refused() {
        for text in [
            "",
            "dance",
            "demo=1",
            "keep-alive",
            "keep-alive=many",
            "other-port=65536",
        ] {
            assert!(text.parse::<Step>().is_err(), "{text}");
        }
    }
}
