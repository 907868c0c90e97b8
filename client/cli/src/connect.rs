//! Which cluster is meant: options and environment, laid over a context.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cairn_client::config::{self, ConfigError, ConfigFile, Context};
use cairn_client::{Client, ClientConfig, Credentials, Limits, Pem};

use crate::args::Common;
use crate::failure::Failure;

/// Variables whose values are text. (`CAIRN_CONFIG` is a path, of any bytes.)
const VARIABLES: [&str; 6] = [
    "CAIRN_CONTEXT",
    "CAIRN_ENDPOINT",
    "CAIRN_CA_FILE",
    "CAIRN_TOKEN",
    "CAIRN_TOKEN_FILE",
    "CAIRN_SERVER_NAME",
];

/// Refuses a variable that is not text: to go on as if it were not set would be to act as somebody else.
pub fn check_environment(variable: impl Fn(&str) -> Option<OsString>) -> Result<(), Failure> {
    let is_text = |name: &&str| variable(name).is_none_or(|value| value.to_str().is_some());
    match VARIABLES.iter().find(|name| !is_text(name)) {
        None => Ok(()),
        Some(name) => Err(Failure::usage(
            format!("the environment variable {name} is not UTF-8"),
            format!("set {name} anew, or unset it"),
        )),
    }
}

/// What was said about the cluster.
pub struct Target {
    context: Option<String>,
    endpoints: Vec<String>,
    ca_file: Option<PathBuf>,
    token: Option<String>,
    token_file: Option<PathBuf>,
    server_name: Option<String>,
    timeout: Option<Duration>,
}

impl Target {
    pub fn new(common: &Common) -> Self {
        // An empty variable is as good as none.
        let filled = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let file = |path: &Option<PathBuf>| path.clone().filter(|path| !path.as_os_str().is_empty());
        Self {
            context: filled(&common.context),
            endpoints: common.endpoint.iter().filter(|text| !text.is_empty()).cloned().collect(),
            ca_file: file(&common.ca_file),
            token: std::env::var("CAIRN_TOKEN").ok().filter(|token| !token.is_empty()),
            token_file: file(&common.token_file),
            server_name: filled(&common.server_name),
            timeout: common.timeout,
        }
    }

    pub fn client(&self, parallel: usize) -> Result<Client, Failure> {
        let (path, file) = match config::read_default() {
            Err(ConfigError::NoHome) => Default::default(),
            Err(ConfigError::NoSuchFile { .. }) if self.is_complete() => Default::default(),
            read => read?,
        };
        let mut config = self.client_config(&file, &path)?;
        config.parallel_transfers = parallel;
        if let Some(timeout) = self.timeout {
            config.limits = within(timeout, config.limits);
        }
        Ok(Client::connect(config)?)
    }

    /// Whether no context is needed.
    fn is_complete(&self) -> bool {
        self.ca_file.is_some() && !self.endpoints.is_empty() && self.context.is_none()
    }

    /// Options win over the context. A context's credentials are only ever shown to servers that its own CA vouches for.
    fn client_config(&self, file: &ConfigFile, path: &Path) -> Result<ClientConfig, Failure> {
        let folder = path.parent().unwrap_or(Path::new(""));
        let context = if self.is_complete() { None } else { file.context(self.context.as_deref(), path)? };
        let mut config = match (context, &self.ca_file) {
            (None, None) => return Err(no_cluster(file)),
            (None, Some(ca)) => ClientConfig::new(Vec::<String>::new(), Pem::File(ca.clone())),
            (Some(context), Some(ca)) => {
                let mut config = ClientConfig::new(context.endpoints.clone(), Pem::File(ca.clone()));
                config.server_name = context.server_name.clone();
                config
            }
            (Some(context), None) => context.client_config(folder)?,
        };
        if !self.endpoints.is_empty() {
            config.endpoints = self.endpoints.clone();
        }
        if self.server_name.is_some() {
            config.server_name = self.server_name.clone();
        }
        match (&self.token, &self.token_file) {
            (_, Some(token_file)) => config.credentials = Credentials::TokenFile(token_file.clone()),
            (Some(token), None) => config.credentials = Credentials::Token(token.clone()),
            (None, None) => {}
        }
        Ok(config)
    }

    /// The context that these options describe, for `context set`. Paths become absolute: they were meant from here.
    pub fn describe(&self, name: String) -> Result<Context, Failure> {
        let absolute = |path: &Option<PathBuf>| match path {
            Some(path) => {
                std::path::absolute(path).map(Some).map_err(|error| Failure::io(path.display(), &error))
            }
            None => Ok(None),
        };
        let token_file = absolute(&self.token_file)?;
        let token = if token_file.is_none() { self.token.clone() } else { None };
        Ok(Context {
            name,
            endpoints: self.endpoints.clone(),
            ca_file: absolute(&self.ca_file)?,
            token,
            token_file,
            server_name: self.server_name.clone(),
            ..Context::default()
        })
    }

