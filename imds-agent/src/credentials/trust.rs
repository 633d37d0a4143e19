//! Whether a role's trust policy lets somebody assume it: EC2, or a session of another role.
//!
//! Read first: IAM user guide, "IAM JSON policy elements" and "Policy evaluation logic". Only what matters for one question is
//! evaluated: may this principal do `sts:AssumeRole`? A role without a trust policy may be assumed by EC2: IAM itself
//! always has one, so its absence means that whoever wrote the record leaves the matter to the instance profile. Nobody
//! else may assume such a role.

use serde_json::Value;

use crate::glob;

/// Whether `document` lets EC2 assume the role. In doubt it does not: an `Allow` with a condition does not count, a
/// `Deny` with one does.
pub(super) fn lets_ec2_assume(document: &Value) -> bool {
    lets(document, names_ec2, |_| None)
}

/// A session of a role that wants to assume another role.
#[derive(Clone, Copy, Debug)]
pub struct Principal<'a> {
    /// The account of its role.
    pub account: &'a str,
    /// The ARN of its role.
    pub role: &'a str,
    /// Its own ARN.
    pub session: &'a str,
    /// The name that the new session is to have.
    pub new_session_name: &'a str,
    /// The external id that it brings.
    pub external_id: Option<&'a str>,
}

impl Principal<'_> {
    /// Whether `document` lets it assume the role. As IAM does it within one account: who is named in the trust policy
    /// needs no other permission. In doubt it does not: a condition that is not understood holds for a `Deny` only.
    pub fn may_assume(&self, document: &Value) -> bool {
        lets(
            document,
            |principal| self.is_named(principal),
            |condition| self.fulfils(condition),
        )
    }

    fn is_named(&self, principal: &Value) -> bool {
        let anybody = |value: &Value| value.as_str() == Some("*");
        let own = |value: &Value| {
            value.as_str().is_some_and(|name| {
                [self.role, self.session].contains(&name)
                    || !self.account.is_empty() && (name == self.account || self.is_own_root(name))
            })
        };
        anybody(principal) || each(principal.get("AWS")).any(|name| anybody(name) || own(name))
    }

    /// Whether `name` is `arn:aws:iam::<account>:root`, the whole of its account.
    fn is_own_root(&self, name: &str) -> bool {
        let mut parts = name.split(':');
        parts.next() == Some("arn")
            && parts.nth(1) == Some("iam")
            && parts.nth(1) == Some(self.account)
            && parts.next() == Some("root")
            && parts.next().is_none()
    }

    /// Whether all operators and keys of a condition hold; nothing if one is not understood and none fails.
    fn fulfils(&self, condition: &Value) -> Option<bool> {
        let operators = condition.as_object()?;
        let mut all = Some(true);
        for (operator, keys) in operators {
            for (key, values) in keys.as_object()? {
                match self.compare(operator, key, values) {
                    Some(true) => {}
                    Some(false) => return Some(false),
                    None => all = None,
                }
            }
        }
        all
    }

    fn compare(&self, operator: &str, key: &str, values: &Value) -> Option<bool> {
        let actual = match key.to_ascii_lowercase().as_str() {
            "sts:externalid" => self.external_id,
            "sts:rolesessionname" => Some(self.new_session_name),
            "aws:principalarn" => Some(self.role),
            "aws:principalaccount" => Some(self.account),
            _ => return None,
        };
        // IAM takes numbers without quotes too, and puts something in the place of variables.
        let is_plain = |value: &Value| value.as_str().is_some_and(|text| !text.contains("${"));
        if !each(Some(values)).all(is_plain) {
            return None;
        }
        let any = |matches: fn(&str, &str) -> bool| {
            actual.is_some_and(|actual| {
                each(Some(values))
                    .filter_map(Value::as_str)
                    .any(|wanted| matches(wanted, actual))
            })
        };
        match operator {
            "StringEquals" => Some(any(|wanted, actual| wanted == actual)),
            "StringNotEquals" => Some(!any(|wanted, actual| wanted == actual)),
            "StringLike" | "ArnLike" | "ArnEquals" => Some(any(glob::matches)),
            "StringNotLike" | "ArnNotLike" | "ArnNotEquals" => Some(!any(glob::matches)),
            _ => None,
        }
    }
}

