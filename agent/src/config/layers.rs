//! The layers of the configuration: which files there are, and in which of them a value stands.
//!
//! The texts of all layers count as one, so that a place is one number from reading to report.

use std::fmt::{self, Write as _};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::file::{self, SIZE_MAX};
use super::report::Place;
use super::{ConfigError, DEFAULT_PATH, report};

/// The directory beside the main file whose files are laid over it.
pub const DROP_INS: &str = "conf.d";
/// What the vendor's file is called, where the main file is called [`DEFAULT_PATH`].
const VENDOR: &str = "usr/lib/musttls/musttls.toml";
/// Most files in [`DROP_INS`]: as many as there may be exceptions.
const DROP_INS_MAX: usize = 1024;
/// What stands above each layer in [`Layers::keep`], before the number of its bytes.
const KEPT: &str = "# layer of ";

/// The files of a configuration, lowest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layers {
    files: Vec<Layer>,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    path: PathBuf,
    text: String,
    /// Where its text begins in all of them together.
    start: usize,
    is_drop_in: bool,
}

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The file.
    pub path: PathBuf,
    /// Its line, from 1 on.
    pub line: usize,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.path.display(), self.line)
    }
}

impl Layer {
    /// Its file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was read.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    pub(super) const fn start(&self) -> usize {
        self.start
    }
}

impl Layers {
    /// Reads the layers of which `main` is the main file; with warnings about who may change them.
    pub(super) fn read(main: &Path) -> Result<(Self, Vec<String>), ConfigError> {
        let mut layers = Self::default();
        let mut warnings = Vec::new();
        if let Some(vendor) = vendor(main)
            && !is_missing(&vendor)
        {
            layers.add(vendor, false, &mut warnings)?;
        }
        layers.add(main.to_owned(), false, &mut warnings)?;
        let directory = drop_ins(main);
        for path in names(&directory)? {
            layers.add(path, true, &mut warnings)?;
        }
        let is_open = |meta: fs::Metadata| meta.mode() & 0o002 != 0 && meta.is_dir();
        if fs::metadata(&directory).is_ok_and(is_open) {
            let shown = directory.display();
            warnings.push(format!(
                "{shown}: every user of this host can put files here; run chmod o-w {shown}"
            ));
        }
        Ok((layers, warnings))
    }

    /// One file alone.
    pub(super) fn single(path: &Path, text: &str) -> Self {
        let mut layers = Self::default();
        layers.push(path.to_owned(), text.to_owned(), false);
        layers
    }

    /// The same with `text` in the file at `path`, which is one of them or one of [`DROP_INS`].
    #[must_use]
    pub fn with(self, path: &Path, text: String) -> Self {
        let mut files = self.files;
        if let Some(layer) = files.iter_mut().find(|layer| layer.path == path) {
            layer.text = text;
        } else {
            let above = |layer: &Layer| layer.is_drop_in && layer.path.as_path() > path;
            let at = files.iter().position(above).unwrap_or(files.len());
            let layer = Layer {
                path: path.to_owned(),
                text,
                start: 0,
                is_drop_in: true,
            };
            files.insert(at, layer);
        }
        let mut layers = Self::default();
        for layer in files {
            layers.push(layer.path, layer.text, layer.is_drop_in);
        }
        layers
    }

    /// The same without the file at `path`.
    #[must_use]
    pub fn without(self, path: &Path) -> Self {
        let mut layers = Self::default();
        for layer in self.files {
            if layer.path != path {
                layers.push(layer.path, layer.text, layer.is_drop_in);
            }
        }
        layers
    }

    /// The files, lowest first.
    pub fn files(&self) -> impl Iterator<Item = &Layer> {
        self.files.iter()
    }

