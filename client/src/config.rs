//! The file of contexts: which clusters a person knows, and which one is meant.
//!
//! ```yaml
//! current: laptop
//! contexts:
//! - name: laptop
//!   endpoints: ["https://127.0.0.1:50051"]
//!   ca_file: ca.crt          # beside this file; or `ca:` with the PEM text
//!   token_file: token        # or `token:`; or `certificate_file:` and `key_file:`
//!   server_name: cairn-node  # only if the endpoints' certificates are for another name
//! ```

use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::options::{ClientConfig, Credentials, Pem};

/// Larger than any list of clusters.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The whole file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigFile {
    /// The context that is meant when none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    #[serde(default)]
    pub contexts: Vec<Context>,
}

/// One cluster, and as whom to act there. Relative paths start at the folder of the file.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    pub name: String,
    pub endpoints: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// PEM text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_file: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// Where nodes can be stopped and started: only clusters run by `cairn-operator local` have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub supervisor: Option<String>,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoints = &self.endpoints;
        f.debug_struct("Context")
            .field("name", &self.name)
            .field("endpoints", endpoints)
            .finish_non_exhaustive()
    }
}

/// Why contexts cannot be read, written, or used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {path}: {error}")]
    Read { path: PathBuf, error: io::Error },
    #[error("cannot write {path}: {error}")]
    Write { path: PathBuf, error: io::Error },
    #[error("{path} is not a valid file of contexts: {why}")]
    Invalid { path: PathBuf, why: String },
    #[error(
        "there is no folder for the configuration: neither CAIRN_CONFIG, XDG_CONFIG_HOME nor HOME is set"
    )]
    NoHome,
    #[error("CAIRN_CONFIG names {path}, which does not exist")]
    NoSuchFile { path: PathBuf },
    #[error("there is no context {name:?} in {path}")]
    NoSuchContext { name: String, path: PathBuf },
    #[error("context {name:?} has {problem}")]
    BadContext { name: String, problem: &'static str },
}

impl ConfigError {
    /// What to do about it.
    pub fn help(&self) -> &'static str {
        match self {
            Self::Read { .. } | Self::Write { .. } => "check the rights of the file and its folder",
            Self::Invalid { .. } => "mend the file, or point CAIRN_CONFIG to another",
            Self::NoHome => "set CAIRN_CONFIG to the path of the file",
            Self::NoSuchFile { .. } => {
                "set CAIRN_CONFIG to the path of the file of contexts, or unset it; `cairn context set` writes a new one"
            }
            Self::NoSuchContext { .. } => "see `cairn context list`",
            Self::BadContext { .. } => "mend it with `cairn context set`",
        }
    }
}

/// Where the file is: `$CAIRN_CONFIG`, else `$XDG_CONFIG_HOME/cairn/config.yaml`, else `~/.config/cairn/config.yaml`.
pub fn default_path() -> Result<PathBuf, ConfigError> {
    path_from(variable)
}

