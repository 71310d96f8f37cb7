//! What is built and moved: trees of files and Dockerfiles, the same in every run.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Result;

/// Files in one folder of a tree.
const IN_A_FOLDER: usize = 100;

/// Numbers that look random and are the same each time (xorshift).
#[derive(Debug)]
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// The name of a file of a [`tree`].
pub(super) fn file(number: usize) -> PathBuf {
    let (folder, number) = (number / IN_A_FOLDER, number % IN_A_FOLDER);
    format!("module{folder:04}/source{number:02}.txt").into()
}

/// Writes `count` files of 100 to 4,000 bytes below `folder`, as sources are: text, a hundred in a folder.
pub(super) fn tree(folder: &Path, count: usize) -> Result<()> {
    let mut numbers = Numbers(0x5eed);
    let words = words(&mut numbers);
    for number in 0..count {
        let path = folder.join(file(number));
        if number % IN_A_FOLDER == 0 {
            fs::create_dir_all(path.parent().unwrap_or(folder))?;
        }
        let size = 100 + numbers.below(3900);
        write_text(&path, size, &words, &mut numbers)?;
    }
    Ok(())
}

/// Writes 40 files of 10 MiB below `folder`: text that compresses to about a third, as programs and libraries do.
pub(super) fn bulk(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    let mut numbers = Numbers(0xb01c);
    let words = words(&mut numbers);
    for number in 0..40 {
        let path = folder.join(format!("part{number:02}"));
        write_text(&path, 10 << 20, &words, &mut numbers)?;
    }
    Ok(())
}

/// Marks each file of a [`bulk`] as belonging to one measurement, so that nobody has its content already.
pub(super) fn sign_bulk(folder: &Path, mark: &str) -> Result<()> {
    use std::os::unix::fs::FileExt as _;

    for number in 0..40 {
        let path = folder.join(format!("part{number:02}"));
        File::options()
            .write(true)
            .open(path)?
            .write_all_at(mark.as_bytes(), 0)?;
    }
    Ok(())
}

fn words(numbers: &mut Numbers) -> Vec<String> {
    let letter = |number: u64| char::from(b'a' + u8::try_from(number % 26).unwrap_or(0));
    (0..5000)
        .map(|_| {
            let length = 3 + numbers.below(8);
            (0..length).map(|_| letter(numbers.next())).collect()
        })
        .collect()
}

fn write_text(path: &Path, size: u64, words: &[String], numbers: &mut Numbers) -> Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    let mut left = size;
    while left > 0 {
        let at = usize::try_from(numbers.below(words.len() as u64))?;
        let word = format!("{} ", words[at]);
        let length = word.len().min(usize::try_from(left)?);
        file.write_all(&word.as_bytes()[..length])?;
        left -= length as u64;
    }
    Ok(file.flush()?)
}

/// A Dockerfile as small projects have it: two stages that make something, one that is shipped.
pub(super) const SMALL: &str = "FROM busybox AS tools\nRUN echo tool > /tool && chmod 755 /tool\n\
    FROM busybox AS build\nWORKDIR /src\nCOPY main.txt .\nCOPY --from=tools /tool /bin/\nRUN cp main.txt /program\n\
    FROM busybox\nCOPY --from=build /program /usr/local/bin/\nENV A=b\nCMD [\"program\"]\n";

/// The whole context.
pub(super) const COPY_ALL: &str = "FROM busybox\nCOPY tree /src\n";

/// All files of a distribution.
pub(super) const COPY_DEBIAN: &str =
    "FROM debian:bookworm AS debian\nFROM scratch\nCOPY --from=debian / /\n";

/// What a step writes 400 MiB with.
pub(super) const WRITE: &str =
    "for i in $(seq 40); do head -c 10485760 /dev/urandom > part$i; done";

/// Twenty steps that do nothing.
pub(super) fn trivial_runs() -> String {
    format!("FROM busybox\n{}", "RUN true\n".repeat(20))
}

/// Stages that sleep one second each, and one that needs them all.
pub(super) fn sleeping_stages(count: usize) -> String {
    use std::fmt::Write as _;

    let mut text = String::new();
    for stage in 0..count {
        let _ = writeln!(
            text,
            "FROM busybox AS s{stage}\nRUN sleep 1; echo {stage} > /made"
        );
    }
    text.push_str("FROM scratch\n");
    for stage in 0..count {
        let _ = writeln!(text, "COPY --from=s{stage} /made /{stage}");
    }
    text
}

/// A step that writes 400 MiB.
pub(super) fn writing_run() -> String {
    format!("FROM busybox\nWORKDIR /data\nRUN {WRITE}\n")
}

/// One of several small projects.
pub(super) fn small_project(number: usize) -> String {
    format!(
        "FROM busybox AS build\nCOPY main.txt /\nRUN echo {number} > /a\nRUN echo b > /b\n\
         FROM busybox\nCOPY --from=build /a /b /\nRUN true\n"
    )
}

/// Instructions that change the image's description alone.
pub(super) fn metadata(count: usize) -> String {
    use std::fmt::Write as _;

    let mut text = "FROM busybox\n".to_owned();
    for number in 0..count {
        let _ = match number % 3 {
            0 => writeln!(text, "ENV NAME{number}=value"),
            1 => writeln!(text, "LABEL name{number}=value"),
            _ => writeln!(text, "EXPOSE {}", 8000 + number),
        };
    }
    text
}
