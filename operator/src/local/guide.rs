//! What people and programs need to use a local cluster: contexts for `cairn`, a file that says "ready", a page of text.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use cairn_client::config::{ConfigError, ConfigFile, Context};
use cairn_node::secrets::SecretFiles;
use serde::Serialize;

use super::{Planned, folder::Folder};

/// Where everything is. As JSON, it is the ready file.
#[derive(Debug, Clone, Serialize)]
pub struct Guide {
    pub cluster: String,
    pub data_dir: PathBuf,
    /// `host:port` of the supervisor's gRPC service `Local`.
    pub supervisor: String,
    pub nodes: Vec<NodeGuide>,
    pub volumes: Vec<String>,
    pub contexts: PathBuf,
    pub ca: PathBuf,
    pub token: PathBuf,
    pub operator_certificate: PathBuf,
    pub operator_key: PathBuf,
}

#[derive(Debug, Clone, Serialize)]
pub struct NodeGuide {
    pub name: String,
    pub zone: String,
    /// `host:port`.
    pub grpc: String,
    /// `https://host:port`.
    pub http: String,
}

impl Guide {
    pub fn new(planned: &Planned, folder: &Folder, secrets: &SecretFiles) -> Self {
        let address = |port| SocketAddr::new(planned.host, port).to_string();
        let nodes = planned.cluster.nodes().into_iter().map(|node| {
            let ports = planned.ports.nodes[&node.name];
            let (grpc, http) = (address(ports.grpc), format!("https://{}", address(ports.http)));
            NodeGuide { name: node.name, zone: node.zone, grpc, http }
        });
        Self {
            cluster: planned.cluster.name.clone(),
            data_dir: folder.root().to_owned(),
            supervisor: address(planned.ports.supervisor),
            nodes: nodes.collect(),
            volumes: planned.volumes.iter().filter_map(|volume| volume.metadata.name.clone()).collect(),
            contexts: folder.contexts(),
            ca: secrets.authority_certificate.clone(),
            token: secrets.client_token.clone(),
            operator_certificate: secrets.operator_certificate.clone(),
            operator_key: secrets.operator_key.clone(),
        }
    }

    /// Writes the file of contexts; other contexts that somebody put there stay.
    pub fn write_contexts(&self, path: &Path) -> Result<(), ConfigError> {
        let before = ConfigFile::read(path)?;
        let mut file = before.clone();
        file.set(Context {
            name: self.cluster.clone(),
            endpoints: self.nodes.iter().map(|node| format!("https://{}", node.grpc)).collect(),
            ca_file: Some(self.ca.clone()),
            token_file: Some(self.token.clone()),
            supervisor: Some(format!("https://{}", self.supervisor)),
            ..Context::default()
        });
        file.current.get_or_insert_with(|| self.cluster.clone());
        if file == before { Ok(()) } else { file.write(path) }
    }

    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("a guide is plain data");
        text.push('\n');
        text
    }
}

impl fmt::Display for Guide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        let zones: std::collections::BTreeSet<&str> =
            self.nodes.iter().map(|node| node.zone.as_str()).collect();
        let (nodes, zones) = (count(self.nodes.len(), "node"), count(zones.len(), "zone"));
        writeln!(
            f,
            "Cluster {} is ready: {nodes} in {zones}, data in {}\n",
            self.cluster,
            quoted(&self.data_dir)
        )?;
        let width = self.nodes.iter().map(|node| node.name.len()).max().unwrap_or_default().max(4);
        let zone_width = self.nodes.iter().map(|node| node.zone.len()).max().unwrap_or_default().max(4);
        writeln!(f, "  {:width$}  {:zone_width$}  {:22}  HTTPS", "NODE", "ZONE", "GRPC")?;
        for node in &self.nodes {
            writeln!(
                f,
                "  {:width$}  {:zone_width$}  {:22}  {}",
                node.name, node.zone, node.grpc, node.http
            )?;
        }
        let volume = self.volumes.first().map_or("files", String::as_str);
        writeln!(f, "\nIn another terminal:\n")?;
        writeln!(f, "  export CAIRN_CONFIG={}", quoted(&self.contexts))?;
        if self.volumes.is_empty() {
            writeln!(f, "  cairn mkvol {volume}")?;
        }
        writeln!(f, "  cairn put README.md {volume}")?;
        writeln!(f, "  cairn get {volume}/README.md copy.md")?;
        writeln!(f, "  cairn status")?;
        if let (true, Some(node)) = (self.nodes.len() > 1, self.nodes.last()) {
            writeln!(f, "  cairn node stop {}      # as if its machine had lost power", node.name)?;
        }
        if let Some(node) = self.nodes.first() {
            let (ca, token) = (quoted(&self.ca), quoted(&self.token));
            writeln!(f, "\nWith cURL:\n")?;
            writeln!(f, "  curl --cacert {ca} -H \"authorization: Bearer $(cat {token})\" \\")?;
            writeln!(f, "    {}/v1/volumes/{volume}/files/README.md", node.http)?;
        }
        write!(f, "\nCtrl-C stops the cluster; the data stays.")
    }
}

/// A path for a shell.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guide(folder: &Path) -> Guide {
        Guide {
            cluster: "laptop".into(),
            data_dir: folder.to_owned(),
            supervisor: "127.0.0.1:7400".into(),
            nodes: vec![NodeGuide {
                name: "laptop-main-a-0".into(),
                zone: "a".into(),
                grpc: "127.0.0.1:7401".into(),
                http: "https://127.0.0.1:7402".into(),
            }],
            volumes: vec!["files".into()],
            contexts: folder.join("config.yaml"),
            ca: folder.join("ca.crt"),
            token: folder.join("it's a token"),
            operator_certificate: folder.join("operator.crt"),
            operator_key: folder.join("operator.key"),
        }
    }

    #[test]
    fn contexts_are_added_once_and_others_stay() {
        let folder = tempfile::tempdir().unwrap();
        let guide = guide(folder.path());
        let mut file = ConfigFile::default();
        file.set(Context { name: "mine".into(), endpoints: vec!["x".into()], ..Context::default() });
        file.write(&guide.contexts).unwrap();
        guide.write_contexts(&guide.contexts).unwrap();
        guide.write_contexts(&guide.contexts).unwrap();
        let file = ConfigFile::read(&guide.contexts).unwrap();
        assert_eq!(file.contexts.len(), 2);
        assert_eq!(file.current.as_deref(), Some("laptop"));
        let context = file.context(None, &guide.contexts).unwrap().unwrap();
        assert_eq!(context.endpoints, ["https://127.0.0.1:7401"]);
    }

    #[test]
    fn what_is_printed_can_be_pasted() {
        let text = guide(Path::new("/data dir")).to_string();
        assert!(text.contains("export CAIRN_CONFIG='/data dir/config.yaml'"), "{text}");
        assert!(text.contains(r"$(cat '/data dir/it'\''s a token')"), "{text}");
        assert!(text.starts_with("Cluster laptop is ready: 1 node in 1 zone"), "{text}");
    }
}
