//! Fuzz targets: for each reader of bytes that strangers send, a function that takes any bytes and asserts what the
//! reader promises for all of them.
//!
//! | target | reader | bytes |
//! |---|---|---|
//! | [`greeting`] | `mysql::GreetingReader` | the server's stream |
//! | [`server_hello`] | `tls::ServerHelloReader` | the server's stream behind its greeting |
//! | [`judge`] | `judge::judge` | the client's stream |
//! | [`login`] | `mysql::auth_response`, the agent's `LoginDetails` | the client's stream |
//! | [`client_hello`] | `floor::ClientHelloReader` | the client's stream |
//! | [`proxy`] | `proxy::HeaderReader` | the client's stream, from its first byte |
//! | [`x_client`] | `mysqlx::ClientFrames` | the client's stream in X Protocol |
//! | [`x_server`] | `mysqlx::ServerFrames` | the server's stream in X Protocol |
//!
//! A new target is a module with such a function, a line here, one in [`ALL`], and files in `tests/corpus` if none
//! there are of its kind. `tests/replay.rs` runs all of them on stable; `README.md` says how libFuzzer does.

#![forbid(unsafe_code)]
#![expect(
    clippy::missing_panics_doc,
    reason = "a target panics when a promise is broken: that is how it tells"
)]

pub mod client_hello;
mod cuts;
pub mod greeting;
pub mod judge;
pub mod login;
pub mod proxy;
pub mod server_hello;
pub mod x_client;
pub mod x_server;

/// A target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// The directory in `tests/corpus` with streams of its kind.
    pub corpus: &'static str,
    /// Panics if a promise does not hold for these bytes.
    pub run: fn(&[u8]),
}

/// Every target.
pub const ALL: &[Target] = &[
    Target {
        name: "greeting",
        corpus: "greeting",
        run: greeting::target,
    },
    Target {
        name: "server-hello",
        corpus: "server-hello",
        run: server_hello::target,
    },
    Target {
        name: "judge",
        corpus: "client",
        run: judge::target,
    },
    Target {
        name: "login",
        corpus: "client",
        run: login::target,
    },
    Target {
        name: "client-hello",
        corpus: "client",
        run: client_hello::target,
    },
    Target {
        name: "proxy",
        corpus: "proxy",
        run: proxy::target,
    },
    Target {
        name: "x-client",
        corpus: "x-client",
        run: x_client::target,
    },
    Target {
        name: "x-server",
        corpus: "x-server",
        run: x_server::target,
    },
];
