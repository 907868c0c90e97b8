//! Container images made without a container engine: an OCI archive with one layer, as `ctr images import` reads it.
//!
//! An image holds one static program or a few, an empty `/tmp`, and nothing else; it runs as user 65532. It is what the
//! Dockerfile's last stage makes.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::tools::system;

/// The user and group of images: no name, no rights.
pub const USER: u32 = 65_532;

/// An archive that a bed can load.
#[derive(Clone, Debug)]
pub struct OciImage {
    /// The full name, such as `localhost/cairn-node:test`.
    pub name: String,
    pub archive: PathBuf,
}

/// What goes into an image.
#[derive(Clone, Debug)]
pub struct ImageSpec {
    name: String,
    files: Vec<(PathBuf, String)>,
    entrypoint: Vec<String>,
    environment: Vec<String>,
    user: String,
    strip: bool,
}

impl ImageSpec {
    /// An image of one static program, which lies at `/NAME` and is its entry point. Debug information is left out.
    pub fn program(name: &str, program: impl Into<PathBuf>) -> Self {
        let program = program.into();
        let file = program.file_name().expect("a program has a name").to_string_lossy().into_owned();
        let path = format!("/{file}");
        Self::empty(name).file(program, &path).entrypoint(&[&path])
    }

    /// An image of the files that are put into it.
    pub fn empty(name: &str) -> Self {
        Self {
            name: full_name(name),
            files: Vec::new(),
            entrypoint: Vec::new(),
            environment: Vec::new(),
            user: format!("{USER}:{USER}"),
            strip: true,
        }
    }

    /// Puts a file (executable) into the image, at an absolute path.
    pub fn file(mut self, source: impl Into<PathBuf>, path: &str) -> Self {
        assert!(path.starts_with('/'), "{path} is not absolute");
        self.files.push((source.into(), path.to_string()));
        self
    }

    pub fn entrypoint(mut self, words: &[&str]) -> Self {
        self.entrypoint = words.iter().map(|w| w.to_string()).collect();
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push(format!("{name}={value}"));
        self
    }

    /// Another user than 65532.
    pub fn user(mut self, user: &str) -> Self {
        self.user = user.to_string();
        self
    }

    /// Writes the archive into a folder.
    pub fn build(&self, folder: &Path) -> io::Result<OciImage> {
        fs::create_dir_all(folder)?;
        let stem: String =
            self.name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let layer = folder.join(format!("{stem}.layer"));
        let archive = folder.join(format!("{stem}.tar"));
        let written =
            self.write_layer(&layer).and_then(|digest| self.write_archive(&archive, &layer, &digest));
        let _ = fs::remove_file(&layer);
        written?;
        Ok(OciImage { name: self.name.clone(), archive })
    }

    fn write_layer(&self, layer: &Path) -> io::Result<String> {
        let mut tar = tar::Builder::new(Hashed { file: File::create(layer)?, digest: Sha256::new() });
        let mut folders = vec!["tmp".to_string()];
        append(&mut tar, tar::EntryType::Directory, "tmp", 0o1777, 0, io::empty())?;
        for (source, path) in &self.files {
            let inside = path.trim_start_matches('/');
            for (at, _) in inside.match_indices('/') {
                let parent = inside[..at].to_string();
                if !folders.contains(&parent) {
                    append(&mut tar, tar::EntryType::Directory, &parent, 0o755, 0, io::empty())?;
                    folders.push(parent);
                }
            }
            let stripped = layer.with_extension("stripped");
            let source = if self.strip && strip(source, &stripped) { &stripped } else { source };
            let content = File::open(source).map_err(|e| {
                io::Error::new(e.kind(), format!("image {}: {}: {e}", self.name, source.display()))
            })?;
            let length = content.metadata()?.len();
            append(&mut tar, tar::EntryType::Regular, inside, 0o755, length, content)?;
            let _ = fs::remove_file(&stripped);
        }
        let mut hashed = tar.into_inner()?;
        hashed.flush()?;
        Ok(hex::encode(hashed.digest.finalize()))
    }

