//! The rows of the wire contract, section by section, in the contract's order.

mod access;
mod categories;
mod connections;
mod decisions;
mod documents;
mod limits;
mod replies;
mod roles;
mod shapes;
mod tokens;
mod tree;
mod versions;

use super::finding::{Check, Finding};

/// Every check, in the order of the report.
pub(super) fn all() -> Vec<Check> {
    let mut checks = Vec::new();
    checks.extend(decisions::CHECKS);
    checks.extend(limits::CHECKS);
    checks.extend(replies::CHECKS);
    checks.extend(versions::CHECKS);
    checks.extend(tokens::CHECKS);
    checks.extend(access::CHECKS);
    checks.extend(replies::ERROR_CHECKS);
    checks.extend(roles::CHECKS);
    checks.extend(documents::CHECKS);
    checks.extend(connections::CHECKS);
    checks.extend(tree::CHECKS);
    checks.extend(categories::checks());
    checks
}

fn no_tokens() -> Finding {
    Finding::skip("the server gives no tokens (see B.2/17a)")
}

fn no_role() -> Finding {
    Finding::skip("the instance has no role")
}

fn tokens_required() -> Finding {
    Finding::skip("tokens are required here")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_are_unique_and_every_section_has_some() {
        let checks = all();
        let mut ids = HashSet::new();
        for check in &checks {
            assert!(ids.insert(check.id), "{} twice", check.id);
            assert!(!check.words.is_empty() && !check.probe.is_empty(), "{}", check.id);
        }
        for section in ["0", "B", "B.1", "B.2", "B.3", "B.4", "B.5", "B.6", "3"] {
            assert!(checks.iter().any(|check| check.section() == section), "{section}");
        }
    }

    #[test]
    fn every_numbered_row_of_section_2_is_there() {
        let checks = all();
        for row in 1..=39 {
            let section = match row {
                1..=16 => "B.1",
                17..=30 => "B.2",
                _ => "B.3",
            };
            let wanted = format!("{section}/{row}");
            assert!(checks.iter().any(|check| check.is_part_of(&wanted)), "{wanted}");
        }
    }
}
