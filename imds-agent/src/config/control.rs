//! The section of the configuration about the operators' socket.

use std::path::PathBuf;

use serde::{Deserialize, Deserializer, de};

use super::path_or_nothing;
use crate::control;

#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Control {
    #[serde(deserialize_with = "path_or_nothing")]
    socket: PathBuf,
    #[serde(deserialize_with = "mode")]
    mode: Option<u32>,
    read_group: String,
    admin_group: String,
}

impl Control {
    /// For the socket; nothing if there is none.
    pub fn settings(&self) -> Option<control::Settings> {
        let said = |text: &String| (!text.is_empty()).then(|| text.clone());
        (!self.socket.as_os_str().is_empty()).then(|| control::Settings {
            socket: self.socket.clone(),
            mode: self.mode,
            read_group: said(&self.read_group),
            admin_group: said(&self.admin_group),
        })
    }
}

impl Default for Control {
    fn default() -> Self {
        Self {
            socket: control::DEFAULT_SOCKET.into(),
            mode: None,
            read_group: String::new(),
            admin_group: String::new(),
        }
    }
}

fn mode<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    match u32::from_str_radix(&text, 8) {
        Ok(mode @ 0..=0o777) => Ok(Some(mode)),
        _ => Err(de::Error::custom("not an octal file mode such as \"0660\"")),
    }
}
