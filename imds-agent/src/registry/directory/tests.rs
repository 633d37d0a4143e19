use std::{fs, future::Future};

use tempfile::TempDir;

use super::*;
use crate::registry::{InstanceId, record::RECORD_BYTES_MAX};

/// A host's state directory, the registry that watches it, and what it has told so far.
struct Host {
    state: TempDir,
    published: Arc<Published>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    problems: watch::Receiver<Arc<[Problem]>>,
    watching: tokio::task::JoinHandle<io::Error>,
}

impl Drop for Host {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

impl Host {
    fn start(state: TempDir) -> Self {
        let directory = Directory::open(state.path(), Rules::default()).unwrap();
        let published = Arc::new(Published::default());
        let (snapshots, problems) = (directory.snapshots(), directory.problems());
        let watching = tokio::spawn(directory.watch(Arc::clone(&published)));
        Self {
            state,
            published,
            snapshots,
            problems,
            watching,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.state.path().join("instances").join(name)
    }

    fn write(&self, name: &str, id: &str) {
        fs::write(self.path(name), record(id)).unwrap();
    }

    /// Waits until exactly these instances exist, for workers too.
    async fn instances(&mut self, ids: &[&str]) {
        let expected: HashSet<InstanceId> = ids.iter().map(|id| id.parse().unwrap()).collect();
        let exist =
            |snapshot: &Arc<Snapshot>| snapshot.instances.keys().cloned().collect::<HashSet<_>>() == expected;
        let snapshot = within_seconds(self.snapshots.wait_for(exist))
            .await
            .unwrap()
            .clone();
        assert!(
            self.published.load().revision >= snapshot.revision,
            "workers learn it first"
        );
    }

    async fn problem(&mut self, text: &str) {
        let stands =
            |problems: &Arc<[Problem]>| problems.iter().any(|problem| problem.to_string().contains(text));
        let waited = tokio::time::timeout(Duration::from_secs(30), self.problems.wait_for(stands))
            .await
            .is_ok();
        assert!(waited, "{text}: {:?}", self.problems.borrow());
    }

    async fn no_problems(&mut self) {
        within_seconds(self.problems.wait_for(|problems| problems.is_empty()))
            .await
            .unwrap();
    }
}

async fn within_seconds<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future)
        .await
        .expect("it never happened")
}

fn record(id: &str) -> String {
    let octet: u8 = id
        .bytes()
        .fold(0, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte));
    format!(r#"{{"InstanceId":"{id}","NetworkInterfaces":[{{"MacAddress":"02:00:00:00:00:{octet:02x}"}}]}}"#)
}

fn state() -> TempDir {
    let state = TempDir::new().unwrap();
    Directory::create(state.path()).unwrap();
    state
}

#[test]
fn examples_make_a_snapshot_without_problems() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples");
    let directory = Directory::open(&examples, Rules::default()).unwrap();
    assert_eq!(**directory.problems().borrow(), []);
    let snapshot = directory.snapshots().borrow().clone();
    let (member, _) = snapshot.by_tap["tap-web-1"].clone();
    assert_eq!(member.role.as_ref().unwrap().role_name.as_str(), "web");
}

#[test]
fn created_directories_are_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let state = state();
    Directory::create(state.path()).unwrap();
    let mode = fs::metadata(state.path().join("instances"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[tokio::test]
async fn files_come_change_and_go() {
    let before = state();
    fs::write(before.path().join("instances/a.json"), record("i-a")).unwrap();
    let mut host = Host::start(before);
    host.instances(&["i-a"]).await;
    host.write("b.json", "i-b");
    host.instances(&["i-a", "i-b"]).await;
    host.write("a.json", "i-c");
    host.instances(&["i-b", "i-c"]).await;
    // As editors and configuration management write.
    fs::write(host.path(".b.json.tmp"), record("i-d")).unwrap();
    fs::rename(host.path(".b.json.tmp"), host.path("b.json")).unwrap();
    host.instances(&["i-c", "i-d"]).await;
    fs::rename(host.path("a.json"), host.path("z.json")).unwrap();
    fs::remove_file(host.path("b.json")).unwrap();
    host.instances(&["i-c"]).await;
    fs::rename(host.path("z.json"), host.path("z.json.bak")).unwrap();
    host.instances(&[]).await;
    std::os::unix::fs::symlink("z.json.bak", host.path("link.json")).unwrap();
    host.instances(&["i-c"]).await;
    host.no_problems().await;
}

/// On this clock time passes only when everybody waits for it: a change comes by events, or it is late. (What the kernel and
/// the processor take is not on this clock.)
#[tokio::test(start_paused = true)]
async fn a_change_waits_for_no_timer() {
    let mut host = Host::start(state());
    let begin = tokio::time::Instant::now();
    let (gives_up, in_vain) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(30));
        // Nobody waits any more, if all is well.
        _ = gives_up.send(());
    });
    let changes = async {
        for change in 1..=20 {
            let revision = host.published.load().revision;
            host.write("a.json", &format!("i-{change}"));
            let is_newer = |snapshot: &Arc<Snapshot>| snapshot.revision > revision;
            _ = host.snapshots.wait_for(is_newer).await.unwrap();
            assert!(
                host.published.load().revision > revision,
                "workers learn it first"
            );
        }
    };
    tokio::select! {
        () = changes => {}
        _ = in_vain => panic!("it never happened"),
    }
    assert_eq!(begin.elapsed(), Duration::ZERO);
}

