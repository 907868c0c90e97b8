//! Certificates for the servers and clients that tests start: one authority, and whatever it signs. Made afresh each time,
//! valid for ten years, never written anywhere but below a test's own folder.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::{fs, io};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose, PKCS_RSA_SHA256, RsaKeySize,
};

/// A certificate authority of a test.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key, both PEM.
#[derive(Clone, Debug)]
pub struct Identity {
    pub certificate_pem: String,
    pub key_pem: String,
}

/// Paths of an [`Identity`] that was written down.
#[derive(Clone, Debug)]
pub struct IdentityFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(name, None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key can be made");
        Self { issuer: CertifiedIssuer::self_signed(params, key).expect("an authority can be made") }
    }

    pub fn certificate_pem(&self) -> String {
        self.issuer.pem()
    }

    /// The authority's own key, for a program that signs with it.
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Signs a certificate that may be shown by a server under `names` (host names and addresses) and by a client.
    pub fn issue(&self, common_name: &str, organisation: Option<&str>, names: &[&str]) -> Identity {
        let mut params = CertificateParams::new(names.iter().map(|n| n.to_string()).collect::<Vec<_>>())
            .expect("names that may stand in a certificate");
        params.distinguished_name = subject(common_name, organisation);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().expect("a key can be made");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate can be signed");
        Identity { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() }
    }
}

impl Identity {
    /// Writes `NAME.crt` and `NAME.key` into a folder.
    pub fn write(&self, folder: &Path, name: &str) -> io::Result<IdentityFiles> {
        let files = IdentityFiles {
            certificate: folder.join(format!("{name}.crt")),
            key: folder.join(format!("{name}.key")),
        };
        fs::write(&files.certificate, &self.certificate_pem)?;
        fs::write(&files.key, &self.key_pem)?;
        Ok(files)
    }
}

/// A 2048-bit RSA key, as clusters use for their service account tokens: (private PEM, public PEM).
pub fn rsa_key_pair() -> (String, String) {
    let key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).expect("an RSA key can be made");
    (key.serialize_pem(), key.public_key_pem())
}

fn subject(common_name: &str, organisation: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    if let Some(organisation) = organisation {
        name.push(DnType::OrganizationName, organisation);
    }
    name.push(DnType::CommonName, common_name);
    name
}

/// The names under which a server on this machine is reached.
pub fn loopback_names() -> [&'static str; 3] {
    debug_assert!("127.0.0.1".parse::<IpAddr>().is_ok());
    ["localhost", "127.0.0.1", "::1"]
}
