//! Reads manifests from files, as strictly as an API server does.
//!
//! Used where there is no API server: `cairn-operator local`, and tests of the examples. A typing error must not become
//! a cluster that differs silently from what was meant, so unknown fields are refused.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::{API_VERSION, StorageCluster, Volume, schema};

/// Largest file that is read.
pub const MANIFEST_BYTES_MAX: usize = 1 << 20;
/// Most documents in one file.
const DOCUMENTS_MAX: usize = 1000;

/// A resource of ours.
#[derive(Clone, Debug, PartialEq)]
pub enum Manifest {
    StorageCluster(Box<StorageCluster>),
    Volume(Box<Volume>),
}

/// Why a file of manifests is refused. Documents count from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    #[error("the file is larger than 1 MiB; a manifest is a short text")]
    TooLarge,
    #[error("the file has more than {DOCUMENTS_MAX} documents; split it")]
    TooMany,
    #[error("document {document} is not YAML: {problem}")]
    Yaml { document: usize, problem: String },
    #[error(
        "document {document} is {found}; known here are StorageCluster and Volume of apiVersion {API_VERSION} \
         (other resources need Kubernetes)"
    )]
    Kind { document: usize, found: String },
    #[error("{kind} {name:?} is not valid:\n  {}", problems.join("\n  "))]
    Invalid { kind: &'static str, name: String, problems: Vec<String> },
}

/// Every resource in a YAML (or JSON) text of one or more documents; empty documents are skipped.
pub fn parse(text: &str) -> Result<Vec<Manifest>, ManifestError> {
    if text.len() > MANIFEST_BYTES_MAX {
        return Err(ManifestError::TooLarge);
    }
    let mut manifests = Vec::new();
    for (index, document) in serde_yaml::Deserializer::from_str(text).enumerate() {
        if index == DOCUMENTS_MAX {
            return Err(ManifestError::TooMany);
        }
        let document_number = index + 1;
        let value = Value::deserialize(document)
            .map_err(|error| ManifestError::Yaml { document: document_number, problem: error.to_string() })?;
        if !value.is_null() {
            manifests.push(one(document_number, &value)?);
        }
    }
    Ok(manifests)
}

fn one(document: usize, value: &Value) -> Result<Manifest, ManifestError> {
    match (value["apiVersion"].as_str(), value["kind"].as_str()) {
        (Some(API_VERSION), Some("StorageCluster")) => typed("StorageCluster", &StorageCluster::crd(), value)
            .map(|c| Manifest::StorageCluster(Box::new(c))),
        (Some(API_VERSION), Some("Volume")) => {
            typed("Volume", &Volume::crd(), value).map(|v| Manifest::Volume(Box::new(v)))
        }
        (version, kind) => {
            let shown = |text: Option<&str>| text.unwrap_or("nothing").chars().take(64).collect::<String>();
            let found = format!("kind {} of apiVersion {}", shown(kind), shown(version));
            Err(ManifestError::Kind { document, found })
        }
    }
}

