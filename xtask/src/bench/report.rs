//! What a run leaves behind: `run.json` and the pictures, and the tables in the documents.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use imds_tests::accounting::MachineTime;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    picture::Picture,
    plot,
    profile::Profile,
    table::{HEAD, Row},
};
use crate::host_command::{ask, workspace};

/// All that was measured.
#[derive(Default, Serialize, Deserialize)]
#[serde(bound(deserialize = "'de: 'static"))]
pub struct Run {
    /// One figure each.
    pub rows: Vec<Row>,
    /// What is drawn.
    pub pictures: Vec<Picture>,
    /// Where processor time goes.
    pub profiles: Vec<Profile>,
}

impl Run {
    /// Adds what another part measured.
    pub fn add(&mut self, part: Self) {
        self.rows.extend(part.rows);
        self.pictures.extend(part.pictures);
        self.profiles.extend(part.profiles);
    }
}

/// What it was measured on, and how.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Circumstances {
    /// How often and how long, and with how many of everything.
    pub pace: String,
    processor: String,
    kernel: String,
    nginx: String,
    commit: String,
    /// How busy others kept the cores just before, in %.
    others_percent: f64,
}

/// The parts of a run that was interrupted, each in a file of its own.
pub struct Parts(PathBuf);

#[derive(Serialize, Deserialize)]
#[serde(bound(deserialize = "'de: 'static"))]
struct Kept {
    measured: Circumstances,
    run: Run,
}

impl Parts {
    /// Those in this directory.
    pub fn of(directory: &Path) -> Self {
        Self(directory.to_owned())
    }

    /// What was measured of a part, if that was this very program on this very machine.
    pub fn find(&self, name: &str, now: &Circumstances) -> Option<Run> {
        let text = fs::read_to_string(self.path(name)).ok()?;
        // Rows borrow their words, and this program ends soon.
        let kept: Kept = serde_json::from_str(text.leak()).ok()?;
        let others_percent = now.others_percent;
        let measured = Circumstances {
            others_percent,
            ..kept.measured
        };
        (measured == *now && !now.is_changed()).then_some(kept.run)
    }

    /// Keeps what was measured of a part, and gives it back.
    pub fn keep(&self, name: &str, measured: &Circumstances, run: Run) -> Result<Run> {
        let kept = Kept {
            measured: measured.clone(),
            run,
        };
        let path = self.path(name);
        fs::create_dir_all(&self.0)
            .and_then(|()| fs::write(&path, serde_json::to_string(&kept)?))
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(kept.run)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.json"))
    }
}

impl Circumstances {
    /// Asks the machine, for a second.
    pub fn now(pace: String, target: &Path) -> Result<Self> {
        let cores = thread::available_parallelism()?.get();
        let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
        let model = cpuinfo
            .lines()
            .find_map(|line| Some(line.strip_prefix("model name")?.split_once(": ")?.1))
            .unwrap_or("an unknown processor");
        // It tells its version where others complain.
        let nginx = Command::new(target.join("nginx/usr/sbin/nginx"))
            .arg("-v")
            .output()?;
        let nginx = String::from_utf8_lossy(&nginx.stderr);
        let git = |arguments: &[&str]| ask(Command::new("git").current_dir(workspace()).args(arguments));
        let commit = git(&["rev-parse", "--short", "HEAD"]).unwrap_or_default();
        let is_changed =
            git(&["status", "--porcelain", "--untracked-files=no"]).is_ok_and(|list| !list.is_empty());
        let before = MachineTime::now()?;
        let second = Duration::from_secs(1);
        thread::sleep(second);
        let busy = MachineTime::now()?.busy.saturating_sub(before.busy);
        Ok(Self {
            pace,
            processor: format!("{cores} cores of {model}"),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?
                .trim()
                .to_owned(),
            nginx: nginx.trim().rsplit('/').next().unwrap_or_default().to_owned(),
            commit: commit.trim().to_owned() + if is_changed { CHANGED } else { "" },
            others_percent: 100.0 * busy.as_secs_f64() / (second.as_secs_f64() * cores as f64),
        })
    }

    /// Whether there are changes that no commit has.
    fn is_changed(&self) -> bool {
        self.commit.ends_with(CHANGED)
    }

    fn text(&self) -> String {
        let Self {
            pace,
            processor,
            kernel,
            nginx,
            commit,
            others_percent,
        } = self;
        format!(
            "{pace}. Measured at commit {commit} on {processor}, Linux {kernel}, beside nginx {nginx}; what else ran on the \
             machine took {others_percent:.0} % of its cores just before."
        )
    }
}

/// What the commit is called then.
const CHANGED: &str = " with changes";

/// Where the documents' tables begin and end.
const BEGIN: &str = "<!-- performance: written by cargo xtask bench --write -->\n";
const END: &str = "<!-- end of performance -->";

