//! Copying the contents of files into the layer.

use std::borrow::Cow;
use std::io::{self, Seek};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Mutex;

use kiln_image::{Entry, Kind, LayerPath};
use kiln_source::{Stamp, UNHASHED};
use kiln_store::layer_fs::{Content, Ids, LayerFs};

use crate::FileOpError;
use crate::entries::Entries;
use crate::tree::{Folders, Tree};

/// Something to be done on disk for an entry, given by its number. As many as there are files: kept small.
#[derive(Debug)]
pub(crate) enum Job<'a> {
    /// Copy the content of a regular file.
    Copy {
        /// The entry.
        at: u32,
        /// Which of the trees that are read.
        tree: u32,
        /// Where the content is.
        layer: u32,
        /// The file in the tree.
        from: &'a Entry,
    },
    /// Make what has no content.
    Make {
        /// The entry.
        at: u32,
    },
    /// Make one more name.
    Link {
        /// The entry.
        at: u32,
        /// The entry that is copied.
        first: u32,
    },
}

impl Job<'_> {
    /// The entry.
    pub(crate) fn at(&self) -> usize {
        match self {
            Self::Copy { at, .. } | Self::Make { at } | Self::Link { at, .. } => *at as usize,
        }
    }
}

/// What the threads have to say.
#[derive(Default)]
struct Outcome {
    /// Entries that are not what their index says: number, what they really are, where they come from.
    changed: Vec<(usize, Entry, LayerPath)>,
    error: Option<FileOpError>,
}

/// Files from which on a second thread pays.
const ALONE: usize = 64;
const BYTES_ALONE: u64 = 16 << 20;
/// The fewest files that a thread takes at once where there are many.
const CHUNK: usize = 32;
/// The most.
const LARGEST_CHUNK: usize = 1024;

/// What is left to do.
struct Queue<'a, 'b> {
    jobs: &'a [Job<'b>],
    next: Mutex<usize>,
}

impl<'a, 'b> Queue<'a, 'b> {
    /// The next jobs: `chunk` of them, and the others of the last one's folder. Who makes a file holds its folder's lock, so that
    /// two threads at work in one folder would wait for each other.
    fn take(&self, chunk: usize) -> &'a [Job<'b>] {
        let mut next = self.next.lock().expect("a copying thread has panicked");
        let left = &self.jobs[*next..];
        let mut count = left.len().min(chunk);
        if chunk > 1 {
            let most = left.len().min(LARGEST_CHUNK);
            while (1..most).contains(&count) && same_folder(&left[count - 1], &left[count]) {
                count += 1;
            }
        }
        *next += count;
        &left[..count]
    }

    /// Nobody is given more.
    fn end(&self) {
        *self.next.lock().expect("a copying thread has panicked") = self.jobs.len();
    }
}

fn same_folder(one: &Job<'_>, other: &Job<'_>) -> bool {
    match (one, other) {
        (Job::Copy { from: one, .. }, Job::Copy { from: other, .. }) => {
            one.path.parent() == other.path.parent()
        }
        _ => false,
    }
}

