//! The record of what is installed: what a spec may not change, kept where a changed spec cannot reach it.
//!
//! A ConfigMap `<cluster>-installed` holds it. Like the disks and the key it has no owner, so it outlives the
//! StorageCluster, and a cluster that is created again over its old disks must fit them.

use std::collections::BTreeMap;

use cairn_crds::{Quantity, human_bytes};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, PodSpec};
use serde::{Deserialize, Serialize};

use crate::contract::{RENDERER, entry, env};
use crate::observed::Observed;
use crate::refusal::Refusal;
use crate::validate::{Disk, MetadataStore, ValidCluster, ValidZone};

/// What is installed. Unknown fields of newer operators are ignored; [`Record::renderer`] says if that is safe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Version of the renderer that pod templates are made with.
    pub renderer: i32,
    /// The operator's default image at the time of the installation, where the spec names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_image: Option<String>,
    pub pool: String,
    pub zones: Vec<ValidZone>,
    pub zone_label: String,
    pub disk_bytes: i64,
    pub disk_size: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_class: Option<String>,
    /// Prefix in etcd; absent with the embedded store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    pub key_secret: String,
}

/// A spec, held to what is installed.
#[derive(Clone, Debug, PartialEq)]
pub struct Held {
    /// What is built: the spec, with everything that may not change as it is installed.
    pub cluster: ValidCluster,
    pub record: Record,
    pub image: String,
    /// Why the spec is not followed in something.
    pub refusal: Option<Refusal>,
}

impl Record {
    /// Reads the record from its ConfigMap.
    pub fn read(config_map: &ConfigMap) -> Result<Self, Refusal> {
        let unreadable = |problem: String| Refusal::RecordUnreadable {
            name: config_map.metadata.name.clone().unwrap_or_default(),
            problem,
        };
        let text = config_map.data.as_ref().and_then(|data| data.get(entry::RECORD));
        let text = text.ok_or_else(|| unreadable(format!("it has no entry {}", entry::RECORD)))?;
        Self::parse(text).map_err(|error| unreadable(error.to_string()))
    }

    /// Reads the record from its text.
    pub fn parse(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// The record as text.
    pub fn to_text(&self) -> String {
        serde_json::to_string_pretty(self).expect("a record is plain data")
    }

    /// What a spec installs where nothing is.
    fn of(cluster: &ValidCluster, default_image: &str) -> Self {
        let pool = &cluster.pool;
        Self {
            renderer: RENDERER,
            default_image: cluster.image.is_none().then(|| default_image.to_owned()),
            pool: pool.name.clone(),
            zones: pool.zones.clone(),
            zone_label: pool.zone_label.clone(),
            disk_bytes: pool.disk.bytes,
            disk_size: pool.disk.size.0.clone(),
            storage_class: pool.disk.storage_class.clone(),
            prefix: match &cluster.metadata {
                MetadataStore::Embedded => None,
                MetadataStore::Etcd { prefix, .. } => Some(prefix.clone()),
            },
            key_secret: cluster.key_secret(),
        }
    }
}

/// The record as it can be read off disks and StatefulSets, for a cluster whose ConfigMap was deleted; `None` where
/// nothing is installed. Disks count more than sets, which anybody may have scaled.
pub fn recovered(observed: &Observed, wanted: &ValidCluster) -> Option<Record> {
    let mut zones: BTreeMap<(String, String), i32> = BTreeMap::new();
    let mut seen = |set_name: &str, nodes: i32| {
        // Pools have no hyphens, so this reads in one way only.
        let rest = set_name.strip_prefix(wanted.name.as_str()).and_then(|rest| rest.strip_prefix('-'));
        if let Some((pool, zone)) = rest.and_then(|rest| rest.split_once('-')) {
            let known = zones.entry((pool.to_owned(), zone.to_owned())).or_insert(nodes);
            *known = nodes.max(*known);
        }
    };
    for claim in &observed.volume_claims {
        let name = claim.metadata.name.as_deref().and_then(|name| name.strip_prefix("data-"));
        if let Some((set, ordinal)) = name.and_then(|name| name.rsplit_once('-'))
            && let Ok(ordinal) = ordinal.parse::<u16>()
        {
            seen(set, i32::from(ordinal) + 1);
        }
    }
    for set in &observed.stateful_sets {
        let replicas = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
        seen(set.metadata.name.as_deref().unwrap_or_default(), replicas.max(1));
    }
    let pool = zones.keys().next()?.0.clone();
    let zones = zones.into_iter().filter(|((p, _), _)| *p == pool);
    let mut record = Record::of(wanted, &observed.default_image);
    record.zones = zones.map(|((_, name), nodes)| ValidZone { name, nodes }).collect();
    record.pool = pool;
    if let Some(set) = observed.stateful_sets.first() {
        read_set(&mut record, set, wanted);
        if wanted.image.is_none()
            && let Some(image) = running_image(observed)
        {
            record.default_image = Some(image);
        }
    }
    Some(record)
}

/// The image that most ready pods run: it is known to be good, where that of a StatefulSet may be one that was just wished
/// for and cannot be had.
fn running_image(observed: &Observed) -> Option<String> {
    let mut ready: BTreeMap<&str, usize> = BTreeMap::new();
    for pod in observed.pods.iter().filter(|pod| is_ready(pod)) {
        let image = pod.spec.as_ref().and_then(|spec| spec.containers.first()?.image.as_deref());
        image.into_iter().for_each(|image| *ready.entry(image).or_default() += 1);
    }
    ready.into_iter().max_by_key(|(_, pods)| *pods).map(|(image, _)| image.to_owned())
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|one| one.type_ == "Ready" && one.status == "True")
}

