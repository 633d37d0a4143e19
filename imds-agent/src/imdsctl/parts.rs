//! Parts of an instance that are changed by themselves: `imdsctl metadata-options`, `user-data` and `tags`.

use std::{
    io::{self, Write as _},
    path::PathBuf,
};

use anyhow::{Result, ensure};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Map, Value, json};

use super::{
    Verdict,
    client::{Client, Expect, Method, path},
    instance::read,
    print::{self, Table, text},
};

/// `imdsctl metadata-options`
#[derive(Subcommand, Debug)]
pub enum Options {
    /// Print the options of an instance, and whether they are in force.
    Show {
        /// The instance's id.
        instance: String,
    },
    /// Change options of a running instance, as `aws ec2 modify-instance-metadata-options`.
    Modify(Modify),
}

/// What is to be changed; what is not said stays.
#[derive(Args, Debug)]
pub struct Modify {
    /// The instance's id.
    instance: String,
    /// Whether the service answers the instance at all.
    #[arg(long)]
    http_endpoint: Option<Switch>,
    /// Whether a session token is needed.
    #[arg(long)]
    http_tokens: Option<Tokens>,
    /// The hop limit of responses to a PUT.
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=64))]
    http_put_response_hop_limit: Option<u8>,
    /// Whether the service answers on IPv6 too.
    #[arg(long)]
    http_protocol_ipv6: Option<Switch>,
    /// Whether the instance's tags are in the metadata.
    #[arg(long)]
    instance_metadata_tags: Option<Switch>,
    /// Whether tags with any key can be had, in an index.
    #[arg(long)]
    instance_metadata_tags_index: Option<Switch>,
}

#[derive(Clone, Copy, ValueEnum, Debug)]
enum Switch {
    Enabled,
    Disabled,
}

#[derive(Clone, Copy, ValueEnum, Debug)]
enum Tokens {
    Optional,
    Required,
}

/// `imdsctl user-data`
#[derive(Subcommand, Debug)]
pub enum UserData {
    /// Print the user data of an instance, byte for byte.
    Get {
        /// The instance's id.
        instance: String,
    },
    /// Give a running instance other user data.
    Put {
        /// The instance's id.
        instance: String,
        /// The exact bytes; "-" for standard input.
        #[arg(value_name = "FILE")]
        user_data: PathBuf,
    },
    /// Take the user data away.
    Delete {
        /// The instance's id.
        instance: String,
    },
}

/// `imdsctl tags`
#[derive(Subcommand, Debug)]
pub enum Tags {
    /// Print the tags of an instance.
    List {
        /// The instance's id.
        instance: String,
    },
    /// Give tags, as `aws ec2 create-tags`: new ones, or other values.
    Create {
        /// The instance's id.
        instance: String,
        /// Each as KEY=VALUE.
        #[arg(required = true, value_name = "KEY=VALUE")]
        tags: Vec<String>,
    },
    /// Take tags away.
    Delete {
        /// The instance's id.
        instance: String,
        /// Their keys.
        #[arg(required = true, value_name = "KEY")]
        keys: Vec<String>,
    },
}

/// Runs `imdsctl metadata-options`.
pub fn options(command: Options, client: &Client, is_json: bool) -> Result<Verdict> {
    let answer = match command {
        Options::Show { instance } => {
            client.get_json(&path(&["instances", &instance, "metadata-options"]))?
        }
        Options::Modify(modify) => {
            let changes = modify.changes();
            ensure!(
                !changes.is_empty(),
                "nothing is to be modified: give an option such as --http-tokens"
            );
            let path = path(&["instances", &modify.instance, "metadata-options"]);
            client.send_json(Method::PATCH, &path, &Expect::Anything, &changes.into())?
        }
    };
    let options = &answer["InstanceMetadataOptions"];
    if is_json {
        print::json(&answer);
    } else {
        let mut table = Table::new(&["OPTION", "VALUE"]);
        for name in options.as_object().into_iter().flat_map(Map::keys) {
            table.row(vec![name.clone(), text(options, name)]);
        }
        table.print();
    }
    Ok(print::verdict(options["State"].as_str()))
}

/// Runs `imdsctl user-data`.
pub fn user_data(command: UserData, client: &Client, is_json: bool) -> Result<Verdict> {
    let path_of = |instance: &str| path(&["instances", instance, "user-data"]);
    match command {
        UserData::Get { instance } => {
            let user_data = client.get(&path_of(&instance))?.body;
            if is_json {
                use base64::{Engine as _, engine::general_purpose::STANDARD};
                print::json(&json!({ "UserData": STANDARD.encode(user_data) }));
            } else {
                io::stdout().lock().write_all(&user_data)?;
            }
            Ok(Verdict::Yes)
        }
        UserData::Put { instance, user_data } => {
            let user_data = read(&user_data)?;
            let reply = client.send(Method::PUT, &path_of(&instance), &Expect::Anything, user_data)?;
            print::written(&reply.json()?, is_json)
        }
        UserData::Delete { instance } => print::written(&client.delete(&path_of(&instance))?, is_json),
    }
}

/// Runs `imdsctl tags`.
pub fn tags(command: Tags, client: &Client, is_json: bool) -> Result<Verdict> {
    let change = |instance: &str, changes: Value| {
        let path = path(&["instances", instance, "tags"]);
        print::written(
            &client.send_json(Method::PATCH, &path, &Expect::Anything, &changes)?,
            is_json,
        )
    };
    match command {
        Tags::List { instance } => {
            let answer = client.get_json(&path(&["instances", &instance, "tags"]))?;
            if is_json {
                print::json(&answer);
                return Ok(Verdict::Yes);
            }
            let mut table = Table::new(&["KEY", "VALUE"]);
            for tag in answer["Tags"].as_array().into_iter().flatten() {
                table.row(vec![text(tag, "Key"), text(tag, "Value")]);
            }
            table.print();
            Ok(Verdict::Yes)
        }
        Tags::Create { instance, tags } => {
            let mut list = Vec::new();
            for tag in &tags {
                let (key, value) = tag.split_once('=').unwrap_or((tag, ""));
                list.push(json!({ "Key": key, "Value": value }));
            }
            change(&instance, json!({ "Tags": list }))
        }
        Tags::Delete { instance, keys } => change(&instance, json!({ "RemoveKeys": keys })),
    }
}

impl Modify {
    fn changes(&self) -> Map<String, Value> {
        let word = |switch: Option<Switch>| switch.map(|switch| word(&switch));
        let said = [
            ("HttpEndpoint", word(self.http_endpoint)),
            ("HttpTokens", self.http_tokens.map(|tokens| self::word(&tokens))),
            (
                "HttpPutResponseHopLimit",
                self.http_put_response_hop_limit.map(Value::from),
            ),
            ("HttpProtocolIpv6", word(self.http_protocol_ipv6)),
            ("InstanceMetadataTags", word(self.instance_metadata_tags)),
            (
                "InstanceMetadataTagsIndex",
                word(self.instance_metadata_tags_index),
            ),
        ];
        said.into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?)))
            .collect()
    }
}

/// The word that a value is given by on the command line, which is EC2's.
pub(super) fn word(value: &impl ValueEnum) -> Value {
    value
        .to_possible_value()
        .map(|value| value.get_name().into())
        .unwrap_or_default()
}
