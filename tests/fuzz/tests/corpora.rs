//! Every input of the corpora, through its target.

use std::{fs, panic};

use imds_fuzz::{
    TARGETS,
    seeds::{all, dictionaries, root},
};

#[test]
fn all_inputs_keep_their_promises() {
    let mut broken = Vec::new();
    for (target, run) in TARGETS {
        let corpus = root().join("corpus").join(target);
        let mut count = 0;
        for entry in fs::read_dir(&corpus).unwrap_or_else(|error| panic!("{}: {error}", corpus.display())) {
            let path = entry.unwrap().path();
            let input = fs::read(&path).unwrap();
            count += 1;
            if panic::catch_unwind(|| run(&input)).is_err() {
                broken.push(format!("{target}/{}", path.file_name().unwrap().display()));
            }
        }
        assert!(count > 0, "{target} has no corpus");
    }
    assert!(broken.is_empty(), "{broken:?}");
}

#[test]
fn every_target_has_its_program_and_seeds() {
    let mut programs: Vec<_> = fs::read_dir(root().join("targets"))
        .unwrap()
        .map(|entry| {
            entry
                .unwrap()
                .path()
                .file_stem()
                .unwrap()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    programs.sort();
    let targets: Vec<_> = TARGETS.iter().map(|(target, _)| *target).collect();
    assert_eq!(targets, programs);
    assert_eq!(targets, Vec::from_iter(all().into_keys()));
}

#[test]
fn seeds_are_those_of_today() {
    let remedy = "cargo run --package imds-fuzz --example seeds";
    for (target, seeds) in all() {
        for (name, seed) in seeds {
            let file = fs::read(root().join("corpus").join(target).join(&name)).unwrap_or_default();
            assert!(file == seed, "{target}/{name} is another: {remedy}");
        }
    }
    for (target, dictionary) in dictionaries() {
        let file = fs::read(root().join("dictionaries").join(format!("{target}.dict"))).unwrap_or_default();
        assert!(
            file == dictionary.as_bytes(),
            "the dictionary of {target} is another: {remedy}"
        );
    }
}