/// Takes from a StatefulSet what is the same in all of them.
fn read_set(record: &mut Record, set: &StatefulSet, wanted: &ValidCluster) -> Option<()> {
    let spec = set.spec.as_ref()?;
    let claim = spec.volume_claim_templates.as_ref()?.first()?.spec.as_ref()?;
    record.storage_class.clone_from(&claim.storage_class_name);
    let size = claim.resources.as_ref()?.requests.as_ref()?.get("storage")?;
    record.disk_bytes = Quantity(size.0.clone()).bytes().ok()?;
    record.disk_size.clone_from(&size.0);
    let pod = spec.template.spec.as_ref()?;
    record.renderer = rendered_with(pod);
    record.zone_label.clone_from(pod.node_selector.as_ref()?.keys().next()?);
    let secret = pod.volumes.iter().flatten().find(|volume| volume.name == "kek")?.secret.as_ref()?;
    record.key_secret.clone_from(secret.secret_name.as_ref()?);
    record.prefix = Some(stored_prefix(pod)?);
    if wanted.image.is_none() {
        record.default_image = pod.containers.first()?.image.clone();
    }
    Some(())
}

/// The renderer that a pod's template was made with, by what the later ones added.
fn rendered_with(pod: &PodSpec) -> i32 {
    let variables = || pod.containers.iter().flat_map(|container| container.env.iter().flatten());
    let has = |name| variables().any(|variable| variable.name == name);
    match () {
        () if has(env::NEW_DISK) => 3,
        () if has(env::CAPACITY) => 2,
        () => 1,
    }
}

fn stored_prefix(pod: &PodSpec) -> Option<String> {
    let variables = pod.containers.first()?.env.as_ref()?;
    let url = variables.iter().find(|variable| variable.name == env::DATABASE_URL)?.value.as_ref()?;
    let (_, rest) = url.strip_prefix("etcd://")?.split_once('/')?;
    rest.split('?').next().map(str::to_owned)
}

/// Holds a spec to what is installed. What may not change stays as it is, and the first such wish is refused; what may
/// change is followed. So a refused change neither breaks a cluster nor keeps it from being healed.
///
/// Fails only if the record says that this operator must not touch the cluster.
pub fn hold(wanted: ValidCluster, installed: Option<&Record>, default_image: &str) -> Result<Held, Refusal> {
    let fresh = Record::of(&wanted, default_image);
    let Some(installed) = installed else {
        let image = wanted.image.clone().unwrap_or_else(|| default_image.to_owned());
        return Ok(Held { cluster: wanted, record: fresh, image, refusal: None });
    };
    if installed.renderer > RENDERER {
        return Err(Refusal::OperatorTooOld { found: installed.renderer, known: RENDERER });
    }
    let refusal = difference(installed, &fresh);
    let mut record = installed.clone();
    if wanted.image.is_none() && record.default_image.is_none() {
        record.default_image = Some(default_image.to_owned());
    }
    let image = wanted.image.clone().or_else(|| record.default_image.clone());
    let image = image.unwrap_or_else(|| default_image.to_owned());
    Ok(Held { cluster: as_installed(wanted, installed), record, image, refusal })
}

fn as_installed(mut cluster: ValidCluster, installed: &Record) -> ValidCluster {
    let pool = &mut cluster.pool;
    pool.name.clone_from(&installed.pool);
    // The order of the zones means nothing, but is followed, lest it be taken for a difference somewhere.
    pool.zones.clone_from(&installed.zones);
    pool.zone_label.clone_from(&installed.zone_label);
    pool.disk = Disk {
        bytes: installed.disk_bytes,
        size: installed.disk_size.as_str().into(),
        storage_class: installed.storage_class.clone(),
    };
    if let (MetadataStore::Etcd { prefix, .. }, Some(kept)) = (&mut cluster.metadata, &installed.prefix) {
        prefix.clone_from(kept);
    }
    if cluster.key_secret() != installed.key_secret {
        let generated = cluster.names().generated_kek_secret();
        cluster.given_key_secret = Some(installed.key_secret.clone()).filter(|name| *name != generated);
    }
    cluster
}

