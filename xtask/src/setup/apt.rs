//! Packages of other Debian suites, fetched with an apt of our own: lists, state and sources in the
//! cache, only the settings (proxy, date checks) and the keyring are the host's.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::cache::{self, Cache};
use crate::cmd::Cmd;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

pub(crate) struct Mirrors {
    pub(crate) debian: String,
    pub(crate) security: String,
}

impl Mirrors {
    /// The mirrors that the host itself uses.
    pub(crate) fn of_host() -> Result<Self> {
        let format = "$(ORIGIN) $(RELEASE) $(COMPONENT) $(REPO_URI)";
        let targets = Cmd::new("apt-get")
            .args(["indextargets", "--format", format, "Created-By: Packages"])
            .output()?;
        Self::parse(&targets)
    }

    fn parse(targets: &str) -> Result<Self> {
        let uri = |security: bool| {
            targets.lines().find_map(|line| {
                let mut fields = line.rsplit(' ');
                let (uri, component, release) = (fields.next()?, fields.next()?, fields.next()?);
                // The origin is not known before the first `apt-get update`.
                let debian = fields
                    .next()
                    .is_none_or(|origin| origin.is_empty() || origin == "Debian");
                (debian && component == "main" && release.ends_with("-security") == security)
                    .then(|| uri.to_owned())
            })
        };
        Ok(Self {
            debian: uri(false).context("find a Debian mirror in the host's apt sources")?,
            security: uri(true).context("find a `-security` mirror in the host's apt sources")?,
        })
    }

    fn of_suite(&self, suite: &str) -> &str {
        if suite.ends_with("-security") {
            &self.security
        } else {
            &self.debian
        }
    }
}

pub(crate) struct PrivateApt {
    root: PathBuf,
}

impl PrivateApt {
    /// Reads the package lists of `suites` into a directory of the cache.
    pub(crate) fn with_suites(cache: &Cache, suites: &[&str]) -> Result<Self> {
        let mirrors = Mirrors::of_host()?;
        let root = cache.apt().join(suites.join("+"));
        for dir in ["lists/partial", "archives/partial", "none"] {
            let dir = root.join(dir);
            cache::create(&dir)?;
        }
        let source = |suite: &&str| {
            let mirror = mirrors.of_suite(suite);
            format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n")
        };
        let sources = suites.iter().map(source).collect::<Vec<_>>().concat();
        cache::write(&root.join("sources.list"), &sources)?;
        cache::write(&root.join("status"), "")?;
        let at = root.display();
        let settings = format!(
            "Dir::Etc::sourcelist \"{at}/sources.list\";\n\
             Dir::Etc::sourceparts \"{at}/none\";\n\
             Dir::Etc::preferences \"{at}/none/preferences\";\n\
             Dir::Etc::preferencesparts \"{at}/none\";\n\
             Dir::State \"{at}\";\n\
             Dir::State::lists \"{at}/lists\";\n\
             Dir::State::status \"{at}/status\";\n\
             Dir::Cache \"{at}\";\n\
             Dir::Cache::archives \"{at}/archives\";\n\
             Acquire::Languages \"none\";\n\
             Acquire::Retries \"3\";\n\
             APT::Update::Error-Mode \"any\";\n\
             APT::Sandbox::User \"root\";\n"
        );
        cache::write(&root.join("apt.conf"), &settings)?;
        let apt = Self { root };
        apt.command("apt-get").arg("update").quiet()?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Cmd {
        Cmd::new(program).env("APT_CONFIG", self.root.join("apt.conf"))
    }

    pub(crate) fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let names = self
            .command("apt-cache")
            .args(["pkgnames", prefix])
            .output()?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// The versions of a package, the newest first.
    pub(crate) fn versions(&self, package: &str) -> Result<Vec<String>> {
        let table = self
            .command("apt-cache")
            .args(["madison", package])
            .output()?;
        Ok(table
            .lines()
            .filter_map(|line| line.split('|').nth(1))
            .map(|version| version.trim().to_owned())
            .collect())
    }

    /// Unpacks a package (`name` or `name=version`) into `tree` without installing it.
    pub(crate) fn unpack(&self, package: &str, tree: &Path) -> Result<()> {
        let downloads = self.root.join("download");
        cache::remove(&downloads)?;
        cache::create(&downloads)?;
        self.command("apt-get")
            .args(["download", package])
            .dir(&downloads)
            .quiet()?;
        let listed =
            fs::read_dir(&downloads).with_context(|| format!("list {}", downloads.display()))?;
        for entry in listed {
            let file = entry
                .with_context(|| format!("list {}", downloads.display()))?
                .path();
            Cmd::new("dpkg")
                .arg("--extract")
                .arg(&file)
                .arg(tree)
                .quiet()?;
        }
        cache::remove(&downloads)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_are_told_apart_by_suite_and_origin() {
        let targets = "Other nodistro main https://other.example/\n\
                       Debian bookworm main http://mirror.example/debian/\n\
                       Debian bookworm-security main http://mirror.example/debian-security/\n";
        let mirrors = Mirrors::parse(targets).unwrap();
        assert_eq!(mirrors.debian, "http://mirror.example/debian/");
        assert_eq!(mirrors.security, "http://mirror.example/debian-security/");
    }

    #[test]
    fn unknown_origin_still_gives_a_mirror() {
        let mirrors =
            Mirrors::parse(" bookworm main http://a/\n bookworm-security main http://b/\n")
                .unwrap();
        assert_eq!(
            (mirrors.debian.as_str(), mirrors.security.as_str()),
            ("http://a/", "http://b/")
        );
    }

    #[test]
    fn host_without_security_source_is_named() {
        let error = Mirrors::parse("Debian trixie main http://a/\n")
            .err()
            .unwrap();
        assert!(format!("{error:#}").contains("-security"));
    }
}
