//! Where the configuration is read from, at the start and again.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{Config, ConfigError, DEFAULT_PATH};

/// A configuration file, which may be read several times.
#[derive(Debug)]
pub struct ConfigFile {
    path: PathBuf,
    /// It was asked for, or has been read once.
    has_to_be_there: bool,
}

impl ConfigFile {
    /// The file that is given, or the one at [`DEFAULT_PATH`] if it is there.
    pub fn new(given: Option<PathBuf>) -> Self {
        Self {
            has_to_be_there: given.is_some(),
            path: given.unwrap_or_else(|| DEFAULT_PATH.into()),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads it. Nothing if the default one is not there, which leaves the caller to warn and take the defaults; one that was there is
    /// not taken for that afterwards.
    pub fn read(&mut self) -> Result<Option<Config>, ConfigError> {
        match Config::load(&self.path) {
            Err(ConfigError::Read { source, .. })
                if !self.has_to_be_there && source.kind() == io::ErrorKind::NotFound =>
            {
                Ok(None)
            }
            loaded => {
                let config = loaded?;
                self.has_to_be_there = true;
                Ok(Some(config))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn file_may_be_missing_until_it_was_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.toml");
        let is_missing =
            |read: Result<Option<Config>, ConfigError>| matches!(read, Err(ConfigError::Read { .. }));
        assert!(is_missing(ConfigFile::new(Some(path.clone())).read()));

        let mut default = ConfigFile {
            path: path.clone(),
            has_to_be_there: false,
        };
        assert_eq!(default.read().unwrap(), None);
        assert_eq!(default.read().unwrap(), None);
        fs::write(&path, "workers = 2").unwrap();
        let config = default.read().unwrap();
        assert!(config.is_some());
        fs::remove_file(&path).unwrap();
        assert!(is_missing(default.read()));
        fs::write(&path, "workers = 2").unwrap();
        assert_eq!(default.read().unwrap(), config);
    }
}
