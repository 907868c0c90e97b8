//! Clients that are not in Kubernetes: through a port of this machine, with the CA and the token of the cluster's Secret.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};

use super::Installation;
use crate::{process::run, programs};

/// The Service and the Secret that the operator makes for clients of cluster `demo`.
const SERVICE: &str = "service/demo";
const SECRET: &str = "secret/demo-client";
const COMMAND_LIMIT: Duration = Duration::from_secs(330);

/// What `cairn` needs to know, as its environment.
pub struct Outside {
    pub endpoint: String,
    pub ca_file: PathBuf,
    pub token_file: PathBuf,
}

impl Outside {
    pub(super) fn of(installation: &Installation) -> Result<Self> {
        let bed = installation.bed();
        let folder = bed.folder().join("client");
        std::fs::create_dir_all(&folder)?;
        let (ca_file, token_file) = (folder.join("ca.crt"), folder.join("token"));
        for (entry, file) in [("ca\\.crt", &ca_file), ("token", &token_file)] {
            let encoded = installation.field(SECRET, &format!(".data.{entry}"))?;
            let content = STANDARD.decode(encoded.trim()).with_context(|| format!("{SECRET}: {entry}"))?;
            ensure!(!content.is_empty(), "{SECRET} has no {entry}");
            std::fs::write(file, content)?;
        }
        let address: IpAddr = installation.field(SERVICE, ".spec.clusterIP")?.trim().parse()?;
        let port = installation.field(SERVICE, ".spec.ports[?(@.name==\"grpc\")].port")?.trim().parse()?;
        // The certificate is also for `localhost`, as which a forwarded port is reached.
        let endpoint = format!("https://localhost:{}", bed.forward(address, port)?.port());
        Ok(Self { endpoint, ca_file, token_file })
    }

    /// The environment of `cairn`.
    pub fn environment(&self) -> [(&'static str, String); 3] {
        [
            ("CAIRN_ENDPOINT", self.endpoint.clone()),
            ("CAIRN_CA_FILE", self.ca_file.display().to_string()),
            ("CAIRN_TOKEN_FILE", self.token_file.display().to_string()),
        ]
    }

    /// Runs the command line; what it printed.
    pub fn cairn(&self, arguments: &[&str]) -> Result<String> {
        let mut spec = programs::cairn().args(arguments);
        for (name, value) in self.environment() {
            spec = spec.env(name, value);
        }
        let output = run(spec, None, COMMAND_LIMIT)?;
        ensure!(output.success, "cairn {}: {}{}", arguments.join(" "), output.stdout, output.stderr);
        Ok(output.stdout)
    }
}
