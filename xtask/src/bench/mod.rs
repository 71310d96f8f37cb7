//! `cargo xtask bench`: Kiln beside docker and buildah, in turn in one run, and beside what the machine itself needs.

mod measure;
mod room;
mod scenarios;
mod sides;
mod table;
mod trees;

use std::cell::RefCell;
use std::rc::Rc;

use anyhow::{Context as _, Result};

use crate::bases;
use crate::compare::Peers;
use crate::machine::{ID_MAPS, Kiln, Profile, Tool, install, plain_user};
use crate::process::{command, output};
use crate::{say, target_dir, workspace};

use measure::Disk;
use room::Room;
use scenarios::{SCENARIOS, Scenario};
use sides::{Folder, Side};
use table::Row;

/// What the limits are measured with.
const TOOLS: [Tool; 4] = [
    ID_MAPS,
    ("unshare", "util-linux"),
    ("curl", "curl"),
    ("busybox", "busybox-static"),
];

/// The images that the scenarios start from.
const NEEDED: [&str; 2] = ["busybox", "debian"];

/// Scenarios that are measured only when they are named: their base images are made of packages from the network.
const PROJECTS: [&str; 3] = ["go", "node", "rust"];

/// What all scenarios share.
pub struct Bench {
    peers: Option<Peers>,
    sides: Vec<Side>,
    /// What lies where the peers see it. Nothing of it is removed before the last scenario, as [`Room`] tells.
    shared: RefCell<Vec<Rc<tempfile::TempDir>>>,
    /// A folder on the disk of Kiln's store, for the limits.
    room: Room,
}

/// The command: measures the named scenarios, all but those of projects if none is named, and prints a table. Each side does each scenario
/// once before its `rounds` count. The peers named by `without` are left out. With `rootless` Kiln works as the tests' plain user.
///
/// The name `micro` measures the hot pieces one by one instead.
pub fn run(names: &[String], rounds: usize, without: &[String], rootless: bool) -> Result<()> {
    if names == ["micro"] {
        let mut micro = command("cargo", ["run", "--release", "-q", "-p", "kiln-micro"]);
        return crate::process::run(micro.current_dir(workspace()));
    }
    let scenarios = chosen(names)?;
    install(&TOOLS)?;
    let bench = Bench::new(without, rootless)?;
    let disk = Disk::of(bench.room.path())?;
    let mut rows = Vec::new();
    for scenario in scenarios {
        let row = bench
            .measure(scenario, rounds.max(1), &disk)
            .with_context(|| format!("scenario {}", scenario.name))?;
        say(&row.to_string());
        rows.push(row);
    }
    for side in &bench.sides {
        say(&side.version());
    }
    say(&format!("\n{}", table::table(&rows)));
    bench.leave()
}

fn chosen(names: &[String]) -> Result<Vec<&'static Scenario>> {
    if names.is_empty() {
        let all = SCENARIOS.iter();
        return Ok(all.filter(|it| !PROJECTS.contains(&it.name)).collect());
    }
    let named = |name: &String| {
        SCENARIOS
            .iter()
            .find(|it| it.name == name)
            .with_context(|| {
                let known = SCENARIOS.each_ref().map(|it| it.name).join(", ");
                format!("no scenario {name:?}; there are {known}")
            })
    };
    names.iter().map(named).collect()
}

impl Bench {
    /// Everybody with the images that the scenarios start from. Kiln's store is made anew.
    fn new(without: &[String], rootless: bool) -> Result<Self> {
        let room = Room::enter(&target_dir().join("bench"))?;
        let user = if rootless {
            let user = plain_user()?;
            std::os::unix::fs::chown(room.path(), Some(user.0), Some(user.1))?;
            Some(user)
        } else {
            None
        };
        let kiln = Kiln::build(Profile::Release)?
            .with_store(&room.path().join("store"))
            .as_user(user);
        bases::run_with(&kiln, &NEEDED)?;
        let peers = Peers::from_environment();
        let mut sides = Vec::new();
        if let Some(peers) = &peers {
            let folder = Folder::new(Some(peers), room.path())?;
            for name in NEEDED {
                let image = bases::named(name)?.image;
                let file = folder.here().join(name);
                output(kiln.command(["save", image, "-o"]).arg(file))?;
            }
            for side in [Side::Docker(peers.clone()), Side::Buildah(peers.clone())] {
                if without.iter().any(|name| name == side.name()) {
                    continue;
                }
                if !side.is_there() {
                    say(&format!("skipped: {} does not answer", side.name()));
                    continue;
                }
                for name in NEEDED {
                    side.load(&folder, name)?;
                }
                sides.push(side);
            }
        }
        sides.insert(0, Side::Kiln(kiln));
        Ok(Self {
            peers,
            sides,
            shared: RefCell::default(),
            room,
        })
    }

    /// A folder that all sides see.
    fn folder(&self) -> Result<Folder> {
        let folder = Folder::new(self.peers.as_ref(), self.room.path())?;
        self.shared.borrow_mut().push(folder.kept());
        Ok(folder)
    }

    /// Removes what all scenarios made.
    fn leave(self) -> Result<()> {
        drop(self.shared);
        self.room.leave()
    }

    fn measure(&self, scenario: &'static Scenario, rounds: usize, disk: &Disk) -> Result<Row> {
        let case = scenario.prepare(self)?;
        let mut row = Row::new(scenario.about, self.sides.iter().map(Side::name));
        row.machine = case.machine().map(|limit| (limit.what, Vec::new()));
        for round in 0..=rounds {
            for (at, side) in self.sides.iter().enumerate() {
                if case.leaves_out(side) {
                    continue;
                }
                let commands = case.commands(side, round)?;
                let taken = measure::run(commands, disk)?;
                // The first round fills caches, of the system too.
                if round > 0 {
                    row.sides[at].1.push(taken);
                }
            }
            if let (Some(limit), Some((_, times))) = (case.machine(), &mut row.machine) {
                times.push(limit.take()?);
            }
        }
        Ok(row)
    }
}
