//! Whether a role's trust policy lets EC2 assume it.
//!
//! Read first: IAM user guide, "IAM JSON policy elements" and "Policy evaluation logic". Only what matters for one question is
//! evaluated: may the service `ec2.<domain>` do `sts:AssumeRole`? A role without a trust policy may be assumed: IAM itself
//! always has one, so its absence means that whoever wrote the record leaves the matter to the instance profile.

use serde_json::Value;

use crate::glob;

/// Whether `document` lets EC2 assume the role. In doubt it does not: an `Allow` with a condition does not count, a
/// `Deny` with one does.
pub(super) fn lets_ec2_assume(document: &Value) -> bool {
    let statements = || each(document.get("Statement"));
    let effect =
        |statement: &Value, effect: &str| statement.get("Effect").and_then(Value::as_str) == Some(effect);
    let allowed = statements().any(|statement| {
        effect(statement, "Allow")
            && statement.get("Condition").is_none()
            && statement.get("Principal").is_some_and(names_ec2)
            && each(statement.get("Action")).any(covers_assume_role)
    });
    let denied = statements().any(|statement| {
        let about_ec2 = match (statement.get("Principal"), statement.get("NotPrincipal")) {
            (Some(principal), _) => names_ec2(principal),
            (None, Some(others)) => !names_ec2(others),
            (None, None) => true,
        };
        let about_assume_role = match (statement.get("Action"), statement.get("NotAction")) {
            (Some(actions), _) => each(Some(actions)).any(covers_assume_role),
            (None, Some(others)) => !each(Some(others)).any(covers_assume_role),
            (None, None) => true,
        };
        effect(statement, "Deny") && about_ec2 && about_assume_role
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
}
