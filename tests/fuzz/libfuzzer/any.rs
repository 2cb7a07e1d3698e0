//! Every target for libFuzzer: `MUSTTLS_FUZZ_TARGET` names the one.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use musttls_fuzz::{ALL, Target};

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("MUSTTLS_FUZZ_TARGET").unwrap_or_default();
    let names: Vec<_> = ALL.iter().map(|target| target.name).collect();
    let target = ALL.iter().find(|target| target.name == name);
    target.unwrap_or_else(|| panic!("set MUSTTLS_FUZZ_TARGET to one of {}", names.join(", ")))
});

fuzz_target!(|data: &[u8]| (TARGET.run)(data));