#[tokio::test]
async fn other_files_are_not_records() {
    let mut host = Host::start(state());
    for name in [".a.json", "a.json~", "a.json.swp", "#a.json#", "a.txt", "json"] {
        host.write(name, "i-never");
    }
    host.write("last.json", "i-last");
    host.instances(&["i-last"]).await;
    host.no_problems().await;
}

#[tokio::test]
async fn bad_file_is_told_and_mended() {
    let mut host = Host::start(state());
    host.write("a.json", "i-a");
    host.instances(&["i-a"]).await;
    fs::write(host.path("a.json"), "{\n!").unwrap();
    host.problem("instances/a.json:2:1: key must be a string").await;
    host.instances(&["i-a"]).await;
    fs::write(host.path("long.json"), vec![b' '; RECORD_BYTES_MAX + 1]).unwrap();
    host.problem("instances/long.json: is longer than").await;
    fs::remove_file(host.path("long.json")).unwrap();
    host.write("a.json", "i-b");
    host.instances(&["i-b"]).await;
    host.no_problems().await;
}

/// Nothing tells when it can be: here because a link leads elsewhere, otherwise because of an owner, a mode, a disk.
#[tokio::test]
async fn file_that_cannot_be_read_is_tried_again() {
    let elsewhere = TempDir::new().unwrap();
    let target = elsewhere.path().join("target");
    fs::create_dir(&target).unwrap();
    let mut host = Host::start(state());
    std::os::unix::fs::symlink(&target, host.path("a.json")).unwrap();
    host.write("b.json", "i-b");
    host.instances(&["i-b"]).await;
    fs::remove_dir(&target).unwrap();
    fs::write(&target, record("i-a")).unwrap();
    host.instances(&["i-a", "i-b"]).await;
    host.no_problems().await;
}

#[test]
fn pipe_or_directory_under_a_records_name_does_not_hang() {
    let state = state();
    let instances = state.path().join("instances");
    nix::unistd::mkfifo(&instances.join("pipe.json"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::create_dir(instances.join("directory.json")).unwrap();
    let directory = Directory::open(state.path(), Rules::default()).unwrap();
    let lines: Vec<String> = directory
        .problems()
        .borrow()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        lines,
        [
            "instances/directory.json: is not a regular file",
            "instances/pipe.json: is not a regular file"
        ]
    );
}

#[tokio::test]
async fn directory_that_is_absent_at_start_is_found_later() {
    let mut host = Host::start(TempDir::new().unwrap());
    host.problem("roles: the directory is not watched: No such file")
        .await;
    Directory::create(host.state.path()).unwrap();
    host.write("a.json", "i-a");
    host.instances(&["i-a"]).await;
    host.no_problems().await;
}

#[tokio::test]
async fn directory_moved_away_takes_nothing_with_it() {
    let mut host = Host::start(state());
    host.write("a.json", "i-a");
    host.instances(&["i-a"]).await;
    let away = host.state.path().join("away");
    fs::rename(host.state.path().join("instances"), &away).unwrap();
    host.problem("instances: the directory is not watched").await;
    host.instances(&["i-a"]).await;
    fs::write(away.join("b.json"), record("i-b")).unwrap();
    // Another one in its place: what is not in it is gone.
    let next = host.state.path().join("next");
    fs::create_dir(&next).unwrap();
    fs::write(next.join("c.json"), record("i-c")).unwrap();
    fs::rename(next, host.state.path().join("instances")).unwrap();
    host.instances(&["i-c"]).await;
    host.no_problems().await;
    host.write("d.json", "i-d");
    host.instances(&["i-c", "i-d"]).await;
}

#[tokio::test]
async fn directory_deleted_and_made_again_is_watched_again() {
    let mut host = Host::start(state());
    host.write("a.json", "i-a");
    host.instances(&["i-a"]).await;
    fs::remove_dir_all(host.state.path().join("instances")).unwrap();
    host.instances(&[]).await;
    host.problem("instances: the directory is not watched").await;
    Directory::create(host.state.path()).unwrap();
    host.write("b.json", "i-b");
    host.instances(&["i-b"]).await;
    host.no_problems().await;
}

#[tokio::test]
async fn overflow_reads_everything_again() {
    let mut directory = Directory::open(state().path(), Rules::default()).unwrap();
    let state = TempDir::new().unwrap();
    Directory::create(state.path()).unwrap();
    directory.state.root = state.path().to_owned();
    fs::write(state.path().join("instances/a.json"), record("i-a")).unwrap();
    let snapshot = directory
        .state
        .handle(Batch {
            overflow: true,
            ..Batch::default()
        })
        .unwrap();
    assert_eq!(snapshot.instances.len(), 1);
}
