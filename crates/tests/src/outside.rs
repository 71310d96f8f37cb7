//! A folder of the host that no step, image or archive may reach.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::Kiln;

/// The content of the file `secret` in it, which nothing may say.
pub const SECRET: &str = "of-the-host-4711";

/// The folder: the file `secret`, and `keep/stub` with something in it. Whoever builds owns it, so that only Kiln stands
/// before it.
#[derive(Debug)]
pub struct Outside {
    folder: PathBuf,
    before: BTreeMap<PathBuf, Vec<u8>>,
}

impl Outside {
    /// Makes it.
    pub fn new(kiln: &Kiln) -> Self {
        let files = [("secret", SECRET), ("keep/stub", "kept"), ("keep/d/f", "")];
        let folder = PathBuf::from(kiln.context(&files));
        let before = listed(&folder);
        Self { folder, before }
    }

    /// Its path.
    pub fn path(&self) -> &str {
        self.folder.to_str().expect("a plain name")
    }

    /// Fails if anything in it is another than it was.
    #[track_caller]
    pub fn untouched(&self) {
        assert_eq!(listed(&self.folder), self.before, "{}", self.path());
    }
}

/// All files and folders with what is in them.
fn listed(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("own folder").flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(path.clone());
            }
            let content = std::fs::read(&path).unwrap_or_default();
            found.insert(path, content);
        }
    }
    found
}
