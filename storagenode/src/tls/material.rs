//! What the certificate files hold, and the rustls configurations made of it.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::{WebPkiServerVerifier, verify_server_name},
    crypto::{CryptoProvider, aws_lc_rs},
    server::{ParsedCertificate, WebPkiClientVerifier},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};

use super::TlsFiles;
use crate::env::{PeerIdentity, Protocol};

/// Larger files are no certificates.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    #[error("{what} {path:?} cannot be read: {error}; give the path of a PEM file that this user may read")]
    Unreadable { what: &'static str, path: PathBuf, error: io::Error },
    #[error("{what} {path:?} is over 1 MiB: that is no PEM file of certificates or keys")]
    TooLarge { what: &'static str, path: PathBuf },
    #[error("{what} {path:?} has no PEM block of a {wanted}")]
    Empty { what: &'static str, path: PathBuf, wanted: &'static str },
    #[error("the CA certificate {path:?} cannot be used: {error}")]
    Authority { path: PathBuf, error: String },
    #[error("certificate {certificate:?} and key {key:?} cannot be used together: {error}")]
    Pair { certificate: PathBuf, key: PathBuf, error: String },
    #[error(
        "certificate {0:?} is not a node's: its subject must have O=cairn:node and a CN (O=cairn:client and \
         O=cairn:operator are for clients)"
    )]
    NotANode(PathBuf),
    #[error("certificate {path:?} would be refused by the other nodes: {error}")]
    Untrusted { path: PathBuf, error: String },
    #[error(
        "the certificate does not cover {host:?}, the name under which other nodes connect; issue one with that name \
         among its subject alternative names, or set ADVERTISE_HOST to a name that it has"
    )]
    OtherName { host: String },
}

/// The bytes of the three files at one moment.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct FileContents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    authority: Vec<u8>,
}

impl FileContents {
    /// Blocks.
    pub(super) fn read(files: &TlsFiles) -> Result<Self, CredentialError> {
        Ok(Self {
            certificate: read_file("certificate", &files.certificate)?,
            key: read_file("key", &files.key)?,
            authority: read_file("CA certificate", &files.authority)?,
        })
    }
}

fn read_file(what: &'static str, path: &Path) -> Result<Vec<u8>, CredentialError> {
    let unreadable = |error| CredentialError::Unreadable { what, path: path.to_owned(), error };
    let file = fs::File::open(path).map_err(unreadable)?;
    let mut content = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut content).map_err(unreadable)?;
    if content.len() as u64 > MAX_FILE_BYTES {
        return Err(CredentialError::TooLarge { what, path: path.to_owned() });
    }
    Ok(content)
}

/// Ready to use: one configuration per kind of listener, and one for connecting.
pub(super) struct Configs {
    grpc: Arc<ServerConfig>,
    http: Arc<ServerConfig>,
    pub(super) client: Arc<ClientConfig>,
    own: CertificateDer<'static>,
}

impl Configs {
    pub(super) fn build(contents: &FileContents, files: &TlsFiles) -> Result<Self, CredentialError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let roots = Arc::new(roots(contents, files)?);
        let chain = certificates("certificate", &files.certificate, &contents.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&contents.key).map_err(|_| CredentialError::Empty {
            what: "key",
            path: files.key.clone(),
            wanted: "private key",
        })?;
        if !matches!(identity_of(Some(&chain)), PeerIdentity::Node { .. }) {
            return Err(CredentialError::NotANode(files.certificate.clone()));
        }
        check_trust(&provider, &roots, &chain).map_err(|error| CredentialError::Untrusted {
            path: files.certificate.clone(),
            error: error.to_string(),
        })?;
        let pair = |error: rustls::Error| CredentialError::Pair {
            certificate: files.certificate.clone(),
            key: files.key.clone(),
            error: error.to_string(),
        };
        let grpc = server_config(&provider, &roots, &chain, &key, &[b"h2"]).map_err(pair)?;
        let http = server_config(&provider, &roots, &chain, &key, &[b"h2", b"http/1.1"]).map_err(pair)?;
        let own = chain[0].clone();
        let client = client_config(&provider, roots, chain, key).map_err(pair)?;
        Ok(Self { grpc: Arc::new(grpc), http: Arc::new(http), client: Arc::new(client), own })
    }

    /// Whether the certificate is good for `host`.
    pub(super) fn check_name(&self, host: &str) -> Result<(), CredentialError> {
        let other = || CredentialError::OtherName { host: host.to_owned() };
        let name = ServerName::try_from(host).map_err(|_| other())?;
        let parsed = ParsedCertificate::try_from(&self.own).map_err(|_| other())?;
        verify_server_name(&parsed, &name).map_err(|_| other())
    }

    pub(super) fn server(&self, protocol: Protocol) -> Arc<ServerConfig> {
        match protocol {
            Protocol::Grpc => self.grpc.clone(),
            Protocol::Http => self.http.clone(),
        }
    }
}

/// Whether another node, with the same CA file, would believe this certificate now.
fn check_trust(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    chain: &[CertificateDer<'static>],
) -> Result<(), rustls::Error> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    verifier.verify_client_cert(&chain[0], &chain[1..], UnixTime::now()).map(|_| ())
}

fn certificates(
    what: &'static str,
    path: &Path,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, CredentialError> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem).filter_map(Result::ok).collect();
    if found.is_empty() {
        return Err(CredentialError::Empty { what, path: path.to_owned(), wanted: "certificate" });
    }
    Ok(found)
}

/// The CA file may hold several certificates: the old CA and the new one, while the CA is being changed.
fn roots(contents: &FileContents, files: &TlsFiles) -> Result<RootCertStore, CredentialError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("CA certificate", &files.authority, &contents.authority)? {
        roots.add(certificate).map_err(|error| CredentialError::Authority {
            path: files.authority.clone(),
            error: error.to_string(),
        })?;
    }
    Ok(roots)
}

fn server_config(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
    protocols: &[&[u8]],
) -> Result<ServerConfig, rustls::Error> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain.to_vec(), key.clone_key())?;
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(config)
}

fn client_config(
    provider: &Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ClientConfig, rustls::Error> {
    let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider.clone())
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_webpki_verifier(verifier)
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// Who the first certificate of a verified chain says its holder is. Anything but exactly one known O and one CN
/// proves nothing.
pub fn identity_of(chain: Option<&[CertificateDer<'_>]>) -> PeerIdentity {
    let subject = || {
        let certificate = chain?.first()?;
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
        let one = |mut found: Vec<String>| if found.len() == 1 { found.pop() } else { None };
        let texts = |attributes: Vec<&x509_parser::x509::AttributeTypeAndValue<'_>>| {
            attributes.iter().filter_map(|a| a.as_str().ok().map(str::to_owned)).collect()
        };
        let role = one(texts(parsed.subject().iter_organization().collect()))?;
        let name = one(texts(parsed.subject().iter_common_name().collect()))?;
        (!name.is_empty()).then_some((role, name))
    };
    match subject() {
        Some((role, name)) if role == "cairn:node" => PeerIdentity::Node { name },
        Some((role, name)) if role == "cairn:operator" => PeerIdentity::Operator { name },
        Some((role, name)) if role == "cairn:client" => PeerIdentity::Client { name },
        _ => PeerIdentity::Anonymous,
    }
}
