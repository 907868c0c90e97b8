//! Makes what a cluster needs before its first start: a CA, certificates, a client's token, the key-encryption key.
//!
//! For laptops, tests and compose. On Kubernetes the operator does this with Secrets. What exists is never
//! overwritten: a second run adds what is missing and changes nothing else.
//!
//! | file | what | who reads it |
//! |---|---|---|
//! | `ca.crt`, `ca.key` | the cluster's CA, and its key | everybody; only [`Authority`] |
//! | `node.crt`, `node.key` | one certificate for all nodes, with their host names | nodes (`TLS_CERT_FILE`, `TLS_KEY_FILE`) |
//! | `etcd.crt`, `etcd.key` | one certificate for all members of an etcd, if asked for | etcd |
//! | `operator.crt`, `operator.key` | for administration | people, with care |
//! | `client.token` | a client's token | clients |
//! | `tokens` | its name and SHA-256 | nodes (`CLIENT_TOKENS_FILE`) |
//! | `kek` | the key-encryption key, base64 | nodes (`KEK_FILE`) |

#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // A tool for before a node's first start.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use base64::{Engine, prelude::BASE64_STANDARD, prelude::BASE64_URL_SAFE_NO_PAD};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use rustls::{client::verify_server_name, server::ParsedCertificate};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use sha2::{Digest, Sha256};

use crate::env::{Clock, Random};

pub mod token;
pub mod token_file;

/// Days that certificates are good for: ten years, because nothing renews them here.
const VALID_DAYS: i64 = 3_650;
const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// Why secrets were not made.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    #[error("{path:?}: {error}; give a folder that this user may write")]
    Io { path: PathBuf, error: io::Error },
    #[error("{0:?} exists without its other half; remove both, or bring the other one back")]
    Half(PathBuf),
    #[error("certificate for {name:?} could not be made: {error}")]
    Certificate { name: String, error: rcgen::Error },
    #[error(
        "{path:?} exists and does not cover {missing:?}; remove it and its key so that a new one is made, or leave \
         that host out"
    )]
    OtherHosts { path: PathBuf, missing: String },
}

/// What a certificate lets its holder be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Node,
    Operator,
    Client,
    /// A member of an etcd of our own; no role in a cluster of nodes.
    Etcd,
}

impl Role {
    /// The O of the certificate's subject.
    pub fn organization(self) -> &'static str {
        match self {
            Self::Node => "cairn:node",
            Self::Operator => "cairn:operator",
            Self::Client => "cairn:client",
            Self::Etcd => "cairn:etcd",
        }
    }
}

/// A certificate and its key, in PEM form.
#[derive(Clone)]
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

/// A cluster's certificate authority.
pub struct Authority {
    certificate: String,
    key: String,
}

