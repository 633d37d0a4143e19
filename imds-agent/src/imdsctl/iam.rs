//! Roles, instance profiles and who has which, in the words of `aws iam` and `aws ec2`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use rand::RngExt as _;
use serde_json::{Value, json};

use super::{
    Verdict,
    client::{Client, Expect, Method, path},
    instance::read,
    print::{self, Table, text},
};

/// What the ids of associations begin with; the instance's id follows, of which it can have one.
const ASSOCIATION: &str = "iip-assoc-";

/// `imdsctl role`
#[derive(Subcommand, Debug)]
pub enum Role {
    /// Make a role, as `aws iam create-role`.
    Create(CreateRole),
    /// Write a role as `aws iam get-role` prints it, new or in place of the one that is there.
    Put {
        /// "-" for standard input.
        #[arg(value_name = "FILE")]
        role: PathBuf,
    },
    /// Print a role.
    Get(RoleName),
    /// List the roles.
    List,
    /// Delete a role that no instance profile has.
    Delete(RoleName),
}

/// Which role.
#[derive(Args, Debug)]
pub struct RoleName {
    /// Its name, or its ARN.
    #[arg(long, value_name = "NAME")]
    role_name: String,
}

/// Whose it is and where it lies.
#[derive(Args, Debug)]
pub struct Place {
    /// The account that it belongs to.
    #[arg(long, value_name = "ACCOUNT", default_value = "")]
    account_id: String,
    /// IAM's path.
    #[arg(long, default_value = "/")]
    path: String,
    /// The partition of its ARN.
    #[arg(long, default_value = "aws")]
    partition: String,
}

/// `imdsctl role create`
#[derive(Args, Debug)]
pub struct CreateRole {
    #[command(flatten)]
    name: RoleName,
    #[command(flatten)]
    place: Place,
    /// The trust policy as JSON, or file://PATH [default: ec2.amazonaws.com may assume it].
    #[arg(long, value_name = "POLICY")]
    assume_role_policy_document: Option<String>,
    /// Seconds.
    #[arg(long, value_name = "SECONDS")]
    max_session_duration: Option<u32>,
    /// For people.
    #[arg(long)]
    description: Option<String>,
}

/// `imdsctl instance-profile`
#[derive(Subcommand, Debug)]
pub enum InstanceProfile {
    /// Make an instance profile, as `aws iam create-instance-profile`.
    Create {
        /// Which.
        #[command(flatten)]
        name: ProfileName,
        /// Whose, and where.
        #[command(flatten)]
        place: Place,
    },
    /// Print an instance profile.
    Get(ProfileName),
    /// List the instance profiles.
    List,
    /// Delete an instance profile that has no role.
    Delete(ProfileName),
    /// Put a role in, as `aws iam add-role-to-instance-profile`.
    AddRole {
        /// Into or out of which.
        #[command(flatten)]
        profile: ProfileName,
        /// Which role.
        #[command(flatten)]
        role: RoleName,
    },
    /// Take the role out, as `aws iam remove-role-from-instance-profile`.
    RemoveRole {
        /// Into or out of which.
        #[command(flatten)]
        profile: ProfileName,
        /// Which role.
        #[command(flatten)]
        role: RoleName,
    },
}

/// Which instance profile.
#[derive(Args, Debug)]
pub struct ProfileName {
    /// Its name, or its ARN.
    #[arg(long, value_name = "NAME")]
    instance_profile_name: String,
}

/// `imdsctl associate-iam-instance-profile`
#[derive(Args, Debug)]
pub struct Associate {
    /// The instance.
    #[arg(long, value_name = "ID")]
    instance_id: String,
    /// Name=NAME or Arn=ARN.
    #[arg(long, value_name = "PROFILE")]
    iam_instance_profile: String,
}

/// Which association.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub struct Association {
    /// As `describe-iam-instance-profile-associations` prints it.
    #[arg(long, value_name = "ID")]
    association_id: Option<String>,
    /// That of this instance.
    #[arg(long, value_name = "ID")]
    instance_id: Option<String>,
}

/// `imdsctl replace-iam-instance-profile-association`
#[derive(Args, Debug)]
pub struct Replace {
    #[command(flatten)]
    association: Association,
    /// Name=NAME or Arn=ARN.
    #[arg(long, value_name = "PROFILE")]
    iam_instance_profile: String,
}

