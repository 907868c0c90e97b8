//! The contents of a cluster's Secrets: CA, certificates, the key, the client's token. Made here, written by `apply.rs`;
//! what the planner may know of them is a [`SecretFact`].

use std::collections::{BTreeMap, BTreeSet};

use base64::{Engine, prelude::BASE64_STANDARD, prelude::BASE64_URL_SAFE_NO_PAD};
use cairn_planner::{
    SecretFact, SecretKind,
    contract::{entry, label, role},
};
use k8s_openapi::{ByteString, api::core::v1::Secret, jiff::Timestamp};
use rand::RngCore;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use sha2::{Digest, Sha256};
use x509_parser::{extensions::GeneralName, pem::parse_x509_pem};

/// The CA is not replaced by itself yet.
const AUTHORITY_DAYS: i64 = 3_650;
/// Renewed in the last third.
const CERTIFICATE_DAYS: i64 = 365;
const DAY_S: i64 = 24 * 60 * 60;
/// The client that every cluster has from the start.
const CLIENT: &str = "client";

/// Why a Secret cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("Secret {0} is missing or incomplete; it is made first")]
    SourceMissing(String),
    #[error("a certificate could not be made: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error("the time {0} is out of the calendar")]
    Time(i64),
}

/// Other Secrets that one is made from.
#[derive(Debug, Default)]
pub struct Sources {
    /// The CA's; needed for certificates and for the client's Secret.
    pub authority: Option<Secret>,
    /// The client's; needed for the nodes' list of tokens.
    pub client: Option<Secret>,
    /// What the Secret holds now.
    pub present: Option<Secret>,
}

/// Entries for a Secret of this kind.
pub fn make(
    kind: &SecretKind,
    cluster: &str,
    sources: &Sources,
    now: Timestamp,
) -> Result<BTreeMap<String, ByteString>, SecretError> {
    let now_s = now.as_second();
    let entries = match kind {
        SecretKind::Authority => authority(cluster, now_s)?,
        SecretKind::NodeCertificate { dns_names } => {
            certificate(sources.authority.as_ref(), role::NODE, cluster, dns_names, now_s)?
        }
        SecretKind::OperatorCertificate => {
            certificate(sources.authority.as_ref(), role::OPERATOR, label::OPERATOR, &[], now_s)?
        }
        SecretKind::Key => vec![(entry::KEK, format!("{}\n", BASE64_STANDARD.encode(random())).into_bytes())],
        SecretKind::Client => {
            let kept = value(sources.present.as_ref(), entry::TOKEN);
            let token =
                kept.unwrap_or_else(|| format!("cairn_{}", BASE64_URL_SAFE_NO_PAD.encode(random())).into());
            vec![
                (entry::TOKEN, token),
                (entry::CA_CERTIFICATE, needed(sources.authority.as_ref(), entry::CA_CERTIFICATE)?),
            ]
        }
        SecretKind::Tokens => {
            let token = needed(sources.client.as_ref(), entry::TOKEN)?;
            let before = value(sources.present.as_ref(), entry::TOKENS).unwrap_or_default();
            vec![(entry::TOKENS, tokens(&String::from_utf8_lossy(&before), &token).into_bytes())]
        }
    };
    Ok(entries.into_iter().map(|(name, bytes)| (name.to_owned(), ByteString(bytes))).collect())
}

