//! Stories in (`scenarios/*.yaml`), golden texts out (`scenarios/*.txt`). A change of behaviour shows as a diff of a text;
//! `UPDATE_GOLDEN=1 cargo test -p cairn-planner` writes the texts anew, for review.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use cairn_planner::volume::{self, Stored, StoredVolume, VolumeObserved};
use cairn_planner::{
    Action, Mode, Object, Outcome, PlacementGroups, SecretKind, contract, record, resources, validate,
};
use serde::Deserialize;
use serde_json::Value;

use crate::world::{Life, PGS, World};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Story {
    story: String,
    /// The StorageCluster; without it, that of `first-install`.
    #[serde(default)]
    cluster: Option<Value>,
    steps: Vec<Do>,
}

impl Story {
    fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).expect("the story is there");
        // By way of JSON: YAML would want tags for the enum of steps.
        let story: Value =
            serde_yaml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        serde_json::from_value(story).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    fn world(&self) -> World {
        let first = || Self::read(&folder().join("first-install.yaml")).cluster.expect("it has a cluster");
        World::new(&self.cluster.clone().unwrap_or_else(first).to_string())
    }
}

/// What happens next in a story.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
enum Do {
    /// The operator looks, and does nothing.
    Look,
    /// The operator looks and executes its plan; Kubernetes acts, but pods do not get ready yet.
    Apply,
    /// Kubelets work: what starts becomes ready.
    Kubelets,
    /// Operator and kubelets in turns until nothing is left to do.
    Settle,
    /// The spec is edited: JSON pointer to value, null to remove.
    Edit(BTreeMap<String, Value>),
    /// How pods live: ready, starting, sick, terminating.
    Pods(BTreeMap<String, String>),
    /// The kubelet's (reason, message) for pods that wait.
    Waiting(BTreeMap<String, (String, String)>),
    /// The scheduler's message for pods without a place.
    Unplaced(BTreeMap<String, String>),
    BadImages(Vec<String>),
    /// Settled, degraded, unavailable; null: as follows from the pods.
    Groups(Option<(i32, i32, i32)>),
    /// Nodes do not answer the operator.
    Silent(bool),
    Metadata(Option<String>),
    DefaultImage(String),
    /// kind/name.
    Delete(String),
    /// kind/name, pointer, value.
    Meddle(String, String, Value),
    /// A Secret of somebody else, with entries.
    Secret(String, Vec<String>),
    Recreate,
    /// A Volume `files` of this spec is looked at; what the nodes have of that name: its copies, or null.
    Volume(Value, Option<i32>),
    Days(i64),
    Seconds(i64),
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios")
}

fn judge_golden(path: &Path, found: &str, stale: &mut Vec<String>) {
    let expected = std::fs::read_to_string(path).unwrap_or_default();
    if expected == found {
        return;
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, found).expect("the golden text can be written");
        return;
    }
    let line = expected.lines().zip(found.lines()).position(|(e, f)| e != f);
    let line = line.unwrap_or_else(|| expected.lines().count().min(found.lines().count()));
    let show = |text: &str| text.lines().nth(line).unwrap_or("(end)").to_owned();
    stale.push(format!(
        "{}:{}\n  golden: {}\n  found:  {}",
        path.display(),
        line + 1,
        show(&expected),
        show(found)
    ));
}

#[test]
fn stories_end_as_told() {
    let mut stories: Vec<PathBuf> = std::fs::read_dir(folder())
        .expect("the scenarios are there")
        .map(|entry| entry.expect("readable").path())
        .filter(|path| {
            path.extension().is_some_and(|e| e == "yaml") && !path.to_string_lossy().contains(".objects.")
        })
        .collect();
    stories.sort();
    assert!(stories.len() >= 10, "stories are missing");
    let mut stale = Vec::new();
    for path in stories {
        judge_golden(&path.with_extension("txt"), &Teller::tell(&Story::read(&path)), &mut stale);
    }
    assert!(stale.is_empty(), "stories end otherwise (UPDATE_GOLDEN=1 accepts):\n{}", stale.join("\n"));
}

