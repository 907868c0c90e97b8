//! A node's settings: flags, then the environment, then a `.env` file, then defaults. Each setting has one name:
//! `GRPC_PORT` in the environment and in the file is `--grpc-port` on the command line.
//!
//! All mistakes are told at once, each with where the value came from and what would be right.

use std::{collections::HashMap, ffi::OsString, fmt, path::PathBuf, sync::OnceLock, time::Duration};

use clap::ArgMatches;

use crate::{
    meta::url::{ClientCertificate, DatabaseUrl, EtcdTls},
    node::Timings,
    secrets::token::NewToken,
};

mod dotenv;
mod grammar;
mod quantity;
mod unknown;

pub use grammar::grammar;
use grammar::{SETTINGS, Setting};
pub use unknown::warnings;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// A node's settings, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeConfig {
    pub cluster_name: String,
    pub node_name: String,
    pub zone: String,
    pub data_dir: PathBuf,
    /// An empty folder may take the place of the disk that this node had.
    pub new_disk: bool,
    pub database_url: DatabaseUrl,
    pub grpc_port: u16,
    pub http_port: u16,
    pub bind_host: String,
    pub advertise_host: String,
    /// `None`: the port that gRPC listens on.
    pub advertise_port: Option<u16>,
    pub tls_cert_file: PathBuf,
    pub tls_key_file: PathBuf,
    pub tls_ca_file: PathBuf,
    pub kek_file: PathBuf,
    pub client_tokens_file: PathBuf,
    pub expected_nodes: usize,
    pub timings: Timings,
    /// `None`: the whole file system.
    pub capacity_bytes: Option<u64>,
    pub log: String,
    pub log_format: LogFormat,
}

/// Make secrets for a first start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitSecrets {
    pub folder: PathBuf,
    pub cluster: String,
    pub hosts: Vec<String>,
    /// Empty: no etcd of our own.
    pub etcd_hosts: Vec<String>,
}

/// What [`Command::Recover`] needs.
#[derive(Debug, Clone, PartialEq)]
pub struct Recover {
    pub database_url: DatabaseUrl,
    /// The folder of a node that keeps the volumes' keys.
    pub data_dir: PathBuf,
    pub what: Recovery,
}

/// What is to be recovered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recovery {
    /// The metadata store is to be accepted as it is, and the nodes in `without` are gone for ever.
    Store { without: Vec<String> },
    /// The disk of this node is to be taken as it is.
    Disk(String),
    /// This volume is to be put back with the key that the node keeps.
    Volume(String),
}

/// What the command line asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    Run(Box<NodeConfig>),
    InitSecrets(InitSecrets),
    Recover(Recover),
    Verify { data_dir: PathBuf },
    NewToken(NewToken),
}

/// Settings that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError(Vec<String>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration cannot be used:")?;
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for ConfigError {}

/// What the process has been given.
pub struct Given<'a> {
    pub environment: &'a dyn Fn(&str) -> Option<OsString>,
    /// Content of the `.env` file, if there is one.
    pub dotenv: Option<String>,
    pub host_name: String,
}

/// `GRPC_PORT` → `grpc-port`.
fn flag_of(name: &str) -> &'static str {
    static FLAGS: OnceLock<HashMap<&str, String>> = OnceLock::new();
    let flags = FLAGS.get_or_init(|| {
        let flag = |setting: &Setting| (setting.name, setting.name.to_ascii_lowercase().replace('_', "-"));
        SETTINGS.iter().map(flag).collect()
    });
    flags.get(name).map_or("", String::as_str)
}

