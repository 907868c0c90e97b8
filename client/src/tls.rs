//! Connections: TCP, then TLS 1.3 with the cluster's own authority, then HTTP/2; and what it means when one fails.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use cairn_proto::v1::ErrorCode;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{AlertDescription, CertificateError, RootCertStore};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::endpoints::Endpoint;
use crate::error::{Error, Result};
use crate::options::{ClientConfig, Credentials, Pem};

/// A PEM file is a few kilobytes; anything much larger is a mistake.
const MAX_PEM_BYTES: u64 = 1 << 20;

/// A connection that did not come about.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{cause}")]
pub(crate) struct ConnectFailure {
    pub code: ErrorCode,
    pub cause: String,
    pub help: String,
    /// Waiting does not mend it.
    pub permanent: bool,
}

impl ConnectFailure {
    fn passing(cause: String, help: &str) -> Self {
        Self { code: ErrorCode::Unavailable, cause, help: help.to_owned(), permanent: false }
    }

    fn lasting(code: ErrorCode, cause: String, help: &str) -> Self {
        Self { code, cause, help: help.to_owned(), permanent: true }
    }

    pub(crate) fn refused(endpoint: &str) -> Self {
        Self::passing(
            format!("{endpoint} refused the connection"),
            "check that the node runs and that host and port are right (the gRPC port is 50051 unless configured)",
        )
    }
}

/// The settings of all connections of one client.
#[derive(Clone)]
pub(crate) struct Dialer {
    tls: Arc<rustls::ClientConfig>,
    server_name: Option<ServerName<'static>>,
    connect_timeout: Duration,
}

impl Dialer {
    pub fn new(config: &ClientConfig) -> Result<Self> {
        let server_name = config.server_name.as_deref().map(parse_server_name).transpose()?;
        Ok(Self {
            tls: Arc::new(tls_config(config)?),
            server_name,
            connect_timeout: config.limits.connect_timeout,
        })
    }

    /// Opens one connection, within the time allowed for it.
    pub async fn dial(&self, endpoint: &Endpoint) -> Result<TokioIo<TlsStream<TcpStream>>, ConnectFailure> {
        match timeout(self.connect_timeout, self.dial_untimed(endpoint)).await {
            Ok(outcome) => outcome.map(TokioIo::new),
            Err(_) => Err(ConnectFailure::passing(
                format!("{endpoint} did not answer within {} s", self.connect_timeout.as_secs_f32()),
                "check that the node runs, and that no firewall is in between",
            )),
        }
    }

    async fn dial_untimed(&self, endpoint: &Endpoint) -> Result<TlsStream<TcpStream>, ConnectFailure> {
        let at = endpoint.to_string();
        let stream = TcpStream::connect((endpoint.host.as_str(), endpoint.port))
            .await
            .map_err(|error| explain_tcp(&error, &at))?;
        // Small messages (headers, acknowledgements) must not wait for large ones.
        stream.set_nodelay(true).map_err(|error| explain_tcp(&error, &at))?;
        leave_little_unsent(&stream).map_err(|error| explain_tcp(&error, &at))?;
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => endpoint.server_name.clone(),
        };
        let stream = TlsConnector::from(Arc::clone(&self.tls))
            .connect(name, stream)
            .await
            .map_err(|error| explain_handshake(&error, &at))?;
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err(ConnectFailure::lasting(
                ErrorCode::Unsupported,
                format!("{at} speaks TLS but not HTTP/2, so it is not the gRPC port of a Cairn node"),
                "use the node's gRPC port, 50051 unless configured otherwise",
            ));
        }
        Ok(stream)
    }
}

/// Bytes that wait in the kernel to be sent. Its buffers take megabytes: on a slow line, nothing would seem to move for minutes
/// then, and a question whether the other end is alive would wait behind all of it.
#[cfg(target_os = "linux")]
const UNSENT_BYTES: u32 = 64 << 10;

#[cfg(target_os = "linux")]
fn leave_little_unsent(stream: &TcpStream) -> std::io::Result<()> {
    socket2::SockRef::from(stream).set_tcp_notsent_lowat(UNSENT_BYTES)
}

#[cfg(not(target_os = "linux"))]
fn leave_little_unsent(_: &TcpStream) -> std::io::Result<()> {
    Ok(())
}

/// Parses a DNS name or address that a certificate can be checked against.
pub(crate) fn parse_server_name(name: &str) -> Result<ServerName<'static>> {
    ServerName::try_from(name.to_owned())
        .map_err(|_| Error::local(format!("{name:?} is not a host name"), "use a DNS name or an IP address"))
}

fn tls_config(config: &ClientConfig) -> Result<rustls::ClientConfig> {
    let mut roots = RootCertStore::empty();
    let pem = read_pem(&config.ca, "the CA certificate")?;
    for certificate in certificates(&pem, &config.ca, "the CA certificate")? {
        roots.add(certificate).map_err(|error| {
            let help = "use the cluster's CA certificate in PEM form (ca.crt)";
            Error::local(format!("the CA certificate in {} is damaged: {error}", name_of(&config.ca)), help)
        })?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3 suites")
        .with_root_certificates(roots);
    let mut tls = match &config.credentials {
        Credentials::Certificate { certificate, key } => {
            let chain = read_pem(certificate, "the client certificate")?;
            let chain = certificates(&chain, certificate, "the client certificate")?;
            let key_pem = read_pem(key, "the client key")?;
            let private = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|_| {
                Error::local(
                    format!("there is no private key in {}", name_of(key)),
                    "use a key in PEM form (tls.key)",
                )
            })?;
            builder.with_client_auth_cert(chain, private).map_err(|error| {
                let help = "give the certificate and the key that was made for it";
                Error::local(format!("the client certificate cannot be used: {error}"), help)
            })?
        }
        _ => builder.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![b"h2".to_vec()];
    Ok(tls)
}

fn certificates(text: &str, pem: &Pem, what: &str) -> Result<Vec<CertificateDer<'static>>> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(Error::local(
            format!("{what} in {} is not a certificate in PEM form", name_of(pem)),
            "it must have \"-----BEGIN CERTIFICATE-----\" lines",
        )),
    }
}