    /// The lines of all files, to look up many places.
    pub(super) fn lines(&self) -> Lines<'_> {
        let ends = self.files.iter().map(|layer| {
            let newlines = layer.text.bytes().enumerate();
            let newlines = newlines.filter(|(_, byte)| *byte == b'\n');
            newlines.map(|(at, _)| at).collect()
        });
        Lines {
            layers: self,
            ends: ends.collect(),
        }
    }

    /// The line at which a value stands.
    pub(super) fn origin(&self, at: usize) -> Origin {
        let (layer, at) = self.layer_of(at);
        let (path, line) = layer.map_or_else(Default::default, |layer| {
            (layer.path.clone(), Place::of(&layer.text, at).line)
        });
        Origin { path, line }
    }

    /// The layer that a byte of all of them is in, and which byte it is there.
    pub(super) fn layer_of(&self, at: usize) -> (Option<&Layer>, usize) {
        let layer = self.files.get(self.index_of(at));
        (layer, at - layer.map_or(0, |layer| layer.start))
    }

    fn index_of(&self, at: usize) -> usize {
        let above = self.files.partition_point(|layer| layer.start <= at);
        above.saturating_sub(1)
    }

    /// All layers as one text, from which [`super::Config::recall`] makes them again.
    #[must_use]
    pub fn keep(&self) -> String {
        let mut kept = String::new();
        for layer in &self.files {
            // Writing to a `String` cannot fail (`impl fmt::Write for String`).
            writeln!(kept, "{KEPT}{} bytes\n{}", layer.text.len(), layer.text).unwrap_or_default();
        }
        kept
    }

    /// What [`Self::keep`] has made, read from `path`; any other text is one layer.
    pub(super) fn kept(path: &Path, text: &str) -> Self {
        let mut layers = Self::default();
        let mut rest = text;
        while let Some((layer, behind)) = first_kept(rest) {
            layers.push(path.to_owned(), layer.to_owned(), false);
            rest = behind;
        }
        if rest.is_empty() && !layers.files.is_empty() {
            layers
        } else {
            Self::single(path, text)
        }
    }

    fn add(
        &mut self,
        path: PathBuf,
        is_drop_in: bool,
        warnings: &mut Vec<String>,
    ) -> Result<(), ConfigError> {
        let (text, warning) = file::read(&path)?;
        warnings.extend(warning);
        self.push(path, text, is_drop_in);
        let size: usize = self.files.iter().map(|layer| layer.text.len()).sum();
        if u64::try_from(size).unwrap_or(u64::MAX) > SIZE_MAX {
            let last = self.files.last().map(|layer| layer.path.display());
            return Err(report::plain(
                &format!(
                    "the configuration is larger than 16 MiB with {}",
                    last.map_or_else(String::new, |path| path.to_string())
                ),
                "write neighbouring networks of an exception as one shorter prefix",
            ));
        }
        Ok(())
    }

    fn push(&mut self, path: PathBuf, text: String, is_drop_in: bool) {
        // One behind the end, where TOML that ends too early is wrong.
        let start = self
            .files
            .last()
            .map_or(0, |last| last.start + last.text.len() + 1);
        self.files.push(Layer {
            path,
            text,
            start,
            is_drop_in,
        });
    }
}

/// See [`Layers::lines`].
pub(super) struct Lines<'l> {
    layers: &'l Layers,
    /// Where the lines of each file end.
    ends: Vec<Vec<usize>>,
}

impl Lines<'_> {
    /// As [`Layers::origin`].
    pub(super) fn origin(&self, at: usize) -> Origin {
        let (layer, place) = self.layers.layer_of(at);
        let ends = self.ends.get(self.layers.index_of(at));
        Origin {
            path: layer.map(|layer| layer.path.clone()).unwrap_or_default(),
            line: ends.map_or(0, |ends| ends.partition_point(|end| *end < place)) + 1,
        }
    }
}

/// The directory whose files are laid over the file `main`.
#[must_use]
pub fn drop_ins(main: &Path) -> PathBuf {
    main.with_file_name(DROP_INS)
}

/// The vendor's file: below the root of the file system in which `main` is where packages put it.
fn vendor(main: &Path) -> Option<PathBuf> {
    let packaged = Path::new(DEFAULT_PATH.trim_start_matches('/'));
    let root = main.ancestors().nth(packaged.components().count())?;
    main.ends_with(packaged).then(|| root.join(VENDOR))
}

fn is_missing(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

/// The files of `directory` that count, in the order of their names' bytes.
fn names(directory: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let unreadable = |error: std::io::Error| {
        report::plain(
            &format!("cannot read the directory {}: {error}", directory.display()),
            "let the user musttls runs as read it, or remove it if nothing is in it",
        )
    };
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(unreadable)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(unreadable)?.file_name();
        if name.as_bytes().ends_with(b".toml") && !name.as_bytes().starts_with(b".") {
            names.push(name);
        }
    }
    if names.len() > DROP_INS_MAX {
        return Err(report::plain(
            &format!("more than {DROP_INS_MAX} files in {}", directory.display()),
            "put what belongs together into one file",
        ));
    }
    names.sort_unstable();
    Ok(names.iter().map(|name| directory.join(name)).collect())
}