#[test]
fn objects_are_rendered_as_reviewed() {
    let world = Story::read(&folder().join("first-install.yaml")).world();
    let wanted = validate::cluster(&world.observed.cluster, Mode::Kubernetes).expect("the cluster is good");
    let held = record::hold(wanted, None, &world.observed.default_image).expect("nothing is installed");
    let renderer = contract::RENDERER;
    let mut found = format!("# Golden: what renderer {renderer} renders for the story `first-install`.\n");
    for object in resources::render(&held) {
        write!(found, "---\n{}", serde_yaml::to_string(&object.to_value()).expect("plain data"))
            .expect("a string");
    }
    let mut stale = Vec::new();
    judge_golden(&folder().join("first-install.objects.yaml"), &found, &mut stale);
    assert!(
        stale.is_empty(),
        "objects are rendered otherwise; a changed pod template needs a new renderer (contract::RENDERER), or it restarts \
         every storage pod when operators are upgraded:\n{}",
        stale.join("\n")
    );
}

/// Upgrading the operator restarts no storage pod, also where the record of what is installed was lost.
#[test]
fn a_cluster_keeps_the_renderer_it_was_installed_with() {
    let mut observed = Story::read(&folder().join("first-install.yaml")).world().observed;
    let wanted = validate::cluster(&observed.cluster, Mode::Kubernetes).expect("the cluster is good");
    let mut installed = record::hold(wanted.clone(), None, "image:1").expect("nothing is installed").record;
    for renderer in 1..=contract::RENDERER {
        installed.renderer = renderer;
        let held = record::hold(wanted.clone(), Some(&installed), "image:2").expect("it is known");
        assert_eq!(held.record.renderer, renderer);
        let sets = resources::render(&held).into_iter().filter_map(|object| match object {
            Object::StatefulSet(set) => Some(*set),
            _ => None,
        });
        observed.stateful_sets = sets.collect();
        let text = serde_json::to_string(&observed.stateful_sets).expect("plain data");
        assert_eq!(text.contains("CAPACITY"), renderer >= 2, "renderer {renderer}");
        assert_eq!(text.contains("NEW_DISK"), renderer >= 3, "renderer {renderer}");
        let recovered = record::recovered(&observed, &wanted).expect("it is installed");
        assert_eq!(recovered, installed, "renderer {renderer}");
    }
}

/// A record that was lost while StatefulSets wished for an image that cannot be had: what runs is what counts.
#[test]
fn a_lost_record_does_not_take_an_image_that_nobody_runs_for_the_default() {
    let mut observed = Story::read(&folder().join("first-install.yaml")).world().observed;
    let mut wanted = validate::cluster(&observed.cluster, Mode::Kubernetes).expect("the cluster is good");
    wanted.image = Some("nobody/none:1".into());
    let held = record::hold(wanted.clone(), None, "image:1").expect("nothing is installed");
    let sets = resources::render(&held).into_iter().filter_map(|object| match object {
        Object::StatefulSet(set) => Some(*set),
        _ => None,
    });
    observed.stateful_sets = sets.collect();
    wanted.image = None;
    let pod = |image: &str, ready: &str| {
        let pod = serde_json::json!({
            "spec": {"containers": [{"name": "node", "image": image}]},
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        });
        serde_json::from_value(pod).expect("a pod")
    };
    observed.pods =
        vec![pod("nobody/none:1", "False"), pod("image:1", "True"), pod("nobody/none:1", "False")];
    let recovered = record::recovered(&observed, &wanted).expect("it is installed");
    assert_eq!(recovered.default_image.as_deref(), Some("image:1"));
}

struct Teller {
    world: World,
    text: String,
    shown: Vec<String>,
}

impl Teller {
    fn tell(story: &Story) -> String {
        let mut teller = Self { world: story.world(), text: String::new(), shown: Vec::new() };
        for line in story.story.trim().lines() {
            teller.line(&format!("# {line}"));
        }
        for step in &story.steps {
            teller.step(step);
        }
        teller.text
    }

