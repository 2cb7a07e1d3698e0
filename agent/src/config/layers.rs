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
    pub(super) fn with(self, path: &Path, text: String) -> Self {
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

    /// The files, lowest first.
    pub fn files(&self) -> impl Iterator<Item = &Layer> {
        self.files.iter()
    }

    /// The line at which a value stands.
    #[must_use]
    pub(super) fn origin(&self, at: usize) -> Origin {
        let (layer, at) = self.layer_of(at);
        let (path, line) = layer.map_or_else(Default::default, |layer| {
            (layer.path.clone(), Place::of(&layer.text, at).line)
        });
        Origin { path, line }
    }

    /// The layer that a byte of all of them is in, and which byte it is there.
    pub(super) fn layer_of(&self, at: usize) -> (Option<&Layer>, usize) {
        let above = self.files.partition_point(|layer| layer.start <= at);
        let layer = above
            .checked_sub(1)
            .and_then(|below| self.files.get(below));
        (layer, at - layer.map_or(0, |layer| layer.start))
    }

    /// All layers as one text, from which [`Self::kept`] makes them again.
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