fn typed<K: DeserializeOwned>(
    kind: &'static str,
    definition: &CustomResourceDefinition,
    value: &Value,
) -> Result<K, ManifestError> {
    let name = value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let invalid = |problems| ManifestError::Invalid { kind, name: name.clone(), problems };
    let schema =
        definition.spec.versions[0].schema.as_ref().and_then(|schema| schema.open_api_v3_schema.as_ref());
    let mut schema = serde_json::to_value(schema).expect("a schema is plain data");
    let required = ["apiVersion", "kind", "metadata", "spec"];
    schema["required"] = json!(required);
    schema["properties"]["apiVersion"] = json!({ "type": "string" });
    schema["properties"]["kind"] = json!({ "type": "string" });
    // Bounds of the name are CEL rules at the root, which the planner repeats; here it must only exist.
    schema["properties"]["metadata"] = json!({ "type": "object", "required": ["name"] });
    // A manifest saved from a cluster carries a status; it is not wanted, and not read.
    let mut value = value.clone();
    if let Some(fields) = value.as_object_mut() {
        fields.remove("status");
    }
    let problems = schema::problems(&schema, &value);
    if !problems.is_empty() {
        return Err(invalid(problems));
    }
    serde_json::from_value(value).map_err(|error| invalid(vec![error.to_string()]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "
apiVersion: cairn.storage/v1alpha1
kind: StorageCluster
metadata: {name: demo}
spec:
  pools:
  - name: main
    zones: [{name: a, nodes: 2}, {name: b}, {name: c}]
    storage: {size: 10Gi}
    resources: {requests: {cpu: 1, memory: 1Gi}}
---
---
apiVersion: cairn.storage/v1alpha1
kind: Volume
metadata: {name: files}
spec: {clusterRef: {name: demo}}
";

    fn complaint(text: &str) -> String {
        parse(text).expect_err("the manifest is bad").to_string()
    }

    #[test]
    fn good_manifests_are_read_with_defaults() {
        let manifests = parse(GOOD).expect("the manifests are good");
        let [Manifest::StorageCluster(cluster), Manifest::Volume(volume)] = manifests.as_slice() else {
            panic!("two manifests: {manifests:?}");
        };
        assert_eq!(cluster.spec.pools[0].zones.iter().map(|z| z.nodes).collect::<Vec<_>>(), [2, 1, 1]);
        assert_eq!(volume.spec.copies, 3);
        assert!(parse("").unwrap().is_empty());
    }

    #[test]
    fn bad_manifests_say_what_is_wrong_and_what_is_right() {
        for (from, to, words) in [
            ("zones:", "zonez:", "spec.pools[0]: unknown field `zonez`; did you mean `zones`?"),
            ("zones:", "zonez:", "spec.pools[0]: the field `zones` is missing"),
            ("{name: b}", "{name: a}", "spec.pools[0].zones[1]: \"a\" is listed twice"),
            ("{name: b}", "{name: B}", "spec.pools[0].zones[1].name: \"B\" does not match"),
            (
                "{name: b}",
                "{name: 1}",
                "must be a text (put numbers and words like `no` in quotes), not a number",
            ),
            ("{name: b}", "b", "spec.pools[0].zones[1]: must be a mapping, not a text"),
            ("nodes: 2", "nodes: 0", "spec.pools[0].zones[0].nodes: 0 is out of bounds; allowed are 1 to 64"),
            ("nodes: 2", "nodes: 99999999999999999999", "nodes"),
            ("size: 10Gi", "size: 10GB", "spec.pools[0].storage.size: \"10GB\" does not match"),
            ("size: 10Gi", "size: -1", "must be a text such as 10Gi"),
            ("{size: 10Gi}", "{size: }", "spec.pools[0].storage.size: has no value"),
            ("cpu: 1,", "cpus: 1,", "did you mean `cpu`?"),
            ("metadata: {name: demo}", "metadata: {}", "metadata: the field `name` is missing"),
            ("kind: Volume", "kind: Secret", "document 3 is kind Secret"),
            ("kind: Volume", "kind: [", "is not YAML"),
            ("v1alpha1", "v9", "of apiVersion cairn.storage/v9; known here are"),
            (
                "{clusterRef: {name: demo}}",
                "{copies: 9}",
                "spec.copies: 9 is out of bounds; allowed are 1 to 7",
            ),
            ("{clusterRef: {name: demo}}", "{deletionPolicy: Keep}", "\"Keep\" is not one of Retain, Delete"),
        ] {
            let complaint = complaint(&GOOD.replacen(from, to, 1));
            assert!(complaint.contains(words), "{to}: {complaint}");
        }
    }

    #[test]
    fn hostile_files_are_bounded() {
        assert_eq!(parse(&" ".repeat(MANIFEST_BYTES_MAX + 1)), Err(ManifestError::TooLarge));
        assert_eq!(parse(&"---\n".repeat(DOCUMENTS_MAX + 1)), Err(ManifestError::TooMany));
        let bomb = format!(
            "a: &a [x]\nb: &b [{0}]\nc: &c [{1}]\nd: [{2}]\n",
            "*a,".repeat(500),
            "*b,".repeat(500),
            "*c,".repeat(500)
        );
        assert!(complaint(&bomb).contains("not YAML"));
        assert!(complaint(&"[".repeat(100_000)).contains("not YAML"));
        let many: String = (0..100).map(|n| format!("  field{n}: 1\n")).collect();
        let many = format!("apiVersion: {API_VERSION}\nkind: Volume\nmetadata: {{name: x}}\nspec:\n{many}");
        assert!(complaint(&many).lines().count() <= 21);
    }
}
