//! Who may name whom: the architecture as a search through the sources.
//!
//! Comments and strings do not count, identifiers do: `aya` is not found in `aya_build`.

mod source;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

use self::source::{code_only, words};

/// Directories and files that are searched, from the top of the work tree.
const SOURCES: &[&str] = &["agent", "common", "ebpf", "packaging", "tests", "xtask"];

/// Where the reader finds what each source is for.
const MAP: &str = "ARCHITECTURE.md";
/// Directories that stand there as one.
const MAPPED_WHOLE: &[&str] = &["packaging/pages/", "tests/fuzz/"];

struct Rule {
    /// Any of these identifiers breaks the rule.
    words: &'static [&'static str],
    /// Paths that the rule is about: those that start with one of these.
    inside: &'static [&'static str],
    /// Exceptions, in the same way.
    except: &'static [&'static str],
    /// Unit tests at the end of a file (from `#[cfg(test)]` on) may break it.
    tests_may: bool,
    why: &'static str,
}

const EVERYWHERE: &[&str] = &[""];

const RULES: &[Rule] = &[
    Rule {
        words: &["aya", "aya_obj"],
        inside: EVERYWHERE,
        except: &["agent/src/datapath/", "common/src/pod.rs", "ebpf/"],
        tests_may: false,
        why: "loading and attaching is the datapath's: the rest must work with another loader",
    },
    Rule {
        words: &["aya_ebpf"],
        inside: EVERYWHERE,
        except: &["ebpf/"],
        tests_may: false,
        why: "only kernel programs call the kernel's helpers",
    },
    Rule {
        words: &["toml", "toml_edit", "annotate_snippets"],
        inside: EVERYWHERE,
        except: &["agent/src/config/"],
        tests_may: false,
        why: "the file format of the configuration ends where the valid policy begins",
    },
    Rule {
        words: &["serde_json"],
        inside: &["common/", "ebpf/"],
        except: &[],
        tests_may: false,
        why: "records are plain bytes until the agent writes them",
    },
    Rule {
        words: &[
            "pidfd_getfd",
            "SYS_pidfd_getfd",
            "TCP_REPAIR",
            "TCP_REPAIR_QUEUE",
            "SOCK_DESTROY",
        ],
        inside: EVERYWHERE,
        except: &[
            "agent/src/socket.rs",
            "agent/src/refusal/destroy.rs",
            "tests/",
        ],
        // The filter of system calls is asked about the number.
        tests_may: true,
        why: "sockets of others are touched in one place, and only those that were refused",
    },
    Rule {
        words: &["rusqlite"],
        inside: EVERYWHERE,
        except: &["agent/src/history/"],
        tests_may: false,
        why: "the index is one way to keep the history: nothing else rests on it being a database",
    },
    Rule {
        words: &["flate2"],
        inside: EVERYWHERE,
        except: &["agent/src/trail/"],
        tests_may: false,
        why: "whoever reads records reads lines: how files are compressed ends there",
    },
    Rule {
        words: &["clock_gettime", "ClockId"],
        inside: &["agent/"],
        except: &["agent/src/clock.rs"],
        tests_may: false,
        why: "three clocks, two units: one place says which is which",
    },
    Rule {
        words: &["std", "alloc"],
        inside: &["common/src/", "ebpf/src/"],
        except: &[],
        tests_may: true,
        why: "the kernel has neither",
    },
    Rule {
        words: &["unsafe"],
        inside: EVERYWHERE,
        except: &[
            "common/src/pod.rs",
            "ebpf/src/",
            "agent/build.rs",
            "agent/src/control/peer.rs",
            "agent/src/datapath/mod.rs",
            "agent/src/datapath/sys.rs",
            "agent/src/datapath/tables.rs",
            "agent/src/refusal/mod.rs",
            "agent/src/socket.rs",
            "tests/src/bpf.rs",
            "tests/tests/bypass/sockmap.rs",
        ],
        tests_may: false,
        why: "unsafe code is reviewed line by line, so it stays in few files",
    },
    Rule {
        words: &["musttls", "musttls_common", "musttls_ebpf", "musttls_tests"],
        inside: &["xtask/"],
        except: &[],
        tests_may: false,
        why: "xtask must build when the rest does not",
    },
];

