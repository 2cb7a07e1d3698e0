//! Makes the corpus of the fuzz targets, `tests/corpus`: what real servers and real clients say to each other,
//! written down by a relay between them. Passwords are those of the test accounts, and found nowhere else.
//!
//! Usage: `capture [DIRECTORY]`, as root, while no agent runs. See `tests/fuzz/README.md`.

#![forbid(unsafe_code)]

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context as _, Result, ensure};
use musttls_tests::client::{Client, Login, Tls};
use musttls_tests::netns::{Host, Net};
use musttls_tests::place;
use musttls_tests::raw::Raw;
use musttls_tests::server::{Options, PASSWORD, Product, Server, USER};
use musttls_tests::tls::TlsClient;
use musttls_tests::wait::{self, PATIENCE};
use musttls_tests::wire::ssl_request;

const RELAY: u16 = 4406;
const X_PORT: u16 = 33060;
/// What is kept of a stream, in bytes: a greeting, a login or a `ClientHello` is shorter.
const KEPT: usize = 2000;
/// The same for what follows the greeting in TLS: a `ServerHello` is shorter.
const FLIGHT_KEPT: usize = 300;
/// More connections than `--max-connections=10` lets in.
const TOO_MANY: usize = 20;

fn main() -> Result<()> {
    let directory = std::env::args_os().nth(1).map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus"),
        PathBuf::from,
    );
    let corpus = Corpus { directory };
    for product in Product::ALL {
        let net = Net::new()?;
        classic(&corpus, &net, product)?;
        without_tls(&corpus, &net, product)?;
        full_server(&corpus, &net, product)?;
        if product == Product::MySql {
            x_protocol(&corpus, &net)?;
        }
    }
    Ok(())
}

struct Corpus {
    directory: PathBuf,
}

impl Corpus {
    fn keep(&self, stream: &str, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.directory.join(stream).join(name);
        let bytes = bytes.get(..KEPT).unwrap_or(bytes);
        ensure!(!bytes.is_empty(), "{} would be empty", path.display());
        fs::create_dir_all(self.directory.join(stream)).context("create the corpus")?;
        fs::write(&path, bytes).with_context(|| format!("write {}", path.display()))?;
        println!("{} {} bytes", path.display(), bytes.len());
        Ok(())
    }
}

/// What the two sides of a connection said.
struct Heard {
    client: Vec<u8>,
    server: Vec<u8>,
}

impl Heard {
    /// What the server said behind its first packet.
    fn flight(&self) -> Result<&[u8]> {
        let header = self.server.first_chunk().context("no greeting")?;
        let [a, b, c, _]: [u8; 4] = *header;
        let length = usize::try_from(u32::from_le_bytes([a, b, c, 0]))?;
        let flight = self.server.get(4 + length..).context("no whole greeting")?;
        Ok(flight.get(..FLIGHT_KEPT).unwrap_or(flight))
    }
}

fn classic(corpus: &Corpus, net: &Net, product: Product) -> Result<()> {
    let server = Server::start(&net.db, &Options::new(product))?;
    let of = name(&server)?;
    for client in Client::ALL {
        let mut forms = vec![Tls::Off, Tls::Required];
        if matches!(client, Client::MySqlCli | Client::PyMySql) {
            forms.extend([Tls::V1_2, Tls::V1_3]);
        }
        for tls in forms {
            let heard = relayed(net, server.port(), || {
                let mut login = Login::new(&server, &net.app, tls);
                login.port = RELAY;
                let answer = client.login(&net.app, &login)?;
                ensure!(answer.is_in(), "{}: {}", client.name(), answer.text);
                Ok(())
            })?;
            let client = client.name().replace(' ', "-").to_lowercase();
            let form = match tls {
                Tls::Off => "plaintext",
                Tls::Required => "tls",
                Tls::V1_2 => "tls-1.2",
                Tls::V1_3 => "tls-1.3",
            };
            let name = format!("{of}-{client}-{form}");
            corpus.keep("client", &name, &heard.client)?;
            if tls == Tls::Off {
                corpus.keep("greeting", &of, &heard.server)?;
            } else {
                corpus.keep("server-hello", &name, heard.flight()?)?;
            }
        }
    }
    let heard = relayed(net, server.port(), || {
        let mut raw = Raw::connect(&net.app, (net.app.db_v4(), RELAY).into())?;
        raw.greeting()?;
        raw.send(&ssl_request())?;
        raw.into_tls_of(&TlsClient::with_unknown_share(32)?)
            .map(drop)
    })?;
    corpus.keep(
        "server-hello",
        &format!("{of}-hello-retry-request"),
        heard.flight()?,
    )
}

fn without_tls(corpus: &Corpus, net: &Net, product: Product) -> Result<()> {
    let server = Server::start(&net.db, &Options::new(product).without_tls())?;
    let greeting = first_words(net, &server)?.1;
    corpus.keep(
        "greeting",
        &format!("{}-without-tls", name(&server)?),
        &greeting,
    )
}

