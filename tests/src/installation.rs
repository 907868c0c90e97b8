//! Cairn on a real Kubernetes on this machine, installed as the documentation says: the chart and the manifests of
//! `docs/examples/kubernetes/`, none of them altered. `make kube` shows it, the tests of kubelets try it.
//!
//! There is no registry to pull from. The images that chart and examples name are made here, from the programs that were
//! built beside the running one, and loaded into every node under the names they have there.

mod outside;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{
    bed::{Bed, BedOptions, ImageSpec, OciImage, Tier},
    programs,
    scratch::Scratch,
    stop::Stop,
    tools::Tools,
};

pub use outside::Outside;

/// As the chart and the Job name it.
const CAIRN_IMAGE: &str = "ghcr.io/cairn-storage/cairn:0.1.0";
/// As `etcd.yaml` names it; ours holds the same program, built from its Go module.
const ETCD_IMAGE: &str = "gcr.io/etcd-development/etcd:v3.6.8";
/// The operator's namespace; clusters are in `default`.
pub const OPERATOR_NAMESPACE: &str = "cairn-system";
/// Applied one after the other, as the chart's README says.
const EXAMPLES: [&str; 3] = ["etcd.yaml", "cluster.yaml", "volume.yaml"];
/// Etcd, the example's cluster, and one more.
const VOLUMES_PER_NODE: usize = 3;
/// For each thing that is waited for. Two cores may be busy with other tests.
const LIMIT: Duration = Duration::from_secs(300);
/// After so long a wait looks whether it is to end.
const ROUND: &str = "--timeout=10s";

/// A Kubernetes with three nodes, an etcd, the operator, the storage cluster `demo` and its volume `files`.
pub struct Installation {
    bed: Bed,
    tools: Tools,
    repository: PathBuf,
    stop: Stop,
}

impl Installation {
    /// Brings everything up until cluster and volume are Ready; `say` is told what comes next. `tools` must have been asked
    /// for `Need::Kubelets`.
    pub fn start(tools: &Tools, stop: &Stop, say: &dyn Fn(&str)) -> Result<Self> {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the repository's folder")?;
        let archives = Scratch::new("images")?;
        say("make the images, from the programs that were just built");
        let images = images(tools, archives.path())?;
        stop.check()?;
        say("start a control plane and three kubelets");
        let bed = Bed::start(tools, BedOptions::new(Tier::Kubelets(3)).images(images))?;
        let this =
            Self { bed, tools: tools.clone(), repository: repository.to_path_buf(), stop: stop.clone() };
        match this.install(say) {
            Ok(()) => Ok(this),
            Err(error) if stop.is_set() => Err(error),
            Err(error) => bail!("{error:#}\n{}", this.report()),
        }
    }

    fn install(&self, say: &dyn Fn(&str)) -> Result<()> {
        self.stop.check()?;
        say("make local disks, and their StorageClass the default one");
        self.bed.local_volumes(VOLUMES_PER_NODE, "10Gi")?;
        let default = "storageclass.kubernetes.io/is-default-class=true";
        self.bed.kubectl(&["annotate", "storageclass", crate::bed::STORAGE_CLASS, default])?;
        say("helm install the operator; apply the examples: etcd, cluster, volume");
        let chart = self.repository.join("charts/cairn");
        let chart = chart.to_str().context("the repository's path is not UTF-8")?;
        self.bed.helm(&["install", "cairn", chart, "-n", OPERATOR_NAMESPACE, "--create-namespace"])?;
        for example in EXAMPLES {
            self.apply_example(example)?;
        }
        say("wait for three members of etcd");
        self.wait("statefulset/etcd", "jsonpath={.status.readyReplicas}=3")?;
        say("wait for the storage cluster and its volume to be Ready");
        self.wait("storagecluster/demo", "condition=Ready")?;
        self.wait("volume/files", "condition=Ready")?;
        say("wait until the nodes have compared what they hold, and agree");
        self.wait("storagecluster/demo", "condition=DataProtected")?;
        say("wait until the volume's files are counted");
        self.wait("volume/files", "jsonpath={.status.files}")
    }

    /// `kubectl apply` of a file of `docs/examples/kubernetes/`, as it is.
    pub fn apply_example(&self, name: &str) -> Result<()> {
        let path = self.repository.join("docs/examples/kubernetes").join(name);
        let path = path.to_str().context("the repository's path is not UTF-8")?;
        self.bed.kubectl(&["apply", "-f", path])?;
        Ok(())
    }

