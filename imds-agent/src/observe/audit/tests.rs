use super::*;

fn event(number: usize) -> Event {
    [("eventName".to_owned(), number.into())].into_iter().collect()
}

fn lines(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn events_are_lines_and_a_rotated_file_is_made_anew() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log/audit.jsonl");
    let audit = Audit::start(&path).unwrap();
    for number in 0..3 {
        audit.record(event(number));
    }
    audit.flush();
    assert_eq!(
        lines(&path),
        [r#"{"eventName":0}"#, r#"{"eventName":1}"#, r#"{"eventName":2}"#]
    );
    let rotated = path.with_extension("1");
    fs::rename(&path, &rotated).unwrap();
    audit.record(event(3));
    audit.flush();
    assert_eq!(lines(&rotated).len(), 3);
    assert_eq!(lines(&path), [r#"{"eventName":3}"#]);
    assert_eq!((audit.written(), audit.lost()), (4, 0));
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
}

#[test]
fn full_queue_is_written_before_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    let audit = Audit::start(&path).unwrap();
    let count = u64::try_from(QUEUE_EVENTS_MAX).unwrap() + 100;
    for number in 0..count {
        audit.record(event(number.try_into().unwrap()));
    }
    audit.flush();
    assert_eq!(audit.written() + audit.lost(), count);
    assert_eq!(lines(&path).len() as u64, audit.written());
}

#[test]
fn full_disk_is_counted_and_waited_for_by_nobody() {
    // Every write to it fails as on a full disk.
    let audit = Audit::start(Path::new("/dev/full")).unwrap();
    let begin = Instant::now();
    for number in 0..10 {
        audit.record(event(number));
    }
    assert!(begin.elapsed() < Duration::from_secs(1));
    audit.flush();
    assert_eq!((audit.written(), audit.lost()), (0, 10));
}

#[test]
fn a_pipe_that_nobody_reads_keeps_nobody_waiting() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pipe");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let audit = Audit::start(&path).unwrap();
    audit.record(event(0));
    audit.flush();
    assert_eq!((audit.written(), audit.lost()), (0, 1));
    // Nor does a reader who does not read, once the pipe is full.
    let reader = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(&path);
    let long: Event = [("long".to_owned(), "x".repeat(30_000).into())]
        .into_iter()
        .collect();
    for _ in 0..4 {
        audit.record(long.clone());
    }
    audit.flush();
    assert_eq!((audit.written(), audit.lost()), (2, 3));
    drop(reader);
}

#[test]
fn what_does_not_fit_into_the_queue_is_counted() {
    let (queue, messages) = mpsc::sync_channel(1);
    let counts = Arc::new(Counts::default());
    let audit = Audit(Some(Arc::new(Shared { queue, counts })));
    for number in 0..5 {
        audit.record(event(number));
    }
    assert_eq!(audit.lost(), 4);
    drop(messages);
    audit.record(event(6));
    assert_eq!(audit.lost(), 5);
}

#[test]
fn no_trail_is_no_trail() {
    let audit = Audit::default();
    audit.record(event(0));
    audit.flush();
    assert_eq!((audit.is_on(), audit.written(), audit.lost()), (false, 0, 0));
}
