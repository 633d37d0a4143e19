//! `network_namespaces`: in which other network namespaces there are taps.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, de};

use crate::glob;

/// Where `ip netns` mounts them.
const DEFAULT_DIRECTORY: &str = "/run/netns";

/// Names and patterns of network namespaces, all in one directory: the name alone is what a tap's record has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NetworkNamespaces {
    directory: PathBuf,
    patterns: Vec<String>,
}

impl NetworkNamespaces {
    /// Whether there are to be none.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Where they are mounted.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whether the taps in the network namespace of this name are the agent's business.
    pub fn select(&self, name: &str) -> bool {
        self.patterns.iter().any(|pattern| glob::matches(pattern, name))
    }
}

impl Default for NetworkNamespaces {
    fn default() -> Self {
        Self {
            directory: DEFAULT_DIRECTORY.into(),
            patterns: Vec::new(),
        }
    }
}

impl<'de> Deserialize<'de> for NetworkNamespaces {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        let mut namespaces: Option<Self> = None;
        for text in &texts {
            let (directory, pattern) = match text.rsplit_once('/') {
                None => (DEFAULT_DIRECTORY, text.as_str()),
                Some((directory, pattern)) => (directory, pattern),
            };
            let is_plain = directory.starts_with('/') && !directory.contains(['*', '?']);
            if !is_plain || pattern.is_empty() {
                return Err(de::Error::custom(format_args!(
                    "{text:?} is neither the name of a network namespace nor an absolute path, with `*` and `?` only in its last part"
                )));
            }
            let namespaces = namespaces.get_or_insert_with(|| Self {
                directory: directory.into(),
                patterns: Vec::new(),
            });
            if namespaces.directory != Path::new(directory) {
                return Err(de::Error::custom(format_args!(
                    "{text:?} is not in {}, as those before it are: names would be ambiguous",
                    namespaces.directory.display()
                )));
            }
            namespaces.patterns.push(pattern.to_owned());
        }
        Ok(namespaces.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<NetworkNamespaces, String> {
        #[derive(Deserialize)]
        struct File {
            is: NetworkNamespaces,
        }
        let file: Result<File, _> = toml::from_str(&format!("is = {text}"));
        file.map(|file| file.is)
            .map_err(|error| error.message().to_owned())
    }

    #[test]
    fn names_and_paths_of_one_directory() {
        let namespaces = parse(r#"["fc-*", "/run/netns/tenant-?", "one"]"#).unwrap();
        assert_eq!(namespaces.directory(), Path::new("/run/netns"));
        for (name, is_selected) in [
            ("fc-1", true),
            ("tenant-1", true),
            ("one", true),
            ("tenant-12", false),
            ("two", false),
        ] {
            assert_eq!(namespaces.select(name), is_selected, "{name}");
        }
        let elsewhere = parse(r#"["/run/docker/netns/*"]"#).unwrap();
        assert_eq!(elsewhere.directory(), Path::new("/run/docker/netns"));
        assert!(elsewhere.select("anything") && !elsewhere.is_empty());
    }

    #[test]
    fn none_unless_they_are_named() {
        assert!(parse("[]").unwrap().is_empty() && !parse("[]").unwrap().select(""));
        assert_eq!(parse("[]").unwrap(), NetworkNamespaces::default());
    }

    #[test]
    fn what_would_be_ambiguous_is_refused() {
        for (text, why) in [
            (r#"["one", "/run/docker/netns/two"]"#, "is not in /run/netns"),
            (r#"["/run/*/one"]"#, "only in its last part"),
            (r#"["netns/one"]"#, "neither the name"),
            (r#"["/run/netns/"]"#, "neither the name"),
            (r#"[""]"#, "neither the name"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