pub(crate) fn read_pem(pem: &Pem, what: &str) -> Result<String> {
    let path = match pem {
        Pem::Text(text) => return Ok(text.clone()),
        Pem::File(path) => path,
    };
    let failed =
        |error: io::Error| Error::local_io(&format!("cannot read {what} {}", path.display()), &error);
    let length = std::fs::metadata(path).map_err(failed)?.len();
    if length > MAX_PEM_BYTES {
        let cause = format!("{} is {length} bytes long, too long to be {what}", path.display());
        return Err(Error::local(cause, "give a file in PEM form"));
    }
    std::fs::read_to_string(path).map_err(failed)
}

fn name_of(pem: &Pem) -> String {
    match pem {
        Pem::File(path) => path.display().to_string(),
        Pem::Text(_) => "the configuration".to_owned(),
    }
}

fn explain_tcp(error: &io::Error, at: &str) -> ConnectFailure {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => ConnectFailure::refused(at),
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => ConnectFailure::passing(
            format!("there is no way to {at}: {error}"),
            "check the network, and that this machine can reach the cluster's nodes",
        ),
        // Name resolution has no kind of its own.
        _ if error.to_string().contains("lookup") => ConnectFailure::passing(
            format!("the host name of {at} cannot be resolved"),
            "check its spelling; names of Kubernetes services resolve only inside the cluster",
        ),
        _ => ConnectFailure::passing(format!("cannot connect to {at}: {error}"), "check that the node runs"),
    }
}

fn explain_handshake(error: &io::Error, at: &str) -> ConnectFailure {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(tls) => explain_tls(tls, at),
        None => ConnectFailure::passing(
            format!("{at} closed the connection during the TLS handshake: {error}"),
            "the node may be starting or stopping; or this is not the TLS port of a Cairn node",
        ),
    }
}

/// What a TLS error means to the person who sees it.
pub(crate) fn explain_tls(error: &rustls::Error, at: &str) -> ConnectFailure {
    let distrust =
        |cause: String, help: &str| ConnectFailure::lasting(ErrorCode::Unauthenticated, cause, help);
    match error {
        rustls::Error::InvalidCertificate(problem) => explain_certificate(problem, at),
        rustls::Error::InvalidMessage(_) | rustls::Error::InappropriateMessage { .. } => {
            ConnectFailure::lasting(
                ErrorCode::Unsupported,
                format!("{at} does not speak TLS"),
                "use the gRPC port of a Cairn node (50051 unless configured); Cairn never speaks plain text",
            )
        }
        rustls::Error::PeerIncompatible(_)
        | rustls::Error::AlertReceived(AlertDescription::ProtocolVersion) => ConnectFailure::lasting(
            ErrorCode::Unsupported,
            format!("{at} does not speak TLS 1.3"),
            "connect to the node itself, not through a proxy that ends TLS",
        ),
        rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol) => ConnectFailure::lasting(
            ErrorCode::Unsupported,
            format!("{at} does not speak gRPC"),
            "use the node's gRPC port, 50051 unless configured otherwise",
        ),
        rustls::Error::AlertReceived(alert) => distrust(
            format!("{at} refused this client's certificate ({alert:?})"),
            "use a certificate that the cluster's CA signed and that has not expired, or a token",
        ),
        other => distrust(
            format!("the TLS handshake with {at} failed: {other}"),
            "check that it is the gRPC port of a Cairn node and that the CA is this cluster's",
        ),
    }
}

fn explain_certificate(problem: &CertificateError, at: &str) -> ConnectFailure {
    let (cause, help) = match problem {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => (
            format!("the certificate of {at} is not signed by the CA that you gave"),
            "use the CA certificate of this cluster (ca.crt): another cluster's does not do".to_owned(),
        ),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => (
            format!("the certificate of {at} has expired"),
            "renew the node's certificate; if it is still good, this machine's clock is wrong".to_owned(),
        ),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => (
            format!("the certificate of {at} is not valid yet"),
            "this machine's clock, or that of the machine that made the certificate, is wrong".to_owned(),
        ),
        CertificateError::NotValidForName => (
            format!("the certificate of {at} is for another name"),
            "use a name that is in the certificate; through a tunnel, say it with --server-name".to_owned(),
        ),
        CertificateError::NotValidForNameContext { presented, .. } => (
            format!("the certificate of {at} is for another name"),
            format!("it is for {}; use one of these, or say it with --server-name", list_names(presented)),
        ),
        other => (
            format!("the certificate of {at} cannot be trusted: {other}"),
            "check the node's certificate with `openssl x509 -text`".to_owned(),
        ),
    };
    ConnectFailure { code: ErrorCode::Unauthenticated, cause, help, permanent: true }
}

/// A few of the names, which a server chose.
fn list_names(presented: &[String]) -> String {
    const SHOWN: usize = 6;
    let mut names: Vec<String> =
        presented.iter().take(SHOWN).map(|name| name.chars().take(80).collect()).collect();
    if presented.len() > SHOWN {
        names.push("…".to_owned());
    }
    if names.is_empty() { "no name at all".to_owned() } else { names.join(", ") }
}
