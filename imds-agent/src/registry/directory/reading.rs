//! Reads files and what they say, many at once: at the start all of them, and nobody is served before.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::SystemTime,
};

use jiff::Timestamp;
use nix::libc;

use super::super::{
    problem::Finding,
    record::{self, RECORD_BYTES_MAX, Record, Rules},
    records::{FileKey, Records},
    text::Texts,
};

/// What is worth a thread.
const FILES_PER_THREAD: usize = 256;

/// More threads than this wait for each other.
const THREADS_MAX: usize = 4;

/// Files that a thread takes at a time: some records are long and most are short.
const FILES_AT_ONCE: usize = 32;

/// Files that are read before what they say is taken over: more would only be more memory.
const FILES_IN_A_ROUND: usize = 1024;

/// What came of one file.
enum Outcome {
    Parsed(Result<(Record, Vec<Finding>), Vec<Finding>>, Timestamp),
    Gone,
    Unreadable(String),
}

/// Brings `records` up to date with some files below `root`.
pub fn read(root: &Path, keys: Vec<FileKey>, records: &mut Records) {
    let mut keys = keys.into_iter();
    loop {
        let round: Vec<_> = keys.by_ref().take(FILES_IN_A_ROUND).collect();
        if round.is_empty() {
            return;
        }
        read_round(root, round, records);
    }
}

fn read_round(root: &Path, keys: Vec<FileKey>, records: &mut Records) {
    let rules = records.rules();
    let threads = thread::available_parallelism()
        .map_or(1, usize::from)
        .min(THREADS_MAX);
    let threads = threads.min(keys.len().div_ceil(FILES_PER_THREAD));
    let mut outcomes = if threads < 2 {
        let mut bytes = Vec::new();
        let one = |key| read_one(root, key, &rules, &mut bytes);
        let all = || keys.iter().map(one).collect();
        vec![(0, records.texts().share(all))]
    } else {
        read_by_several(root, &keys, &rules, records.texts(), threads)
    };
    // As they were given, whoever read them.
    outcomes.sort_unstable_by_key(|(first, _)| *first);
    let outcomes = outcomes.into_iter().flat_map(|(_, outcomes)| outcomes);
    for (key, outcome) in keys.into_iter().zip(outcomes) {
        match outcome {
            Outcome::Parsed(parsed, modified) => records.handle_parsed(key, parsed, modified),
            Outcome::Gone => records.handle_removed(&key),
            Outcome::Unreadable(why) => records.handle_unreadable(key, why),
        }
    }
}

/// Outcomes of some files in a row, with the place of the first.
type Row = (usize, Vec<Outcome>);

fn read_by_several(
    root: &Path,
    keys: &[FileKey],
    rules: &Rules,
    texts: &mut Texts,
    threads: usize,
) -> Vec<Row> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut rows = Vec::new();
        let mut bytes = Vec::new();
        loop {
            let first = next.fetch_add(FILES_AT_ONCE, Ordering::Relaxed);
            let Some(rest) = keys.get(first..).filter(|rest| !rest.is_empty()) else {
                return rows;
            };
            let row = rest.iter().take(FILES_AT_ONCE);
            let outcomes = row.map(|key| read_one(root, key, rules, &mut bytes));
            rows.push((first, outcomes.collect()));
        }
    };
    thread::scope(|scope| {
        let others: Vec<_> = (1..threads)
            .map(|_| {
                scope.spawn(|| {
                    let mut texts = Texts::default();
                    (texts.share(work), texts)
                })
            })
            .collect();
        let mut rows = texts.share(work);
        for other in others {
            let (others_rows, others_texts) = other.join().expect("reading does not panic");
            rows.extend(others_rows);
            texts.merge(others_texts);
        }
        rows
    })
}

/// `bytes` is room that is used again.
fn read_one(root: &Path, key: &FileKey, rules: &Rules, bytes: &mut Vec<u8>) -> Outcome {
    bytes.clear();
    match read_file(&root.join(key.path()), bytes) {
        Ok(Some(modified)) => Outcome::Parsed(record::parse(key.kind, bytes, rules), modified),
        Ok(None) => Outcome::Gone,
        Err(why) => Outcome::Unreadable(why),
    }
}

/// Reads a file's bytes, and tells its time; nothing if it is not there.
fn read_file(path: &Path, bytes: &mut Vec<u8>) -> Result<Option<Timestamp>, String> {
    // Not to be kept waiting by a pipe that somebody put there.
    let file = match OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
    {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let metadata = file.metadata().map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("is not a regular file".to_owned());
    }
    read_to_end(file, bytes).map_err(|error| error.to_string())?;
    // `Last-Modified` may not lie in the future.
    let modified = metadata
        .modified()
        .map_or_else(|_| SystemTime::now(), |time| time.min(SystemTime::now()));
    Ok(Some(Timestamp::try_from(modified).unwrap_or_default()))
}

fn read_to_end(file: File, bytes: &mut Vec<u8>) -> io::Result<usize> {
    // One byte more than is allowed lets the parser say so.
    file.take(RECORD_BYTES_MAX as u64 + 1).read_to_end(bytes)
}
