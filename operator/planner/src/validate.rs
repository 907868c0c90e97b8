//! Parses a spec once into a type that cannot be wrong; everything after builds on it without failing.
//!
//! The API server has checked the same schema, but clusters applied before a rule existed, and manifests that met no API
//! server (`cairn-operator local`), come here too: so bounds and names are checked again.

use std::collections::BTreeSet;

use cairn_crds::{
    CLUSTER_NAME_MAX, ComputeResources, DeletionPolicy, JOINED_NAME_MAX, PoolSpec, Quantity, StorageCluster,
    Volume,
};

use crate::contract::Names;
use crate::refusal::Refusal;

/// Where a cluster is to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Pods; metadata in etcd.
    Kubernetes,
    /// Nodes in the operator's process; metadata in its embedded store, whatever the spec says.
    Local,
}

/// A StorageCluster that can be built.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidCluster {
    pub name: String,
    /// Empty in local mode.
    pub namespace: String,
    /// Empty in local mode.
    pub uid: String,
    pub generation: i64,
    pub image: Option<String>,
    pub pool: ValidPool,
    pub metadata: MetadataStore,
    pub grpc_port: i32,
    pub http_port: i32,
    /// The Secret that the spec names for the key; `None`: the operator makes one.
    pub given_key_secret: Option<String>,
}

/// The one pool.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidPool {
    pub name: String,
    /// In the order of the spec; at least one.
    pub zones: Vec<ValidZone>,
    pub zone_label: String,
    pub disk: Disk,
    pub resources: ComputeResources,
}

#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ValidZone {
    pub name: String,
    /// At least 1.
    pub nodes: i32,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Disk {
    pub bytes: i64,
    /// As written in the spec.
    pub size: Quantity,
    pub storage_class: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetadataStore {
    Embedded,
    Etcd {
        /// `host:port`, in the order of the spec; at least one.
        endpoints: Vec<String>,
        /// Without slashes at its ends.
        prefix: String,
        tls_secret: Option<String>,
    },
}

/// One storage node as it should be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PlannedNode {
    /// `<cluster>-<pool>-<zone>-<ordinal>`: the pod's name in Kubernetes, and the node's name everywhere.
    pub name: String,
    pub pool: String,
    pub zone: String,
}

impl ValidCluster {
    pub fn names(&self) -> Names<'_> {
        Names { cluster: &self.name, namespace: &self.namespace }
    }

    /// Every node, zone by zone in the order of the spec.
    pub fn nodes(&self) -> Vec<PlannedNode> {
        let pool = &self.pool;
        pool.zones
            .iter()
            .flat_map(|zone| {
                let set = self.names().stateful_set(&pool.name, &zone.name);
                (0..zone.nodes).map(move |ordinal| PlannedNode {
                    name: format!("{set}-{ordinal}"),
                    pool: pool.name.clone(),
                    zone: zone.name.clone(),
                })
            })
            .collect()
    }

    pub fn node_count(&self) -> i32 {
        self.pool.zones.iter().map(|zone| zone.nodes).sum()
    }

    /// Name of the Secret with the key, given or made.
    pub fn key_secret(&self) -> String {
        self.given_key_secret.clone().unwrap_or_else(|| self.names().generated_kek_secret())
    }
}

/// The smallest disk on which segments, index and reserve fit sensibly.
const DISK_BYTES_MIN: i64 = 1 << 30;

/// Parses a StorageCluster.
pub fn cluster(resource: &StorageCluster, mode: Mode) -> Result<ValidCluster, Refusal> {
    let spec = &resource.spec;
    let name = resource.metadata.name.clone().unwrap_or_default();
    named("metadata.name", &name, CLUSTER_NAME_MAX, Alphabet::Service)?;
    let [pool] = spec.pools.as_slice() else {
        return Err(Refusal::OnePoolOnly { count: spec.pools.len() });
    };
    let pool = valid_pool(&name, pool)?;
    for (field, port) in [("spec.ports.grpc", spec.ports.grpc), ("spec.ports.http", spec.ports.http)] {
        bounded(field, port, 1024, 65535, "1024 to 65535")?;
    }
    if spec.ports.grpc == spec.ports.http {
        return Err(Refusal::SamePorts { port: spec.ports.grpc });
    }
    let namespace = resource.metadata.namespace.clone().unwrap_or_default();
    let metadata = match mode {
        Mode::Local => MetadataStore::Embedded,
        Mode::Kubernetes => etcd(resource, &namespace, &name)?,
    };
    let given_key_secret = spec.encryption.key_secret_name.clone();
    if let Some(secret) = &given_key_secret {
        named("spec.encryption.keySecretName", secret, 253, Alphabet::Object)?;
    }
    Ok(ValidCluster {
        uid: resource.metadata.uid.clone().unwrap_or_default(),
        generation: resource.metadata.generation.unwrap_or_default(),
        image: spec.image.clone().filter(|image| !image.is_empty()),
        pool,
        metadata,
        grpc_port: spec.ports.grpc,
        http_port: spec.ports.http,
        given_key_secret,
        namespace,
        name,
    })
}

