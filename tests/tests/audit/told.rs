//! What the agent tells whoever asks, and what it writes.

use std::{fs, path::Path};

use anyhow::{Result, ensure};
use imds_agent::control::routes::ROUTES;
use imds_tests::{
    control::{ask, imdsctl},
    host::{Host, INSTANCE_ID},
    records,
};

/// What operators ask with `imdsctl`, `@` for the instance.
const COMMANDS: &str = "
status
reload
top --once --seconds 1
instance list
instance show @
instance tokenless @
metadata-options show @
user-data get @
tags list @
event show @
role list
role get --role-name web-server
instance-profile list
instance-profile get --instance-profile-name web-server-profile
describe-iam-instance-profile-associations
doctor @
get @ meta-data/iam/
get @ meta-data/iam/security-credentials/web-server
get @ meta-data/iam/security-credentials-extended/web-server
get @ meta-data/identity-credentials/ec2/security-credentials/ec2-instance
";

/// All that `imdsctl` prints.
pub fn by_imdsctl(host: &Host, all: &mut Vec<(String, String)>) -> Result<()> {
    for line in COMMANDS.lines().filter(|line| !line.is_empty()) {
        let line = line.replace('@', INSTANCE_ID);
        for form in [&[][..], &["--json"]] {
            let output = imdsctl(&host.files)?
                .args(form)
                .args(line.split_whitespace())
                .output()?;
            let errors = String::from_utf8_lossy(&output.stderr);
            // Three is no: somebody asks without a token, say.
            ensure!(matches!(output.status.code(), Some(0 | 3)), "{line}: {errors}");
            let text = [&output.stdout[..], &output.stderr].concat();
            all.push((
                format!("imdsctl {line} {form:?}"),
                String::from_utf8_lossy(&text).into_owned(),
            ));
        }
    }
    Ok(())
}

/// All that the control socket answers to who only reads.
pub fn by_the_socket(host: &Host, all: &mut Vec<(String, String)>) -> Result<()> {
    for route in ROUTES.iter().filter(|route| route.method == "get") {
        let name = if route.path.starts_with("/v1/roles") {
            records::ROLE
        } else {
            records::INSTANCE_PROFILE
        };
        let path = route.path.replace("{id}", INSTANCE_ID).replace("{name}", name);
        match path.strip_suffix("{*path}") {
            Some(root) => crawl(host, &format!("{root}latest/"), all)?,
            // It has no end: what it says is read by `imdsctl trace`.
            None if path == "/v1/trace" => {}
            None => {
                let response = ask(&host.files.socket(), "GET", &path, &[], b"")?;
                ensure!(response.status == 200, "{path}: {}", response.head);
                all.push((path, format!("{}\n{}", response.head, response.text())));
            }
        }
    }
    let of_tree = |(path, _): &&(String, String)| path.contains("/metadata/");
    ensure!(
        all.iter().filter(of_tree).count() > 40,
        "the tree was not crawled"
    );
    let redacted = all
        .iter()
        .filter(of_tree)
        .filter(|(_, text)| text.contains("(redacted)"));
    let redacted: Vec<_> = redacted.map(|(path, _)| path).collect();
    ensure!(redacted.len() == 2, "the role and the instance: {redacted:?}");
    Ok(())
}

/// What the guest would see at a path of the tree and at all below it, as the control socket shows it.
fn crawl(host: &Host, path: &str, all: &mut Vec<(String, String)>) -> Result<()> {
    let response = ask(&host.files.socket(), "GET", path, &[], b"")?;
    ensure!(response.status == 200, "{path}: {}", response.head);
    let text = String::from_utf8_lossy(&response.body).into_owned();
    for name in text.lines().filter(|_| path.ends_with('/')) {
        let below = match (name, name.split_once('=')) {
            ("dynamic" | "meta-data", _) => format!("{path}{name}/"),
            (_, Some((index, _))) => format!("{path}{index}/"),
            (_, None) => format!("{path}{name}"),
        };
        crawl(host, &below, all)?;
    }
    all.push((path.to_owned(), format!("{}\n{text}", response.head)));
    Ok(())
}

/// Every file under `directory` but the keys.
pub fn by_files(directory: &Path, all: &mut Vec<(String, String)>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            if !path.ends_with("keys") {
                by_files(&path, all)?;
            }
        } else {
            let text = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
            all.push((path.display().to_string(), text));
        }
    }
    Ok(())
}