    fn line(&mut self, line: &str) {
        self.text.push_str(line.trim_end());
        self.text.push('\n');
    }

    fn title(&mut self, title: &str) {
        self.line("");
        self.line(&format!("== {title}"));
    }

    fn step(&mut self, step: &Do) {
        match step {
            Do::Look => _ = self.look("look"),
            Do::Apply => _ = self.apply("apply"),
            Do::Settle => self.settle(),
            Do::Volume(spec, stored) => self.volume(spec, *stored),
            other => self.happen(other),
        }
    }

    fn look(&mut self, title: &str) -> Outcome {
        self.title(title);
        let outcome = self.world.look();
        self.show(&outcome);
        outcome
    }

    fn apply(&mut self, title: &str) -> bool {
        let outcome = self.look(title);
        self.world.execute(&outcome);
        outcome.plan.steps.is_empty() && !outcome.status_changed
    }

    fn settle(&mut self) {
        for round in 1..=40 {
            let still = self.apply(&format!("settle, round {round}"));
            let waits = self.world.lives.values().any(|l| matches!(l, Life::Starting | Life::Terminating));
            if still && !waits {
                return;
            }
            self.world.kubelets();
        }
        panic!("the story does not settle:\n{}", self.text);
    }

    fn volume(&mut self, spec: &Value, stored: Option<i32>) {
        self.title(&format!("Volume files {spec}, of which the nodes have {stored:?} copies"));
        let manifest = serde_json::json!({
            "apiVersion": cairn_crds::API_VERSION, "kind": "Volume", "metadata": { "name": "files" }, "spec": spec,
        });
        let stored = stored.map_or(Stored::Absent, |copies| {
            let chunk_size_bytes = 4 << 20;
            let id = "1".to_owned();
            Stored::Present(StoredVolume {
                id,
                copies,
                chunk_size_bytes,
                being_deleted: false,
                files: None,
                bytes: None,
            })
        });
        let cluster = Some(self.world.observed.cluster.clone());
        let volume = serde_json::from_value(manifest).expect("the volume is readable");
        let observed = VolumeObserved { mode: Mode::Kubernetes, volume, cluster, stored };
        let outcome = volume::reconcile(&observed, self.world.now());
        for step in &outcome.steps {
            self.line(&format!("do    {step:?}"));
        }
        for c in &outcome.status.conditions {
            self.line(&format!("cond  {:<17} {:<7} {}: {}", c.type_, c.status, c.reason, c.message));
        }
    }

    fn happen(&mut self, step: &Do) {
        let world = &mut self.world;
        let told = match step {
            Do::Kubelets => {
                world.kubelets();
                "kubelets work".to_owned()
            }
            Do::Edit(changes) => {
                changes.iter().for_each(|(pointer, value)| world.edit(pointer, value.clone()));
                let shown: Vec<_> =
                    changes.iter().map(|(pointer, value)| format!("{pointer} = {value}")).collect();
                format!("the user edits {}", shown.join(", "))
            }
            Do::Pods(lives) => {
                for (name, life) in lives {
                    let life = match life.as_str() {
                        "ready" => Life::Ready,
                        "starting" => Life::Starting,
                        "sick" => Life::Sick,
                        "terminating" => Life::Terminating,
                        other => panic!("no pod lives {other}"),
                    };
                    assert!(world.lives.insert(name.clone(), life).is_some(), "{name} does not exist");
                }
                format!("pods: {lives:?}")
            }
            Do::Waiting(pods) => {
                for (name, (reason, message)) in pods {
                    world.lives.insert(name.clone(), Life::Waiting(reason.clone(), message.clone()));
                }
                format!("pods wait: {pods:?}")
            }
            Do::Unplaced(pods) => {
                let now_s = world.now_s;
                for (name, message) in pods {
                    world.lives.insert(name.clone(), Life::Unplaced(message.clone(), now_s));
                }
                format!("pods have no place: {pods:?}")
            }
            Do::BadImages(images) => {
                world.bad_images = images.iter().cloned().collect();
                format!("images that do not exist: {images:?}")
            }
            Do::Groups(groups) => {
                world.groups = groups.map(|(settled, degraded, unavailable)| PlacementGroups {
                    total: PGS,
                    settled,
                    degraded,
                    unavailable,
                });
                format!("the nodes say of their data: {:?}", world.groups)
            }
            Do::Silent(silent) => {
                world.silent = *silent;
                format!("the nodes {}", if *silent { "do not answer" } else { "answer again" })
            }
            Do::Metadata(problem) => {
                world.metadata_problem.clone_from(problem);
                format!("the metadata store: {}", problem.as_deref().unwrap_or("answers"))
            }
            other => self.happen_outside(other),
        };
        self.title(&told);
    }

