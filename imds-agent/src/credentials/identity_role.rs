//! The instance identity role: what every instance is, whatever its instance profile says.
//!
//! Read first: EC2 user guide, "Instance identity roles". On EC2 its credentials are for EC2's own features; here they
//! prove to a service of the cloud, through the security token service, which instance is calling.

use crate::registry::{Instance, Role};

/// The name of the role.
const NAME: &str = "aws:ec2-instance";

/// The instance's identity role. Its ARN is that of the session, as EC2 documents it.
pub fn identity_role(instance: &Instance) -> Role {
    let of_account = role_of_account(account(instance));
    Role {
        arn: format!("{}/{}", of_account.arn, instance.instance_id),
        ..of_account
    }
}

/// The account that owns the instance; empty if the record says none.
pub fn account(instance: &Instance) -> &str {
    let of_interface = || instance.network_interfaces.first()?.owner_id.as_deref();
    let account = instance.owner_id.as_deref().filter(|account| !account.is_empty());
    account.or_else(of_interface).unwrap_or_default()
}

/// What the identity roles of an account's instances have in common.
pub fn role_of_account(account: &str) -> Role {
    Role {
        role_name: NAME.parse().expect("the name is legal"),
        role_id: Some(format!("{account}:{NAME}")),
        arn: format!("arn:aws:iam::{account}:assumed-role/{NAME}"),
        path: None,
        assume_role_policy_document: None,
        max_session_duration: None,
        credentials: None,
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;
    use crate::{
        credentials::{Issuer, RoleSessionRequest, Source as _},
        keys::IssuerKey,
    };

    #[tokio::test]
    async fn session_is_named_as_on_ec2() {
        let instance: Instance =
            serde_json::from_str(r#"{"InstanceId":"i-1","OwnerId":"123456789012","NetworkInterfaces":[]}"#)
                .unwrap();
        let role = identity_role(&instance);
        assert_eq!(
            role.arn,
            "arn:aws:iam::123456789012:assumed-role/aws:ec2-instance/i-1"
        );
        let issuer = Issuer::new(&IssuerKey::new([1; 4], [1; 32]), &[]);
        let request = RoleSessionRequest {
            role: role.into(),
            ..RoleSessionRequest::of(r#"{"RoleName":"x","Arn":"x"}"#)
        };
        let set = issuer.fetch(&request).await.unwrap();
        let opened = issuer
            .open(set.session_token.expose_secret(), request.now)
            .unwrap();
        assert_eq!(opened.claims.account, "123456789012");
        assert_eq!(
            opened.claims.session_arn(),
            "arn:aws:sts::123456789012:assumed-role/aws:ec2-instance/i-1"
        );
        assert_eq!(opened.claims.user_id(), "123456789012:aws:ec2-instance:i-1");
    }
}
