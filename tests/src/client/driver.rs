//! `mysql_async`, in a thread of this process that is on the client's host.

use anyhow::{Context as _, Result};
use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Error, Opts, OptsBuilder, SslOpts};

use super::{Answer, Failure, Login, Session, Tls};
use crate::netns::Host;
use crate::wait::{self, PATIENCE};

pub(super) fn login(host: &Host, login: &Login) -> Result<Answer> {
    let options = options(login);
    let outcome = host.run(move || -> Result<_> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("make a runtime")?;
        let session = async { tokio::time::timeout(wait::here(PATIENCE), session(options)).await };
        runtime.block_on(session).context("mysql_async did not end")
    })??;
    Ok(match outcome {
        Ok(session) => Answer {
            text: format!("{session:?}"),
            result: Ok(session),
        },
        Err(error) => Answer {
            text: error.to_string(),
            result: Err(failure(&error)),
        },
    })
}

fn options(login: &Login) -> Opts {
    let tls =
        (login.tls != Tls::Off).then(|| SslOpts::default().with_danger_accept_invalid_certs(true));
    let schema = Some(login.schema.clone()).filter(|schema| !schema.is_empty());
    OptsBuilder::default()
        .ip_or_hostname(login.ip.to_string())
        .tcp_port(login.port)
        .user(Some(login.user.clone()))
        .pass(Some(login.password.clone()))
        .db_name(schema)
        // Else a client on the server's own host would go over to the Unix socket.
        .prefer_socket(false)
        .ssl_opts(tls)
        .into()
}

async fn session(options: Opts) -> Result<Session, Error> {
    let mut session = Conn::new(options).await?;
    let mut value = async |name: &str| -> Result<String, Error> {
        let sql = format!("SHOW SESSION STATUS LIKE '{name}'");
        let row: Option<(String, String)> = session.query_first(sql).await?;
        Ok(row.map(|(_, value)| value).unwrap_or_default())
    };
    let tls_version = value("Ssl_version").await?;
    let cipher = value("Ssl_cipher").await?;
    session.disconnect().await?;
    Ok(Session {
        tls_version,
        cipher,
    })
}

fn failure(error: &Error) -> Failure {
    match error {
        Error::Server(error) => Failure {
            number: error.code,
            sqlstate: Some(error.state.clone()),
            message: error.message.clone(),
        },
        other => Failure {
            number: 0,
            sqlstate: None,
            message: other.to_string(),
        },
    }
}