/// Understands a parsed command line.
pub fn command(matches: &ArgMatches, given: &Given<'_>) -> Result<Command, ConfigError> {
    if let Some(("init-secrets", matches)) = matches.subcommand() {
        let text = |name: &str| matches.get_one::<String>(name).cloned().unwrap_or_default();
        let list = |name: &str| {
            let hosts = matches.get_many::<String>(name).unwrap_or_default();
            hosts.map(|host| host.trim().to_owned()).filter(|host| !host.is_empty()).collect()
        };
        return Ok(Command::InitSecrets(InitSecrets {
            folder: text("folder").into(),
            cluster: text("cluster"),
            hosts: list("hosts"),
            etcd_hosts: list("etcd-hosts"),
        }));
    }
    if let Some(("recover", recover)) = matches.subcommand() {
        let mut reader = Reader::new(matches, given)?;
        let database_url = reader.database_url();
        let data_dir = reader.read("DATA_DIR", None, path);
        let named = |name: &str| recover.get_one::<String>(name).cloned();
        let what = match (named("accept-disk"), named("put-back")) {
            (Some(node), _) => Recovery::Disk(node),
            (None, Some(volume)) => Recovery::Volume(volume),
            (None, None) => {
                let without = recover.get_many::<String>("without-node").unwrap_or_default();
                Recovery::Store { without: without.cloned().collect() }
            }
        };
        return reader.done(Command::Recover(Recover { database_url, data_dir, what }));
    }
    if let Some(("verify", verify)) = matches.subcommand() {
        let mut reader = Reader::new(matches, given)?;
        let data_dir = match verify.get_one::<String>("data-dir") {
            Some(folder) => folder.into(),
            None => reader.read("DATA_DIR", None, path),
        };
        return reader.done(Command::Verify { data_dir });
    }
    if let Some(("token", token)) = matches.subcommand()
        && let Some(("new", new)) = token.subcommand()
    {
        let reader = Reader::new(matches, given)?;
        let file = match new.get_one::<String>("client-tokens-file") {
            Some(file) => Some(file.into()),
            None => reader.find("CLIENT_TOKENS_FILE", None).map(|(file, _)| file.into()),
        };
        let text = |name: &str| new.get_one::<String>(name).cloned().unwrap_or_default();
        let wanted = NewToken { name: text("name"), expires: text("expires"), file };
        return reader.done(Command::NewToken(wanted));
    }
    Ok(Command::Run(Box::new(node_config(matches, given)?)))
}

fn node_config(matches: &ArgMatches, given: &Given<'_>) -> Result<NodeConfig, ConfigError> {
    let mut reader = Reader::new(matches, given)?;
    let host_name = Some(given.host_name.as_str()).filter(|name| !name.is_empty());
    let node_name = reader.read("NODE_NAME", host_name, name);
    let new_disk = match reader.read("NEW_DISK", None, name).as_str() {
        "true" => true,
        "false" => false,
        // In a file that several nodes share, only the one that is named gets a new disk.
        named => named == node_name,
    };
    let config = NodeConfig {
        cluster_name: reader.read("CLUSTER_NAME", None, name),
        node_name,
        zone: reader.read("ZONE", None, name),
        data_dir: reader.read("DATA_DIR", None, path),
        new_disk,
        database_url: reader.database_url(),
        grpc_port: reader.read("GRPC_PORT", None, port),
        http_port: reader.read("HTTP_PORT", None, port),
        bind_host: reader.read("BIND_HOST", None, host),
        advertise_host: reader.read("ADVERTISE_HOST", host_name, host),
        advertise_port: reader.optional("ADVERTISE_PORT", port),
        tls_cert_file: reader.read("TLS_CERT_FILE", None, path),
        tls_key_file: reader.read("TLS_KEY_FILE", None, path),
        tls_ca_file: reader.read("TLS_CA_FILE", None, path),
        kek_file: reader.read("KEK_FILE", None, path),
        client_tokens_file: reader.read("CLIENT_TOKENS_FILE", None, path),
        expected_nodes: reader.read("EXPECTED_NODES", None, count),
        timings: reader.timings(),
        capacity_bytes: reader.optional("CAPACITY", quantity::parse),
        log: reader.read("LOG", None, filter),
        log_format: reader.read("LOG_FORMAT", None, log_format).unwrap_or(LogFormat::Text),
    };
    reader.done(config)
}

