//! Each target on its seeds, on what once went wrong, and for some seconds on seeds changed at random. The changes are
//! the same in every run; how far they come in the time is not.

use std::panic::catch_unwind;
use std::time::{Duration, Instant};

use kiln_fuzz::{TARGETS, Target};

const TIME: Duration = Duration::from_secs(2);

fn check(target: &Target, input: &[u8]) {
    if catch_unwind(|| (target.run)(input)).is_err() {
        let text = String::from_utf8_lossy(input);
        panic!("the target {} fails on {text:?}\n{input:?}", target.name);
    }
}

/// Marsaglia's xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit.max(1) as u64) as usize
    }
}

/// One change: a byte, a piece taken out, a piece of another seed put in, a piece doubled.
fn change(input: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut Random) {
    const ODD: &[u8] = b"\0\n\\$\"'{}/.*![]#<=,:@-0\x7f\xff";
    let at = random.below(input.len());
    let end = at + random.below(16.min(input.len() + 1 - at));
    match random.below(5) {
        0 if at < input.len() => input[at] = ODD[random.below(ODD.len())],
        1 if at < input.len() => input[at] ^= 1 << random.below(8),
        2 => drop(input.drain(at..end.min(input.len()))),
        3 => {
            let piece = input[at..end.min(input.len())].to_vec();
            input.splice(at..at, piece);
        }
        _ => {
            let other = &seeds[random.below(seeds.len())];
            let from = random.below(other.len());
            let to = from + random.below(32.min(other.len() + 1 - from));
            let piece = other[from..to.min(other.len())].to_vec();
            input.splice(at..at, piece);
        }
    }
}

fn run(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name);
    let target = target.expect("a target of that name");
    let seeds = (target.seeds)();
    assert!(!seeds.is_empty());
    for seed in &seeds {
        check(target, seed);
    }
    if let Ok(folder) = std::fs::read_dir(target.regressions()) {
        for entry in folder {
            let path = entry.expect("a readable folder").path();
            check(target, &std::fs::read(path).expect("a readable file"));
        }
    }
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let start = Instant::now();
    while start.elapsed() < TIME {
        let mut input = seeds[random.below(seeds.len())].clone();
        for _ in 0..=random.below(8) {
            change(&mut input, &seeds, &mut random);
        }
        check(target, &input);
    }
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                run(stringify!($name));
            }
        )*

        #[test]
        fn none_is_forgotten() {
            let known: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(known, [$(stringify!($name)),*]);
        }
    };
}

targets! { dockerfile plan expand patterns reference tar layer manifest config index words }
