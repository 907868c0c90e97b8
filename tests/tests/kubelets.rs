//! Cairn on three kubelets, from `helm install` to a machine that loses its power: what people will do, and what will
//! happen to them. One installation, because bringing it up is most of the work; its steps follow each other. And `make kube`.

use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use cairn_tests::{
    installation::{Installation, OPERATOR_NAMESPACE},
    markdown::steps,
    process::{Spec, poll},
    programs,
    stop::Stop,
    tools::{Need, require},
};
use tempfile::TempDir;

const PODS: [&str; 3] = ["demo-main-zone-a-0", "demo-main-zone-b-0", "demo-main-zone-c-0"];

#[test]
fn cairn_survives_on_three_kubelets() {
    let Ok(tools) = require(&[Need::Kubelets]) else { return };
    let begun = Instant::now();
    let say = |step: &str| println!("{:4.0} s: {step}", begun.elapsed().as_secs_f64());
    let cairn =
        Installation::start(&tools, &Stop::default(), &say).unwrap_or_else(|error| panic!("{error:#}"));
    println!("{}", cairn.status().unwrap());
    let files = Files::new();

    say("a Job writes and reads");
    the_job_writes_and_reads(&cairn);
    one_storage_pod_is_in_each_zone(&cairn);
    files.upload(&cairn, "before");
    say("a storage pod is deleted");
    a_deleted_pod_comes_back(&cairn);
    files.all_are_there(&cairn);
    say("a node loses its power");
    let lost = a_node_loses_its_power(&cairn);
    say("everything is read, and more is written, without it");
    files.all_are_there(&cairn);
    files.upload(&cairn, "meanwhile");
    the_job_writes_and_reads(&cairn);
    say("the node returns");
    the_node_returns(&cairn, lost);
    files.all_are_there(&cairn);
    say("a second cluster names an image that does not exist");
    a_missing_image_is_said(&cairn);
    say("the chart is uninstalled");
    uninstalling_keeps_data(&cairn);
    files.all_are_there(&cairn);
    say("done");
    cairn.down();
    say("and gone");
}

/// Files of this machine that go in, and must come back.
struct Files {
    folder: TempDir,
}

impl Files {
    const SIZES: [usize; 6] = [0, 1, 65_537, 1 << 20, (4 << 20) + 1, 20 << 20];

    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    /// Uploads a new folder of files of several sizes, whose contents are like nothing else.
    fn upload(&self, cairn: &Installation, name: &str) {
        let folder = self.folder.path().join("in").join(name);
        fs::create_dir_all(&folder).unwrap();
        for size in Self::SIZES {
            let mut content = vec![0; size];
            let seed = format!("{name} {size}");
            blake3::Hasher::new().update(seed.as_bytes()).finalize_xof().fill(&mut content);
            fs::write(folder.join(format!("{size} bytes")), content).unwrap();
        }
        let target = format!("files/{name}");
        cairn.outside().unwrap().cairn(&["put", folder.to_str().unwrap(), &target]).unwrap();
    }

    /// Downloads what was uploaded so far and compares every byte.
    fn all_are_there(&self, cairn: &Installation) {
        let back = tempfile::tempdir_in(self.folder.path()).unwrap();
        let outside = cairn.outside().unwrap();
        for folder in fs::read_dir(self.folder.path().join("in")).unwrap().flatten() {
            let name = folder.file_name().into_string().unwrap();
            let target: PathBuf = back.path().join(&name);
            outside.cairn(&["get", &format!("files/{name}"), target.to_str().unwrap()]).unwrap();
            let mut compared = 0;
            for file in fs::read_dir(folder.path()).unwrap().flatten() {
                let copy = fs::read(target.join(file.file_name())).unwrap();
                assert!(copy == fs::read(file.path()).unwrap(), "{} is another file", file.path().display());
                compared += 1;
            }
            assert_eq!(compared, Self::SIZES.len());
        }
    }
}

fn the_job_writes_and_reads(cairn: &Installation) {
    let printed = cairn.run_job().unwrap();
    assert!(printed.contains("Hello from a pod: stored three times"), "{printed}");
}

fn one_storage_pod_is_in_each_zone(cairn: &Installation) {
    let nodes: Vec<String> =
        PODS.iter().map(|pod| cairn.field(&format!("pod/{pod}"), ".spec.nodeName").unwrap()).collect();
    assert_eq!(nodes, ["n1", "n2", "n3"], "zone-a is n1, zone-b is n2, zone-c is n3");
    let status = cairn.status().unwrap();
    assert!(status.contains("demo") && status.contains("files") && status.contains("3/3"), "{status}");
}

fn a_deleted_pod_comes_back(cairn: &Installation) {
    let pod = format!("pod/{}", PODS[0]);
    let before = cairn.field(&pod, ".metadata.uid").unwrap();
    cairn.bed().kubectl(&["delete", &pod]).unwrap();
    cairn.wait(&pod, "condition=Ready").unwrap();
    assert_ne!(cairn.field(&pod, ".metadata.uid").unwrap(), before, "it is another pod");
    cairn.wait_settled().unwrap();
}

