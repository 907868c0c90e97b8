//! `DATABASE_URL`: which metadata store to use.
//!
//! ```text
//! embedded:///folder                      one process, no other parts; the folder is absolute
//! etcd://h1:2379,h2,h3/prefix             a cluster; the port is 2379 unless given
//! etcd://h1,h2/prefix?ca=/f&cert=/f&key=/f    over TLS; cert and key if etcd asks for a certificate
//! ```

use std::{fmt, path::PathBuf, str::FromStr};

const DEFAULT_ETCD_PORT: u16 = 2379;
/// Bounds what the prefix adds to each key (see `limits::MAX_TXN_BYTES`).
const MAX_PREFIX_BYTES: usize = 200;
const MAX_HOSTS: usize = 16;

/// A parsed `DATABASE_URL`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DatabaseUrl {
    Embedded { folder: PathBuf },
    Etcd(EtcdAddress),
}

/// Where an etcd is, and which of its keys are ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdAddress {
    /// `host:port` of each member.
    pub hosts: Vec<String>,
    /// Without slashes at its ends.
    pub prefix: String,
    pub tls: Option<EtcdTls>,
}

/// Files for TLS; read again for new connections, so that they can be renewed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdTls {
    pub ca_file: PathBuf,
    pub certificate: Option<ClientCertificate>,
}

/// What we show to etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    pub certificate_file: PathBuf,
    pub key_file: PathBuf,
}

/// Why a URL was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "DATABASE_URL: {0}. Accepted are embedded:///folder (one process) and etcd://host[:2379],host,host/prefix \
     [?ca=/file[&cert=/file&key=/file]] (a cluster)"
)]
pub struct UrlError(String);

impl FromStr for DatabaseUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(UrlError("it has no scheme".to_owned()));
        };
        match scheme {
            "embedded" => parse_embedded(rest),
            "etcd" => parse_etcd(rest).map(Self::Etcd),
            // Not the whole text: such URLs often carry a password.
            other => Err(UrlError(format!("a store of the kind {other:?} is not supported"))),
        }
    }
}

fn parse_embedded(rest: &str) -> Result<DatabaseUrl, UrlError> {
    if rest.contains('?') {
        return Err(UrlError("an embedded store has no options".to_owned()));
    }
    if !rest.starts_with('/') || rest.trim_matches('/').is_empty() || rest.contains('\0') {
        return Err(UrlError(format!(
            "{rest:?} is not an absolute folder (three slashes: embedded:///folder)"
        )));
    }
    Ok(DatabaseUrl::Embedded { folder: PathBuf::from(rest) })
}

fn parse_etcd(rest: &str) -> Result<EtcdAddress, UrlError> {
    let (rest, options) = rest.split_once('?').unwrap_or((rest, ""));
    if rest.contains('@') {
        return Err(UrlError(
            "user names are not supported: use a client certificate (?ca=&cert=&key=)".to_owned(),
        ));
    }
    let (hosts, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let hosts = hosts.split(',').map(parse_host).collect::<Result<Vec<_>, _>>()?;
    if hosts.len() > MAX_HOSTS {
        return Err(UrlError(format!("{} hosts, {MAX_HOSTS} are allowed", hosts.len())));
    }
    if let Some(twice) =
        hosts.iter().enumerate().find_map(|(i, host)| hosts[..i].contains(host).then_some(host))
    {
        return Err(UrlError(format!("host {twice} is named twice")));
    }
    Ok(EtcdAddress { hosts, prefix: parse_prefix(prefix)?, tls: parse_options(options)? })
}

fn parse_host(text: &str) -> Result<String, UrlError> {
    let bad = || UrlError(format!("{text:?} is not a host or host:port"));
    let (host, port) = match text.strip_prefix('[') {
        // An IPv6 address.
        Some(rest) => {
            let (address, port) = rest.split_once(']').ok_or_else(bad)?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| bad())?;
            let port = if port.is_empty() { None } else { Some(port.strip_prefix(':').ok_or_else(bad)?) };
            (format!("[{address}]"), port)
        }
        None => {
            let (host, port) = match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            };
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
            if host.is_empty() || !host.bytes().all(allowed) {
                return Err(bad());
            }
            (host.to_owned(), port)
        }
    };
    let port = port.map_or(Ok(DEFAULT_ETCD_PORT), |port| port.parse().map_err(|_| bad()))?;
    if port == 0 {
        return Err(bad());
    }
    Ok(format!("{host}:{port}"))
}