    fn happen_outside(&mut self, step: &Do) -> String {
        let world = &mut self.world;
        match step {
            Do::DefaultImage(image) => {
                world.observed.default_image.clone_from(image);
                format!("the operator is upgraded; its default image is {image}")
            }
            Do::Delete(what) => {
                let (kind, name) = what.split_once('/').expect("kind/name");
                world.delete(kind, name);
                format!("somebody deletes {what}")
            }
            Do::Meddle(what, pointer, value) => {
                let (kind, name) = what.split_once('/').expect("kind/name");
                world.meddle(kind, name, pointer, value.clone());
                format!("somebody changes {what}: {pointer} = {value}")
            }
            Do::Secret(name, entries) => {
                let entries = entries.iter().cloned().collect();
                let fact = cairn_planner::SecretFact { entries, ..Default::default() };
                world.observed.secrets.insert(name.clone(), fact);
                format!("the user makes Secret {name}")
            }
            Do::Recreate => {
                world.recreate();
                "the StorageCluster is deleted, and made again".to_owned()
            }
            Do::Days(days) => {
                world.now_s += days * 86_400;
                format!("{days} days pass")
            }
            Do::Seconds(seconds) => {
                world.now_s += seconds;
                format!("{seconds} seconds pass")
            }
            _ => unreachable!("told elsewhere"),
        }
    }

    fn show(&mut self, outcome: &Outcome) {
        for step in &outcome.plan.steps {
            self.line(&format!("do    {} — {} ({})", action(&step.action), step.why, step.why.reason()));
        }
        for why in &outcome.plan.waits {
            self.line(&format!("wait  {}: {why}", why.reason()));
        }
        let conditions = outcome.status.conditions.iter();
        let lines: Vec<String> = conditions
            .map(|c| format!("cond  {:<17} {:<7} {}: {}", c.type_, c.status, c.reason, c.message))
            .collect();
        let changed: Vec<String> = lines.iter().filter(|line| !self.shown.contains(line)).cloned().collect();
        changed.iter().for_each(|line| self.line(line));
        self.shown = lines;
        let status = &outcome.status;
        let nodes = status.nodes.as_ref().map_or("-", |nodes| nodes.summary.as_str());
        let groups = status.placement_groups.as_ref().map_or("-", |groups| groups.summary.as_str());
        let written = if outcome.status_changed { "status is written" } else { "nothing is written" };
        let intended = outcome.intent.as_ref().map_or(0, |intent| intent.nodes.len());
        let image = status.image.as_deref().unwrap_or("-");
        let line =
            format!("      nodes {nodes}, settled {groups}, intent {intended}, image {image}; {written}");
        self.line(&line);
    }
}

fn action(action: &Action) -> String {
    match action {
        Action::Apply(object) => format!("apply {} {}", object.kind(), object.name()),
        Action::RestartPod { name, .. } => format!("restart pod {name}"),
        Action::WriteSecret(request) => {
            let what = match &request.kind {
                SecretKind::Authority => "CA",
                SecretKind::NodeCertificate { .. } => "node certificate",
                SecretKind::OperatorCertificate => "operator certificate",
                SecretKind::Key => "key",
                SecretKind::Client => "client",
                SecretKind::Tokens => "tokens",
            };
            format!(
                "write Secret {} ({what}{})",
                request.name,
                if request.owned { "" } else { ", kept for ever" }
            )
        }
    }
}