/// Kills the kubelet of a node and all its containers; which node. The operator is not on it, so that its loss is reported
/// at once, and at most one member of etcd, so that the others are enough.
fn a_node_loses_its_power(cairn: &Installation) -> usize {
    let bed = cairn.bed();
    let places = |arguments: &[&str]| {
        let path = ["-o", "jsonpath={.items[*].spec.nodeName}"];
        bed.kubectl(&[&["get", "pods"], arguments, &path].concat()).unwrap()
    };
    let operator = places(&["-n", OPERATOR_NAMESPACE]);
    let etcd = places(&["-l", "app.kubernetes.io/name=etcd"]);
    // Ports into the cluster lead through n1.
    let fits = |number: &usize| {
        let node = format!("n{number}");
        !operator.split(' ').any(|place| place == node)
            && etcd.split(' ').filter(|place| **place == node).count() <= 1
    };
    let lost = [2, 3].into_iter().find(fits);
    let lost = lost.unwrap_or_else(|| panic!("operator on {operator}, etcd on {etcd}: no node may be lost"));
    bed.kill_node(lost).unwrap();
    bed.wait_node(lost, false).unwrap();
    cairn.wait("storagecluster/demo", "condition=Ready=False").unwrap();
    cairn.wait("storagecluster/demo", "condition=Available").unwrap();
    cairn.wait("storagecluster/demo", "jsonpath={.status.nodes.summary}=2/3").unwrap();
    lost
}

fn the_node_returns(cairn: &Installation, lost: usize) {
    cairn.bed().start_node(lost).unwrap();
    cairn.bed().wait_node(lost, true).unwrap();
    cairn.wait(&format!("pod/{}", PODS[lost - 1]), "condition=Ready").unwrap();
    cairn.wait_settled().unwrap();
    cairn.wait("storagecluster/demo", "jsonpath={.status.nodes.summary}=3/3").unwrap();
}

fn a_missing_image_is_said(cairn: &Installation) {
    let image = "localhost/nobody/made-this:1";
    let manifest = serde_json::json!({
        "apiVersion": "cairn.storage/v1alpha1", "kind": "StorageCluster", "metadata": { "name": "second" },
        "spec": {
            "image": image,
            "pools": [{ "name": "main", "zones": [{ "name": "zone-a" }], "storage": { "size": "1Gi" } }],
            "metadata": { "etcd": { "endpoints": ["etcd-0.etcd:2379"] } },
        },
    });
    cairn.bed().apply(&manifest.to_string()).unwrap();
    cairn.wait("storagecluster/second", "condition=Stalled").unwrap();
    let condition =
        cairn.field("storagecluster/second", ".status.conditions[?(@.type==\"Stalled\")]").unwrap();
    assert!(condition.contains("ImageNotFound") && condition.contains(image), "{condition}");
    assert!(
        cairn.field("storagecluster/demo", ".status.nodes.summary").unwrap() == "3/3",
        "the first is as it was"
    );
    cairn.bed().kubectl(&["delete", "storagecluster/second"]).unwrap();
}

/// Definitions, clusters, disks and keys stay, and storage nodes need no operator.
fn uninstalling_keeps_data(cairn: &Installation) {
    let bed = cairn.bed();
    let kept = || {
        let kinds = "customresourcedefinitions,storageclusters,volumes,pvc,secrets,statefulsets";
        let list = bed.kubectl(&["get", kinds, "-o", "name"]).unwrap();
        // What belonged to the other cluster, deleted before, may still be on its way out.
        list.lines().filter(|name| !name.contains("second")).map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let before = kept();
    assert!(before.iter().any(|name| name.ends_with("storageclusters.cairn.storage")), "{before:?}");
    assert!(before.iter().any(|name| name.ends_with("data-demo-main-zone-a-0")), "{before:?}");
    bed.helm(&["uninstall", "cairn", "-n", OPERATOR_NAMESPACE, "--wait"]).unwrap();
    let gone = poll(Duration::from_secs(60), Duration::from_millis(500), || {
        let pods = bed.kubectl(&["get", "pods", "-n", OPERATOR_NAMESPACE, "-o", "name"]).unwrap();
        pods.trim().is_empty().then_some(())
    });
    assert!(gone.is_some(), "the operator is still there");
    let lost: Vec<_> = before.difference(&kept()).cloned().collect();
    assert!(lost.is_empty(), "uninstalling took {lost:?}");
}

#[test]
fn make_kube_shows_cairn_and_ends_at_ctrl_c() {
    if require(&[Need::Kubelets]).is_err() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let kube = Spec::new("kube", programs::built("kube")).log(&log).spawn().unwrap();
    let shown = || fs::read_to_string(&log).unwrap_or_default();
    let tour_or_end = poll(Duration::from_secs(900), Duration::from_millis(200), || {
        (shown().contains("Ctrl-C takes everything down.") || kube.exited().is_some()).then_some(())
    });
    if tour_or_end.is_none() {
        kube.terminate(Duration::from_secs(60)); // in order, so that nothing stays
    }
    assert!(tour_or_end.is_some() && kube.exited().is_none(), "{}", shown());
    kube.signal(libc::SIGINT);
    let ended = poll(Duration::from_secs(60), Duration::from_millis(100), || kube.exited());
    assert!(ended.is_some_and(|status| status.success()), "{ended:?}: {}", shown());
    for part in [
        "demo",
        "3/3",
        "Hello from a pod: stored three times",
        "export KUBECONFIG=",
        "nothing is left running",
    ] {
        assert!(shown().contains(part), "no {part:?} in:\n{}", shown());
    }
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).unwrap();
    let step = steps(&readme).into_iter().find(|step| step.make_targets() == ["kube"]);
    let step = step.expect("the README shows `make kube`");
    assert!(!step.outputs.is_empty(), "and what it prints");
    step.check(&shown()).unwrap_or_else(|error| panic!("README.md: {error}\n{}", shown()));
}
