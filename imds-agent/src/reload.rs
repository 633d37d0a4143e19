//! The configuration of a running agent: read again on SIGHUP or when the operators' socket is asked to. What can change
//! changes, what cannot is named, and a file with a mistake changes nothing.

use std::{env, fmt};

use crate::{
    config::{Config, ConfigError, LogLevel},
    control::Reloaded,
};

/// Reads the configuration file, as at the start.
pub type Read = Box<dyn FnMut() -> Result<Config, ConfigError> + Send>;

/// The configuration in force, and where it came from.
pub struct Reload {
    in_force: Config,
    /// The agent began with other network namespaces, even if none is left.
    goes_elsewhere: bool,
    read: Read,
}

impl Reload {
    /// With `config` the agent began; `read` gives what follows it.
    pub fn new(config: Config, read: Read) -> Self {
        Self {
            goes_elsewhere: !config.network_namespaces.is_empty(),
            in_force: config,
            read,
        }
    }

    /// The configuration in force.
    pub fn config(&self) -> &Config {
        &self.in_force
    }

    /// Reads the file again, because of `why`. What is left to the caller is to do by [`Self::config`] from here on.
    pub fn read(&mut self, why: &str) -> Result<Reloaded, String> {
        let new = (self.read)().map_err(|error| {
            let error = sentence(&error);
            log::error!("{why}: the configuration stays as it is: {error}");
            error
        })?;
        let reloaded = self.in_force.changes(&new, self.goes_elsewhere);
        let in_force = self.in_force.clone();
        self.in_force = in_force.with_live_fields_of(new, self.goes_elsewhere);
        set_log_level(self.in_force.log_level);
        log::info!(
            "{why}: the configuration is read again; changed: {}",
            listed(&reloaded.changed)
        );
        if !reloaded.needs_restart.is_empty() {
            log::warn!(
                "the configuration: {} only after a restart",
                listed(&reloaded.needs_restart)
            );
        }
        Ok(reloaded)
    }
}

impl fmt::Debug for Reload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reload")
            .field("in_force", &self.in_force)
            .finish_non_exhaustive()
    }
}

/// Puts a level in force, unless `RUST_LOG` overrules the configuration.
pub fn set_log_level(level: LogLevel) {
    if env::var_os("RUST_LOG").is_none() {
        log::set_max_level(level.into());
    }
}

/// An error with its sources.
fn sentence(error: &dyn std::error::Error) -> String {
    let mut sentence = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        sentence += &format!(": {error}");
        source = error.source();
    }
    sentence
}

fn listed(fields: &[&str]) -> String {
    if fields.is_empty() {
        "nothing".to_owned()
    } else {
        fields.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use super::*;
    use crate::config::Taps;

    #[test]
    fn what_can_change_changes_and_a_mistake_changes_nothing() {
        let file = Arc::new(Mutex::new(Some(Config::default())));
        let read = Arc::clone(&file);
        let mut reload = Reload::new(
            Config::default(),
            Box::new(move || {
                let source = || io::Error::from(io::ErrorKind::NotFound);
                let config = read.lock().unwrap().clone();
                config.ok_or_else(|| ConfigError::Read {
                    path: "/c".into(),
                    source: source(),
                })
            }),
        );
        assert_eq!(reload.read("a test"), Ok(Reloaded::default()));
        let changed = |change: fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            config
        };
        *file.lock().unwrap() = Some(changed(|config| {
            config.taps = Taps::Named(Vec::new());
            config.state_directory = "/elsewhere".into();
        }));
        let expected = Reloaded {
            changed: vec!["taps"],
            needs_restart: vec!["state_directory"],
        };
        assert_eq!(reload.read("a test"), Ok(expected));
        assert_eq!(
            reload.config(),
            &changed(|config| config.taps = Taps::Named(Vec::new()))
        );
        let before = reload.config().clone();
        *file.lock().unwrap() = None;
        let error = reload.read("a test").unwrap_err();
        assert!(error.contains("/c: "), "{error}");
        assert_eq!(reload.config(), &before);
    }

    #[test]
    fn namespaces_end_and_begin_where_the_agent_began_with_some() {
        let some: Config = toml::from_str("network_namespaces = [\"fc-*\"]").unwrap();
        let read_in_turn = |begun: &Config, configs: [&Config; 2]| {
            let mut configs = configs.map(Config::clone).into_iter();
            let mut reload = Reload::new(begun.clone(), Box::new(move || Ok(configs.next().unwrap())));
            [(); 2].map(|()| {
                let reloaded = reload.read("a test").unwrap();
                (reloaded.changed, reload.config().network_namespaces.is_empty())
            })
        };
        let none = Config::default();
        let changed = vec!["network_namespaces"];
        assert_eq!(
            read_in_turn(&some, [&none, &some]),
            [(changed.clone(), true), (changed, false)]
        );
        assert_eq!(
            read_in_turn(&none, [&some, &none]),
            [(vec![], true), (vec![], true)]
        );
    }
}
