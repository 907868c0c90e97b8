//! The objects that the operator applies, and whether one that exists is as it should be.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use crate::contract::label;
use crate::observed::Observed;

/// An object as it should be, for server-side apply with the field manager [`label::OPERATOR`].
#[expect(clippy::large_enum_variant, reason = "a plan has few, and lives briefly")]
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    ConfigMap(ConfigMap),
    ServiceAccount(ServiceAccount),
    Service(Service),
    NetworkPolicy(NetworkPolicy),
    PodDisruptionBudget(PodDisruptionBudget),
    StatefulSet(Box<StatefulSet>),
}

impl Object {
    pub fn kind(&self) -> &'static str {
        match self {
            Self::ConfigMap(_) => "ConfigMap",
            Self::ServiceAccount(_) => "ServiceAccount",
            Self::Service(_) => "Service",
            Self::NetworkPolicy(_) => "NetworkPolicy",
            Self::PodDisruptionBudget(_) => "PodDisruptionBudget",
            Self::StatefulSet(_) => "StatefulSet",
        }
    }

    pub fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::ConfigMap(o) => &o.metadata,
            Self::ServiceAccount(o) => &o.metadata,
            Self::Service(o) => &o.metadata,
            Self::NetworkPolicy(o) => &o.metadata,
            Self::PodDisruptionBudget(o) => &o.metadata,
            Self::StatefulSet(o) => &o.metadata,
        }
    }

    pub fn metadata_mut(&mut self) -> &mut ObjectMeta {
        match self {
            Self::ConfigMap(o) => &mut o.metadata,
            Self::ServiceAccount(o) => &mut o.metadata,
            Self::Service(o) => &mut o.metadata,
            Self::NetworkPolicy(o) => &mut o.metadata,
            Self::PodDisruptionBudget(o) => &mut o.metadata,
            Self::StatefulSet(o) => &mut o.metadata,
        }
    }

    pub fn name(&self) -> &str {
        self.metadata().name.as_deref().unwrap_or_default()
    }

    /// The whole object, with apiVersion and kind: the body of an apply.
    pub fn to_value(&self) -> Value {
        let value = match self {
            Self::ConfigMap(o) => serde_json::to_value(o),
            Self::ServiceAccount(o) => serde_json::to_value(o),
            Self::Service(o) => serde_json::to_value(o),
            Self::NetworkPolicy(o) => serde_json::to_value(o),
            Self::PodDisruptionBudget(o) => serde_json::to_value(o),
            Self::StatefulSet(o) => serde_json::to_value(o),
        };
        value.expect("an object is plain data")
    }

    /// The object of this kind and name that was observed.
    pub fn find_in(&self, observed: &Observed) -> Option<Self> {
        let named = |metadata: &ObjectMeta| metadata.name.as_deref() == Some(self.name());
        match self {
            Self::ConfigMap(_) => {
                observed.config_maps.iter().find(|o| named(&o.metadata)).cloned().map(Self::ConfigMap)
            }
            Self::ServiceAccount(_) => observed
                .service_accounts
                .iter()
                .find(|o| named(&o.metadata))
                .cloned()
                .map(Self::ServiceAccount),
            Self::Service(_) => {
                observed.services.iter().find(|o| named(&o.metadata)).cloned().map(Self::Service)
            }
            Self::NetworkPolicy(_) => observed
                .network_policies
                .iter()
                .find(|o| named(&o.metadata))
                .cloned()
                .map(Self::NetworkPolicy),
            Self::PodDisruptionBudget(_) => {
                let found = observed.disruption_budgets.iter().find(|o| named(&o.metadata));
                found.cloned().map(Self::PodDisruptionBudget)
            }
            Self::StatefulSet(_) => {
                let found = observed.stateful_sets.iter().find(|o| named(&o.metadata));
                found.cloned().map(|o| Self::StatefulSet(Box::new(o)))
            }
        }
    }
}

/// Marks an object with the digest of what it is, so that [`first_difference`] notices fields that are rendered no more.
pub fn mark(object: &mut Object) {
    let digest = fnv1a(sorted(&object.to_value()).to_string().as_bytes());
    let annotations = object.metadata_mut().annotations.get_or_insert_default();
    annotations.insert(label::RENDERED.to_owned(), format!("{digest:016x}"));
}

/// Fields in the order of their names, whatever order this build of the JSON library keeps.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields: BTreeMap<&String, &Value> = fields.iter().collect();
            Value::Object(fields.into_iter().map(|(name, field)| (name.clone(), sorted(field))).collect())
        }
        Value::Array(items) => items.iter().map(sorted).collect(),
        other => other.clone(),
    }
}

