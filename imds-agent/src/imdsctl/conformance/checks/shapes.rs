//! What a value looks like.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use jiff::{Timestamp, civil::DateTime};
use serde_json::Value;

/// What a category's value must look like.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shape {
    /// Any single line.
    Line,
    /// One or more lines.
    Lines,
    /// A decimal number.
    Number,
    Ipv4,
    Ipv6,
    Mac,
    /// A block in CIDR notation.
    Cidr,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// `YYYY-MM-DDTHH:MM:SSZ`
    Time,
    /// Every line has this shape.
    Each(&'static Shape),
    /// A JSON object with these keys.
    Object(&'static [&'static str]),
    /// A JSON array of objects with these keys.
    Array(&'static [&'static str]),
    /// Base64, in lines or in one, without the armour of PEM.
    Base64,
    /// An XML declaration.
    Xml,
    /// Anything, also nothing.
    Bytes,
}

impl Shape {
    /// Whether `text` has it.
    pub(super) fn fits(self, text: &str) -> bool {
        match self {
            Self::Line => is_line(text),
            Self::Lines => !text.is_empty() && text.split('\n').all(is_line),
            Self::Number => !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()),
            Self::Ipv4 => text.parse::<Ipv4Addr>().is_ok(),
            Self::Ipv6 => text.parse::<Ipv6Addr>().is_ok(),
            Self::Mac => is_mac(text),
            Self::Cidr => is_cidr(text),
            Self::OneOf(words) => words.contains(&text),
            Self::Time => time(text).is_some(),
            Self::Each(shape) => !text.is_empty() && text.split('\n').all(|line| shape.fits(line)),
            Self::Object(keys) => serde_json::from_str(text).is_ok_and(|value: Value| has_keys(&value, keys)),
            Self::Array(keys) => serde_json::from_str(text)
                .is_ok_and(|values: Vec<Value>| values.iter().all(|value| has_keys(value, keys))),
            Self::Base64 => {
                let is_base64 = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=\n".contains(&byte);
                text.len() >= 64 && text.bytes().all(is_base64)
            }
            Self::Xml => text.starts_with("<?xml "),
            Self::Bytes => true,
        }
    }

    /// It in words.
    pub(super) fn words(self) -> String {
        match self {
            Self::Line => "one line".to_owned(),
            Self::Lines => "lines".to_owned(),
            Self::Number => "a number".to_owned(),
            Self::Ipv4 => "an IPv4 address".to_owned(),
            Self::Ipv6 => "an IPv6 address".to_owned(),
            Self::Mac => "a MAC address in lower case".to_owned(),
            Self::Cidr => "a CIDR block".to_owned(),
            Self::OneOf(words) => words.join(" or "),
            Self::Time => "YYYY-MM-DDTHH:MM:SSZ".to_owned(),
            Self::Each(shape) => format!("lines, each {}", shape.words()),
            Self::Object([]) => "a JSON object".to_owned(),
            Self::Object(keys) => format!("a JSON object with {}", keys.join(", ")),
            Self::Array([]) => "a JSON array".to_owned(),
            Self::Array(keys) => format!("a JSON array of objects with {}", keys.join(", ")),
            Self::Base64 => "base64 without PEM armour".to_owned(),
            Self::Xml => "an XML declaration".to_owned(),
            Self::Bytes => "any bytes".to_owned(),
        }
    }
}

/// A time as botocore reads it, exactly `%Y-%m-%dT%H:%M:%SZ`.
pub(super) fn time(text: &str) -> Option<Timestamp> {
    const FORMAT: &str = "%Y-%m-%dT%H:%M:%SZ";
    let time = DateTime::strptime(FORMAT, text).ok()?;
    (time.strftime(FORMAT).to_string() == text)
        .then(|| text.parse().ok())
        .flatten()
}

fn is_line(text: &str) -> bool {
    !text.is_empty() && !text.contains(['\n', '\r'])
}

fn is_mac(text: &str) -> bool {
    let parts: Vec<&str> = text.split(':').collect();
    parts.len() == 6
        && parts
            .iter()
            .all(|part| part.len() == 2 && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')))
}

fn is_cidr(text: &str) -> bool {
    let Some((address, length)) = text.split_once('/') else {
        return false;
    };
    let length_max = match address.parse() {
        Ok(IpAddr::V4(_)) => 32,
        Ok(IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    length.parse::<u8>().is_ok_and(|length| length <= length_max)
}

fn has_keys(value: &Value, keys: &[&str]) -> bool {
    value
        .as_object()
        .is_some_and(|object| keys.iter().all(|key| object.contains_key(*key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes() {
        for (shape, good, bad) in [
            (Shape::Line, "a b", "a\nb"),
            (Shape::Lines, "a\nb", "a\n"),
            (Shape::Number, "0", "-1"),
            (Shape::Ipv4, "10.0.0.1", "10.0.0"),
            (Shape::Mac, "0e:49:61:0f:c3:11", "0E:49:61:0F:C3:11"),
            (Shape::Cidr, "10.0.0.0/16", "10.0.0.0/33"),
            (Shape::OneOf(&["a"]), "a", "A"),
            (Shape::Time, "2017-09-18T08:22:00Z", "2017-09-18T08:22:00.5Z"),
            (Shape::Time, "2017-09-18T08:22:00Z", "2017-9-18T08:22:00Z"),
            (Shape::Each(&Shape::Ipv4), "10.0.0.1\n10.0.0.2", "10.0.0.1\n"),
            (Shape::Object(&["a"]), "{\"a\": null}", "{\"b\": 1}"),
            (Shape::Array(&["a"]), "[]", "[{}]"),
            (Shape::Base64, &"abc+".repeat(20), "-----BEGIN PKCS7-----"),
        ] {
            assert!(shape.fits(good), "{shape:?} {good:?}");
            assert!(!shape.fits(bad), "{shape:?} {bad:?}");
        }
    }
}
