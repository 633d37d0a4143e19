//! Which roles have sessions in trouble: told when it begins and when it is over, not for each session or try.

use std::collections::HashMap;

use super::totals::Troubles;

/// Something that an operator should learn, told once for each role and not for each session or try.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The source began to fail for sessions of this role.
    Failing {
        /// The role's ARN.
        role: String,
        /// What the first failure said.
        why: String,
    },
    /// The source began to refuse this role.
    Refused {
        /// The role's ARN.
        role: String,
        /// What it said.
        why: String,
    },
    /// Every session of this role is supplied again.
    Recovered {
        /// The role's ARN.
        role: String,
    },
}

/// What is wrong with one session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Trouble {
    Failing,
    Refused,
}

/// All roles with sessions in trouble, by ARN.
#[derive(Default, Debug)]
pub(super) struct Health(HashMap<String, Counts>);

/// How many sessions of a role are in which trouble.
#[derive(Default, Debug)]
struct Counts {
    failing: usize,
    refused: usize,
}

impl Health {
    /// All sessions in trouble.
    pub fn troubles(&self) -> Troubles {
        let sum = |of: fn(&Counts) -> usize| self.0.values().map(of).sum::<usize>() as u64;
        Troubles {
            failing: sum(|counts| counts.failing),
            refused: sum(|counts| counts.refused),
        }
    }

    /// Takes note that a session of `role` went from one trouble, or none, to another.
    pub fn handle_change(
        &mut self,
        role: &str,
        before: Option<Trouble>,
        after: Option<Trouble>,
        why: String,
    ) -> Option<Event> {
        if before == after {
            return None;
        }
        let counts = self.0.entry(role.to_owned()).or_default();
        if let Some(before) = before {
            *counts.of(before) = counts.of(before).saturating_sub(1);
        }
        let role = role.to_owned();
        let Some(after) = after else {
            if counts.failing + counts.refused > 0 {
                return None;
            }
            self.0.remove(&role);
            return Some(Event::Recovered { role });
        };
        *counts.of(after) += 1;
        match (*counts.of(after), after) {
            (1, Trouble::Failing) => Some(Event::Failing { role, why }),
            (1, Trouble::Refused) => Some(Event::Refused { role, why }),
            _ => None,
        }
    }
}

impl Counts {
    fn of(&mut self, trouble: Trouble) -> &mut usize {
        match trouble {
            Trouble::Failing => &mut self.failing,
            Trouble::Refused => &mut self.refused,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Trouble::*, *};

    #[test]
    fn told_when_it_begins_changes_kind_and_is_over() {
        let mut health = Health::default();
        let mut change = |before, after| health.handle_change("r", before, after, "w".to_owned());
        let (role, why) = ("r".to_owned(), "w".to_owned());
        assert_eq!(change(None, None), None);
        assert_eq!(
            change(None, Some(Failing)),
            Some(Event::Failing {
                role: role.clone(),
                why: why.clone()
            })
        );
        assert_eq!(change(None, Some(Failing)), None);
        assert_eq!(change(Some(Failing), Some(Failing)), None);
        assert_eq!(
            change(Some(Failing), Some(Refused)),
            Some(Event::Refused {
                role: role.clone(),
                why
            })
        );
        assert_eq!(change(Some(Failing), None), None);
        assert_eq!(change(Some(Refused), None), Some(Event::Recovered { role }));
        assert!(health.0.is_empty());
    }

    #[test]
    fn sessions_in_trouble_are_counted_over_all_roles() {
        let mut health = Health::default();
        let mut change = |role: &str, before, after| {
            health.handle_change(role, before, after, String::new());
            let Troubles { failing, refused } = health.troubles();
            (failing, refused)
        };
        assert_eq!(change("a", None, Some(Failing)), (1, 0));
        assert_eq!(change("a", None, Some(Failing)), (2, 0));
        assert_eq!(change("b", None, Some(Refused)), (2, 1));
        assert_eq!(change("a", Some(Failing), Some(Refused)), (1, 2));
        assert_eq!(change("b", Some(Refused), None), (1, 1));
    }
}