fn parse_prefix(text: &str) -> Result<String, UrlError> {
    let prefix = text.trim_matches('/');
    if prefix.is_empty() {
        return Err(UrlError(
            "a prefix is needed after the hosts (etcd://host/prefix): clusters must not mix".to_owned(),
        ));
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._/".contains(&byte);
    if prefix.len() > MAX_PREFIX_BYTES || !prefix.bytes().all(allowed) {
        return Err(UrlError(format!(
            "the prefix {prefix:?} must have letters, digits, '-', '.', '_' and '/' only, {MAX_PREFIX_BYTES} at most"
        )));
    }
    Ok(prefix.to_owned())
}

fn parse_options(text: &str) -> Result<Option<EtcdTls>, UrlError> {
    let (mut ca, mut certificate, mut key) = (None, None, None);
    for option in text.split('&').filter(|option| !option.is_empty()) {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        let slot = match name {
            "ca" => &mut ca,
            "cert" => &mut certificate,
            "key" => &mut key,
            _ => return Err(UrlError(format!("the option {name:?} is not known (known: ca, cert, key)"))),
        };
        if !value.starts_with('/') {
            return Err(UrlError(format!("the option {name} must be the absolute path of a file")));
        }
        if slot.replace(PathBuf::from(value)).is_some() {
            return Err(UrlError(format!("the option {name} is given twice")));
        }
    }
    let certificate = match (certificate, key) {
        (None, None) => None,
        (Some(certificate_file), Some(key_file)) => Some(ClientCertificate { certificate_file, key_file }),
        _ => return Err(UrlError("cert and key go together".to_owned())),
    };
    match (ca, certificate) {
        (Some(ca_file), certificate) => Ok(Some(EtcdTls { ca_file, certificate })),
        (None, None) => Ok(None),
        (None, Some(_)) => Err(UrlError("cert and key need ca too".to_owned())),
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded { folder } => write!(formatter, "embedded://{}", folder.display()),
            Self::Etcd(address) => {
                write!(formatter, "etcd://{}/{}", address.hosts.join(","), address.prefix)?;
                let Some(tls) = &address.tls else { return Ok(()) };
                write!(formatter, "?ca={}", tls.ca_file.display())?;
                let Some(client) = &tls.certificate else { return Ok(()) };
                write!(
                    formatter,
                    "&cert={}&key={}",
                    client.certificate_file.display(),
                    client.key_file.display()
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<DatabaseUrl, String> {
        text.parse().map_err(|error: UrlError| error.to_string())
    }

    #[test]
    fn accepted_forms_round_trip() {
        for (text, canonical) in [
            ("embedded:///var/lib/cairn", "embedded:///var/lib/cairn"),
            ("embedded:///a b/ü", "embedded:///a b/ü"),
            ("etcd://h1:2379,h2,h3/prefix", "etcd://h1:2379,h2:2379,h3:2379/prefix"),
            ("etcd://127.0.0.1:12379/a/b/", "etcd://127.0.0.1:12379/a/b"),
            ("etcd://[::1]:1,[fe80::2]/x", "etcd://[::1]:1,[fe80::2]:2379/x"),
            ("etcd://e/x?ca=/ca.crt", "etcd://e:2379/x?ca=/ca.crt"),
            ("etcd://e/x?key=/k&cert=/c&ca=/ca", "etcd://e:2379/x?ca=/ca&cert=/c&key=/k"),
        ] {
            let url = parse(text).unwrap();
            assert_eq!(url.to_string(), canonical);
            assert_eq!(parse(canonical).unwrap(), url);
        }
    }

    #[test]
    fn refusals_name_the_accepted_forms() {
        for text in [
            "",
            "/folder",
            "postgres://user:secret@db/x",
            "http://h1/x",
            "embedded://folder",
            "embedded:///",
            "embedded:///folder?x=1",
            "etcd://",
            "etcd:///prefix",
            "etcd://h1",
            "etcd://h1/",
            "etcd://h1,,h2/x",
            "etcd://h1,h1:2379/x",
            "etcd://h1:0/x",
            "etcd://h1:99999/x",
            "etcd://[::1/x",
            "etcd://[zz]/x",
            "etcd://user@h1/x",
            "etcd://h1/x y",
            "etcd://h1/a:b",
            "etcd://h1/x?timeout=3",
            "etcd://h1/x?ca=relative",
            "etcd://h1/x?ca=/a&ca=/b",
            "etcd://h1/x?cert=/c&key=/k",
            "etcd://h1/x?ca=/a&cert=/c",
        ] {
            let message = parse(text).unwrap_err();
            assert!(message.contains("embedded:///folder"), "{text}: {message}");
            assert!(message.contains("etcd://host"), "{text}: {message}");
            assert!(!message.contains("secret"), "{message}");
        }
    }
}
