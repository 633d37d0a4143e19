//! What of T1 runs on other kernels, and why the rest does not.

use anyhow::Result;

use super::super::{test_files, wanted::Wanted};

/// The test files that a kernel has a part in. All their tests run, but for a few.
pub const TAKEN: &[&str] = &[
    "classifier",
    "continuity",
    "datapath",
    "interfaces",
    "live",
    "namespaces",
    "noticed",
    "open_vswitch",
    "privilege",
    "request_rate",
    "service",
    "taps",
    "unsupported",
];

/// The one test for a kernel that is too old, which runs on others as well.
pub const REFUSAL: &str = "a_kernel_that_is_too_old_is_refused";

/// The few, and why.
pub const SKIPPED: &[(&str, &str)] = &[
    (
        "a_guests_identity_document_is_signed_by_its_host",
        "no kernel has a part in it",
    ),
    ("curl_wget_and_urllib_get_right_answers", "needs Python"),
    (
        "the_script_for_namespaces_makes_an_instance",
        "its script is with the sources",
    ),
    (
        "two_hundred_requests_at_once_are_all_answered",
        "clients this slow are idle for so long that others get their room",
    ),
];

/// The other files, and why an emulated processor is not kept busy with them.
const LEFT: &[(&str, &str)] = &[
    ("alerts", "no kernel has a part in it"),
    ("audit", "its subject is the agent's own files"),
    ("allocations", "no kernel has a part in it"),
    ("aws_config", "an SDK is the same client on every kernel"),
    ("ceph", "needs a Debian root"),
    ("clients", "needs Python, moto and a Debian root"),
    ("cloud_init", "needs a Debian root"),
    ("conformance", "the wire contract, which no kernel has a part in"),
    ("control", "its subject is the operators' socket"),
    ("credentials", "needs Python and moto"),
    ("doctor", "needs a Debian root"),
    ("golden", "no kernel has a part in it"),
    ("hostile", "it is held off by the agent's own stack"),
    ("metrics", "counts what the tests that are taken see happen"),
    ("package", "needs a Debian root"),
    ("rotation", "needs Python and moto"),
    ("sources", "needs a libvirtd"),
    ("sts", "needs Python and moto"),
    ("upkeep", "no kernel has a part in it"),
    (
        "workers",
        "the kernel's part is a ring for each, which others test",
    ),
];

/// The tests of T1 that are not taken, with the reason.
pub fn left(wanted: &Wanted) -> Result<Vec<String>> {
    let mut left = Vec::new();
    if *wanted == Wanted::All {
        left.extend(SKIPPED.iter().map(|(test, reason)| format!("{test}, {reason}")));
    }
    for file in test_files()? {
        if file.starts_with("guest") || TAKEN.contains(&&*file) || !wanted.names_file(&file) {
            continue;
        }
        let reason = LEFT.iter().find(|(left, _)| *left == file);
        let reason = reason.map_or("nobody has said whether a kernel has a part in it", |(_, why)| {
            why
        });
        left.push(format!("all of {file}, {reason}"));
    }
    Ok(left)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn lists_name_test_files_that_are_there_and_each_once() {
        let files = test_files().unwrap();
        let left = LEFT.iter().map(|(file, _)| file);
        let mut named = BTreeSet::new();
        for file in TAKEN.iter().chain(left) {
            assert!(files.iter().any(|there| there == file), "there is no {file}");
            assert!(named.insert(file), "{file} is named twice");
        }
    }

    #[test]
    fn what_is_not_taken_is_told_with_its_reason() {
        let left = left(&Wanted::All).unwrap();
        for told in [
            "all of sts, needs Python and moto",
            "curl_wget_and_urllib_get_right_answers, needs Python",
        ] {
            assert!(left.iter().any(|line| line == told), "{left:?}");
        }
        assert!(
            !left
                .iter()
                .any(|line| line.contains("datapath") || line.contains("all of guest")),
            "{left:?}"
        );
    }

    #[test]
    fn of_a_file_that_is_asked_for_only_its_own_reason_is_told() {
        let of = |file: &str| left(&Wanted::File(file.to_owned())).unwrap();
        assert_eq!(of("sts"), ["all of sts, needs Python and moto"]);
        assert!(of("datapath").is_empty());
        assert!(left(&Wanted::Path("hop".to_owned())).unwrap().is_empty());
    }
}