/// 64-bit FNV-1a (Fowler, Noll, Vo): the same in every release, and enough to notice a change.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Where `observed` is not as `wanted`, as a path; `None` if it is.
///
/// Only what is wanted is compared: the API server adds defaults and other managers add fields, and a write for these
/// would be repeated for ever.
pub fn first_difference(wanted: &Value, observed: &Value) -> Option<String> {
    difference(wanted, observed, "").map(|path| path.trim_start_matches('.').to_owned())
}

fn difference(wanted: &Value, observed: &Value, path: &str) -> Option<String> {
    match (wanted, observed) {
        (Value::Object(fields), _) => fields.iter().find_map(|(name, field)| {
            let here = format!("{path}.{name}");
            // Inside lists, Kubernetes may leave out what an embedded object is.
            let type_of_part = path.contains(']') && (name == "apiVersion" || name == "kind");
            match observed.get(name) {
                _ if name == "ownerReferences" => owners_difference(field, observed.get(name), here),
                Some(found) => difference(field, found, &here),
                None if type_of_part || is_empty(field) => None,
                None => Some(here),
            }
        }),
        (Value::Array(items), Value::Array(found)) if items.len() == found.len() => items
            .iter()
            .zip(found)
            .enumerate()
            .find_map(|(index, (item, found))| difference(item, found, &format!("{path}[{index}]"))),
        _ if wanted == observed || same_amount(wanted, observed, path) => None,
        _ => Some(path.to_owned()),
    }
}

/// Others may own an object too; ours must be among the owners.
fn owners_difference(wanted: &Value, observed: Option<&Value>, path: String) -> Option<String> {
    let observed = observed.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let missing = |owner: &Value| !observed.iter().any(|found| difference(owner, found, "").is_none());
    wanted.as_array().into_iter().flatten().any(missing).then_some(path)
}

/// `{}`, `[]` and nothing are one for the API server.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Null => true,
        _ => false,
    }
}

/// The API server writes amounts in its canonical form: 1024Mi becomes 1Gi.
fn same_amount(wanted: &Value, observed: &Value, path: &str) -> bool {
    let amounts = path.contains(".requests.") || path.contains(".limits.");
    let read = |value: &Value| match value {
        Value::String(text) => cairn_crds::Quantity(text.clone()).thousandths().ok(),
        Value::Number(number) => cairn_crds::Quantity(number.to_string()).thousandths().ok(),
        _ => None,
    };
    amounts && matches!((read(wanted), read(observed)), (Some(a), Some(b)) if a == b)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_is_wanted_is_compared() {
        let wanted = json!({ "spec": { "ports": [{ "port": 1 }], "selector": { "a": "b" }, "extra": {} } });
        let same = json!({ "spec": {
            "ports": [{ "port": 1, "protocol": "TCP" }], "selector": { "a": "b" }, "clusterIP": "10.0.0.1",
        }, "status": {} });
        assert_eq!(first_difference(&wanted, &same), None);
        for (pointer, value, path) in [
            ("/spec/ports/0/port", json!(2), "spec.ports[0].port"),
            ("/spec/ports", json!([]), "spec.ports"),
            ("/spec/selector", json!({}), "spec.selector.a"),
            ("/spec/selector/a", json!("c"), "spec.selector.a"),
        ] {
            let mut other = same.clone();
            *other.pointer_mut(pointer).unwrap() = value;
            assert_eq!(first_difference(&wanted, &other).as_deref(), Some(path));
        }
    }

    #[test]
    fn amounts_are_compared_by_value() {
        let amount = |memory: &str| json!({ "resources": { "requests": { "memory": memory } } });
        assert_eq!(first_difference(&amount("1024Mi"), &amount("1Gi")), None);
        assert!(first_difference(&amount("1024Mi"), &amount("2Gi")).is_some());
        let text = |text: &str| json!({ "env": [{ "value": text }] });
        assert!(first_difference(&text("1024Mi"), &text("1Gi")).is_some(), "not an amount: a text");
    }

    #[test]
    fn other_owners_do_not_matter() {
        let owned = |uids: &[&str]| {
            let owners: Vec<_> = uids.iter().map(|uid| json!({ "uid": uid })).collect();
            json!({ "metadata": { "ownerReferences": owners } })
        };
        assert_eq!(first_difference(&owned(&["a"]), &owned(&["b", "a"])), None);
        assert!(first_difference(&owned(&["a"]), &owned(&["b"])).is_some());
        assert!(first_difference(&owned(&["a"]), &json!({ "metadata": {} })).is_some());
    }
}
