//! YAML from the types: the files in `crds/`, and the chart's copies of them.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

use crate::{StorageCluster, Volume};

const HEADER: &str = "# Generated from the types in crds/src by `cargo run -p cairn-crds`. Do not edit.\n";

/// A generated file: its path in the repository and its whole text.
pub struct GeneratedFile {
    pub path: String,
    pub text: String,
}

/// All definitions, in a fixed order.
pub fn definitions() -> Vec<CustomResourceDefinition> {
    vec![StorageCluster::crd(), Volume::crd()]
}

/// All definitions as one YAML stream, as `cairn-operator crd` prints it.
pub fn all_yaml() -> String {
    definitions().iter().map(|definition| format!("---\n{}", yaml(definition))).collect()
}

/// Every file that `crdgen` writes.
pub fn files() -> Vec<GeneratedFile> {
    definitions()
        .iter()
        .flat_map(|definition| {
            let plural = &definition.spec.names.plural;
            [
                GeneratedFile {
                    path: format!("crds/{plural}.yaml"),
                    text: format!("{HEADER}{}", yaml(definition)),
                },
                GeneratedFile {
                    path: format!("charts/cairn/templates/crd-{plural}.yaml"),
                    text: chart_copy(definition),
                },
            ]
        })
        .collect()
}

/// Among the templates, not in the chart's `crds/`, so that `helm upgrade` brings new fields; `keep`, because
/// uninstalling the operator must not delete every cluster together with the definitions.
fn chart_copy(definition: &CustomResourceDefinition) -> String {
    let mut definition = definition.clone();
    definition
        .metadata
        .annotations
        .get_or_insert_default()
        .insert("helm.sh/resource-policy".to_owned(), "keep".to_owned());
    format!("{HEADER}{{{{- if .Values.crds.install }}}}\n{}{{{{- end }}}}\n", yaml(&definition))
}

fn yaml(definition: &CustomResourceDefinition) -> String {
    serde_yaml::to_string(definition).expect("a definition is plain data")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn generated_files_are_fresh() {
        let repository =
            Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lives in the repository");
        for file in files() {
            let found = std::fs::read_to_string(repository.join(&file.path)).unwrap_or_default();
            assert!(found == file.text, "{} is stale: run `cargo run -p cairn-crds`", file.path);
        }
    }

    #[test]
    fn definitions_are_small_and_plain() {
        for definition in definitions() {
            let text = yaml(&definition);
            let name = definition.metadata.name.as_deref().unwrap_or_default();
            assert!(text.len() < 100_000, "{name} has {} bytes", text.len());
            assert!(!text.contains("{{"), "{name}: helm would read a template in it");
            assert!(!text.contains("uint"), "{name}: Kubernetes knows no unsigned formats");
        }
    }
}