/// Writes `run.json` and the pictures into `directory`.
pub fn files(run: &Run, circumstances: &Circumstances, directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let json = json!({
        "measured": {
            "pace": circumstances.pace,
            "commit": circumstances.commit,
            "processor": circumstances.processor,
            "kernel": circumstances.kernel,
            "nginx": circumstances.nginx,
            "busy before, %": circumstances.others_percent,
        },
        "rows": run.rows.iter().map(Row::to_json).collect::<Vec<_>>(),
        "pictures": run.pictures.iter().map(Picture::to_json).collect::<Vec<_>>(),
        "profiles": run.profiles.iter().map(Profile::to_json).collect::<Vec<_>>(),
    });
    let write = |name: &str, text: String| {
        let path = directory.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    write("run.json", serde_json::to_string(&json)? + "\n")?;
    for picture in &run.pictures {
        write(&format!("{}.svg", picture.name), plot::svg(picture)?)?;
    }
    Ok(())
}

/// Writes the goals' table into the README, and all that was measured into `docs/performance.md`.
pub fn documents(run: &Run, circumstances: &Circumstances) -> Result<()> {
    let goals = run.rows.iter().filter(|row| row.is_of_goal());
    let table = |rows: &mut dyn Iterator<Item = &Row>| {
        rows.fold(format!("{HEAD}\n"), |table, row| format!("{table}{row}\n"))
    };
    let head = format!("{}\n\n", circumstances.text());
    rewrite("README.md", &(head.clone() + &table(&mut goals.into_iter())))?;
    let mut all = head + &table(&mut run.rows.iter());
    for profile in &run.profiles {
        all += &format!("\n{profile}\n");
    }
    rewrite("docs/performance.md", &all)
}

fn rewrite(name: &str, text: &str) -> Result<()> {
    let path = workspace().join(name);
    let document = fs::read_to_string(&path).with_context(|| format!("cannot read {name}"))?;
    let written = between_marks(&document, text).with_context(|| name.to_owned())?;
    fs::write(&path, written).with_context(|| format!("cannot write {name}"))
}

fn between_marks(document: &str, text: &str) -> Result<String> {
    let (before, rest) = document
        .split_once(BEGIN)
        .context("there is no mark where the table begins")?;
    let (_, after) = rest
        .split_once(END)
        .context("there is no mark where the table ends")?;
    ensure!(!after.contains(BEGIN), "there are two tables");
    Ok(format!("{before}{BEGIN}{text}{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::{
        super::table::{Goal, Spread},
        *,
    };

    #[test]
    fn only_what_is_between_the_marks_is_replaced() -> Result<()> {
        let document = format!("before\n{BEGIN}old\n{END}\nafter\n");
        let written = between_marks(&document, "| new |\n")?;
        assert_eq!(written, format!("before\n{BEGIN}| new |\n{END}\nafter\n"));
        assert_eq!(between_marks(&written, "| new |\n")?, written);
        assert!(between_marks("no marks", "").is_err());
        Ok(())
    }

    #[test]
    fn a_part_is_found_again_at_its_commit_only() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let parts = Parts::of(directory.path());
        let now = Circumstances {
            pace: "whole".to_owned(),
            processor: "2 cores".to_owned(),
            kernel: "6.18".to_owned(),
            nginx: "1.22".to_owned(),
            commit: "50a0bb6".to_owned(),
            others_percent: 1.0,
        };
        let row = Row {
            id: "P9",
            figure: "p99".to_owned(),
            unit: "µs",
            ours: Spread::of([1.0, 2.0]),
            peer: None,
            goal: Goal::AtMost(2.0),
        };
        let run = Run {
            rows: vec![row.clone()],
            ..Run::default()
        };
        parts.keep("Flood", &now, run)?;
        let later = Circumstances {
            others_percent: 7.0,
            ..now.clone()
        };
        let found = parts.find("Flood", &later).context("it was kept")?;
        assert_eq!(found.rows.first().map(Row::to_string), Some(row.to_string()));
        for other in ["fdaa3c6", "50a0bb6 with changes"] {
            let other = Circumstances {
                commit: other.to_owned(),
                ..now.clone()
            };
            assert!(parts.find("Flood", &other).is_none());
            let kept = parts.keep("Fleet", &other, Run::default());
            assert!(kept.is_ok() && parts.find("Fleet", &now).is_none());
        }
        assert!(parts.find("Storm", &now).is_none());
        Ok(())
    }

    #[test]
    fn the_documents_have_their_marks() -> Result<()> {
        for name in ["README.md", "docs/performance.md"] {
            between_marks(&fs::read_to_string(workspace().join(name))?, "").with_context(|| name)?;
        }
        Ok(())
    }
}