/// Does the jobs. Digests and sizes of files that are not what their index says are put right; gives the source paths
/// of those.
pub(crate) fn run(
    fs: &LayerFs,
    layer_dir: &Path,
    ids: Ids,
    entries: &mut Entries<'_>,
    trees: &[&Tree<'_>],
    jobs: &[Job<'_>],
) -> Result<Vec<LayerPath>, FileOpError> {
    // Folders come before what is in them.
    for job in jobs {
        if let Job::Make { at } = job
            && let Some(entry) = entries.get(*at as usize)
        {
            fs.put(&entry, Content::None).map_err(FileOpError::Write)?;
        }
    }
    let size = |job: &Job<'_>| match job {
        Job::Copy { from, .. } => match from.kind {
            Kind::File { size, .. } => Some(size),
            _ => Some(0),
        },
        Job::Make { .. } | Job::Link { .. } => None,
    };
    let (copies, bytes) = jobs
        .iter()
        .filter_map(size)
        .fold((0, 0), |(count, bytes), size| (count + 1, bytes + size));
    let alone = copies < 2 || copies < ALONE && bytes < BYTES_ALONE;
    let queue = Queue {
        jobs,
        next: Mutex::new(0),
    };
    let outcome = Mutex::new(Outcome::default());
    let known: &Entries<'_> = entries;
    let chunk = if alone || copies < ALONE { 1 } else { CHUNK };
    let work = |fs: &LayerFs| {
        let mut last: Option<(u32, Folders<'_>)> = None;
        loop {
            let part = queue.take(chunk);
            if part.is_empty() {
                return;
            }
            for job in part {
                let Job::Copy {
                    at,
                    tree: number,
                    layer,
                    from,
                } = job
                else {
                    continue;
                };
                let at = *at as usize;
                let Some(entry) = known.get(at) else {
                    continue;
                };
                let tree = trees[*number as usize];
                let folders = match &mut last {
                    Some((known, folders)) if known == number => folders,
                    last => &mut last.insert((*number, Folders::new(&tree.dirs))).1,
                };
                let place = (*layer as usize, &from.path);
                let done = copy(fs, folders, &entry, place, tree.stamp(from));
                if matches!(done, Ok(None)) {
                    continue;
                }
                let mut outcome = outcome.lock().expect("a copying thread has panicked");
                match done {
                    Ok(put) => outcome
                        .changed
                        .extend(put.map(|put| (at, put, from.path.clone()))),
                    Err(error) => {
                        queue.end();
                        outcome.error.get_or_insert(error);
                        return;
                    }
                }
            }
        }
    };
    if alone {
        work(fs);
    } else {
        // A second hold on the same folder: each thread keeps its own place in it.
        let second = LayerFs::create(layer_dir, ids).map_err(FileOpError::Write)?;
        std::thread::scope(|scope| {
            scope.spawn(|| work(&second));
            work(fs);
        });
    }
    let outcome = outcome.into_inner().expect("a copying thread has panicked");
    if let Some(error) = outcome.error {
        return Err(error);
    }
    let mut paths = Vec::new();
    for (at, entry, path) in outcome.changed {
        entries.set(at, entry);
        paths.push(path);
    }
    for job in jobs {
        let Job::Link { at, first } = job else {
            continue;
        };
        let target = entries.get(*first as usize).map(Cow::into_owned);
        let Some(target) = target else {
            continue;
        };
        if let Some(entry) = entries.get_mut(*at as usize) {
            entry.kind = target.kind;
            fs.link(entry, &target.path).map_err(FileOpError::Write)?;
        }
    }
    paths.sort_unstable();
    Ok(paths)
}

/// Copies one file. Gives the entry as it really is if it is not what was expected.
fn copy(
    fs: &LayerFs,
    folders: &mut Folders<'_>,
    entry: &Entry,
    (layer, path): (usize, &LayerPath),
    stamp: Option<&Stamp>,
) -> Result<Option<Entry>, FileOpError> {
    let unreadable = |source| FileOpError::Read {
        path: path.clone(),
        source,
    };
    let mut file = folders.open(layer, path).map_err(unreadable)?;
    let same = |file: &std::fs::File| match stamp {
        Some(stamp) => rustix::fs::fstat(file).map(|stat| Stamp::of(&stat) == *stamp),
        None => Ok(true),
    };
    let hashed = !matches!(
        entry.kind,
        Kind::File {
            digest: UNHASHED,
            ..
        }
    );
    if hashed && same(&file).map_err(|errno| unreadable(errno.into()))? {
        match fs.put(entry, Content::Copy(file.as_fd())) {
            Ok(()) if same(&file).map_err(|errno| unreadable(errno.into()))? => return Ok(None),
            Ok(()) => {}
            // Another size than the index says.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
            Err(error) => return Err(FileOpError::Write(error)),
        }
        file.rewind().map_err(unreadable)?;
    }
    let mut put = entry.clone();
    fs.put_hashed(&mut put, &mut file)
        .map_err(FileOpError::Write)?;
    Ok((put.kind != entry.kind).then_some(put))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Regular files by their paths.
    fn files(paths: impl IntoIterator<Item = String>) -> Vec<Entry> {
        let file = |path: String| Entry {
            kind: Kind::File {
                size: 1,
                digest: UNHASHED,
            },
            ..Entry::dir(LayerPath::clean(&path), 0o644, 0, 0, (0, 0))
        };
        paths.into_iter().map(file).collect()
    }

    fn copies(entries: &[Entry]) -> Vec<Job<'_>> {
        let job = |(at, from)| Job::Copy {
            at: u32::try_from(at).unwrap(),
            tree: 0,
            layer: 0,
            from,
        };
        entries.iter().enumerate().map(job).collect()
    }

    /// The lengths of what a thread takes at a time, until nothing is left.
    fn taken(jobs: &[Job<'_>], chunk: usize) -> Vec<usize> {
        let queue = Queue {
            jobs,
            next: Mutex::new(0),
        };
        let parts: Vec<_> = std::iter::repeat_with(|| queue.take(chunk))
            .take_while(|part| !part.is_empty())
            .collect();
        let order: Vec<_> = parts.iter().flat_map(|part| *part).map(Job::at).collect();
        assert_eq!(
            order,
            (0..jobs.len()).collect::<Vec<_>>(),
            "each job is given once, in order"
        );
        parts.iter().map(|part| part.len()).collect()
    }

    #[test]
    fn who_takes_files_takes_the_rest_of_their_folder() {
        // Four folders of 20 files: the 32nd file is in the second folder.
        let entries = files((0..80).map(|n| format!("d{}/f{n}", n / 20)));
        assert_eq!(taken(&copies(&entries), CHUNK), [40, 40]);
        // Folders of one file each: no more than asked for.
        let entries = files((0..70).map(|n| format!("d{n}/f")));
        assert_eq!(taken(&copies(&entries), CHUNK), [32, 32, 6]);
    }

    #[test]
    fn a_folder_of_very_many_files_is_shared() {
        let entries = files((0..2500).map(|n| format!("d/f{n}")));
        assert_eq!(
            taken(&copies(&entries), CHUNK),
            [LARGEST_CHUNK, LARGEST_CHUNK, 2500 - 2 * LARGEST_CHUNK]
        );
    }

    #[test]
    fn few_files_are_taken_one_by_one() {
        let entries = files((0..3).map(|n| format!("d/f{n}")));
        assert_eq!(taken(&copies(&entries), 1), [1, 1, 1]);
    }

    #[test]
    fn nothing_is_given_after_the_end() {
        let entries = files((0..80).map(|n| format!("d{}/f{n}", n / 20)));
        let jobs = copies(&entries);
        let queue = Queue {
            jobs: &jobs,
            next: Mutex::new(0),
        };
        assert_eq!(queue.take(CHUNK).len(), 40);
        queue.end();
        assert!(queue.take(CHUNK).is_empty());
    }
}