    fn write_archive(&self, archive: &Path, layer: &Path, layer_digest: &str) -> io::Result<()> {
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let config = json!({
            "architecture": architecture, "os": "linux",
            "config": { "Entrypoint": self.entrypoint, "Env": self.environment, "User": self.user, "WorkingDir": "/" },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer_digest}")] },
            "history": [{ "created_by": "cairn" }],
        })
        .to_string();
        let layer_bytes = fs::metadata(layer)?.len();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": format!("sha256:{}", sha256(&config)), "size": config.len(),
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": format!("sha256:{layer_digest}"), "size": layer_bytes,
            }],
        })
        .to_string();
        let index = json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": format!("sha256:{}", sha256(&manifest)), "size": manifest.len(),
                "annotations": {
                    "io.containerd.image.name": self.name, "org.opencontainers.image.ref.name": self.name,
                },
            }],
        })
        .to_string();

        let mut tar = tar::Builder::new(io::BufWriter::new(File::create(archive)?));
        let mut text = |path: &str, content: &str| {
            append(&mut tar, tar::EntryType::Regular, path, 0o644, content.len() as u64, content.as_bytes())
        };
        text("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        text("index.json", &index)?;
        text(&format!("blobs/sha256/{}", sha256(&config)), &config)?;
        text(&format!("blobs/sha256/{}", sha256(&manifest)), &manifest)?;
        let blob = format!("blobs/sha256/{layer_digest}");
        append(&mut tar, tar::EntryType::Regular, &blob, 0o644, layer_bytes, File::open(layer)?)?;
        tar.into_inner()?.flush()
    }
}

/// The name as containerd and kubelet write it: with a registry in front.
pub fn full_name(name: &str) -> String {
    let tagged = if name.rsplit('/').next().is_some_and(|last| last.contains(':')) {
        name.to_string()
    } else {
        format!("{name}:latest")
    };
    match tagged.split_once('/') {
        Some((first, _)) if first == "localhost" || first.contains(['.', ':']) => tagged,
        Some(_) => format!("docker.io/{tagged}"),
        None => format!("docker.io/library/{tagged}"),
    }
}

fn append<W: Write>(
    tar: &mut tar::Builder<W>,
    kind: tar::EntryType,
    path: &str,
    mode: u32,
    length: u64,
    content: impl io::Read,
) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(length);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    tar.append_data(&mut header, path, content)
}

/// Copies a program without its debug information; false when that cannot be done, then the program goes in as it is.
fn strip(from: &Path, to: &Path) -> bool {
    let Some(program) = system::find("strip") else { return false };
    Command::new(program).arg("-o").arg(to).arg(from).output().is_ok_and(|o| o.status.success())
}

fn sha256(text: &str) -> String {
    hex::encode(Sha256::digest(text.as_bytes()))
}

struct Hashed {
    file: File,
    digest: Sha256,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.digest.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;

    use super::*;

    #[test]
    fn names_get_their_registry() {
        assert_eq!(full_name("localhost/pause:1"), "localhost/pause:1");
        assert_eq!(full_name("cairn/node:0.1"), "docker.io/cairn/node:0.1");
        assert_eq!(full_name("etcd"), "docker.io/library/etcd:latest");
        assert_eq!(full_name("gcr.io/etcd-development/etcd:v3.6.8"), "gcr.io/etcd-development/etcd:v3.6.8");
    }

    #[test]
    fn archive_is_consistent() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("hello");
        fs::write(&program, "#!/bin/true\n").unwrap();
        let spec = ImageSpec::program("localhost/hello:1", &program).file(&program, "/usr/bin/second");
        let image = spec.build(folder.path()).unwrap();

        let mut blobs = BTreeMap::new();
        for entry in tar::Archive::new(File::open(&image.archive).unwrap()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            blobs.insert(entry.path().unwrap().display().to_string(), content);
        }
        for (path, content) in &blobs {
            if let Some(digest) = path.strip_prefix("blobs/sha256/") {
                assert_eq!(digest, hex::encode(Sha256::digest(content)), "{path}");
            }
        }
        let index: serde_json::Value = serde_json::from_slice(&blobs["index.json"]).unwrap();
        let digest = index["manifests"][0]["digest"].as_str().unwrap().replace("sha256:", "blobs/sha256/");
        let manifest: serde_json::Value = serde_json::from_slice(&blobs[&digest]).unwrap();
        let layer = manifest["layers"][0]["digest"].as_str().unwrap().replace("sha256:", "blobs/sha256/");
        let mut layer = tar::Archive::new(&blobs[&layer][..]);
        let paths: Vec<_> =
            layer.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
        assert_eq!(paths, ["tmp", "hello", "usr", "usr/bin", "usr/bin/second"]);
    }
}