/// Whether `document` lets whom `names` recognizes assume the role. `fulfils` says of a condition whether it holds, if it can.
fn lets(document: &Value, names: impl Fn(&Value) -> bool, fulfils: impl Fn(&Value) -> Option<bool>) -> bool {
    let statements = || each(document.get("Statement"));
    let effect =
        |statement: &Value, effect: &str| statement.get("Effect").and_then(Value::as_str) == Some(effect);
    let condition = |statement: &Value| statement.get("Condition").map_or(Some(true), &fulfils);
    let allowed = statements().any(|statement| {
        effect(statement, "Allow")
            && condition(statement) == Some(true)
            && statement.get("Principal").is_some_and(&names)
            && each(statement.get("Action")).any(covers_assume_role)
    });
    let denied = statements().any(|statement| {
        let about_principal = match (statement.get("Principal"), statement.get("NotPrincipal")) {
            (Some(principal), _) => names(principal),
            (None, Some(others)) => !names(others),
            (None, None) => true,
        };
        let about_assume_role = match (statement.get("Action"), statement.get("NotAction")) {
            (Some(actions), _) => each(Some(actions)).any(covers_assume_role),
            (None, Some(others)) => !each(Some(others)).any(covers_assume_role),
            (None, None) => true,
        };
        effect(statement, "Deny")
            && condition(statement) != Some(false)
            && about_principal
            && about_assume_role
    });
    allowed && !denied
}

/// IAM writes a list of one as the one.
fn each(value: Option<&Value>) -> impl Iterator<Item = &Value> {
    match value {
        Some(Value::Array(values)) => values.as_slice(),
        Some(value) => std::slice::from_ref(value),
        None => &[],
    }
    .iter()
}

/// `"*"`, `{"AWS": "*"}` (which IAM takes for the same) or `{"Service": "ec2.amazonaws.com"}`, with any domain: a
/// private cloud has its own.
fn names_ec2(principal: &Value) -> bool {
    let anybody = |value: &Value| value.as_str() == Some("*");
    let ec2 = |service: &Value| {
        service
            .as_str()
            .and_then(|service| service.strip_prefix("ec2."))
            .is_some_and(|domain| !domain.is_empty())
    };
    anybody(principal)
        || each(principal.get("AWS")).any(anybody)
        || each(principal.get("Service")).any(|service| anybody(service) || ec2(service))
}

