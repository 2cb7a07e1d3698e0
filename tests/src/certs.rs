//! Certificates of the test servers: a CA, a server certificate for every address of
//! [`crate::netns`], and a client certificate, made once and kept.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::place::{self, output};

/// Grows with each change of what is made.
const FORMAT: u32 = 2;

/// Ten years: they are made once. The names are those of the database host.
const SCRIPT: &str = "\
new='openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650'
$new -subj '/CN=musttls test CA' -addext 'keyUsage=critical,keyCertSign,cRLSign' -keyout ca-key.pem -out ca.pem
$new -subj '/CN=db.test' -addext basicConstraints=CA:FALSE -CA ca.pem -CAkey ca-key.pem \
-addext 'subjectAltName=DNS:db.test,DNS:localhost,IP:127.0.0.1,IP:::1,IP:10.77.1.1,IP:10.77.2.1,IP:fd77:1::1,IP:fd77:2::1' \
-keyout server-key.pem -out server-cert.pem
$new -subj '/CN=app.test' -addext basicConstraints=CA:FALSE -CA ca.pem -CAkey ca-key.pem \
-keyout client-key.pem -out client-cert.pem
rm ca-key.pem
chmod 644 *.pem
";

/// Paths of the PEM files.
#[derive(Clone, Debug)]
pub struct Certs {
    /// The CA that clients trust.
    pub ca: PathBuf,
    /// The server's certificate.
    pub cert: PathBuf,
    /// The server's private key.
    pub key: PathBuf,
    /// A client's certificate.
    pub client_cert: PathBuf,
    /// The client's private key.
    pub client_key: PathBuf,
}

impl Certs {
    /// The kept certificates; makes them if they are not there.
    pub fn new() -> Result<Self> {
        let home = place::kept()?.join(format!("certs-{FORMAT}"));
        if !home.exists() {
            let partial = place::Scratch::in_directory(&place::kept()?)?;
            let made = partial.join("certs");
            fs::create_dir(&made).with_context(|| format!("create {}", made.display()))?;
            output(Command::new("sh").args(["-ec", SCRIPT]).current_dir(&made))?;
            let placed = fs::rename(&made, &home);
            // A server that is started beside this one may have made them first.
            if !home.exists() {
                placed.with_context(|| format!("make {}", home.display()))?;
            }
        }
        Ok(Self::in_directory(&home))
    }

    fn in_directory(home: &Path) -> Self {
        Self {
            ca: home.join("ca.pem"),
            cert: home.join("server-cert.pem"),
            key: home.join("server-key.pem"),
            client_cert: home.join("client-cert.pem"),
            client_key: home.join("client-key.pem"),
        }
    }

    /// Copies what a server needs into `directory`, for one in a tree of its own.
    pub fn copy_to(&self, directory: &Path) -> Result<Self> {
        let copy = Self::in_directory(directory);
        for (from, to) in [
            (&self.ca, &copy.ca),
            (&self.cert, &copy.cert),
            (&self.key, &copy.key),
        ] {
            fs::copy(from, to)
                .with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
        }
        Ok(copy)
    }
}
