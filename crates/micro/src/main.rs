//! `cargo xtask bench micro`: how long the hot pieces take, one by one, so that a regression names its place.
//!
//! The files are small and lie in the system's cache, so that what is measured is mostly the code. The fastest of several
//! rounds is told: whatever else runs can only add to it.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use kiln_graph::CopyAction;
use kiln_image::compress::Encoder;
use kiln_image::tarlayer::write_layer;
use kiln_image::{Compression, KeyHasher, Kind, LayerIndex, LayerPath, MergedView};
use kiln_source::{StatCache, Wanted, scan};
use kiln_store::layer_fs::Ids;

const FILES: usize = 5_000;
const IN_A_FOLDER: usize = 100;
const ROUNDS: usize = 7;
/// Longer than the scanner mistrusts files for that were just changed.
const SETTLE: Duration = Duration::from_millis(2_200);

fn main() -> Result<()> {
    let room = tempfile::tempdir()?;
    let tree = room.path().join("tree");
    make_tree(&tree)?;
    std::thread::sleep(SETTLE);

    let mut cache = StatCache::empty();
    let index = scan(&tree, None, &mut cache, &Wanted::All)?.index(|_| true, &mut cache)?;
    let cache_file = room.path().join("stat");
    cache.save(&cache_file)?;
    tell("walk, nothing known", "file", FILES, || {
        let mut cache = StatCache::empty();
        scan(&tree, None, &mut cache, &Wanted::All)?.index(|_| true, &mut cache)?;
        Ok(())
    })?;
    tell("walk, all known", "file", FILES, || {
        let mut cache = StatCache::load(&cache_file);
        scan(&tree, None, &mut cache, &Wanted::All)?.index(|_| true, &mut cache)?;
        Ok(())
    })?;

    let stored = index.to_bytes();
    tell("index, written", "file", FILES, || {
        std::hint::black_box(index.to_bytes());
        Ok(())
    })?;
    tell("index, read", "file", FILES, || {
        LayerIndex::from_bytes(&stored)?;
        Ok(())
    })?;
    let view = MergedView::new([Arc::clone(&index)]);
    let copy = CopyAction {
        src: "/".to_owned(),
        dir_copy_contents: true,
        ..CopyAction::default()
    };
    tell("key of a copy", "file", FILES, || {
        let mut hasher = KeyHasher::new("micro", 1);
        kiln_fileop::selection_key(&copy, &view, &mut hasher)?;
        hasher.finish();
        Ok(())
    })?;
    let small = Arc::new(LayerIndex::new(index.entries()[..50].to_vec()));
    tell("merged view of 31 layers", "file", FILES, || {
        let stack = std::iter::repeat_n(&small, 30).cloned();
        MergedView::new(std::iter::once(Arc::clone(&index)).chain(stack));
        Ok(())
    })?;
    tell("look-up in a view", "path", FILES, || {
        for entry in index.entries() {
            view.resolve(entry.path.as_bytes(), true)?;
        }
        Ok(())
    })?;

    let open = |path: &LayerPath| File::open(tree.join(path.as_path()));
    let mut tar = Vec::new();
    write_layer(&index, None, &mut tar, |entry| open(&entry.path))?;
    tell("tar of a layer", "byte", tar.len(), || {
        write_layer(&index, None, io::sink(), |entry| open(&entry.path))?;
        Ok(())
    })?;
    for (name, compression) in [("gzip", Compression::Gzip), ("zstd", Compression::Zstd)] {
        let compress = |threads| -> Result<Vec<u8>> {
            let level = compression.default_level();
            let mut encoder = Encoder::new(compression, level, threads, Vec::new())?;
            encoder.write_all(&tar)?;
            Ok(encoder.finish()?)
        };
        tell(&format!("{name}, one thread"), "byte", tar.len(), || {
            compress(1).map(drop)
        })?;
        tell(&format!("{name}, two threads"), "byte", tar.len(), || {
            compress(2).map(drop)
        })?;
        let compressed = compress(2)?;
        tell(&format!("{name}, read"), "byte", tar.len(), || {
            let (_, mut plain) = kiln_image::compress::decoder(&*compressed)?;
            io::copy(&mut plain, &mut io::sink())?;
            Ok(())
        })?;
    }
    let mut number = 0;
    tell("unpack", "file", FILES, || {
        number += 1;
        let layer = room.path().join(format!("unpacked{number}"));
        fs::create_dir(&layer)?;
        kiln_store::unpack_tar(&layer, Ids::Real, (&*tar).take(u64::MAX))?;
        Ok(())
    })?;
    let regular = index
        .entries()
        .iter()
        .filter(|entry| matches!(entry.kind, Kind::File { .. }));
    anyhow::ensure!(regular.count() == FILES, "files were lost on the way");
    Ok(())
}

/// Files of 100 to 4,000 bytes, as sources are.
fn make_tree(tree: &Path) -> Result<()> {
    let mut state = 0x5eed_u64;
    for number in 0..FILES {
        let folder = tree.join(format!("module{:04}", number / IN_A_FOLDER));
        if number % IN_A_FOLDER == 0 {
            fs::create_dir_all(&folder)?;
        }
        let mut text = Vec::new();
        let length = 100 + number * 37 % 3_900;
        while text.len() < length {
            // Words that look random and are the same each time (xorshift).
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            write!(text, "{:x} ", state % 0xfffff)?;
        }
        fs::write(
            folder.join(format!("source{:02}", number % IN_A_FOLDER)),
            text,
        )?;
    }
    Ok(())
}

/// Does the work several times and prints the fastest, for each of `count` units.
#[expect(clippy::print_stdout, reason = "what the program is for")]
fn tell(what: &str, unit: &str, count: usize, mut work: impl FnMut() -> Result<()>) -> Result<()> {
    let mut best = Duration::MAX;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        work()?;
        best = best.min(start.elapsed());
    }
    let each = if unit == "byte" {
        format!("{:.0} MB/s", count as f64 / best.as_secs_f64() / 1e6)
    } else {
        format!("{:.2} us a {unit}", best.as_secs_f64() * 1e6 / count as f64)
    };
    println!("{what:28} {:8.2} ms   {each}", best.as_secs_f64() * 1e3);
    Ok(())
}