/// A limit on what a manifest may depend on.
struct Manifest {
    path: &'static str,
    /// Names that begin with this are forbidden; all of them if it is empty.
    forbidden: &'static str,
    except: &'static [&'static str],
    /// What only tests need may be anything.
    tests_may: bool,
    why: &'static str,
}

const MANIFESTS: &[Manifest] = &[
    Manifest {
        path: "common/Cargo.toml",
        forbidden: "",
        // Optional, in user space only: the trait of what may be copied to and from maps.
        except: &["aya"],
        tests_may: true,
        why: "common has no dependencies: the kernel programs are made from it",
    },
    Manifest {
        path: "xtask/Cargo.toml",
        forbidden: "musttls",
        except: &[],
        tests_may: false,
        why: "xtask must build when the rest does not",
    },
];

pub(crate) fn check(top: &Path) -> Result<()> {
    let mut found = Vec::new();
    let mut files = Vec::new();
    for source in SOURCES {
        rust_files(&top.join(source), &mut files)?;
    }
    ensure!(!files.is_empty(), "no Rust sources below {}", top.display());
    let map = top.join(MAP);
    let map = fs::read_to_string(&map).with_context(|| format!("read {}", map.display()))?;
    for file in &files {
        let path = file.strip_prefix(top).unwrap_or(file).to_string_lossy();
        let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
        found.extend(search(&path, &text));
        if !is_on_map(&map, &path) {
            found.push(format!("{path}: has no line in the code map of {MAP}"));
        }
    }
    for manifest in MANIFESTS {
        let file = top.join(manifest.path);
        let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        found.extend(manifest.search(&text));
    }
    if found.is_empty() {
        println!("layering: {} files in order", files.len());
        return Ok(());
    }
    bail!(
        "layering:\n{}\n  help: move the code, or change the rules in xtask/src/layering.rs with a reason; write the missing line",
        found.join("\n")
    )
}