    /// `kubectl wait --for=WHAT RESOURCE`, also for what does not exist yet.
    pub fn wait(&self, resource: &str, what: &str) -> Result<()> {
        let arguments = ["wait", resource, &format!("--for={what}"), ROUND];
        let begun = Instant::now();
        loop {
            self.stop.check()?;
            match self.bed.kubectl(&arguments) {
                Ok(_) => return Ok(()),
                Err(error) if begun.elapsed() > LIMIT => {
                    let seen = self.bed.kubectl(&["describe", resource]).unwrap_or_default();
                    bail!("{resource}: no {what} within {} s: {error}\n{seen}", LIMIT.as_secs())
                }
                Err(_) => std::thread::sleep(Duration::from_millis(500)),
            }
        }
    }

    /// Waits until every copy of everything is where it should be: the nodes say so, and then the status does.
    pub fn wait_settled(&self) -> Result<()> {
        self.outside()?.cairn(&["status", "--wait-settled", "--timeout", "5m"])?;
        self.wait("storagecluster/demo", "condition=Ready")?;
        self.wait("storagecluster/demo", "condition=DataProtected")
    }

    /// Runs the example's Job anew; what its last container printed.
    pub fn run_job(&self) -> Result<String> {
        self.bed.kubectl(&["delete", "job/cairn-tour", "--ignore-not-found"])?;
        self.apply_example("job.yaml")?;
        self.wait("job/cairn-tour", "condition=Complete")?;
        Ok(self.bed.kubectl(&["logs", "job/cairn-tour", "--container=show"])?)
    }

    /// `kubectl get storageclusters,volumes`.
    pub fn status(&self) -> Result<String> {
        Ok(self.bed.kubectl(&["get", "storageclusters,volumes"])?)
    }

    /// One field of a resource, by its JSONPath.
    pub fn field(&self, resource: &str, path: &str) -> Result<String> {
        Ok(self.bed.kubectl(&["get", resource, "-o", &format!("jsonpath={{{path}}}")])?)
    }

    /// The cluster as a program on this machine reaches it.
    pub fn outside(&self) -> Result<Outside> {
        Outside::of(self)
    }

    pub fn bed(&self) -> &Bed {
        &self.bed
    }

    pub fn tools(&self) -> &Tools {
        &self.tools
    }

    /// What one wants to read after a failure.
    pub fn report(&self) -> String {
        let clusters = self.bed.kubectl(&["describe", "storageclusters,volumes", "--request-timeout=5s"]);
        format!("{}\n{}", clusters.unwrap_or_else(|error| error.to_string()), self.bed.report())
    }

    /// Takes everything down and waits until it is gone. Dropping does the same.
    pub fn down(self) {
        self.bed.down();
    }
}

/// One image with all programs of Cairn, as the Dockerfile makes it, and one of etcd.
fn images(tools: &Tools, folder: &Path) -> Result<Vec<OciImage>> {
    let mut cairn = ImageSpec::empty(CAIRN_IMAGE).entrypoint(&["/cairn-node"]);
    for program in ["cairn-node", "cairn-operator", "cairn"] {
        cairn = cairn.file(programs::built(program), &format!("/{program}"));
    }
    let etcd = ImageSpec::empty(ETCD_IMAGE).file(tools.path("etcd"), "/usr/local/bin/etcd");
    Ok(vec![cairn.build(folder)?, etcd.build(folder)?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::markdown::blocks;

    #[test]
    fn the_charts_readme_shows_what_is_done_here() {
        let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/cairn/README.md");
        let shown = blocks(&std::fs::read_to_string(chart).unwrap());
        let [etcd, cluster, volume] =
            EXAMPLES.map(|example| format!("-f docs/examples/kubernetes/{example}"));
        let install =
            format!("helm install cairn charts/cairn --namespace {OPERATOR_NAMESPACE} --create-namespace");
        let apply = [format!("kubectl apply {etcd}"), format!("kubectl apply {cluster} {volume}")];
        let done = [&install, &apply[0], &apply[1], "kubectl get storageclusters,volumes"];
        assert_eq!(shown[0].text.lines().collect::<Vec<_>>(), done);
    }
}