/// Reads the file at [`default_path`]. One that `CAIRN_CONFIG` names must exist; where none is named, none has no contexts.
pub fn read_default() -> Result<(PathBuf, ConfigFile), ConfigError> {
    read_from(variable)
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn read_from(variable: impl Fn(&str) -> Option<PathBuf>) -> Result<(PathBuf, ConfigFile), ConfigError> {
    let path = path_from(&variable)?;
    if variable("CAIRN_CONFIG").is_some() && matches!(path.try_exists(), Ok(false)) {
        return Err(ConfigError::NoSuchFile { path });
    }
    ConfigFile::read(&path).map(|file| (path, file))
}

fn path_from(variable: impl Fn(&str) -> Option<PathBuf>) -> Result<PathBuf, ConfigError> {
    if let Some(path) = variable("CAIRN_CONFIG") {
        return Ok(path);
    }
    let folder = match (variable("XDG_CONFIG_HOME"), variable("HOME")) {
        (Some(folder), _) => folder,
        (None, Some(home)) => home.join(".config"),
        (None, None) => return Err(ConfigError::NoHome),
    };
    Ok(folder.join("cairn").join("config.yaml"))
}

impl ConfigFile {
    /// Reads the file; one that does not exist has no contexts.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let failed = |error| ConfigError::Read { path: path.to_owned(), error };
        let invalid = |why: String| ConfigError::Invalid { path: path.to_owned(), why };
        let length = match std::fs::metadata(path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(failed(error)),
        };
        if length > MAX_FILE_BYTES {
            return Err(invalid(format!("it is {length} bytes long")));
        }
        let text = std::fs::read_to_string(path).map_err(failed)?;
        let file = Self::parse(&text).map_err(invalid)?;
        Ok(file)
    }

    /// Parses the text of a file.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let file: Self = serde_yaml::from_str(text).map_err(|error| error.to_string())?;
        for (index, context) in file.contexts.iter().enumerate() {
            if context.name.is_empty() {
                return Err("a context has an empty name".to_owned());
            }
            if file.contexts[..index].iter().any(|other| other.name == context.name) {
                return Err(format!("there are two contexts named {:?}", context.name));
            }
        }
        Ok(file)
    }

    /// Replaces the file at once and whole, readable by its owner only, since it may hold tokens.
    pub fn write(&self, path: &Path) -> Result<(), ConfigError> {
        let text = serde_yaml::to_string(self)
            .map_err(|error| ConfigError::Invalid { path: path.to_owned(), why: error.to_string() })?;
        write_private(path, text.as_bytes())
            .map_err(|error| ConfigError::Write { path: path.to_owned(), error })
    }

    /// The context of this name; without a name, the current one, or the only one.
    pub fn context(&self, name: Option<&str>, path: &Path) -> Result<Option<&Context>, ConfigError> {
        let Some(name) = name.or(self.current.as_deref()) else {
            return Ok(if self.contexts.len() == 1 { self.contexts.first() } else { None });
        };
        let found = self.contexts.iter().find(|context| context.name == name);
        found
            .map(Some)
            .ok_or_else(|| ConfigError::NoSuchContext { name: name.to_owned(), path: path.to_owned() })
    }

    /// Adds a context, or replaces the one of the same name.
    pub fn set(&mut self, context: Context) {
        match self.contexts.iter_mut().find(|other| other.name == context.name) {
            Some(other) => *other = context,
            None => self.contexts.push(context),
        }
    }
}

impl Context {
    /// How to reach this context's cluster; `folder` is that of the file it came from.
    pub fn client_config(&self, folder: &Path) -> Result<ClientConfig, ConfigError> {
        let bad = |problem| ConfigError::BadContext { name: self.name.clone(), problem };
        let ca = match (&self.ca, &self.ca_file) {
            (Some(_), Some(_)) => return Err(bad("both `ca` and `ca_file`")),
            (Some(text), None) => Pem::Text(text.clone()),
            (None, Some(file)) => Pem::File(folder.join(file)),
            (None, None) => return Err(bad("neither `ca_file` nor `ca`: no server could be trusted")),
        };
        if self.endpoints.is_empty() {
            return Err(bad("no endpoints"));
        }
        let mut config = ClientConfig::new(self.endpoints.iter().cloned(), ca);
        config.credentials = self.credentials(folder)?;
        config.server_name = self.server_name.clone();
        config.supervisor = self.supervisor.clone();
        Ok(config)
    }

    fn credentials(&self, folder: &Path) -> Result<Credentials, ConfigError> {
        let bad = |problem| ConfigError::BadContext { name: self.name.clone(), problem };
        let token = match (&self.token, &self.token_file) {
            (Some(_), Some(_)) => return Err(bad("both `token` and `token_file`")),
            (Some(token), None) => Some(Credentials::Token(token.clone())),
            (None, Some(file)) => Some(Credentials::TokenFile(folder.join(file))),
            (None, None) => None,
        };
        match (token, &self.certificate_file, &self.key_file) {
            (Some(token), None, None) => Ok(token),
            (None, None, None) => Ok(Credentials::None),
            (None, Some(certificate), Some(key)) => Ok(Credentials::Certificate {
                certificate: Pem::File(folder.join(certificate)),
                key: Pem::File(folder.join(key)),
            }),
            (Some(_), _, _) => Err(bad("both a token and a certificate")),
            (None, _, _) => Err(bad("only one of `certificate_file` and `key_file`")),
        }
    }
}

/// Writes beside the target and renames, so that the file is always whole. New folders are for the owner only, too.
fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    create_private_folder(folder)?;
    let name = path.file_name().ok_or_else(|| io::Error::other("it is not the path of a file"))?;
    let mut temporary_name = std::ffi::OsString::from(".");
    temporary_name.push(name);
    temporary_name.push(format!(".{:016x}", rand::random::<u64>()));
    let temporary = folder.join(temporary_name);
    let written = write_new(&temporary, content).and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

fn create_private_folder(folder: &Path) -> io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

#[cfg(test)]
mod tests;
