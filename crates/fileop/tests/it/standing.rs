//! Layers that stand on an earlier one's folder are those that would have been made whole.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use kiln_fileop::{Applied, NewLayer, apply};
use kiln_image::{Kind, LayerId};
use kiln_store::layer_fs::LayerDirs;
use kiln_store::layer_fs::read_index;

use crate::common::{Made, NOW, chain, ids, tree};

/// Enough to be worth standing on.
const FILES: usize = 300;

/// As good as random, and always the same.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides as u64) as usize
    }
}

fn folder(number: usize) -> String {
    let at = number % 12;
    match at {
        0 => String::new(),
        1..5 => format!("a{at}/"),
        _ => format!("a{}/b{at}/", at % 4 + 1),
    }
}

fn file(dice: &mut Dice, path: &str) -> String {
    let mode = ["644", "600", "755", "4755"][dice.roll(4)];
    let owner = ["0:0", "5:6", "7:0"][dice.roll(3)];
    format!("f {mode} {owner} {path} content{}", dice.roll(1000))
}

fn listing(dice: &mut Dice) -> Vec<String> {
    let mut lines: Vec<String> = (1..5)
        .flat_map(|at| [format!("d 755 0:0 a{at}"), format!("d 750 5:5 a{at}/empty")])
        .chain((5..12).map(|at| format!("d 711 0:0 a{}/b{at}", at % 4 + 1)))
        .collect();
    for number in 0..FILES {
        let path = format!("{}f{number}", folder(number));
        lines.push(match number % 50 {
            47 => format!("l {path} target{}", dice.roll(100)),
            48 => format!("p {path}"),
            49 => format!("h {path} {}", ["x", "y"][number / 50 % 2]),
            _ => file(dice, &path),
        });
    }
    lines
}

/// Some changes; most of them such that the layer can stand.
fn edit(dice: &mut Dice, lines: &mut Vec<String>) {
    for _ in 0..=dice.roll(5) {
        let number = dice.roll(FILES);
        let path = format!("{}f{number}", folder(number));
        let at = lines
            .iter()
            .position(|line| line.split(' ').any(|word| word == path));
        match (dice.roll(24), at) {
            (0, Some(at)) => drop(lines.remove(at)),
            (1, Some(at)) => lines[at] = format!("d 755 0:0 {path}"),
            (2, Some(at)) => lines[at] = format!("h {path} x"),
            (3, Some(at)) => lines[at] = format!("l {path} other"),
            (4..6, _) => lines.push(format!("d 700 1:1 {}new{}", folder(number), dice.roll(9))),
            (6..9, _) => {
                let path = format!("{}n{}", folder(number), dice.roll(99));
                lines.push(file(dice, &path));
            }
            (9, _) => lines.push(format!("l {}l{} somewhere", folder(number), dice.roll(99))),
            (10, _) => lines.retain_mut(|line| {
                if line.ends_with(" a2") {
                    *line = format!("d 7{}5 3:3 a2", dice.roll(8));
                }
                true
            }),
            (_, Some(at)) if lines[at].starts_with("f ") => lines[at] = file(dice, &path),
            (_, Some(at)) if lines[at].starts_with("l ") => lines[at].push('x'),
            _ => {}
        }
    }
    // Of two lines for one path the later one counts.
    let name = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let at = if matches!(words[0], "f" | "d") { 3 } else { 1 };
        words[at].to_owned()
    };
    let mut seen = std::collections::HashSet::new();
    let mut kept: Vec<String> = lines.iter().rev().cloned().collect();
    kept.retain(|line| seen.insert(name(line)));
    kept.reverse();
    *lines = kept;
}

/// The layers of a test, in folders with such names as they have in a store.
struct Layers {
    home: tempfile::TempDir,
    made: u8,
}

impl Layers {
    fn copy(
        &mut self,
        base: &Made,
        lines: &[String],
        earlier: Option<LayerId>,
    ) -> (LayerId, Applied) {
        self.made += 1;
        let id = LayerId::new([self.made; 16]);
        let dir = self.dir(id);
        std::fs::create_dir(&dir).unwrap();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let source = tree(&[&lines]);
        let inputs = [Some(base.tree()), Some(source.tree())];
        let new = NewLayer { dir, earlier };
        let applied = apply(&chain(&[". /app/"]), &inputs, &[new], ids(), NOW).unwrap();
        (id, applied)
    }

