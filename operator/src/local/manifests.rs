//! Manifests from files: one StorageCluster and its Volumes, read as strictly as an API server reads them.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use cairn_crds::{
    StorageCluster, Volume,
    manifest::{self, MANIFEST_BYTES_MAX, Manifest, ManifestError},
};

/// Files in a folder that is given instead of a file.
const FILES_MAX: usize = 1000;
/// Kubernetes has no bound; a machine's own cluster has.
const VOLUMES_MAX: usize = 1000;

/// What the manifests ask for.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub cluster: StorageCluster,
    pub volumes: Vec<Volume>,
}

/// Why manifests are refused.
#[derive(Debug, thiserror::Error)]
pub enum ManifestsError {
    #[error("{path}: {error}; give the path of a manifest, or of a folder of manifests", path = path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error("{path}: {error}", path = path.display())]
    Invalid { path: PathBuf, error: ManifestError },
    #[error("{path}: it is not UTF-8 text; manifests are YAML or JSON", path = path.display())]
    NotText { path: PathBuf },
    #[error("{path}: the folder holds no .yaml, .yml or .json file", path = path.display())]
    EmptyFolder { path: PathBuf },
    #[error("{path}: the folder holds more than {FILES_MAX} manifests; name the files instead", path = path.display())]
    ManyFiles { path: PathBuf },
    #[error("the manifests have no StorageCluster; docs/examples/laptop.yaml shows one")]
    NoCluster,
    #[error(
        "{path}: StorageCluster {second} is the second one, after {first}; run another `cairn-operator local` with \
         another --data-dir for it",
        path = path.display()
    )]
    SecondCluster { path: PathBuf, first: String, second: String },
    #[error("{path}: Volume {name} was given before; remove one of the two", path = path.display())]
    SecondVolume { path: PathBuf, name: String },
    #[error("more than {VOLUMES_MAX} volumes are given")]
    ManyVolumes,
    #[error(
        "Volume {volume} is for cluster {wanted}, and the manifests have cluster {cluster}; correct its clusterRef.name"
    )]
    OtherCluster { volume: String, wanted: String, cluster: String },
}

/// Reads files, and folders of files.
pub fn read(paths: &[PathBuf]) -> Result<Wanted, ManifestsError> {
    let mut cluster: Option<StorageCluster> = None;
    let mut volumes: Vec<Volume> = Vec::new();
    let mut names = BTreeSet::new();
    for path in files(paths)? {
        let invalid = |error| ManifestsError::Invalid { path: path.clone(), error };
        for found in manifest::parse(&text(&path)?).map_err(invalid)? {
            match found {
                Manifest::StorageCluster(found) => match &cluster {
                    None => cluster = Some(*found),
                    Some(first) => {
                        let (first, second) = (name(&first.metadata.name), name(&found.metadata.name));
                        return Err(ManifestsError::SecondCluster { path, first, second });
                    }
                },
                Manifest::Volume(found) => {
                    if !names.insert(name(&found.metadata.name)) {
                        return Err(ManifestsError::SecondVolume { path, name: name(&found.metadata.name) });
                    }
                    volumes.push(*found);
                }
            }
        }
        if volumes.len() > VOLUMES_MAX {
            return Err(ManifestsError::ManyVolumes);
        }
    }
    let cluster = cluster.ok_or(ManifestsError::NoCluster)?;
    let cluster_name = name(&cluster.metadata.name);
    if let Some(stray) = volumes.iter().find(|volume| volume.spec.cluster_ref.name != cluster_name) {
        return Err(ManifestsError::OtherCluster {
            volume: name(&stray.metadata.name),
            wanted: stray.spec.cluster_ref.name.clone(),
            cluster: cluster_name,
        });
    }
    Ok(Wanted { cluster, volumes })
}

fn name(name: &Option<String>) -> String {
    name.clone().unwrap_or_default()
}

fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>, ManifestsError> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let failed = |error| ManifestsError::Read { path: path.clone(), error };
        let mut inside = Vec::new();
        for entry in std::fs::read_dir(path).map_err(failed)? {
            let file = entry.map_err(failed)?.path();
            let manifest = file.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
            if manifest && file.is_file() {
                inside.push(file);
            }
            if inside.len() > FILES_MAX {
                return Err(ManifestsError::ManyFiles { path: path.clone() });
            }
        }
        if inside.is_empty() {
            return Err(ManifestsError::EmptyFolder { path: path.clone() });
        }
        inside.sort();
        files.extend(inside);
    }
    Ok(files)
}

/// A little more than the largest manifest, whatever the file is.
fn text(path: &Path) -> Result<String, ManifestsError> {
    let failed = |error| ManifestsError::Read { path: path.to_owned(), error };
    let mut bytes = Vec::new();
    let limit = MANIFEST_BYTES_MAX as u64 + 1;
    File::open(path).map_err(failed)?.take(limit).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 == limit {
        return Err(ManifestsError::Invalid { path: path.to_owned(), error: ManifestError::TooLarge });
    }
    String::from_utf8(bytes).map_err(|_| ManifestsError::NotText { path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: &str = "
apiVersion: cairn.storage/v1alpha1
kind: StorageCluster
metadata: {name: laptop}
spec: {pools: [{name: main, zones: [{name: a}], storage: {size: 1Gi}}]}
";
    const VOLUME: &str = "
apiVersion: cairn.storage/v1alpha1
kind: Volume
metadata: {name: files}
spec: {clusterRef: {name: laptop}, copies: 1}
";

    fn read_texts(texts: &[&str]) -> Result<Wanted, String> {
        let folder = tempfile::tempdir().unwrap();
        for (index, text) in texts.iter().enumerate() {
            std::fs::write(folder.path().join(format!("{index}.yaml")), text).unwrap();
        }
        read(&[folder.path().to_owned()]).map_err(|error| error.to_string())
    }

    #[test]
    fn a_folder_is_read_in_order() {
        let both = format!("{CLUSTER}---{VOLUME}");
        for texts in [&[CLUSTER, VOLUME][..], &[VOLUME, CLUSTER], &[&both]] {
            let wanted = read_texts(texts).unwrap();
            assert_eq!(wanted.cluster.metadata.name.as_deref(), Some("laptop"));
            assert_eq!(wanted.volumes.len(), 1);
        }
    }

    #[test]
    fn what_does_not_fit_together_is_named() {
        for (texts, words) in [
            (&[VOLUME][..], "no StorageCluster"),
            (&[CLUSTER, CLUSTER], "1.yaml: StorageCluster laptop is the second one"),
            (&[CLUSTER, VOLUME, VOLUME], "2.yaml: Volume files was given before"),
            (
                &[&CLUSTER.replace("laptop", "desk"), VOLUME],
                "is for cluster laptop, and the manifests have cluster desk",
            ),
            (&[&CLUSTER.replace("pools", "pool")], "pool"),
            (&["a: [b"], "0.yaml: document 1 is not YAML"),
            (&["kind: Pod\napiVersion: v1"], "kind Pod"),
            (&[], "holds no .yaml"),
        ] {
            let error = read_texts(texts).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
        let missing = read(&[PathBuf::from("/does/not/exist.yaml")]).unwrap_err().to_string();
        assert!(missing.contains("/does/not/exist.yaml") && missing.contains("give the path"), "{missing}");
    }

    #[test]
    fn unbounded_and_binary_files_are_refused() {
        assert!(matches!(text(Path::new("/dev/zero")), Err(ManifestsError::Invalid { .. })));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.yaml");
        std::fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(matches!(text(&path), Err(ManifestsError::NotText { .. })));
    }
}