    /// The context that is meant by name, if any.
    pub fn context_name(&self) -> Option<&str> {
        self.context.as_deref()
    }
}

fn no_cluster(file: &ConfigFile) -> Failure {
    if file.contexts.is_empty() {
        return Failure::usage(
            "it is not known which cluster is meant",
            "give --endpoint and --ca-file (or CAIRN_ENDPOINT and CAIRN_CA_FILE), or write a context with `cairn context set`",
        );
    }
    Failure::usage(
        "there are several contexts and none is the current one",
        "choose one with `cairn context use NAME`, or name one with --context",
    )
}

/// Limits of calls, and of transfers that stand still, that may take so long.
fn within(timeout: Duration, limits: Limits) -> Limits {
    Limits {
        call_timeout: timeout,
        attempt_timeout: limits.attempt_timeout.min(timeout),
        connect_timeout: limits.connect_timeout.min(timeout),
        stall_timeout: limits.stall_timeout.min(timeout),
        ..limits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_timeout_bounds_every_wait_and_a_long_one_only_the_call() {
        let seconds = Duration::from_secs;
        let short = within(seconds(3), Limits::default());
        let waits = [short.call_timeout, short.attempt_timeout, short.connect_timeout, short.stall_timeout];
        assert_eq!(waits, [seconds(3); 4]);
        let long = within(seconds(300), Limits::default());
        assert_eq!((long.call_timeout, long.stall_timeout), (seconds(300), Limits::default().stall_timeout));
    }

    fn target() -> Target {
        Target {
            context: None,
            endpoints: vec![],
            ca_file: None,
            token: None,
            token_file: None,
            server_name: None,
            timeout: None,
        }
    }

    fn file() -> ConfigFile {
        let context = |name: &str| Context {
            name: name.into(),
            endpoints: vec![format!("{name}:1")],
            ca_file: Some("ca.crt".into()),
            token: Some(format!("{name}-token")),
            ..Context::default()
        };
        ConfigFile { current: Some("one".into()), contexts: vec![context("one"), context("two")] }
    }

    fn resolve(target: &Target) -> ClientConfig {
        target.client_config(&file(), Path::new("/c/config.yaml")).unwrap()
    }

    #[test]
    fn the_current_or_the_named_context_is_used() {
        assert_eq!(resolve(&target()).endpoints, ["one:1"]);
        let config = resolve(&Target { context: Some("two".into()), ..target() });
        assert_eq!(config.endpoints, ["two:1"]);
        assert!(matches!(&config.ca, Pem::File(path) if path == Path::new("/c/ca.crt")));
        let missing = Target { context: Some("three".into()), ..target() };
        let failure = missing.client_config(&file(), Path::new("/c/config.yaml")).unwrap_err();
        assert_eq!(failure.exit as u8, 3);
    }

    #[test]
    fn a_variable_that_is_not_text_is_refused_by_name() {
        use std::os::unix::ffi::OsStringExt;
        for wanted in VARIABLES {
            let bad = |name: &str| (name == wanted).then(|| OsString::from_vec(b"secret\xff".to_vec()));
            let failure = check_environment(bad).unwrap_err();
            assert!(failure.cause.contains(&format!("{wanted} is not UTF-8")), "{failure:?}");
            assert!(!failure.cause.contains("secret"), "{failure:?}");
            assert_eq!(failure.exit as u8, 2);
        }
        assert!(check_environment(|name| (name == "CAIRN_TOKEN").then(|| "tökén".into())).is_ok());
    }

    #[test]
    fn options_win_over_the_context() {
        let config =
            resolve(&Target { endpoints: vec!["x:1".into()], token: Some("mine".into()), ..target() });
        assert_eq!(config.endpoints, ["x:1"]);
        assert!(matches!(&config.credentials, Credentials::Token(token) if token == "mine"));
        assert!(matches!(&config.ca, Pem::File(path) if path == Path::new("/c/ca.crt")));
    }

    #[test]
    fn a_contexts_token_is_never_shown_to_servers_of_another_authority() {
        for endpoints in [vec![], vec!["x:1".to_owned()]] {
            let config = resolve(&Target { ca_file: Some("other.crt".into()), endpoints, ..target() });
            assert!(matches!(config.credentials, Credentials::None));
            assert!(matches!(&config.ca, Pem::File(path) if path == Path::new("other.crt")));
        }
    }

    #[test]
    fn without_any_context_endpoint_and_ca_are_enough() {
        let empty = ConfigFile::default();
        let both = Target { ca_file: Some("ca.crt".into()), endpoints: vec!["x:1".into()], ..target() };
        assert_eq!(both.client_config(&empty, Path::new("")).unwrap().endpoints, ["x:1"]);
        let failure = target().client_config(&empty, Path::new("")).unwrap_err();
        assert!(failure.help.contains("CAIRN_ENDPOINT"));
    }
}