    fn dir(&self, id: LayerId) -> PathBuf {
        self.home.path().join(id.hex())
    }

    fn tar(&self, id: LayerId) -> Vec<u8> {
        let mut tar = Vec::new();
        let index = read_index(&self.dir(id)).unwrap();
        kiln_store::write_tar(&self.dir(id), &index, None, &mut tar).unwrap();
        tar
    }

    /// What a process would see of an entry.
    fn seen(&self, id: LayerId) -> Vec<String> {
        let dirs = LayerDirs::of(&self.dir(id)).unwrap();
        let index = read_index(&self.dir(id)).unwrap();
        let entries = index.entries().iter();
        let on_disk = entries.filter(|entry| !matches!(entry.kind, Kind::Char(..)));
        on_disk
            .map(|entry| {
                let path = dirs.find(&entry.path);
                let meta = path.symlink_metadata().unwrap();
                let links = if meta.is_dir() { 0 } else { meta.nlink() };
                let target = std::fs::read_link(&path).unwrap_or_default();
                let (mode, time) = (meta.mode(), (meta.mtime(), meta.mtime_nsec()));
                let owner = (meta.uid(), meta.gid());
                format!(
                    "{} {mode:o} {owner:?} {links} {time:?} {}",
                    entry.path,
                    target.display()
                )
            })
            .collect()
    }
}

fn count(folder: &Path) -> usize {
    let items = std::fs::read_dir(folder).unwrap().map(|item| item.unwrap());
    items
        .map(|item| {
            if item.file_type().unwrap().is_dir() {
                count(&item.path())
            } else {
                1
            }
        })
        .sum()
}

#[test]
fn standing_or_whole_is_the_same_layer() {
    let base = tree(&[&["d 755 0:0 app", "f 644 0:0 app/of-base old"]]);
    let (mut stood, mut whole) = (0, 0);
    for seed in 1..=8 {
        let mut dice = Dice(u64::wrapping_mul(seed, 0x9e37_79b9_7f4a_7c15));
        let mut layers = Layers {
            home: tempfile::tempdir().unwrap(),
            made: 0,
        };
        let mut lines = listing(&mut dice);
        let (below, first) = layers.copy(&base, &lines, None);
        assert_eq!(first.below, [None]);
        for _ in 0..2 {
            edit(&mut dice, &mut lines);
            let (expected_id, expected) = layers.copy(&base, &lines, None);
            let (id, applied) = layers.copy(&base, &lines, Some(below));
            assert_eq!(applied.layers, expected.layers, "seed {seed}");
            assert_eq!(
                read_index(&layers.dir(id)).unwrap(),
                read_index(&layers.dir(expected_id)).unwrap(),
                "seed {seed}"
            );
            assert_eq!(layers.tar(id), layers.tar(expected_id), "seed {seed}");
            assert_eq!(layers.seen(id), layers.seen(expected_id), "seed {seed}");
            match applied.below[..] {
                [None] => whole += 1,
                [on] => {
                    assert_eq!(on, Some(below));
                    stood += 1;
                    assert!(count(&layers.dir(id).join("fs")) < FILES / 4);
                }
                _ => unreachable!("one output"),
            }
        }
    }
    assert!(stood > 3 && whole > 1, "{stood} stood, {whole} were whole");
}

#[test]
fn a_damaged_layer_is_not_stood_on() {
    let base = tree(&[&["d 755 0:0 app"]]);
    let mut layers = Layers {
        home: tempfile::tempdir().unwrap(),
        made: 0,
    };
    let mut lines = listing(&mut Dice(5));
    let (below, _) = layers.copy(&base, &lines, None);
    lines.push("f 644 0:0 more".to_owned());
    assert_eq!(
        layers.copy(&base, &lines, Some(below)).1.below,
        [Some(below)]
    );
    std::fs::write(layers.dir(below).join("index"), "kilnidx\n").unwrap();
    assert_eq!(layers.copy(&base, &lines, Some(below)).1.below, [None]);
    let gone = LayerId::new([99; 16]);
    assert_eq!(layers.copy(&base, &lines, Some(gone)).1.below, [None]);
}