fn covers_assume_role(action: &Value) -> bool {
    action
        .as_str()
        .is_some_and(|action| glob::matches(&action.to_ascii_lowercase(), "sts:assumerole"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[expect(clippy::needless_pass_by_value, reason = "json! makes values")]
    fn allow(principal: Value) -> Value {
        json!({"Effect": "Allow", "Principal": principal, "Action": "sts:AssumeRole"})
    }

    /// The role that the caller is of.
    fn own() -> Value {
        json!({"AWS": "arn:aws:iam::1:role/web"})
    }

    fn with(condition: Value) -> Value {
        let mut statement = allow(own());
        statement["Condition"] = condition;
        statement
    }

    #[test]
    fn policies_that_let_ec2() {
        let service = json!({"Service": "ec2.amazonaws.com"});
        for statement in [
            allow(service.clone()),
            allow(json!("*")),
            allow(json!({"AWS": "*"})),
            allow(json!({"Service": ["lambda.amazonaws.com", "ec2.amazonaws.com.cn"]})),
            allow(json!({"Service": "ec2.cloud.example"})),
            json!([
                allow(json!({"AWS": "arn:aws:iam::1:root"})),
                allow(service.clone())
            ]),
            json!({"Effect": "Allow", "Principal": service, "Action": ["sts:TagSession", "sts:Assume*"]}),
            json!({"Effect": "Allow", "Principal": service, "Action": "*"}),
            json!([allow(service.clone()), {"Effect": "Deny", "Principal": {"Service": "ecs.amazonaws.com"}, "Action": "*"}]),
            json!([allow(service.clone()), {"Effect": "Deny", "Principal": "*", "NotAction": "sts:AssumeRole"}]),
            json!([allow(service.clone()), {"Effect": "Deny", "NotPrincipal": service, "Action": "*"}]),
        ] {
            assert!(lets_ec2_assume(&json!({"Statement": statement})), "{statement}");
        }
    }

    #[test]
    fn policies_that_do_not() {
        let service = json!({"Service": "ec2.amazonaws.com"});
        for statement in [
            json!([]),
            allow(json!({"Service": "lambda.amazonaws.com"})),
            allow(json!({"Service": "ec2."})),
            allow(json!({"Service": "ec2"})),
            allow(json!({"Service": "notec2.amazonaws.com"})),
            allow(json!({"AWS": "arn:aws:iam::1:root"})),
            allow(json!({"AWS": "ec2.amazonaws.com"})),
            json!({"Effect": "Allow", "Principal": service, "Action": "sts:TagSession"}),
            json!({"Effect": "Allow", "Principal": service, "NotAction": "s3:*"}),
            json!({"Effect": "Allow", "NotPrincipal": {"AWS": "x"}, "Action": "sts:AssumeRole"}),
            json!({"Effect": "allow", "Principal": service, "Action": "sts:AssumeRole"}),
            json!({"Effect": "Allow", "Principal": service, "Action": "sts:AssumeRole", "Condition": {"Bool": {"x": "y"}}}),
            json!([allow(service.clone()), {"Effect": "Deny", "Principal": "*", "Action": "sts:*"}]),
            json!([allow(service.clone()), {"Effect": "Deny", "NotPrincipal": {"AWS": "x"}, "NotAction": "s3:*"}]),
            json!([allow(service.clone()), {"Effect": "Deny"}]),
            json!("Allow"),
        ] {
            assert!(!lets_ec2_assume(&json!({"Statement": statement})), "{statement}");
        }
        for document in [json!({}), json!(null), json!([1]), json!("x")] {
            assert!(!lets_ec2_assume(&document), "{document}");
        }
    }

    fn chained() -> Principal<'static> {
        Principal {
            account: "1",
            role: "arn:aws:iam::1:role/web",
            session: "arn:aws:sts::1:assumed-role/web/i-1",
            new_session_name: "deploy",
            external_id: Some("shared"),
        }
    }

    #[test]
    fn policies_that_let_another_role() {
        for statement in [
            allow(own()),
            allow(json!("*")),
            allow(json!({"AWS": ["arn:aws:iam::2:root", "arn:aws:iam::1:root"]})),
            allow(json!({"AWS": "1"})),
            allow(json!({"AWS": "arn:aws:sts::1:assumed-role/web/i-1"})),
            with(json!({"StringEquals": {"sts:ExternalId": ["other", "shared"]}})),
            with(
                json!({"StringLike": {"sts:RoleSessionName": "dep*"}, "ArnLike": {"aws:PrincipalArn": "arn:aws:iam::1:role/*"}}),
            ),
            with(json!({"StringNotEquals": {"aws:PrincipalAccount": "2"}})),
            json!([allow(own()), {"Effect": "Deny", "Principal": "*", "Action": "*",
                "Condition": {"StringNotEquals": {"sts:ExternalId": "shared"}}}]),
        ] {
            assert!(
                chained().may_assume(&json!({"Statement": statement})),
                "{statement}"
            );
        }
    }

    #[test]
    fn policies_that_let_no_other_role() {
        for statement in [
            json!([]),
            allow(json!({"Service": "ec2.amazonaws.com"})),
            allow(json!({"AWS": "arn:aws:iam::2:root"})),
            allow(json!({"AWS": "arn:aws:iam::1:role/*"})),
            allow(json!({"AWS": "arn:aws:iam::1:role/web2"})),
            allow(json!({"AWS": ""})),
            with(json!({"StringEquals": {"sts:ExternalId": "other"}})),
            with(json!({"StringEquals": {"aws:SourceIp": "10.0.0.1"}})),
            with(json!({"IpAddress": {"sts:ExternalId": "shared"}})),
            with(json!("nonsense")),
            json!([allow(own()), {"Effect": "Deny", "Principal": "*", "Action": "*",
                "Condition": {"Bool": {"aws:SecureTransport": "false"}}}]),
            // Numbers need no quotes, and variables are somebody's.
            json!([allow(own()), {"Effect": "Deny", "Principal": "*", "Action": "*",
                "Condition": {"StringEquals": {"aws:PrincipalAccount": 1}}}]),
            json!([allow(own()), {"Effect": "Deny", "Principal": "*", "Action": "*",
                "Condition": {"StringLike": {"sts:ExternalId": ["other", "${aws:PrincipalTag/x}"]}}}]),
            with(json!({"StringNotEquals": {"aws:PrincipalAccount": 1}})),
            with(json!({"StringNotEquals": {"aws:PrincipalAccount": "${aws:PrincipalTag/x}"}})),
            json!([allow(own()), {"Effect": "Deny", "NotPrincipal": {"AWS": "2"}, "Action": "*"}]),
        ] {
            assert!(
                !chained().may_assume(&json!({"Statement": statement})),
                "{statement}"
            );
        }
        let stranger = Principal {
            account: "",
            ..chained()
        };
        assert!(!stranger.may_assume(&json!({"Statement": allow(json!({"AWS": ""}))})));
        let silent = Principal {
            external_id: None,
            ..chained()
        };
        let asks = with(json!({"StringEquals": {"sts:ExternalId": "shared"}}));
        assert!(!silent.may_assume(&json!({"Statement": asks})));
    }
}
