//! What the integration tests share: the real `kiln` binary with a store of its own, in each of the settings that Kiln
//! works in; and eyes for what a build leaves behind, what it does to the system, and what it serves from.
//!
//! `cargo xtask test` prepares what is needed here and tells where it is: `KILN_BIN` (the binary), `KILN_TEST_BASES` (a
//! folder of base images as archives), `KILN_TEST_DIR` (where stores go). Without them the tests are skipped, aloud.

#![expect(
    clippy::return_self_not_must_use,
    reason = "assertions can be chained, and can be statements"
)]

pub mod kiln;
pub mod leftovers;
pub mod namespace;
pub mod outcome;
pub mod outside;
pub mod registry;
pub mod server;
pub mod terminal;
pub mod trace;

pub use kiln::{Kiln, Setting};
pub use outcome::Outcome;
pub use outside::{Outside, SECRET};
pub use registry::Registry;
pub use terminal::{OWN_TERMINAL, Terminal};

use sha2::{Digest as _, Sha256};

/// The digest of bytes as OCI names it.
pub fn digest(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = "sha256:".to_owned();
    for byte in Sha256::digest(bytes) {
        write!(text, "{byte:02x}").expect("text grows");
    }
    text
}

/// Tells that a test, or part of it, did not run; past the test runner's capturing. With `KILN_TEST_ALL` set, as by
/// `cargo xtask test` for root, who can run everything, it fails instead.
pub fn skipped(why: &str) {
    use std::io::Write as _;
    assert!(
        std::env::var_os("KILN_TEST_ALL").is_none(),
        "KILN_TEST_ALL is set, but {why}"
    );
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}

/// Makes a test for each setting out of each function `fn name(setting: Setting)`.
#[macro_export]
macro_rules! in_each_setting {
    ($($name:ident)*) => {$(
        mod $name {
            #[test]
            fn as_root() {
                super::$name($crate::Setting::Root);
            }
            #[test]
            fn as_plain_user() {
                super::$name($crate::Setting::User);
            }
            #[test]
            fn with_one_id() {
                super::$name($crate::Setting::OneId);
            }
            #[test]
            fn on_an_overlay() {
                super::$name($crate::Setting::Overlay);
            }
        }
    )*};
}