fn rust_files(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let listing = || format!("list {}", directory.display());
    for entry in fs::read_dir(directory).with_context(listing)? {
        let path = entry.with_context(listing)?.path();
        if path.is_dir() {
            rust_files(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(())
}

/// Whether the code map names the source `path`: whole, by its end behind a file of the same directory (`chart.rs`), or with
/// its directory.
fn is_on_map(map: &str, path: &str) -> bool {
    let has = |name: &str| map.contains(&format!("`{name}`"));
    let mut directories = path.match_indices('/').map(|(at, _)| path.split_at(at + 1));
    let is_root = path.ends_with("/mod.rs");
    has(path)
        || directories.any(|(directory, rest)| {
            let is_mapped_whole = MAPPED_WHOLE.contains(&directory) && has(directory);
            is_mapped_whole || !is_root && has(rest)
        })
}

/// The places in one file that break a rule, each as `path:line: …`.
fn search(path: &str, text: &str) -> Vec<String> {
    let rules = RULES
        .iter()
        .filter(|rule| rule.is_about(path))
        .collect::<Vec<_>>();
    let mut found = Vec::new();
    let mut in_tests = false;
    for (line, code) in (1..).zip(code_only(text).lines()) {
        in_tests |= code.trim_start().starts_with("#[cfg(test)]");
        for rule in rules.iter().filter(|rule| !(rule.tests_may && in_tests)) {
            let broken = words(code).filter(|word| rule.words.contains(word));
            found.extend(broken.map(|word| format!("{path}:{line}: names `{word}`: {}", rule.why)));
        }
    }
    found
}

impl Rule {
    fn is_about(&self, path: &str) -> bool {
        let any = |starts: &[&str]| starts.iter().any(|start| path.starts_with(start));
        any(self.inside) && !any(self.except)
    }
}

impl Manifest {
    fn search(&self, text: &str) -> Vec<String> {
        dependencies(text, !self.tests_may)
            .filter(|name| name.starts_with(self.forbidden) && !self.except.contains(name))
            .map(|name| format!("{}: depends on `{name}`: {}", self.path, self.why))
            .collect()
    }
}

/// The names in the dependency tables of a manifest.
fn dependencies(manifest: &str, of_tests: bool) -> impl Iterator<Item = &str> {
    let mut in_table = false;
    manifest.lines().filter_map(move |line| {
        let line = line.trim();
        if let Some(table) = line.strip_prefix('[') {
            let table = table.trim_end_matches(']');
            let counts = of_tests || !table.starts_with("dev-");
            in_table = counts && table.ends_with("dependencies");
            let (_, name) = table.rsplit_once("dependencies.")?;
            return counts.then_some(name);
        }
        let name = line.split(['=', '.']).next().unwrap_or_default().trim();
        (in_table && !name.is_empty() && !name.starts_with('#')).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forbidden_name_is_found_with_its_place() {
        let found = search("agent/src/daemon.rs", "fn a() {}\nuse aya::Ebpf;\n");
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].starts_with("agent/src/daemon.rs:2: names `aya`"),
            "{found:?}"
        );
    }

    #[test]
    fn allowed_place_and_longer_name_are_not_found() {
        assert!(search("agent/src/datapath/load.rs", "use aya::Ebpf;").is_empty());
        assert!(search("agent/build.rs", "aya_build::build()").is_empty());
        assert!(search("agent/src/config/file.rs", "use serde::Deserialize;").is_empty());
    }

    #[test]
    fn source_is_on_the_map_by_its_path_its_end_or_its_directory() {
        let map = "| `agent/src/a/mod.rs`, `b.rs`, `c/d.rs` | x |\n| `tests/fuzz/` | y |";
        for on in [
            "agent/src/a/mod.rs",
            "agent/src/a/b.rs",
            "agent/src/a/c/d.rs",
            "tests/fuzz/src/lib.rs",
        ] {
            assert!(is_on_map(map, on), "{on}");
        }
        for off in ["agent/src/b/mod.rs", "agent/src/a/d.rs", "agent/src/lib.rs"] {
            assert!(!is_on_map(map, off), "{off}");
        }
    }

    #[test]
    fn lines_are_counted_through_comments() {
        assert!(
            search("common/src/tls.rs", "/*\n\n*/\nuse std::fmt;")[0]
                .starts_with("common/src/tls.rs:4:")
        );
    }

    #[test]
    fn tests_may_use_std_where_the_code_may_not() {
        assert!(
            search(
                "common/src/tls.rs",
                "#![no_std]\n#[cfg(test)]\nmod tests { use std::fmt; }"
            )
            .is_empty()
        );
        assert_eq!(
            search(
                "common/src/tls.rs",
                "use std::fmt;\n#[cfg(test)]\nmod tests {}"
            )
            .len(),
            1
        );
    }

    #[test]
    fn lint_name_is_not_the_keyword() {
        assert!(search("xtask/src/main.rs", "#![forbid(unsafe_code)]").is_empty());
        assert_eq!(search("xtask/src/main.rs", "unsafe { f() }").len(), 1);
    }

    #[test]
    fn every_way_to_write_a_dependency_is_read() {
        let text = "[package]\nname = \"a\"\n[dependencies]\nb = \"1\"\nc.workspace = true\n# d = \"1\"\n\
                    [dev-dependencies.e]\nversion = \"1\"\n[target.'cfg(unix)'.dependencies]\nf = { path = \"f\" }\n[lints]\ng = 1\n";
        let names: Vec<_> = dependencies(text, true).collect();
        assert_eq!(names, ["b", "c", "e", "f"]);
        let shipped: Vec<_> = dependencies(text, false).collect();
        assert_eq!(shipped, ["b", "c", "f"]);
    }
}
