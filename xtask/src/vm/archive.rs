//! Root file systems for the VMs, as cpio archives: the kernel unpacks several in a row into one tree,
//! so the large part is packed once.
//!
//! Source: Linux `Documentation/driver-api/early-userspace/buffer-format.rst`.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::{Kernel, Payload, append, userland};
use crate::cache::{self, Cache};
use crate::cmd::Cmd;

/// Userland, then what this kernel and this build add to it.
pub(crate) fn write_image(
    cache: &Cache,
    kernel: &Kernel,
    payload: &Payload,
    image: &Path,
) -> Result<()> {
    let tree = cache::begin(&image.with_file_name("payload"))?;
    place(&payload.init, &tree.join("init"))?;
    copy_libraries(&payload.init, &tree)?;
    if let Some(agent) = &payload.agent {
        place(agent, &tree.join("usr/sbin/musttls"))?;
        copy_libraries(agent, &tree)?;
    }
    if let Some(tests) = &payload.tests {
        cache::write(&tree.join("tests"), &tests.list(crate::vm::series(kernel)?))?;
    }
    for (file, to) in payload.system.iter().flat_map(|system| &system.files) {
        cache::copy(file, &tree.join(to))?;
    }
    let modules = tree.join("usr/lib");
    cache::create(&modules)?;
    Cmd::new("cp")
        .arg("--recursive")
        .arg(kernel.modules.join("lib/modules"))
        .arg(&modules)
        .output()?;
    let addition = image.with_file_name("payload.cpio");
    pack(&tree, &addition)?;
    // Not compressed: an emulated CPU unpacks slower than QEMU reads.
    let mut file = File::create(image).with_context(|| format!("create {}", image.display()))?;
    append(&mut file, &userland::archive(cache))?;
    append(&mut file, &addition)?;
    cache::remove(&addition)?;
    cache::remove(&tree)
}

/// Packs the tree at `from`, parents before children, as the kernel wants them.
pub(crate) fn pack(from: &Path, archive: &Path) -> Result<()> {
    let script = "find . -mindepth 1 -print0 | LC_ALL=C sort -z | cpio --null --create --format=newc --quiet > \"$0\"";
    Cmd::new("sh")
        .args(["-ec", script])
        .arg(archive)
        .dir(from)
        .output()
        .map(drop)
}

/// Copies `program` as an executable.
pub(crate) fn place(program: &Path, to: &Path) -> Result<()> {
    cache::copy(program, to)?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("set mode of {}", to.display()))
}

/// Copies the loader and the libraries of `program`, each to its own path in `tree`.
pub(crate) fn copy_libraries(program: &Path, tree: &Path) -> Result<()> {
    for library in libraries(program)? {
        let to = inside(tree, &library);
        if !to.exists() {
            place(&library, &to)?;
        }
    }
    Ok(())
}

/// Where a host path goes in `tree`. The kernel replaces a link by a directory of the same name when
/// a later archive has one, so no archive but the first names `/lib` and its like.
pub(crate) fn inside(tree: &Path, path: &Path) -> PathBuf {
    let relative = path.strip_prefix("/").unwrap_or(path);
    let unmerged = ["lib", "lib64", "bin", "sbin"]
        .iter()
        .any(|top| relative.starts_with(top));
    if unmerged {
        tree.join("usr").join(relative)
    } else {
        tree.join(relative)
    }
}

fn libraries(program: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut magic = [0; 4];
    let mut file = File::open(program).with_context(|| format!("open {}", program.display()))?;
    let is_elf = file.read_exact(&mut magic).is_ok() && magic == *b"\x7fELF";
    if !is_elf {
        return Ok(BTreeSet::new());
    }
    match Cmd::new("ldd").arg(program).output() {
        Ok(text) => parse_ldd(&text),
        Err(error) if format!("{error:#}").contains("not a dynamic executable") => {
            Ok(BTreeSet::new())
        }
        Err(error) => Err(error),
    }
}

fn parse_ldd(text: &str) -> Result<BTreeSet<PathBuf>> {
    let mut paths = BTreeSet::new();
    for line in text.lines() {
        if line.contains("not found") {
            bail!("a library is missing: {}", line.trim());
        }
        // `name => /path (0x…)`, or for the loader `/path (0x…)`; the vdso has no path.
        let place = line.split_once("=>").map_or(line, |(_, path)| path);
        if let Some(path) = place
            .split_whitespace()
            .next()
            .filter(|path| path.starts_with('/'))
        {
            paths.insert(path.into());
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldd_gives_libraries_and_loader_without_the_vdso() {
        let text = "\tlinux-vdso.so.1 (0x1)\n\tlibm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x2)\n\t/lib64/ld-linux-x86-64.so.2 (0x3)\n";
        let paths: Vec<_> = parse_ldd(text).unwrap().into_iter().collect();
        assert_eq!(
            paths,
            [
                Path::new("/lib/x86_64-linux-gnu/libm.so.6"),
                Path::new("/lib64/ld-linux-x86-64.so.2")
            ]
        );
    }

    #[test]
    fn missing_library_is_an_error() {
        assert!(parse_ldd("\tlibx.so => not found\n").is_err());
    }

    #[test]
    fn host_paths_land_in_the_merged_usr() {
        let tree = Path::new("/t");
        assert_eq!(
            inside(tree, Path::new("/lib64/ld.so")),
            Path::new("/t/usr/lib64/ld.so")
        );
        assert_eq!(
            inside(tree, Path::new("/usr/lib/a.so")),
            Path::new("/t/usr/lib/a.so")
        );
        assert_eq!(
            inside(tree, Path::new("/opt/a.so")),
            Path::new("/t/opt/a.so")
        );
    }
}