/// Finds values, and keeps the problems until all are known.
struct Reader<'a> {
    matches: &'a ArgMatches,
    given: &'a Given<'a>,
    file: dotenv::Values,
    problems: Vec<String>,
}

impl<'a> Reader<'a> {
    fn new(matches: &'a ArgMatches, given: &'a Given<'a>) -> Result<Self, ConfigError> {
        let file = match &given.dotenv {
            Some(content) => dotenv::parse(content).map_err(|problem| ConfigError(vec![problem]))?,
            None => Default::default(),
        };
        let mut reader = Self { matches, given, file, problems: Vec::new() };
        reader.check_environment();
        Ok(reader)
    }

    /// What was read, if nothing was wrong with any of it.
    fn done<T>(self, read: T) -> Result<T, ConfigError> {
        if self.problems.is_empty() { Ok(read) } else { Err(ConfigError(self.problems)) }
    }

    fn check_environment(&mut self) {
        let is_text =
            |name| (self.given.environment)(name).is_none_or(|value: OsString| value.to_str().is_some());
        let bad = SETTINGS.iter().filter(|setting| !is_text(setting.name));
        let bad = bad.map(|setting| format!("{} in the environment is not UTF-8", setting.name));
        self.problems.extend(bad);
    }

    /// A value and where it is from. An empty one counts as none: templates often leave empty variables behind.
    fn find(&self, name: &str, default: Option<&str>) -> Option<(String, String)> {
        let flag = self.matches.get_one::<String>(name).cloned();
        let flag = flag.map(|value| (value, format!("--{}", flag_of(name))));
        let environment = || {
            let value = (self.given.environment)(name)?.to_string_lossy().into_owned();
            Some((value, format!("{name} in the environment")))
        };
        let file = || {
            let (line, value) = self.file.get(name)?;
            Some((value.clone(), format!("{name} in the .env file, line {line}")))
        };
        let written =
            SETTINGS.iter().find(|setting| setting.name == name).and_then(|setting| setting.default);
        let default =
            || default.or(written).map(|value| (value.to_owned(), format!("the default of {name}")));
        let filled = |found: &(String, String)| !found.0.trim().is_empty();
        flag.filter(filled)
            .or_else(|| environment().filter(filled))
            .or_else(|| file().filter(filled))
            .or_else(default)
    }

    fn optional<T>(&mut self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let (value, source) = self.find(name, None)?;
        parse(value.trim()).map_err(|problem| self.problems.push(format!("{source}: {problem}"))).ok()
    }