/// The first layer of what [`Layers::keep`] has made, and what stands behind it.
fn first_kept(text: &str) -> Option<(&str, &str)> {
    let (head, rest) = text.split_once('\n')?;
    let length: usize = head
        .strip_prefix(KEPT)?
        .strip_suffix(" bytes")?
        .parse()
        .ok()?;
    let (layer, behind) = rest.split_at_checked(length)?;
    Some((layer, behind.strip_prefix('\n')?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AuditTarget, Config, Loaded, PastDates};
    use jiff::Timestamp;
    use musttls_common::verdict::Mode;

    /// A file system of which only what musttls reads is there.
    struct Root(tempfile::TempDir);

    impl Root {
        fn new(files: &[(&str, &str)]) -> Self {
            let root = Self(tempfile::tempdir().unwrap());
            root.write("etc/musttls/musttls.toml", "");
            for (name, text) in files {
                root.write(name, text);
            }
            root
        }

        fn write(&self, name: &str, text: &str) {
            let path = self.0.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn load(&self) -> Result<Loaded, String> {
            let now: Timestamp = "2026-11-22T12:00:00Z".parse().unwrap();
            let main = self.0.path().join("etc/musttls/musttls.toml");
            Config::load(&main, now, PastDates::Refuse).map_err(|error| error.to_string())
        }

        /// What is wrong, with the paths as they are below this root.
        fn report(&self) -> String {
            let report = self.load().expect_err("the configuration is wrong");
            report.replace(&self.0.path().display().to_string(), "")
        }
    }

    fn exception(name: &str) -> String {
        format!(
            "[[exception]]\nname = \"{name}\"\nsource = [\"10.0.0.0/8\"]\nexpires = \"never\"\nowner = \"o\"\nreason = \"r\"\n"
        )
    }

    fn assert_says(report: &str, parts: &[&str]) {
        for part in parts {
            assert!(report.contains(part), "`{part}` is not in:\n{report}");
        }
    }

    const VENDOR: &str = "usr/lib/musttls/musttls.toml";
    const MAIN: &str = "etc/musttls/musttls.toml";

    #[test]
    fn a_later_layer_wins_key_by_key_and_lists_are_replaced() {
        let root = Root::new(&[
            (
                VENDOR,
                "mode = \"observe\"\nrequire = \"tls1.2\"\npersist = false\ntrusted_proxies = [\"10.0.0.1/32\"]\n\
                 [audit]\npath = \"-\"\n[control]\nsocket = \"/run/vendor.sock\"\n",
            ),
            (
                MAIN,
                "require = \"tls1.3\"\n[control]\nsocket = \"/run/main.sock\"\n",
            ),
            ("etc/musttls/conf.d/10-a.toml", "mode = \"enforce\"\n"),
            (
                "etc/musttls/conf.d/20-b.toml",
                "trusted_proxies = [\"10.0.0.2/32\"]\n",
            ),
        ]);
        let config = root.load().unwrap().config;
        assert_eq!(config.mode, Mode::Enforce);
        assert_eq!(config.tls.require.as_str(), "tls1.3");
        assert!(!config.persist);
        assert_eq!(config.audit, AuditTarget::Stdout);
        assert_eq!(config.control.socket, Path::new("/run/main.sock"));
        let proxies: Vec<_> = config
            .trusted_proxies
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(proxies, ["10.0.0.2/32"]);
    }

    #[test]
    fn servers_and_exceptions_add_up_in_the_order_of_the_layers() {
        let root = Root::new(&[
            (VENDOR, &exception("vendor")),
            (
                MAIN,
                &format!(
                    "[[server]]\nname = \"orders\"\nports = [3306]\n{}",
                    exception("main")
                ),
            ),
            ("etc/musttls/conf.d/9.toml", &exception("nine")),
            (
                "etc/musttls/conf.d/10.toml",
                &format!("{}server = \"orders\"\n", exception("ten")),
            ),
        ]);
        let loaded = root.load().unwrap();
        let places: Vec<_> = loaded
            .exceptions()
            .map(|(exception, origin)| {
                let path = origin.path.strip_prefix(root.0.path()).unwrap();
                format!("{} {}:{}", exception.name, path.display(), origin.line)
            })
            .collect();
        assert_eq!(
            places,
            [
                "vendor usr/lib/musttls/musttls.toml:1",
                "main etc/musttls/musttls.toml:4",
                "ten etc/musttls/conf.d/10.toml:1",
                "nine etc/musttls/conf.d/9.toml:1",
            ]
        );
    }

    #[test]
    fn a_place_has_one_line_however_it_is_looked_up() {
        let root = Root::new(&[
            (VENDOR, "# 1\n# 2"),
            (MAIN, "\n\n# 3\n"),
            ("etc/musttls/conf.d/x.toml", ""),
            ("etc/musttls/conf.d/y.toml", "\n# 2"),
        ]);
        let layers = root.load().unwrap().layers;
        let lines = layers.lines();
        let last = layers.files().last().unwrap();
        for at in 0..=last.start + last.text.len() {
            assert_eq!(lines.origin(at), layers.origin(at), "{at}");
        }
    }

    #[test]
    fn only_toml_files_that_are_not_hidden_count() {
        let root = Root::new(&[
            ("etc/musttls/conf.d/README", "no TOML"),
            ("etc/musttls/conf.d/.hidden.toml", "no TOML"),
            ("etc/musttls/conf.d/a.toml~", "no TOML"),
            ("etc/musttls/conf.d/a.toml", "mode = \"enforce\""),
        ]);
        let loaded = root.load().unwrap();
        assert_eq!(loaded.layers.files().count(), 2);
        assert_eq!(loaded.config.mode, Mode::Enforce);
    }

    #[test]
    fn a_main_file_elsewhere_has_no_vendor() {
        let root = Root::new(&[(VENDOR, "mode = \"enforce\"")]);
        assert_eq!(root.load().unwrap().config.mode, Mode::Enforce);
        root.write("etc/musttls/other.toml", "");
        let other = root.0.path().join("etc/musttls/other.toml");
        let loaded = Config::load(&other, Timestamp::UNIX_EPOCH, PastDates::Refuse).unwrap();
        assert_eq!(loaded.config.mode, Mode::Observe);
        assert_eq!(
            vendor(Path::new(DEFAULT_PATH)).unwrap(),
            Path::new("/").join(VENDOR)
        );
    }

    #[test]
    fn mistakes_are_pointed_at_in_whichever_file_they_are() {
        let root = Root::new(&[
            (VENDOR, "mode = \"observe\"\n"),
            (MAIN, "# a comment\nmoode = \"observe\"\n"),
            ("etc/musttls/conf.d/x.toml", "\n\n[audit]\n  path = 7\n"),
        ]);
        assert_says(
            &root.report(),
            &[
                "--> /etc/musttls/musttls.toml:2:1",
                "2 | moode = \"observe\"\n  | ^^^^^",
                "--> /etc/musttls/conf.d/x.toml:4:10",
                "/etc/musttls/musttls.toml, /etc/musttls/conf.d/x.toml: 2 errors, no setting was changed",
            ],
        );
    }

    #[test]
    fn broken_toml_is_pointed_at_in_each_file() {
        let root = Root::new(&[
            (MAIN, "mode = \"observe\"\n"),
            (
                "etc/musttls/conf.d/x.toml",
                "mode = \"enforce\"\nname = = 2\n",
            ),
            ("etc/musttls/conf.d/y.toml", "a = [1,"),
        ]);
        assert_says(&root.report(), &["/conf.d/x.toml:2:", "/conf.d/y.toml:1:"]);
    }

    #[test]
    fn contradictions_name_both_files_and_lines() {
        let root = Root::new(&[
            (MAIN, &format!("\n{}", exception("a"))),
            (
                "etc/musttls/conf.d/x.toml",
                &format!("\n\n{}", exception("a")),
            ),
        ]);
        assert_says(
            &root.report(),
            &[
                "two sections are named `a`",
                "--> /etc/musttls/conf.d/x.toml:4:8",
                "the first is at /etc/musttls/musttls.toml:3",
            ],
        );
        let root = Root::new(&[
            (MAIN, "[[server]]\nname = \"a\"\nports = [1]\n"),
            (
                "etc/musttls/conf.d/x.toml",
                "[[server]]\nname = \"b\"\nports = [2, 1]\n",
            ),
            (
                "etc/musttls/conf.d/y.toml",
                "[[server]]\nname = \"a\"\nports = [3]\n",
            ),
        ]);
        assert_says(
            &root.report(),
            &[
                "port 1 is claimed by server `a` already",
                "conf.d/x.toml:3:13",
                "the first claim is at /etc/musttls/musttls.toml:3",
                "two sections are named `a`",
                "conf.d/y.toml:2:8",
                "the first is at /etc/musttls/musttls.toml:2",
            ],
        );
        let root = Root::new(&[
            (MAIN, "require = \"tls1.3\"\n"),
            ("etc/musttls/conf.d/x.toml", "observe = \"tls1.2\"\n"),
        ]);
        assert_says(
            &root.report(),
            &[
                "conf.d/x.toml:1:11",
                "`require` is at /etc/musttls/musttls.toml:1",
            ],
        );
    }

    #[test]
    fn a_section_of_a_wrong_type_is_told_whichever_layer_it_is_in() {
        for (main, other) in [
            ("server = 1\n", "[[server]]\nname = \"a\"\n"),
            ("[[server]]\nname = \"a\"\n", "server = 1\n"),
        ] {
            let root = Root::new(&[(MAIN, main), ("etc/musttls/conf.d/x.toml", other)]);
            assert_says(&root.report(), &["`server` must be an array"]);
        }
        for (main, other) in [
            ("audit = 1\n", "[audit]\npath = \"-\"\n"),
            ("[audit]\npath = \"-\"\n", "audit = 1\n"),
        ] {
            let root = Root::new(&[(MAIN, main), ("etc/musttls/conf.d/x.toml", other)]);
            assert_says(&root.report(), &["`audit` must be a table"]);
        }
    }

    #[test]
    fn a_layer_that_cannot_be_read_is_an_error_that_names_it() {
        let root = Root::new(&[("etc/musttls/conf.d/x.toml/y", "")]);
        assert_says(
            &root.report(),
            &["cannot read /etc/musttls/conf.d/x.toml", "a directory"],
        );
        let root = Root::new(&[]);
        std::os::unix::fs::symlink("nowhere", root.0.path().join("etc/musttls/conf.d")).unwrap();
        assert!(root.load().is_ok(), "no directory, no files");
        let root = Root::new(&[("etc/musttls/conf.d", "a file")]);
        assert_says(
            &root.report(),
            &["cannot read the directory /etc/musttls/conf.d"],
        );
        let root = Root::new(&[]);
        fs::create_dir_all(root.0.path().join("etc/musttls/conf.d")).unwrap();
        std::os::unix::fs::symlink("nowhere", root.0.path().join("etc/musttls/conf.d/x.toml"))
            .unwrap();
        assert_says(
            &root.report(),
            &["cannot read /etc/musttls/conf.d/x.toml", "No such file"],
        );
        fs::remove_file(root.0.path().join("etc/musttls/musttls.toml")).unwrap();
        assert_says(&root.report(), &["cannot read /etc/musttls/musttls.toml"]);
    }

    #[test]
    fn all_layers_together_have_one_limit() {
        let half = format!("#{}\n", "x".repeat(9 * 1024 * 1024));
        let root = Root::new(&[(MAIN, &half), ("etc/musttls/conf.d/x.toml", &half)]);
        assert_says(
            &root.report(),
            &["larger than 16 MiB with /etc/musttls/conf.d/x.toml"],
        );
    }

    #[test]
    fn what_the_next_agent_needs_is_kept_whole() {
        let root = Root::new(&[
            (VENDOR, &exception("vendor")),
            (MAIN, "mode = \"enforce\""),
            ("etc/musttls/conf.d/x.toml", &exception("x")),
        ]);
        let loaded = root.load().unwrap();
        let now = Timestamp::UNIX_EPOCH;
        let path = Path::new("policy-7.toml");
        let kept = loaded.layers.keep();
        let recalled = Config::recall(path, &kept, now, PastDates::Warn).unwrap();
        assert_eq!(recalled.config, loaded.config);
        let plain = Config::recall(path, "mode = \"enforce\"\n", now, PastDates::Warn).unwrap();
        assert_eq!(plain.config.mode, Mode::Enforce);
        let cut = kept.get(..kept.len() - 9).unwrap();
        assert!(Config::recall(path, cut, now, PastDates::Warn).is_err());
    }

    #[test]
    fn a_file_that_is_edited_takes_its_place_among_the_others() {
        let root = Root::new(&[
            ("etc/musttls/conf.d/10.toml", &exception("ten")),
            ("etc/musttls/conf.d/90.toml", &exception("ninety")),
        ]);
        let layers = root.load().unwrap().layers;
        let directory = drop_ins(&root.0.path().join(MAIN));
        let names = |layers: &Layers| -> Vec<String> {
            let path = |layer: &Layer| layer.path.file_name().unwrap().display().to_string();
            layers.files().map(path).collect()
        };
        let with = layers.with(&directory.join("50.toml"), exception("fifty"));
        assert_eq!(
            names(&with),
            ["musttls.toml", "10.toml", "50.toml", "90.toml"]
        );
        let again = with.with(&directory.join("10.toml"), exception("x"));
        assert_eq!(
            names(&again),
            ["musttls.toml", "10.toml", "50.toml", "90.toml"]
        );
        let loaded = Config::check(again, Timestamp::UNIX_EPOCH, PastDates::Warn).unwrap();
        let names: Vec<_> = loaded
            .config
            .exceptions
            .iter()
            .map(|one| one.name.clone())
            .collect();
        assert_eq!(names, ["x", "fifty", "ninety"]);
    }
}
