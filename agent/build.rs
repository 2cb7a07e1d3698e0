//! Builds the gate (`ebpf/`) for the BPF target; `datapath` embeds the object.

use std::env;

use anyhow::{Context as _, Result};
use aya_build::{Package, Toolchain};

fn main() -> Result<()> {
    println!("cargo:rerun-if-env-changed=AYA_BUILD_SKIP");
    if env::var_os("AYA_BUILD_SKIP").is_some() && env::var("PROFILE").as_deref() == Ok("release") {
        anyhow::bail!("AYA_BUILD_SKIP leaves the gate out: not in a release build");
    }
    let root = env::var("CARGO_MANIFEST_DIR").context("CARGO_MANIFEST_DIR")?;
    let gate = format!("{root}/../ebpf");
    let toolchain = env::var("RUSTUP_TOOLCHAIN").unwrap_or_else(|_| "stable".to_owned());
    // The gate's other half; aya-build watches only the directory of the package itself.
    println!("cargo:rerun-if-changed={root}/../common/src");
    // SAFETY: the build script has one thread.
    unsafe {
        // Lets the pinned stable rustc build `core` for the BPF target (ADR 0004).
        env::set_var("RUSTC_BOOTSTRAP", "1");
    }
    let features: &[&str] = if env::var_os("CARGO_FEATURE_PROBE").is_some() {
        &["probe"]
    } else {
        &[]
    };
    aya_build::build_ebpf(
        [Package {
            name: "musttls-ebpf",
            root_dir: &gate,
            features,
            ..Package::default()
        }],
        Toolchain::Custom(&toolchain),
    )
}
