//! Writes the seeds to the corpora, and the dictionaries.

use std::{fs, io};

use imds_fuzz::seeds::{all, dictionaries, root};

fn main() -> io::Result<()> {
    for (target, seeds) in all() {
        let corpus = root().join("corpus").join(target);
        fs::create_dir_all(&corpus)?;
        println!("{target}: {} seeds", seeds.len());
        for (name, seed) in seeds {
            fs::write(corpus.join(name), seed)?;
        }
    }
    let directory = root().join("dictionaries");
    fs::create_dir_all(&directory)?;
    for (target, dictionary) in dictionaries() {
        fs::write(directory.join(format!("{target}.dict")), dictionary)?;
    }
    Ok(())
}