/// Runs `imdsctl role`.
pub fn role(command: Role, client: &Client, is_json: bool) -> Result<Verdict> {
    let path_of = |name: &str| path(&["roles", name]);
    match command {
        Role::Create(create) => {
            let role = create.to_json()?;
            let path = path_of(role["Arn"].as_str().context("the role has no Arn")?);
            let written = client.send_json(Method::PUT, &path, &Expect::Absent, &role)?;
            created(client, &path, &written, is_json)
        }
        Role::Put { role } => {
            let role = read(&role)?;
            let value: Value = serde_json::from_slice(&role).context("the role is not JSON")?;
            let bare = value.get("Role").unwrap_or(&value);
            // Two accounts may have roles of one name.
            let arn = bare["Arn"].as_str().context("the role has no Arn")?;
            let reply = client.send(Method::PUT, &path_of(arn), &Expect::Anything, role)?;
            print::written(&reply.json()?, is_json)
        }
        Role::Get(RoleName { role_name }) => show(client, &path_of(&role_name)),
        Role::List => {
            let columns = ["RoleName", "Arn", "MaxSessionDuration"];
            list(client, &path(&["roles"]), "Roles", &columns, is_json)
        }
        Role::Delete(RoleName { role_name }) => {
            print::written(&client.delete(&path_of(&role_name))?, is_json)
        }
    }
}

/// Runs `imdsctl instance-profile`.
pub fn instance_profile(command: InstanceProfile, client: &Client, is_json: bool) -> Result<Verdict> {
    let path_of = |name: &ProfileName| path(&["instance-profiles", &name.instance_profile_name]);
    let role_path = |profile: &ProfileName, role: &RoleName| {
        path(&[
            "instance-profiles",
            &profile.instance_profile_name,
            "roles",
            &role.role_name,
        ])
    };
    match command {
        InstanceProfile::Create { name, place } => {
            let name = &name.instance_profile_name;
            let arn = place.arn("instance-profile", name)?;
            // Two accounts may have one of this name.
            let path = path(&["instance-profiles", &arn]);
            let profile = json!({
                "Path": place.path,
                "InstanceProfileName": name,
                "InstanceProfileId": unique_id("AIPA"),
                "Arn": arn,
                "CreateDate": now(),
                "Roles": [],
            });
            let written = client.send_json(Method::PUT, &path, &Expect::Absent, &profile)?;
            created(client, &path, &written, is_json)
        }
        InstanceProfile::Get(name) => show(client, &path_of(&name)),
        InstanceProfile::List => {
            let path = path(&["instance-profiles"]);
            let columns = ["InstanceProfileName", "Arn", "Roles"];
            list(client, &path, "InstanceProfiles", &columns, is_json)
        }
        InstanceProfile::Delete(name) => print::written(&client.delete(&path_of(&name))?, is_json),
        InstanceProfile::AddRole { profile, role } => {
            let path = role_path(&profile, &role);
            let reply = client.send(Method::PUT, &path, &Expect::Anything, Vec::new())?;
            print::written(&reply.json()?, is_json)
        }
        InstanceProfile::RemoveRole { profile, role } => {
            print::written(&client.delete(&role_path(&profile, &role))?, is_json)
        }
    }
}

/// Gives an instance that has none an instance profile.
pub fn associate(associate: &Associate, client: &Client, is_json: bool) -> Result<Verdict> {
    let profile = specification(&associate.iam_instance_profile)?;
    attach(client, Method::POST, &associate.instance_id, &profile, is_json)
}

/// Gives an instance another instance profile.
pub fn replace(replace: &Replace, client: &Client, is_json: bool) -> Result<Verdict> {
    let profile = specification(&replace.iam_instance_profile)?;
    attach(
        client,
        Method::PUT,
        replace.association.instance()?,
        &profile,
        is_json,
    )
}

/// Takes the instance profile off an instance.
pub fn disassociate(association: &Association, client: &Client, is_json: bool) -> Result<Verdict> {
    print::written(&client.delete(&profile_path(association.instance()?))?, is_json)
}

/// Lists who has which instance profile.
pub fn describe(client: &Client, is_json: bool) -> Result<Verdict> {
    let instances = client.get_json("/v1/instances")?;
    let instances = instances["instances"].as_array().into_iter().flatten();
    let associations = instances
        .filter(|instance| instance["instanceProfile"].is_string())
        .map(|instance| {
            let id = text(instance, "instanceId");
            association(&id, &json!({ "Arn": instance["instanceProfile"] }), "associated")
        });
    let associations: Vec<Value> = associations.collect();
    if is_json {
        print::json(&json!({ "IamInstanceProfileAssociations": associations }));
        return Ok(Verdict::Yes);
    }
    let mut table = Table::new(&["ASSOCIATION", "INSTANCE", "INSTANCE PROFILE"]);
    for association in &associations {
        let arn = text(&association["IamInstanceProfile"], "Arn");
        table.row(vec![
            text(association, "AssociationId"),
            text(association, "InstanceId"),
            arn,
        ]);
    }
    table.print();
    Ok(Verdict::Yes)
}