impl Authority {
    /// A new one for the cluster `name`.
    pub fn generate(name: &str, clock: &dyn Clock) -> Result<Self, SecretsError> {
        let failed = |error| SecretsError::Certificate { name: name.to_owned(), error };
        let mut params = params(name, "cairn:ca", clock);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.self_signed(&key).map_err(failed)?;
        Ok(Self { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// One that was made before.
    pub fn from_pem(certificate: String, key: String) -> Self {
        Self { certificate, key }
    }

    /// The CA's certificate in PEM form.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// The CA's key in PEM form.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// A certificate for `name` in `role`, good for connections to any of `hosts` (DNS names and IP addresses).
    pub fn issue(
        &self,
        role: Role,
        name: &str,
        hosts: &[String],
        clock: &dyn Clock,
    ) -> Result<Pair, SecretsError> {
        let failed = |error| SecretsError::Certificate { name: name.to_owned(), error };
        let authority_key = KeyPair::from_pem(&self.key).map_err(failed)?;
        let issuer = Issuer::from_ca_cert_pem(&self.certificate, authority_key).map_err(failed)?;
        let mut params = params(name, role.organization(), clock);
        params.subject_alt_names = CertificateParams::new(hosts.to_vec()).map_err(failed)?.subject_alt_names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if matches!(role, Role::Node | Role::Etcd) {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.signed_by(&key, &issuer).map_err(failed)?;
        Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

fn params(name: &str, organization: &str, clock: &dyn Clock) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, organization);
    subject.push(DnType::CommonName, name);
    params.distinguished_name = subject;
    // A day earlier: clocks of other machines may be behind.
    let (year, month, day) = date(clock.unix_ms() - DAY_MS);
    params.not_before = rcgen::date_time_ymd(year, month, day);
    let (year, month, day) = date(clock.unix_ms() + VALID_DAYS * DAY_MS);
    params.not_after = rcgen::date_time_ymd(year, month, day);
    params.use_authority_key_identifier_extension = true;
    params
}

/// Year, month and day of a moment (UTC).
fn date(unix_ms: i64) -> (i32, u8, u8) {
    let date = jiff::Timestamp::from_millisecond(unix_ms)
        .unwrap_or_default()
        .to_zoned(jiff::tz::TimeZone::UTC)
        .date();
    (i32::from(date.year()), date.month().unsigned_abs(), date.day().unsigned_abs())
}

/// Where everything is after [`init`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretFiles {
    pub authority_certificate: PathBuf,
    pub authority_key: PathBuf,
    pub node_certificate: PathBuf,
    pub node_key: PathBuf,
    /// Only if asked for.
    pub etcd_certificate: PathBuf,
    pub etcd_key: PathBuf,
    pub operator_certificate: PathBuf,
    pub operator_key: PathBuf,
    pub client_token: PathBuf,
    pub tokens: PathBuf,
    pub kek: PathBuf,
}

impl SecretFiles {
    /// The names in `folder`, whether they exist or not.
    pub fn in_folder(folder: &Path) -> Self {
        Self {
            authority_certificate: folder.join("ca.crt"),
            authority_key: folder.join("ca.key"),
            node_certificate: folder.join("node.crt"),
            node_key: folder.join("node.key"),
            etcd_certificate: folder.join("etcd.crt"),
            etcd_key: folder.join("etcd.key"),
            operator_certificate: folder.join("operator.crt"),
            operator_key: folder.join("operator.key"),
            client_token: folder.join("client.token"),
            tokens: folder.join("tokens"),
            kek: folder.join("kek"),
        }
    }
}

/// What [`init`] did.
#[derive(Debug)]
pub struct Made {
    pub files: SecretFiles,
    /// Those that did not exist before.
    pub new: Vec<PathBuf>,
}

/// Makes in `folder` what is missing there. `hosts` are the names and addresses by which nodes are reached
/// (`localhost` and its addresses are added). Blocks.
pub fn init(
    folder: &Path,
    cluster: &str,
    hosts: &[String],
    clock: &dyn Clock,
    random: &dyn Random,
) -> Result<Made, SecretsError> {
    fs::create_dir_all(folder).map_err(|error| SecretsError::Io { path: folder.to_owned(), error })?;
    let files = SecretFiles::in_folder(folder);
    let mut maker = Maker { new: Vec::new() };
    if maker.pair_is_missing(&files.authority_certificate, &files.authority_key)? {
        let authority = Authority::generate(cluster, clock)?;
        maker.write(&files.authority_key, authority.key(), SECRET)?;
        maker.write(&files.authority_certificate, authority.certificate(), PUBLIC)?;
    }
    let hosts = with_localhost(hosts);
    let (certificate, key) = (&files.node_certificate, &files.node_key);
    maker.issue(&files, (certificate, key), (Role::Node, cluster), &hosts, clock)?;
    let (certificate, key) = (&files.operator_certificate, &files.operator_key);
    maker.issue(&files, (certificate, key), (Role::Operator, "admin"), &[], clock)?;
    if !files.tokens.exists() {
        if !files.client_token.exists() {
            let token = format!("cairn_{}", BASE64_URL_SAFE_NO_PAD.encode(random.bytes::<32>()));
            maker.write(&files.client_token, &token, SECRET)?;
        }
        let line = token_line("default", read(&files.client_token)?.trim());
        maker.write(&files.tokens, &line, SECRET)?;
    }
    if !files.kek.exists() {
        maker.write(&files.kek, &format!("{}\n", BASE64_STANDARD.encode(random.bytes::<32>())), SECRET)?;
    }
    Ok(Made { files, new: maker.new })
}

/// Makes, after [`init`], a certificate for the members of an etcd that is reached by these names. Blocks.
pub fn init_etcd(folder: &Path, hosts: &[String], clock: &dyn Clock) -> Result<Made, SecretsError> {
    let files = SecretFiles::in_folder(folder);
    let mut maker = Maker { new: Vec::new() };
    let (certificate, key) = (&files.etcd_certificate, &files.etcd_key);
    maker.issue(&files, (certificate, key), (Role::Etcd, "etcd"), &with_localhost(hosts), clock)?;
    Ok(Made { files, new: maker.new })
}

fn with_localhost(hosts: &[String]) -> Vec<String> {
    let mut all = hosts.to_vec();
    for local in ["localhost", "127.0.0.1", "::1"] {
        if !all.iter().any(|host| host == local) {
            all.push(local.to_owned());
        }
    }
    all
}

/// A line of CLIENT_TOKENS_FILE for a token that does not expire.
pub fn token_line(name: &str, token: &str) -> String {
    format!("{name} {}\n", hex::encode(Sha256::digest(token.as_bytes())))
}

const SECRET: u32 = 0o600;
const PUBLIC: u32 = 0o644;

struct Maker {
    new: Vec<PathBuf>,
}

impl Maker {
    /// Neither exists; an error if one does without the other.
    fn pair_is_missing(&self, certificate: &Path, key: &Path) -> Result<bool, SecretsError> {
        // A CA's key may well have been taken away; then nothing can be issued any more, which is found out later.
        match (certificate.exists(), key.exists()) {
            (false, false) => Ok(true),
            (false, true) => Err(SecretsError::Half(key.to_owned())),
            (true, false) if !certificate.ends_with("ca.crt") => {
                Err(SecretsError::Half(certificate.to_owned()))
            }
            (true, _) => Ok(false),
        }
    }

    /// Issues a certificate if there is none; one that is there must be good for all hosts.
    fn issue(
        &mut self,
        files: &SecretFiles,
        (certificate, key): (&Path, &Path),
        (role, name): (Role, &str),
        hosts: &[String],
        clock: &dyn Clock,
    ) -> Result<(), SecretsError> {
        if !self.pair_is_missing(certificate, key)? {
            return check_hosts(certificate, hosts);
        }
        let authority = Authority::from_pem(read(&files.authority_certificate)?, read(&files.authority_key)?);
        let pair = authority.issue(role, name, hosts, clock)?;
        self.write(key, &pair.key, SECRET)?;
        self.write(certificate, &pair.certificate, PUBLIC)
    }

    /// Writes a file that does not exist, whole or not at all.
    fn write(&mut self, path: &Path, content: &str, mode: u32) -> Result<(), SecretsError> {
        use std::{io::Write, os::unix::fs::OpenOptionsExt};
        let failed = |error| SecretsError::Io { path: path.to_owned(), error };
        let draft = path.with_extension(format!("draft-{}", std::process::id()));
        let _ = fs::remove_file(&draft);
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&draft).map_err(failed)?;
        file.write_all(content.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
        // Unlike a rename, a link never replaces what is there.
        let linked = fs::hard_link(&draft, path);
        let _ = fs::remove_file(&draft);
        linked.map_err(failed)?;
        self.new.push(path.to_owned());
        Ok(())
    }
}

fn read(path: &Path) -> Result<String, SecretsError> {
    fs::read_to_string(path).map_err(|error| SecretsError::Io { path: path.to_owned(), error })
}

fn check_hosts(path: &Path, hosts: &[String]) -> Result<(), SecretsError> {
    let damaged = |error: String| SecretsError::Io {
        path: path.to_owned(),
        error: io::Error::new(io::ErrorKind::InvalidData, error),
    };
    let certificate = CertificateDer::from_pem_slice(read(path)?.as_bytes())
        .map_err(|error| damaged(format!("no PEM certificate: {error}")))?;
    let parsed = ParsedCertificate::try_from(&certificate).map_err(|error| damaged(error.to_string()))?;
    for host in hosts {
        let covered =
            ServerName::try_from(host.as_str()).is_ok_and(|name| verify_server_name(&parsed, &name).is_ok());
        if !covered {
            return Err(SecretsError::OtherHosts { path: path.to_owned(), missing: host.clone() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::env::real::{RealClock, RealRandom};

    fn run(folder: &Path, hosts: &[&str]) -> Result<Made, SecretsError> {
        let hosts: Vec<String> = hosts.iter().map(|host| host.to_string()).collect();
        init(folder, "test", &hosts, &RealClock::default(), &RealRandom)
    }

    #[test]
    fn a_second_run_changes_nothing_and_a_third_adds_what_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let made = run(folder.path(), &["a", "b.example.org", "10.0.0.1"]).unwrap();
        assert_eq!(made.new.len(), 9);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&made.files.node_key), 0o600);
        assert_eq!(mode(&made.files.kek), 0o600);
        assert_eq!(mode(&made.files.node_certificate), 0o644);
        let before = made.new.iter().map(|path| fs::read(path).unwrap()).collect::<Vec<_>>();

        assert!(run(folder.path(), &["a"]).unwrap().new.is_empty());
        assert_eq!(made.new.iter().map(|path| fs::read(path).unwrap()).collect::<Vec<_>>(), before);

        fs::remove_file(&made.files.tokens).unwrap();
        assert_eq!(run(folder.path(), &["a"]).unwrap().new, std::slice::from_ref(&made.files.tokens));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 9);
    }

    #[test]
    fn hosts_that_the_certificate_lacks_and_lost_halves_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let files = run(folder.path(), &["a"]).unwrap().files;
        let error = run(folder.path(), &["a", "c"]).unwrap_err().to_string();
        assert!(error.contains("\"c\""), "{error}");
        fs::remove_file(&files.node_key).unwrap();
        assert!(matches!(run(folder.path(), &["a"]), Err(SecretsError::Half(_))));
    }

    #[test]
    fn etcd_gets_its_own_certificate() {
        let folder = tempfile::tempdir().unwrap();
        run(folder.path(), &["a"]).unwrap();
        let hosts = ["etcd-1".to_string()];
        assert_eq!(init_etcd(folder.path(), &hosts, &RealClock::default()).unwrap().new.len(), 2);
        assert!(init_etcd(folder.path(), &hosts, &RealClock::default()).unwrap().new.is_empty());
    }

    #[test]
    fn the_token_line_is_its_digest() {
        let folder = tempfile::tempdir().unwrap();
        let files = run(folder.path(), &[]).unwrap().files;
        let token = fs::read_to_string(files.client_token).unwrap();
        assert_eq!(fs::read_to_string(files.tokens).unwrap(), token_line("default", &token));
        assert_eq!(BASE64_STANDARD.decode(fs::read_to_string(files.kek).unwrap().trim()).unwrap().len(), 32);
    }
}
