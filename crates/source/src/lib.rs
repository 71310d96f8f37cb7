//! Where bytes come from: build contexts, their ignore files, and the digests of their files.

mod cache;
pub mod glob;
mod hash;
pub mod ignore;
pub mod pattern;
pub mod scan;
mod wanted;
mod xattr;

pub use cache::{Stamp, StatCache};
pub use pattern::PatternMatcher;
pub use scan::{Scan, ScanError, Stamps, UNHASHED, scan};
pub use wanted::Wanted;