type Entries = Vec<(&'static str, Vec<u8>)>;

fn random() -> [u8; 32] {
    let mut bytes = [0; 32];
    rand::rng().fill_bytes(&mut bytes);
    bytes
}

fn value(secret: Option<&Secret>, name: &str) -> Option<Vec<u8>> {
    let value = secret?.data.as_ref()?.get(name)?;
    (!value.0.is_empty()).then(|| value.0.clone())
}

fn needed(secret: Option<&Secret>, name: &'static str) -> Result<Vec<u8>, SecretError> {
    value(secret, name).ok_or_else(|| {
        let secret = secret.and_then(|secret| secret.metadata.name.clone());
        SecretError::SourceMissing(format!(
            "{} with the entry {name}",
            secret.as_deref().unwrap_or("of the CA or client")
        ))
    })
}

/// The list with the client's token in it; lines of others stay.
fn tokens(before: &str, token: &[u8]) -> String {
    let ours = |line: &&str| line.split_whitespace().next() != Some(CLIENT);
    let mut lines: Vec<String> = before.lines().filter(ours).map(str::to_owned).collect();
    lines.push(format!("{CLIENT} {}", digest(token.trim_ascii())));
    lines.join("\n") + "\n"
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn authority(cluster: &str, now_s: i64) -> Result<Entries, SecretError> {
    let mut params = params(cluster, "cairn:ca", now_s, AUTHORITY_DAYS)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    Ok(vec![
        (entry::CA_CERTIFICATE, certificate.pem().into_bytes()),
        (entry::CA_KEY, key.serialize_pem().into_bytes()),
    ])
}

fn certificate(
    authority: Option<&Secret>,
    role: &str,
    name: &str,
    hosts: &[String],
    now_s: i64,
) -> Result<Entries, SecretError> {
    let text = |name| needed(authority, name).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let (ca, ca_key) = (text(entry::CA_CERTIFICATE)?, text(entry::CA_KEY)?);
    let issuer = Issuer::from_ca_cert_pem(&ca, KeyPair::from_pem(&ca_key)?)?;
    let mut params = params(name, role, now_s, CERTIFICATE_DAYS)?;
    params.subject_alt_names = CertificateParams::new(hosts.to_vec())?.subject_alt_names;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if role == role::NODE {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &issuer)?;
    Ok(vec![
        (entry::CERTIFICATE, certificate.pem().into_bytes()),
        (entry::KEY, key.serialize_pem().into_bytes()),
        (entry::CA_CERTIFICATE, ca.into_bytes()),
    ])
}

fn params(name: &str, organization: &str, now_s: i64, days: i64) -> Result<CertificateParams, SecretError> {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, organization);
    subject.push(DnType::CommonName, name);
    params.distinguished_name = subject;
    let day = |second: i64| {
        let time = Timestamp::from_second(second).map_err(|_| SecretError::Time(second))?;
        let date = time.to_zoned(k8s_openapi::jiff::tz::TimeZone::UTC).date();
        let (month, day) = (date.month().unsigned_abs(), date.day().unsigned_abs());
        Ok::<_, SecretError>(rcgen::date_time_ymd(i32::from(date.year()), month, day))
    };
    // A day earlier: clocks of other machines may be behind.
    params.not_before = day(now_s - DAY_S)?;
    params.not_after = day(now_s + days * DAY_S)?;
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// What the planner may know of a Secret.
pub fn fact(secret: &Secret) -> SecretFact {
    let bytes = |name: &str| value(Some(secret), name);
    let present = |(name, value): (&String, &ByteString)| (!value.0.is_empty()).then(|| name.clone());
    let mut fact = SecretFact {
        entries: secret.data.iter().flatten().filter_map(present).collect(),
        cluster_label: secret.metadata.labels.as_ref().and_then(|labels| labels.get(label::CLUSTER)).cloned(),
        authority: bytes(entry::CA_CERTIFICATE).map(|bytes| digest(&bytes)),
        ..SecretFact::default()
    };
    let is_authority = fact.entries.contains(entry::CA_KEY);
    let certificate =
        bytes(entry::CERTIFICATE).or_else(|| bytes(entry::CA_CERTIFICATE).filter(|_| is_authority));
    if let Some(pem) = certificate {
        read_certificate(&pem, &mut fact);
    }
    if let Some(token) = bytes(entry::TOKEN) {
        fact.token_digests.insert(digest(token.trim_ascii()));
    }
    if let Some(tokens) = bytes(entry::TOKENS) {
        fact.token_digests.extend(digests(&String::from_utf8_lossy(&tokens)));
    }
    fact
}

fn digests(tokens: &str) -> BTreeSet<String> {
    let lines = tokens.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split_whitespace().nth(1)).map(str::to_ascii_lowercase).collect()
}

/// Leaves the fact without times where there is no certificate to read: the planner then has one made.
fn read_certificate(pem: &[u8], fact: &mut SecretFact) {
    let Ok((_, pem)) = parse_x509_pem(pem) else { return };
    let Ok(certificate) = pem.parse_x509() else { return };
    let time = |second: i64| Timestamp::from_second(second).ok();
    fact.not_before = time(certificate.validity().not_before.timestamp());
    fact.not_after = time(certificate.validity().not_after.timestamp());
    if let Ok(Some(names)) = certificate.subject_alternative_name() {
        fact.dns_names = names
            .value
            .general_names
            .iter()
            .filter_map(|name| match name {
                GeneralName::DNSName(name) => Some((*name).to_owned()),
                _ => None,
            })
            .collect();
        fact.dns_names.sort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap()
    }

    fn secret(entries: BTreeMap<String, ByteString>) -> Secret {
        Secret { data: Some(entries), ..Secret::default() }
    }

    fn made(kind: SecretKind, sources: &Sources) -> Secret {
        secret(make(&kind, "demo", sources, now()).unwrap())
    }

    fn with_authority() -> Sources {
        Sources { authority: Some(made(SecretKind::Authority, &Sources::default())), ..Sources::default() }
    }

    #[test]
    fn certificates_are_what_the_planner_asked_for() {
        let sources = with_authority();
        let hosts = vec!["*.demo-nodes.default.svc".to_owned(), "localhost".to_owned()];
        let node = made(SecretKind::NodeCertificate { dns_names: hosts.clone() }, &sources);
        let (node, authority) = (fact(&node), fact(sources.authority.as_ref().unwrap()));
        assert_eq!(node.dns_names, hosts);
        assert_eq!(node.authority, authority.authority);
        let days = |fact: &SecretFact| (fact.not_after.unwrap().as_second() - now().as_second()) / DAY_S;
        assert!((363..=365).contains(&days(&node)), "{}", days(&node));
        assert!((3_648..=3_650).contains(&days(&authority)));
        assert!(node.not_before.unwrap() < now());
        assert!(!cairn_planner::plan::ends_soon(&node, now()));
        let operator = made(SecretKind::OperatorCertificate, &sources);
        let pem = value(Some(&operator), entry::CERTIFICATE).unwrap();
        let (_, pem) = parse_x509_pem(&pem).unwrap();
        let subject = pem.parse_x509().unwrap().subject().to_string();
        assert!(subject.contains("O=cairn:operator") && subject.contains("CN=cairn-operator"), "{subject}");
    }

    #[test]
    fn tokens_of_others_stay() {
        let mut sources = with_authority();
        sources.client = Some(made(SecretKind::Client, &sources));
        let tokens = made(SecretKind::Tokens, &sources);
        assert_eq!(fact(sources.client.as_ref().unwrap()).token_digests, fact(&tokens).token_digests);
        let theirs = format!("# people\nbackup {}\nclient {}\n", "ab".repeat(32), "cd".repeat(32));
        let present = BTreeMap::from([(entry::TOKENS.to_owned(), ByteString(theirs.into_bytes()))]);
        sources.present = Some(secret(present));
        let tokens = made(SecretKind::Tokens, &sources);
        let text = String::from_utf8(value(Some(&tokens), entry::TOKENS).unwrap()).unwrap();
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(
            text.contains("# people") && text.contains("backup abab") && !text.contains("cdcd"),
            "{text}"
        );
    }

    #[test]
    fn a_clients_token_is_kept() {
        let mut sources = with_authority();
        let first = made(SecretKind::Client, &sources);
        sources.present = Some(first.clone());
        let second = made(SecretKind::Client, &sources);
        assert_eq!(fact(&first).token_digests, fact(&second).token_digests);
        assert!(value(Some(&first), entry::TOKEN).unwrap().starts_with(b"cairn_"));
    }

    #[test]
    fn keys_are_32_bytes_and_differ() {
        let key = || value(Some(&made(SecretKind::Key, &Sources::default())), entry::KEK).unwrap();
        let (one, two) = (key(), key());
        assert_eq!(BASE64_STANDARD.decode(one.trim_ascii()).unwrap().len(), 32);
        assert_ne!(one, two);
    }

    #[test]
    fn what_cannot_be_read_is_no_certificate() {
        let entries = BTreeMap::from([(entry::CERTIFICATE.to_owned(), ByteString(b"nonsense".to_vec()))]);
        let fact = fact(&secret(entries));
        assert_eq!((fact.not_after, fact.dns_names.len()), (None, 0));
        let error = make(&SecretKind::OperatorCertificate, "demo", &Sources::default(), now());
        assert!(matches!(error, Err(SecretError::SourceMissing(_))));
    }
}