/// The ERR packet in place of a greeting.
fn full_server(corpus: &Corpus, net: &Net, product: Product) -> Result<()> {
    let options = Options::new(product).with("--max-connections=10");
    let server = Server::start(&net.db, &options)?;
    let of = name(&server)?;
    let mut open = Vec::new();
    for _ in 0..TOO_MANY {
        let (stream, words) = first_words(net, &server)?;
        if words.get(4) == Some(&0xff) {
            return corpus.keep("greeting", &format!("{of}-too-many-connections"), &words);
        }
        open.push(stream);
    }
    anyhow::bail!("{of} lets everybody in")
}

fn first_words(net: &Net, server: &Server) -> Result<(TcpStream, Vec<u8>)> {
    let to = server.at(net.app.db_v4());
    let mut stream = net
        .app
        .run(|| TcpStream::connect_timeout(&to, PATIENCE))?
        .with_context(|| format!("connect to {to}"))?;
    let mut words = vec![0; KEPT];
    let length = stream.read(&mut words).context("read the first words")?;
    words.truncate(length);
    Ok((stream, words))
}

fn x_protocol(corpus: &Corpus, net: &Net) -> Result<()> {
    let options = Options::new(Product::MySql)
        .with("--mysqlx=ON")
        .with("--mysqlx-bind-address=*")
        .with("--mysqlx-socket=/tmp/musttls-x.sock")
        .with(&format!("--mysqlx-port={X_PORT}"));
    let server = Server::start(&net.db, &options)?;
    let of = name(&server)?;
    for tls in ["off", "required"] {
        let heard = relayed(net, X_PORT, || x_session(&net.app, tls))?;
        let name = format!("{of}-connector-python-tls-{tls}");
        corpus.keep("x-client", &name, &heard.client)?;
        corpus.keep("x-server", &name, &heard.server)?;
    }
    Ok(())
}

/// What becomes of the session does not matter.
fn x_session(host: &Host, tls: &str) -> Result<()> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/x_session.py");
    let mut python = Command::new(place::cache().join("python/bin/python"));
    python
        .arg(script)
        .arg(host.db_v4().to_string())
        .args([RELAY.to_string().as_str(), USER, PASSWORD, tls])
        .stdout(Stdio::null());
    host.spawn(&mut python)?
        .wait()
        .map(drop)
        .context("wait for the driver")
}

/// Runs a client that connects once to [`RELAY`] on the server's host, and returns what was said.
fn relayed(net: &Net, port: u16, client: impl FnOnce() -> Result<()>) -> Result<Heard> {
    let listener = net
        .db
        .run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, RELAY)))?
        .context("listen")?;
    listener.set_nonblocking(true).context("not block")?;
    thread::scope(|scope| {
        let relay = scope.spawn(|| relay(&net.db, &listener, port));
        let done = client();
        let heard = relay
            .join()
            .unwrap_or_else(|cause| std::panic::resume_unwind(cause));
        done.and(heard)
    })
}

fn relay(host: &Host, listener: &TcpListener, port: u16) -> Result<Heard> {
    let client = wait::until("a client", PATIENCE, || match listener.accept() {
        Ok((stream, _)) => Ok(Some(stream)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error.into()),
    })?;
    client.set_nonblocking(false).context("block")?;
    let server = host
        .run(|| TcpStream::connect((Ipv4Addr::LOCALHOST, port)))?
        .context("connect to the server")?;
    thread::scope(|scope| {
        let to_client = scope.spawn(|| pump(&server, &client));
        let client_said = pump(&client, &server)?;
        let server_said = to_client
            .join()
            .unwrap_or_else(|cause| std::panic::resume_unwind(cause))?;
        Ok(Heard {
            client: client_said,
            server: server_said,
        })
    })
}

/// Hands on what comes until the end, and returns it.
fn pump(mut from: &TcpStream, mut to: &TcpStream) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        // A reset is an end, too, and so is a side that has gone.
        let length = from.read(&mut chunk).unwrap_or_default();
        let read = chunk.get(..length).unwrap_or_default();
        if read.is_empty() || to.write_all(read).is_err() {
            break;
        }
        all.extend(read);
    }
    match to.shutdown(Shutdown::Write) {
        Err(error) if error.kind() != ErrorKind::NotConnected => Err(error).context("end"),
        _ => Ok(all),
    }
}

/// `mariadb-10.11`, `mysql-9.7`.
fn name(server: &Server) -> Result<String> {
    let version = server.query("SELECT VERSION()")?;
    let mut numbers = version.trim().split('.');
    let (major, minor) = (numbers.next(), numbers.next());
    let product = if server.product() == Product::MySql {
        "mysql"
    } else {
        "mariadb"
    };
    let major = major.context("a version without numbers")?;
    Ok(format!("{product}-{major}.{}", minor.unwrap_or_default()))
}
