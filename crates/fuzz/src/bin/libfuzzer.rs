//! The targets under libFuzzer; `KILN_FUZZ_TARGET` says which. `cargo xtask soak fuzz` builds and runs it.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let name = std::env::var("KILN_FUZZ_TARGET").expect("KILN_FUZZ_TARGET names a target");
    let target = kiln_fuzz::TARGETS
        .iter()
        .find(|target| target.name == name)
        .expect("a target of that name");
    target.run
});

fuzz_target!(|data: &[u8]| TARGET(data));