fn valid_pool(cluster: &str, pool: &PoolSpec) -> Result<ValidPool, Refusal> {
    named("spec.pools[0].name", &pool.name, 16, Alphabet::Pool)?;
    bounded("the number of zones", pool.zones.len() as i32, 1, 16, "1 to 16")?;
    let mut seen = BTreeSet::new();
    for zone in &pool.zones {
        let field = "spec.pools[0].zones";
        named(field, &zone.name, 32, Alphabet::Label)?;
        bounded(&format!("{field}.nodes of {}", zone.name), zone.nodes, 1, 64, "1 to 64")?;
        if !seen.insert(&zone.name) {
            return Err(Refusal::Duplicate { field: field.to_owned(), value: zone.name.clone() });
        }
        if cluster.len() + pool.name.len() + zone.name.len() > JOINED_NAME_MAX {
            let value = format!("{cluster}-{}-{}", pool.name, zone.name);
            let rule = "the names of cluster, pool and zone together are at most 50 characters";
            return Err(Refusal::BadName { field: "the joined name".to_owned(), value, rule });
        }
    }
    let amount = |field: &str, quantity: &Quantity| match quantity.bytes() {
        Ok(bytes) => Ok(bytes),
        Err(problem) => Err(Refusal::BadAmount { field: format!("spec.pools[0].{field}"), problem }),
    };
    let bytes = amount("storage.size", &pool.storage.size)?;
    if bytes < DISK_BYTES_MIN {
        return Err(Refusal::DiskTooSmall { bytes });
    }
    let resources = pool.resources.clone().unwrap_or_default();
    for (field, amounts) in [("requests", &resources.requests), ("limits", &resources.limits)] {
        let Some(amounts) = amounts else { continue };
        for (entry, quantity) in [("cpu", &amounts.cpu), ("memory", &amounts.memory)] {
            if let Some(quantity) = quantity {
                amount(&format!("resources.{field}.{entry}"), quantity)?;
            }
        }
    }
    Ok(ValidPool {
        name: pool.name.clone(),
        zones: pool.zones.iter().map(|z| ValidZone { name: z.name.clone(), nodes: z.nodes }).collect(),
        zone_label: pool.zone_label.clone(),
        disk: Disk {
            bytes,
            size: pool.storage.size.clone(),
            storage_class: pool.storage.storage_class_name.clone(),
        },
        resources,
    })
}

fn etcd(resource: &StorageCluster, namespace: &str, name: &str) -> Result<MetadataStore, Refusal> {
    let Some(metadata) = &resource.spec.metadata else {
        return Err(Refusal::EtcdMissing);
    };
    let etcd = &metadata.etcd;
    if etcd.endpoints.is_empty() {
        return Err(Refusal::EtcdMissing);
    }
    bounded("the number of etcd endpoints", etcd.endpoints.len() as i32, 1, 9, "1 to 9")?;
    let endpoints = etcd.endpoints.iter().map(|text| endpoint(text)).collect::<Result<Vec<_>, _>>()?;
    if let Some(twice) =
        endpoints.iter().enumerate().find_map(|(i, e)| endpoints[..i].contains(e).then_some(e))
    {
        let field = "spec.metadata.etcd.endpoints".to_owned();
        return Err(Refusal::Duplicate { field, value: twice.clone() });
    }
    let prefix = match &etcd.prefix {
        Some(prefix) => {
            named("spec.metadata.etcd.prefix", prefix, 120, Alphabet::Prefix)?;
            prefix.clone()
        }
        None => format!("cairn/{namespace}/{name}"),
    };
    Ok(MetadataStore::Etcd { endpoints, prefix, tls_secret: etcd.tls_secret_name.clone() })
}

