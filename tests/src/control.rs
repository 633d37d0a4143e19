//! Both ways to the control socket: `imdsctl`, and the bare bytes.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    agent::HostFiles,
    client::{PATIENCE, Response},
    host::program_called,
};

/// `imdsctl` for the agent of these files.
pub fn imdsctl(files: &HostFiles) -> Result<Command> {
    let mut command = Command::new(program_called("imdsctl")?);
    command.arg("--socket").arg(files.socket());
    Ok(command)
}

/// Runs `imdsctl --json` with arguments, split at spaces, which has to be content; the JSON that it prints.
pub fn imdsctl_json(files: &HostFiles, arguments: &str) -> Result<Value> {
    let text = run(imdsctl(files)?.arg("--json").args(arguments.split_whitespace()))?;
    serde_json::from_str(&text).with_context(|| format!("imdsctl {arguments} printed {text:?}"))
}

/// Runs a command, which has to be content, and returns what it prints.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{command:?}: {}: {errors}",
        output.status
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// The head of what is answered at a path where the answer does not end.
pub fn head_of(socket: &Path, path: &str) -> Result<Response> {
    let mut stream = UnixStream::connect(socket).context("the control socket cannot be reached")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: imds-agent\r\n\r\n").as_bytes())?;
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        bytes.extend(byte);
    }
    Response::parse(&bytes)
}

/// Sends one request on a connection of its own; `fields` are whole lines.
pub fn ask(socket: &Path, method: &str, path: &str, fields: &[&str], body: &[u8]) -> Result<Response> {
    let mut stream = UnixStream::connect(socket).context("the control socket cannot be reached")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: imds-agent\r\nConnection: close\r\n");
    for field in fields {
        request += &format!("{field}\r\n");
    }
    request += &format!("Content-Length: {}\r\n\r\n", body.len());
    // An agent that has heard enough answers and closes, which breaks what is still on its way.
    let _ = stream.write_all(&[request.as_bytes(), body].concat());
    let mut bytes = Vec::new();
    let read = stream.read_to_end(&mut bytes);
    if bytes.is_empty() {
        read?;
    }
    Response::parse(&bytes)
}