fn attach(
    client: &Client,
    method: Method,
    instance: &str,
    profile: &Value,
    is_json: bool,
) -> Result<Verdict> {
    let path = profile_path(instance);
    let written = client.send_json(method, &path, &Expect::Anything, profile)?;
    if is_json {
        let attached = client.get_json(&path)?;
        let state = if written["state"] == "applied" {
            "associated"
        } else {
            "associating"
        };
        let association = association(instance, &attached["IamInstanceProfile"], state);
        print::json(&json!({ "IamInstanceProfileAssociation": association }));
    }
    print::written(&written, false)
}

fn association(instance: &str, profile: &Value, state: &str) -> Value {
    json!({
        "AssociationId": format!("{ASSOCIATION}{instance}"),
        "InstanceId": instance,
        "IamInstanceProfile": profile,
        "State": state,
    })
}

fn profile_path(instance: &str) -> String {
    path(&["instances", instance, "iam-instance-profile"])
}

/// `Name=web` or `Arn=arn:...`, as the AWS CLI takes it.
fn specification(text: &str) -> Result<Value> {
    match text.split_once('=') {
        Some((field @ ("Name" | "Arn"), value)) => Ok(json!({ field: value })),
        _ => bail!("{text} is neither Name=NAME nor Arn=ARN"),
    }
}

fn created(client: &Client, path: &str, written: &Value, is_json: bool) -> Result<Verdict> {
    if is_json {
        print::json(&client.get_json(path)?);
    }
    print::written(written, false)
}

fn show(client: &Client, path: &str) -> Result<Verdict> {
    print::json(&client.get_json(path)?);
    Ok(Verdict::Yes)
}

fn list(client: &Client, path: &str, field: &str, columns: &[&str], is_json: bool) -> Result<Verdict> {
    let answer = client.get_json(path)?;
    if is_json {
        print::json(&answer);
        return Ok(Verdict::Yes);
    }
    let mut table = Table::new(columns);
    for item in answer[field].as_array().into_iter().flatten() {
        let cell = |column: &&str| match &item[*column] {
            Value::Array(roles) => {
                let names: Vec<String> = roles.iter().map(|role| text(role, "RoleName")).collect();
                names.join(", ")
            }
            _ => text(item, column),
        };
        table.row(columns.iter().map(cell).collect());
    }
    table.print();
    Ok(Verdict::Yes)
}

impl CreateRole {
    fn to_json(&self) -> Result<Value> {
        let name = &self.name.role_name;
        let mut role = json!({
            "Path": self.place.path,
            "RoleName": name,
            "RoleId": unique_id("AROA"),
            "Arn": self.place.arn("role", name)?,
            "CreateDate": now(),
            "AssumeRolePolicyDocument": self.trust_policy()?,
        });
        if let Some(seconds) = self.max_session_duration {
            role["MaxSessionDuration"] = seconds.into();
        }
        if let Some(description) = &self.description {
            role["Description"] = description.as_str().into();
        }
        Ok(role)
    }

    fn trust_policy(&self) -> Result<Value> {
        let Some(given) = &self.assume_role_policy_document else {
            return Ok(json!({
                "Version": "2012-10-17",
                "Statement": [{
                    "Effect": "Allow",
                    "Principal": { "Service": "ec2.amazonaws.com" },
                    "Action": "sts:AssumeRole",
                }],
            }));
        };
        let text = match given.strip_prefix("file://") {
            Some(file) => read(Path::new(file))?,
            None => given.clone().into_bytes(),
        };
        serde_json::from_slice(&text).context("the trust policy is not JSON")
    }
}

impl Place {
    fn arn(&self, kind: &str, name: &str) -> Result<String> {
        ensure!(
            !name.starts_with("arn:"),
            "a new {kind} is given its name, not its ARN"
        );
        let Self {
            account_id,
            path,
            partition,
        } = self;
        ensure!(
            path.starts_with('/') && path.ends_with('/'),
            "a path begins and ends with a slash"
        );
        Ok(format!("arn:{partition}:iam::{account_id}:{kind}{path}{name}"))
    }
}

impl Association {
    fn instance(&self) -> Result<&str> {
        match (&self.instance_id, &self.association_id) {
            (Some(instance), _) => Ok(instance),
            (None, Some(id)) => id
                .strip_prefix(ASSOCIATION)
                .with_context(|| format!("there is no association {id}")),
            (None, None) => bail!("neither --association-id nor --instance-id is given"),
        }
    }
}

/// As IAM makes them: the kind, and seventeen of the letters and digits of base32.
fn unique_id(kind: &str) -> String {
    const LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let mut random = rand::rng();
    let letters = (0..17).map(|_| char::from(LETTERS[random.random_range(0..LETTERS.len())]));
    kind.chars().chain(letters).collect()
}

fn now() -> String {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
}