/// The first thing that the spec wants otherwise than it is installed.
fn difference(installed: &Record, wanted: &Record) -> Option<Refusal> {
    let sorted = |record: &Record| {
        let mut zones = record.zones.clone();
        zones.sort_by(|a, b| a.name.cmp(&b.name));
        zones
    };
    let (have, want) = (sorted(installed), sorted(wanted));
    if installed.pool != wanted.pool || installed.zone_label != wanted.zone_label || have != want {
        let smaller = installed.pool == wanted.pool
            && have
                .iter()
                .any(|zone| want.iter().find(|z| z.name == zone.name).is_none_or(|z| z.nodes < zone.nodes));
        let (installed, wanted) = (layout(installed, &have), layout(wanted, &want));
        return Some(if smaller {
            Refusal::Shrinking { installed, wanted }
        } else {
            Refusal::PoolChanged { installed, wanted }
        });
    }
    if (installed.disk_bytes, &installed.storage_class) != (wanted.disk_bytes, &wanted.storage_class) {
        let shown = |record: &Record| {
            let class = record.storage_class.as_deref().unwrap_or("the default class");
            format!("{} of {class}", human_bytes(record.disk_bytes))
        };
        return Some(Refusal::StorageChanged { installed: shown(installed), wanted: shown(wanted) });
    }
    if installed.prefix != wanted.prefix {
        let shown =
            |prefix: &Option<String>| prefix.clone().unwrap_or_else(|| "the embedded store".to_owned());
        return Some(Refusal::PrefixChanged {
            installed: shown(&installed.prefix),
            wanted: shown(&wanted.prefix),
        });
    }
    if installed.key_secret != wanted.key_secret {
        let (installed, wanted) = (installed.key_secret.clone(), wanted.key_secret.clone());
        return Some(Refusal::KeyChanged { installed, wanted });
    }
    None
}

/// `main(a=2 b=1) by topology.kubernetes.io/zone`, without the label where it is the usual one.
fn layout(record: &Record, zones: &[ValidZone]) -> String {
    let zones: Vec<String> = zones.iter().map(|zone| format!("{}={}", zone.name, zone.nodes)).collect();
    let label = match record.zone_label.as_str() {
        "topology.kubernetes.io/zone" => String::new(),
        other => format!(" by {other}"),
    };
    format!("{}({}){label}", record.pool, zones.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn held(change: impl FnOnce(&mut ValidCluster)) -> Held {
        let installed = Record::of(&testing::valid_cluster(), "image:1");
        let mut wanted = testing::valid_cluster();
        change(&mut wanted);
        hold(wanted, Some(&installed), "image:2").expect("the record is of this version")
    }

    #[test]
    fn records_survive_text() {
        let record = Record::of(&testing::valid_cluster(), "image:1");
        assert_eq!(Record::parse(&record.to_text()).unwrap(), record);
        assert!(Record::parse("{}").is_err());
    }

    #[test]
    fn an_unchanged_spec_is_not_refused_and_keeps_its_image() {
        let held = held(|_| {});
        assert_eq!(held.refusal, None);
        assert_eq!(held.image, "image:1", "a newer operator's default is not taken by itself");
        assert_eq!(held.cluster, testing::valid_cluster());
    }

    #[test]
    fn a_named_image_is_followed() {
        assert_eq!(held(|c| c.image = Some("image:9".into())).image, "image:9");
    }

    #[test]
    fn the_order_of_zones_means_nothing() {
        let held = held(|c| c.pool.zones.reverse());
        assert_eq!(held.refusal, None);
        assert_eq!(held.cluster, testing::valid_cluster());
    }

    #[test]
    fn what_may_not_change_is_refused_and_stays() {
        type Change = fn(&mut ValidCluster);
        let cases: [(Change, &str); 9] = [
            (|c| c.pool.zones[0].nodes = 1, "ShrinkingRefused"),
            (|c| drop(c.pool.zones.pop()), "ShrinkingRefused"),
            (|c| c.pool.zones[2].name = "d".into(), "ShrinkingRefused"),
            (|c| c.pool.zones[1].nodes = 2, "PoolChangeRefused"),
            (|c| c.pool.name = "other".into(), "PoolChangeRefused"),
            (|c| c.pool.zone_label = "rack".into(), "PoolChangeRefused"),
            (|c| c.pool.disk.bytes *= 2, "StorageChangeRefused"),
            (|c| c.pool.disk.storage_class = Some("fast".into()), "StorageChangeRefused"),
            (|c| c.given_key_secret = Some("mine".into()), "KeyChangeRefused"),
        ];
        for (change, reason) in cases {
            let held = held(change);
            assert_eq!(held.refusal.as_ref().map(Refusal::reason), Some(reason));
            assert_eq!(held.cluster, testing::valid_cluster(), "{reason}: built as installed");
        }
        let held = held(|c| {
            if let MetadataStore::Etcd { prefix, .. } = &mut c.metadata {
                *prefix = "elsewhere".into();
            }
        });
        assert_eq!(held.refusal.map(|r| r.reason()), Some("PrefixChangeRefused"));
        assert_eq!(held.cluster, testing::valid_cluster());
    }

    #[test]
    fn a_newer_operators_cluster_is_left_alone() {
        let mut installed = Record::of(&testing::valid_cluster(), "image:1");
        installed.renderer = RENDERER + 1;
        let refusal = hold(testing::valid_cluster(), Some(&installed), "image:1").expect_err("refused");
        assert_eq!(refusal.reason(), "OperatorTooOld");
    }
}
