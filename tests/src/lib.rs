//! Harness of the tests on real servers: what a test needs to put a client, a server and the agent
//! on hosts of its own and to ask each of them what it saw.
//!
//! | module | content |
//! |---|---|
//! | [`netns`] | hosts: network namespaces joined by veth pairs |
//! | [`server`] | MariaDB and MySQL on such a host |
//! | [`client`] | the real client programs and drivers, and what they printed |
//! | [`raw`] | a client that speaks the protocol byte by byte |
//! | [`mysqlx`] | messages of X Protocol |
//! | [`tls`] | what such a client offers in TLS |
//! | [`wire`] | the packets that it sends and reads |
//! | [`tcp`] | a TCP of the tests' own, for a client that misbehaves segment by segment |
//! | [`agent`] | `musttls` itself: configuration, signals, its answers |
//! | [`attack`] | plaintext logins smuggled segment by segment |
//! | [`audit`] | the agent's records |
//! | [`evidence`] | what the server itself says about its clients |
//! | [`bpf`] | what the kernel tells of the gate's programs |
//! | [`fuse`] | a file system whose owner does not answer |
//! | [`haproxy`] | HAProxy as a proxy and as a monitor |
//! | [`terminal`] | a terminal, and what a program has drawn on it |
//! | [`cgroup`] | cgroups that go with their test |
//! | [`certs`] | certificates of the servers |
//! | [`place`] | where things are, and directories that vanish with their test |
//! | [`wait`] | waiting for a condition, with a deadline |
//!
//! Only the test's own namespaces, loopback and Unix sockets are ever talked to.

#![deny(unsafe_code)]

pub mod agent;
pub mod attack;
pub mod audit;
#[expect(unsafe_code, reason = "bpf(2) takes pointers")]
pub mod bpf;
pub mod certs;
pub mod cgroup;
pub mod client;
pub mod evidence;
pub mod fuse;
pub mod haproxy;
pub mod mysqlx;
pub mod netns;
pub mod place;
pub mod raw;
pub mod server;
pub mod site;
pub mod tcp;
pub mod terminal;
pub mod tls;
pub mod wait;
pub mod wire;