    fn read<T: Default>(
        &mut self,
        name: &str,
        default: Option<&str>,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> T {
        let Some((value, source)) = self.find(name, default) else {
            let help =
                SETTINGS.iter().find(|setting| setting.name == name).map_or("", |setting| setting.help);
            self.problems.push(format!("{name} is not set. {help}"));
            return T::default();
        };
        parse(value.trim()).unwrap_or_else(|problem| {
            self.problems.push(format!("{source}: {problem}"));
            T::default()
        })
    }

    fn timings(&mut self) -> Timings {
        let mut between = |name: &str, least: u64, most: u64| {
            let parse = |text: &str| match text.parse() {
                Ok(value) if (least..=most).contains(&value) => Ok(value),
                _ => Err(format!("{text:?} is not a whole number from {least} to {most}")),
            };
            self.read(name, None, parse)
        };
        Timings {
            lease: Duration::from_secs(between("LEASE_SECONDS", 2, 300)),
            repair: Duration::from_secs(between("REPAIR_SECONDS", 1, 3_600)),
            truth: Duration::from_secs(between("COMPARE_SECONDS", 1, 86_400)),
            scrub: Some(Duration::from_secs(between("SCRUB_SECONDS", 0, 31_536_000)))
                .filter(|period| !period.is_zero()),
            compact: Some(Duration::from_secs(between("COMPACT_SECONDS", 0, 31_536_000)))
                .filter(|period| !period.is_zero()),
            tick: Duration::from_secs(between("TICK_SECONDS", 1, 3_600)),
            sweep_every_ticks: between("SWEEP_TICKS", 2, 100_000),
            quarantine_ticks: between("QUARANTINE_TICKS", 1, 1_000_000),
            collect_after_ticks: between("COLLECT_AFTER_TICKS", 1, 100_000),
            tombstone_ticks: between("TOMBSTONE_TICKS", 7, 10_000_000) as u32,
            ..Timings::default()
        }
    }

    fn database_url(&mut self) -> DatabaseUrl {
        let parse = |text: &str| {
            text.parse().map(Some).map_err(|error: crate::meta::url::UrlError| error.to_string())
        };
        let url = self.read("DATABASE_URL", None, parse);
        let ca = self.optional("ETCD_CA_FILE", path);
        let certificate = self.optional("ETCD_CERT_FILE", path);
        let key = self.optional("ETCD_KEY_FILE", path);
        let mut url = url.unwrap_or(DatabaseUrl::Embedded { folder: PathBuf::new() });
        if let (DatabaseUrl::Etcd(address), true) =
            (&mut url, ca.is_some() || certificate.is_some() || key.is_some())
        {
            address.tls = self.etcd_tls(ca, certificate, key);
        }
        url
    }

    fn etcd_tls(
        &mut self,
        ca: Option<PathBuf>,
        certificate: Option<PathBuf>,
        key: Option<PathBuf>,
    ) -> Option<EtcdTls> {
        let certificate = match (certificate, key) {
            (None, None) => None,
            (Some(certificate_file), Some(key_file)) => {
                Some(ClientCertificate { certificate_file, key_file })
            }
            _ => {
                self.problems.push("ETCD_CERT_FILE and ETCD_KEY_FILE go together: set both, or none".into());
                None
            }
        };
        if ca.is_none() {
            self.problems
                .push("ETCD_CA_FILE is not set, but ETCD_CERT_FILE or ETCD_KEY_FILE is: set it too".into());
        }
        Some(EtcdTls { ca_file: ca?, certificate })
    }
}

/// Names of clusters, nodes and zones: they become parts of keys, labels and addresses.
fn name(text: &str) -> Result<String, String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let edges = text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.ends_with(|c: char| c.is_ascii_alphanumeric());
    if edges && text.len() <= 63 && text.bytes().all(allowed) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "{text:?} is no name: use 1 to 63 letters, digits, \"-\", \".\" and \"_\", with a letter or digit at both ends"
    ))
}

fn path(text: &str) -> Result<PathBuf, String> {
    if text.contains('\0') { Err("a path has no NUL".into()) } else { Ok(text.into()) }
}

fn port(text: &str) -> Result<u16, String> {
    text.parse().map_err(|_| format!("{text:?} is no port: use a number from 0 to 65535"))
}

fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=4_096) => Ok(count),
        _ => Err(format!("{text:?} is no number of nodes: use 1 to 4096")),
    }
}

fn host(text: &str) -> Result<String, String> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    match rustls_pki_types::ServerName::try_from(bare) {
        Ok(_) => Ok(bare.to_owned()),
        Err(_) => {
            Err(format!("{text:?} is neither a host name nor an address (the port is a setting of its own)"))
        }
    }
}

fn filter(text: &str) -> Result<String, String> {
    match text.parse::<tracing_subscriber::filter::EnvFilter>() {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("{text:?} is no filter ({error}): use error, warn, info, debug or trace")),
    }
}

fn log_format(text: &str) -> Result<Option<LogFormat>, String> {
    match text {
        "text" => Ok(Some(LogFormat::Text)),
        "json" => Ok(Some(LogFormat::Json)),
        _ => Err(format!("{text:?} is no log format: use text or json")),
    }
}

#[cfg(test)]
mod tests;
