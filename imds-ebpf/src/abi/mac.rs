//! Addresses of network interfaces.

use core::{fmt, str::FromStr};

/// The 48-bit address of a network interface.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct MacAddr(pub [u8; 6]);

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not six two-digit hexadecimal octets joined by colons.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MacAddrError;

impl fmt::Display for MacAddrError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a MAC address is six two-digit hexadecimal octets joined by colons")
    }
}

impl core::error::Error for MacAddrError {}

impl FromStr for MacAddr {
    type Err = MacAddrError;

    fn from_str(text: &str) -> Result<Self, MacAddrError> {
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().ok_or(MacAddrError)?;
            if part.len() != 2 || !part.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(MacAddrError);
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| MacAddrError)?;
        }
        match parts.next() {
            None => Ok(Self(octets)),
            Some(_) => Err(MacAddrError),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_round_trip() {
        let mac: MacAddr = "02:0A:a9:fe:A9:01".parse().unwrap();
        assert_eq!(mac, MacAddr([0x02, 0x0a, 0xa9, 0xfe, 0xa9, 0x01]));
        extern crate std;
        assert_eq!(std::string::ToString::to_string(&mac), "02:0a:a9:fe:a9:01");
    }

    #[test]
    fn mac_refuses_other_shapes() {
        for text in [
            "",
            "02:0a:a9:fe:a9",
            "02:0a:a9:fe:a9:01:02",
            "2:0a:a9:fe:a9:01",
            "02-0a-a9-fe-a9-01",
            "+2:0a:a9:fe:a9:01",
        ] {
            assert_eq!(text.parse::<MacAddr>(), Err(MacAddrError), "{text}");
        }
    }
}
