//! Embeds the classifier's object when it has been built, so that the agent is one binary.
//!
//! `cargo xtask build-ebpf` leaves the object at `target/bpf/imds-ebpf.o`. Without it the agent compiles too, with an
//! empty object, and says at run time what is missing.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

fn main() -> io::Result<()> {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let directory = manifest.join("../target/bpf");
    let object = directory.join("imds-ebpf.o");
    // Watching the directory notices an object that appears; watching a missing file would run this at every build.
    fs::create_dir_all(&directory)?;
    println!("cargo::rerun-if-changed={}", directory.display());

    let embedded = Path::new(&env::var_os("OUT_DIR").unwrap_or_default()).join("imds-ebpf.o");
    match fs::read(&object) {
        Ok(bytes) => fs::write(embedded, bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::write(embedded, []),
        Err(error) => Err(error),
    }
}