/// `host` or `host:port` to `host:port`.
fn endpoint(text: &str) -> Result<String, Refusal> {
    let bad = || Refusal::BadEndpoint { endpoint: text.chars().take(260).collect() };
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !host.ends_with(':') && !port.contains(']') => (host, port),
        _ => (text, "2379"),
    };
    let plain = |host: &str| {
        !host.is_empty()
            && host.len() <= 253
            && host.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '.')
            && !host.starts_with(['-', '.'])
            && !host.ends_with(['-', '.'])
    };
    let literal = |host: &str| {
        host.strip_prefix('[')
            .and_then(|h| h.strip_suffix(']'))
            .is_some_and(|h| h.parse::<std::net::Ipv6Addr>().is_ok())
    };
    let number = port.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(bad)?;
    if plain(host) || literal(host) { Ok(format!("{host}:{number}")) } else { Err(bad()) }
}

/// A Volume that can be built, as far as its own spec says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValidVolume {
    pub name: String,
    pub cluster: String,
    pub copies: i32,
    pub chunk_size_bytes: i64,
    pub deletion_policy: DeletionPolicy,
}

/// Parses a Volume.
pub fn volume(resource: &Volume) -> Result<ValidVolume, Refusal> {
    let spec = &resource.spec;
    let name = resource.metadata.name.clone().unwrap_or_default();
    named("metadata.name", &name, 63, Alphabet::Label)?;
    named("spec.clusterRef.name", &spec.cluster_ref.name, CLUSTER_NAME_MAX, Alphabet::Service)?;
    bounded("spec.copies", spec.copies, 1, 7, "1 to 7")?;
    bounded("spec.chunkSizeMiB", spec.chunk_size_mib, 1, 16, "1 to 16")?;
    Ok(ValidVolume {
        name,
        cluster: spec.cluster_ref.name.clone(),
        copies: spec.copies,
        chunk_size_bytes: i64::from(spec.chunk_size_mib) << 20,
        deletion_policy: spec.deletion_policy,
    })
}

/// Which characters a name may have.
#[derive(Clone, Copy)]
enum Alphabet {
    /// A DNS label that starts with a letter, as Services need.
    Service,
    /// A DNS label.
    Label,
    /// A DNS subdomain: labels and dots.
    Object,
    /// Letters and digits, starting with a letter.
    Pool,
    /// A key prefix in etcd.
    Prefix,
}

fn named(field: &str, value: &str, length_max: usize, alphabet: Alphabet) -> Result<(), Refusal> {
    let (extra, rule) = match alphabet {
        Alphabet::Service => ("-", "lowercase letters, digits and hyphens, starting with a letter"),
        Alphabet::Label => {
            ("-", "lowercase letters, digits and hyphens, starting and ending with a letter or digit")
        }
        Alphabet::Object => ("-.", "lowercase letters, digits, hyphens and dots"),
        Alphabet::Pool => ("", "lowercase letters and digits, starting with a letter"),
        Alphabet::Prefix => {
            ("-_./", "lowercase letters, digits, dots, hyphens and underscores, with single slashes between")
        }
    };
    let letter_first = matches!(alphabet, Alphabet::Service | Alphabet::Pool);
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let good = !value.is_empty()
        && value.len() <= length_max
        && value.chars().all(|c| plain(c) || extra.contains(c))
        && value.starts_with(|c: char| c.is_ascii_lowercase() || (!letter_first && plain(c)))
        && value.ends_with(plain)
        && !value.contains("//");
    if good {
        return Ok(());
    }
    let value = value.chars().take(length_max + 1).collect();
    Err(Refusal::BadName { field: field.to_owned(), value, rule })
}

fn bounded(field: &str, value: i32, min: i32, max: i32, rule: &'static str) -> Result<(), Refusal> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(Refusal::OutOfBounds { field: field.to_owned(), value: i64::from(value), rule })
}

#[cfg(test)]
#[path = "validate_tests.rs"]
mod tests;
