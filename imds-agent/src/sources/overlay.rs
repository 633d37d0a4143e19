//! What an operator adds to a hypervisor's description of a guest: fields of a record, as JSON.

use serde_json::{Map, Value};

/// The fields of `text`, an object.
pub(super) fn parse(text: &str) -> Result<Map<String, Value>, String> {
    match serde_json::from_str(text) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err("is not an object".to_owned()),
        Err(error) => Err(format!("is not JSON: {error}")),
    }
}

/// Lays the fields over a record: they win over what is there. Tags join those that are there by their keys, and
/// interfaces by their MACs, which the hypervisor alone can say, and their taps.
pub(super) fn lay_over(record: &mut Map<String, Value>, fields: Map<String, Value>) -> Result<(), String> {
    for (name, value) in fields {
        match name.as_str() {
            "Origin" => return Err("Origin is not for you to say".to_owned()),
            "NetworkInterfaces" => add_to_interfaces(record, &value)?,
            "Tags" => {
                for tag in elements(&value) {
                    let text = |field| tag.get(field).and_then(Value::as_str).unwrap_or_default();
                    set_tag(record, text("Key"), text("Value"));
                }
            }
            _ => {
                record.insert(name, value);
            }
        }
    }
    Ok(())
}

/// Gives the instance a tag, in place of one with the same key.
pub(super) fn set_tag(record: &mut Map<String, Value>, key: &str, value: &str) {
    let tag = serde_json::json!({ "Key": key, "Value": value });
    let tags = record
        .entry("Tags")
        .or_insert_with(|| Value::Array(Vec::new()))
        .as_array_mut();
    let Some(tags) = tags else { return };
    match tags
        .iter_mut()
        .find(|tag| tag.get("Key").and_then(Value::as_str) == Some(key))
    {
        Some(same) => *same = tag,
        None => tags.push(tag),
    }
}

fn add_to_interfaces(record: &mut Map<String, Value>, value: &Value) -> Result<(), String> {
    for fields in elements(value).filter_map(Value::as_object) {
        let mac = fields
            .get("MacAddress")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let interface = record
            .get_mut("NetworkInterfaces")
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
            .filter_map(Value::as_object_mut)
            .find(|interface| {
                let own = interface.get("MacAddress").and_then(Value::as_str);
                own.is_some_and(|own| own.eq_ignore_ascii_case(mac))
            });
        let Some(interface) = interface else {
            return Err(format!("the guest has no interface with MacAddress {mac:?}"));
        };
        if fields.contains_key("Tap") {
            return Err(format!("the Tap of {mac:?} is the hypervisor's to say"));
        }
        for (name, value) in fields.iter().filter(|(name, _)| *name != "MacAddress") {
            interface.insert(name.clone(), value.clone());
        }
    }
    Ok(())
}

fn elements(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}
