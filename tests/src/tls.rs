//! TLS for a raw session, in the hands of the test: which versions, key shares, tickets and certificates
//! are offered. The test itself sends the `ClientHello`, cut as it likes.

use std::net::TcpStream;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    ActiveKeyExchange, CryptoProvider, SharedSecret, SupportedKxGroup, ring::default_provider,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, NamedGroup, SignatureScheme,
    StreamOwned, SupportedProtocolVersion,
};

use crate::certs::Certs;

/// The transport of a raw session behind its handshake.
pub type TlsStream = StreamOwned<ClientConnection, TcpStream>;

/// A TLS client. Sessions begun by the same one resume each other where the server lets them.
#[derive(Clone, Debug)]
pub struct TlsClient {
    config: Arc<ClientConfig>,
}

impl TlsClient {
    /// One that offers TLS 1.2 and 1.3.
    pub fn new() -> Result<Self> {
        Self::of(default_provider(), &[&TLS12, &TLS13], None)
    }

    /// One that offers TLS 1.2 only.
    pub fn v1_2() -> Result<Self> {
        Self::of(default_provider(), &[&TLS12], None)
    }

    /// One that offers TLS 1.3 only.
    pub fn v1_3() -> Result<Self> {
        Self::of(default_provider(), &[&TLS13], None)
    }

    /// One whose only key share, of `len` bytes, is of a group that no server knows: the server asks for
    /// another by `HelloRetryRequest` (RFC 8446 section 4.1.4).
    pub fn with_unknown_share(len: usize) -> Result<Self> {
        let mut provider = default_provider();
        // A test makes a few of them, and the provider wants them for ever.
        provider
            .kx_groups
            .insert(0, Box::leak(Box::new(UnknownGroup { len })));
        Self::of(provider, &[&TLS13], None)
    }

    /// One that shows the client certificate when asked.
    pub fn with_certificate(certs: &Certs) -> Result<Self> {
        Self::of(default_provider(), &[&TLS12, &TLS13], Some(certs))
    }

    /// With a `ClientHello` that is longer by about `len` bytes: names of protocols, which these servers
    /// do not look at (RFC 7301).
    #[must_use]
    pub fn longer_by(mut self, len: usize) -> Self {
        const NAME_LEN: usize = 250;
        let config = Arc::make_mut(&mut self.config);
        config.alpn_protocols = vec![vec![b'x'; NAME_LEN]; len / NAME_LEN];
        self
    }

    fn of(
        provider: CryptoProvider,
        versions: &[&'static SupportedProtocolVersion],
        certs: Option<&Certs>,
    ) -> Result<Self> {
        let config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(versions)
            .context("choose TLS versions")?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anyone));
        let config = match certs {
            None => config.with_no_client_auth(),
            Some(certs) => {
                let cert = CertificateDer::from_pem_file(&certs.client_cert)
                    .context("read the client's certificate")?;
                let key = PrivateKeyDer::from_pem_file(&certs.client_key)
                    .context("read the client's key")?;
                config
                    .with_client_auth_cert(vec![cert], key)
                    .context("use the client's certificate")?
            }
        };
        Ok(Self {
            config: Arc::new(config),
        })
    }

    /// A new connection, which has said nothing yet.
    pub fn connection(&self) -> Result<ClientConnection> {
        let name = ServerName::try_from("db.test").context("name the server")?;
        ClientConnection::new(Arc::clone(&self.config), name).context("start TLS")
    }

    /// A new connection, and the `ClientHello` with which it begins.
    pub fn begin(&self) -> Result<(ClientConnection, Vec<u8>)> {
        let mut connection = self.connection()?;
        let mut hello = Vec::new();
        connection
            .write_tls(&mut hello)
            .context("write the ClientHello")?;
        Ok((connection, hello))
    }
}

/// A GREASE group: servers must ignore it (RFC 8701).
#[derive(Clone, Copy, Debug)]
struct UnknownGroup {
    len: usize,
}

impl UnknownGroup {
    const NAME: NamedGroup = NamedGroup::Unknown(0x2a2a);
}

impl SupportedKxGroup for UnknownGroup {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, rustls::Error> {
        Ok(Box::new(UnknownShare(vec![0; self.len])))
    }

    fn name(&self) -> NamedGroup {
        Self::NAME
    }
}

struct UnknownShare(Vec<u8>);

impl ActiveKeyExchange for UnknownShare {
    fn complete(self: Box<Self>, _: &[u8]) -> Result<SharedSecret, rustls::Error> {
        Err(rustls::Error::General(
            "the server took a group that does not exist".to_owned(),
        ))
    }

    fn pub_key(&self) -> &[u8] {
        &self.0
    }

    fn group(&self) -> NamedGroup {
        UnknownGroup::NAME
    }
}

/// Takes every certificate: what is tested is the transport.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
