//! Hosts for a test: network namespaces joined by veth pairs.
//!
//! ```text
//! app    10.77.1.2, fd77:1::2 ──── 10.77.1.1, fd77:1::1 ┐
//!                                                       db
//! legacy 10.77.2.2, fd77:2::2 ──── 10.77.2.1, fd77:2::1 ┘
//! ```
//!
//! The gate hangs on the machine's root cgroup, so it sees every namespace: one agent at a time, and
//! tests run with `--test-threads=1`.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd as _;
use std::panic;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;

use anyhow::{Context as _, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::place::{is_stale, output, unique_name};

/// Where `ip netns` keeps names (`ip-netns(8)`).
const NAMES: &str = "/run/netns";

/// Names of the hosts, in the form of `hosts(5)`.
pub(crate) const HOSTS: &str = "\
127.0.0.1 localhost
::1 localhost
10.77.1.2 app.test
fd77:1::2 app.test
10.77.2.2 legacy.test
fd77:2::2 legacy.test
";

/// A database host and two client hosts.
#[derive(Debug)]
pub struct Net {
    /// The host of the servers.
    pub db: Host,
    /// A client host that no exception names.
    pub app: Host,
    /// A client host for exceptions by source.
    pub legacy: Host,
}

impl Net {
    /// Makes the hosts, and removes those that killed tests left.
    pub fn new() -> Result<Self> {
        remove_stale()?;
        let name = unique_name();
        let db = Host::new(format!("{name}-db"), 0)?;
        let app = Host::new(format!("{name}-app"), 1)?;
        let legacy = Host::new(format!("{name}-legacy"), 2)?;
        for client in [&app, &legacy] {
            client.join(&db)?;
        }
        Ok(Self { db, app, legacy })
    }
}

/// One network namespace. It goes with its last process when this is dropped.
#[derive(Debug)]
pub struct Host {
    name: String,
    file: File,
    network: u8,
}

impl Host {
    fn new(name: String, network: u8) -> Result<Self> {
        output(Command::new("ip").args(["netns", "add", &name]))?;
        let path = Path::new(NAMES).join(&name);
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        let host = Self {
            name,
            file,
            network,
        };
        // A link that still looks for its own address on others cannot ask for a neighbour's.
        host.set_sysctl("net.ipv6.conf.default.accept_dad", "0")?;
        host.ip(&["link", "set", "lo", "up"])?;
        Ok(host)
    }

    fn join(&self, db: &Self) -> Result<()> {
        let network = self.network;
        let far = format!("veth{network}");
        output(Command::new("ip").args([
            "link", "add", "veth0", "netns", &self.name, "type", "veth", "peer", "name", &far,
            "netns", &db.name,
        ]))?;
        for (host, link, number) in [(self, "veth0", 2), (db, far.as_str(), 1)] {
            host.ip(&[
                "addr",
                "add",
                &format!("10.77.{network}.{number}/24"),
                "dev",
                link,
            ])?;
            // Without duplicate address detection the address can be used at once.
            host.ip(&[
                "addr",
                "add",
                &format!("fd77:{network}::{number}/64"),
                "dev",
                link,
                "nodad",
            ])?;
            host.ip(&["link", "set", link, "up"])?;
        }
        Ok(())
    }

    /// Runs `ip` in this namespace.
    pub fn ip(&self, args: &[&str]) -> Result<()> {
        output(Command::new("ip").args(["-n", &self.name]).args(args)).map(drop)
    }

    /// This client's own IPv4 address.
    #[must_use]
    pub fn v4(&self) -> IpAddr {
        Ipv4Addr::new(10, 77, self.network, 2).into()
    }

    /// This client's own IPv6 address.
    #[must_use]
    pub fn v6(&self) -> IpAddr {
        Ipv6Addr::new(0xfd77, self.network.into(), 0, 0, 0, 0, 0, 2).into()
    }

    /// Gives this client another address, `number` in its network, and returns it.
    pub fn add_address(&self, is_v4: bool, number: u8) -> Result<IpAddr> {
        let (ip, length): (IpAddr, _) = if is_v4 {
            (Ipv4Addr::new(10, 77, self.network, number).into(), 24)
        } else {
            let ip = Ipv6Addr::new(0xfd77, self.network.into(), 0, 0, 0, 0, 0, number.into());
            (ip.into(), 64)
        };
        let address = format!("{ip}/{length}");
        let mut args = vec!["addr", "add", &address, "dev", "veth0"];
        // Without duplicate address detection the address can be used at once.
        args.extend((!is_v4).then_some("nodad"));
        self.ip(&args)?;
        Ok(ip)
    }

    /// The IPv4 address of the database host, for this client.
    #[must_use]
    pub fn db_v4(&self) -> IpAddr {
        Ipv4Addr::new(10, 77, self.network, 1).into()
    }

    /// The IPv6 address of the database host, for this client.
    #[must_use]
    pub fn db_v6(&self) -> IpAddr {
        Ipv6Addr::new(0xfd77, self.network.into(), 0, 0, 0, 0, 0, 1).into()
    }

    /// Leads a network of addresses that no kernel owns to `client`, and returns its first one. Packets to
    /// them reach that host's packet sockets; the host itself drops them without a word.
    pub fn lend_network(&self, client: &Self, is_v4: bool) -> Result<IpAddr> {
        let number = client.network;
        let (first, network, via) = if is_v4 {
            let first = Ipv4Addr::new(10, 78, number, 1).into();
            (first, format!("10.78.{number}.0/24"), client.v4())
        } else {
            let first = Ipv6Addr::new(0xfd78, number.into(), 0, 0, 0, 0, 0, 1).into();
            (first, format!("fd78:{number}::/64"), client.v6())
        };
        self.ip(&["route", "replace", &network, "via", &via.to_string()])?;
        // Without it IPv6 answers that there is no route, which ends handshakes.
        client.ip(&["route", "replace", "blackhole", &network])?;
        Ok(first)
    }

    /// Sets a kernel parameter of this host's network, as `sysctl(8)` names it.
    pub fn set_sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        self.run(|| fs::write(&path, value))?
            .with_context(|| format!("set {name} to {value}"))
    }

    /// Runs `work` in a thread inside the namespace; sockets made there stay there.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))
                    .with_context(|| format!("enter network namespace {}", self.name))?;
                Ok(work())
            });
            inside
                .join()
                .unwrap_or_else(|cause| panic::resume_unwind(cause))
        })
    }

    /// Starts a program on this host: a child takes the namespace of the thread that makes it.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        let text = format!("run {command:?}");
        self.run(|| command.spawn())?.context(text)
    }

    /// Runs a program on this host to its end and returns what it printed.
    pub fn output(&self, command: &mut Command) -> Result<String> {
        self.run(|| output(command))?
    }

    /// Adds rules of nftables to this host: packets that get lost, are counted or sent elsewhere.
    pub fn nft(&self, rules: &str) -> Result<()> {
        self.output(Command::new("nft").arg(rules)).map(drop)
    }

    /// How many packets the counter `name` of the table `ip test` has seen.
    pub fn counted(&self, name: &str) -> Result<u64> {
        let text =
            self.output(Command::new("nft").args(["list", "counter", "ip", "test", name]))?;
        let mut words = text
            .split_whitespace()
            .skip_while(|word| *word != "packets");
        let number = words
            .nth(1)
            .with_context(|| format!("no number in {text}"))?;
        number
            .parse()
            .with_context(|| format!("`{number}` packets"))
    }

    /// The path of the namespace, for `nsenter --net=`.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new(NAMES).join(&self.name)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Err(error) = output(Command::new("ip").args(["netns", "del", &self.name])) {
            eprintln!("{error:#}");
        }
    }
}

/// Ends the processes and namespaces of tests that were killed before they could clean up.
fn remove_stale() -> Result<()> {
    let names = match fs::read_dir(NAMES) {
        Ok(names) => names,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("list {NAMES}")),
    };
    for entry in names {
        let name = entry.with_context(|| format!("list {NAMES}"))?.file_name();
        let name = name.to_string_lossy();
        if !is_stale(&name) {
            continue;
        }
        let pids = output(Command::new("ip").args(["netns", "pids", &name]))?;
        for pid in pids.split_whitespace() {
            // One that ended meanwhile is as good.
            if let Err(error) = output(Command::new("kill").args(["-KILL", pid])) {
                eprintln!("{error:#}");
            }
        }
        output(Command::new("ip").args(["netns", "del", &name]))?;
    }
    Ok(())
}
