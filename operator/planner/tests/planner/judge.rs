//! Properties: in whatever happens, plans pass their judge; and the judge is worth something, because altered plans do not.

use std::collections::BTreeMap;

use cairn_planner::check::{Violation, check};
use cairn_planner::{Action, Object, Observed, PlacementGroups, Plan, SecretKind, SecretRequest, Step, Why};
use k8s_openapi::api::apps::v1::StatefulSet;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::world::{Life, World};

const CLUSTER: &str = "
apiVersion: cairn.storage/v1alpha1
kind: StorageCluster
metadata: {name: demo}
spec:
  pools:
  - name: main
    zones: [{name: a, nodes: 2}, {name: b}, {name: c}]
    storage: {size: 10Gi}
  metadata: {etcd: {endpoints: [etcd]}}
";
const PODS: [&str; 4] = ["demo-main-a-0", "demo-main-a-1", "demo-main-b-0", "demo-main-c-0"];

fn settled() -> World {
    let mut world = World::new(CLUSTER);
    for _ in 0..10 {
        let outcome = world.look();
        world.execute(&outcome);
        world.kubelets();
    }
    assert!(world.look().plan.steps.is_empty());
    world
}

/// Something that happens to a cluster.
#[derive(Clone, Debug)]
enum Event {
    Operator,
    Kubelets,
    Edit(&'static str, Value),
    Pod(usize, Life),
    Groups(Option<(i32, i32)>),
    Silent(bool),
    Delete(&'static str, &'static str),
    Scale(i32),
    BadImage(bool),
    Days(i64),
    Recreate,
}

fn event() -> impl Strategy<Value = Event> {
    let life = prop_oneof![
        Just(Life::Ready),
        Just(Life::Starting),
        Just(Life::Sick),
        Just(Life::Terminating),
        Just(Life::Waiting("ImagePullBackOff".into(), "no".into())),
        Just(Life::Waiting("CrashLoopBackOff".into(), "no".into())),
    ];
    let edit = prop_oneof![
        (1..4).prop_map(|n| ("/spec/image", json!(format!("registry.example/cairn:{n}")))),
        (0..4).prop_map(|n| ("/spec/pools/0/zones/0/nodes", json!(n))),
        (1..4).prop_map(|n| ("/spec/pools/0/zones/1/nodes", json!(n))),
        Just(("/spec/pools/0/zones/2/name", json!("d"))),
        Just(("/spec/pools/0/zones/2/name", json!("c"))),
        (1..30).prop_map(|n| ("/spec/pools/0/storage/size", json!(format!("{n}Gi")))),
        (8000..8003).prop_map(|n| ("/spec/ports/http", json!(n))),
        Just(("/spec/encryption/keySecretName", json!("mine"))),
        Just(("/spec/encryption/keySecretName", Value::Null)),
        Just(("/spec/metadata", Value::Null)),
        Just(("/spec/metadata", json!({ "etcd": { "endpoints": ["etcd"] } }))),
        Just(("/spec/metadata", json!({ "etcd": { "endpoints": ["etcd"], "prefix": "x" } }))),
    ];
    let secrets = ["demo-kek", "demo-ca", "demo-node-tls", "demo-client", "demo-tokens"];
    prop_oneof![
        8 => Just(Event::Operator),
        6 => Just(Event::Kubelets),
        4 => edit.prop_map(|(pointer, value)| Event::Edit(pointer, value)),
        4 => (0..PODS.len(), life).prop_map(|(pod, life)| Event::Pod(pod, life)),
        2 => prop::option::of((0..129, 0..3)).prop_map(Event::Groups),
        1 => any::<bool>().prop_map(Event::Silent),
        2 => prop::sample::select(secrets.to_vec()).prop_map(|name| Event::Delete("Secret", name)),
        1 => Just(Event::Delete("Service", "demo")),
        1 => Just(Event::Delete("ConfigMap", "demo-installed")),
        1 => Just(Event::Delete("StatefulSet", "demo-main-b")),
        1 => (0..5).prop_map(Event::Scale),
        1 => any::<bool>().prop_map(Event::BadImage),
        1 => (1..100_i64).prop_map(Event::Days),
        1 => Just(Event::Recreate),
    ]
}

fn happen(world: &mut World, event: Event) {
    match event {
        Event::Operator => {
            let outcome = world.look();
            world.execute(&outcome);
        }
        Event::Kubelets => world.kubelets(),
        Event::Edit(pointer, value) => world.edit(pointer, value),
        Event::Pod(pod, life) => {
            if world.lives.contains_key(PODS[pod]) {
                world.lives.insert(PODS[pod].to_owned(), life);
            }
        }
        Event::Groups(groups) => {
            world.groups = groups.map(|(settled, unavailable)| {
                let unavailable = unavailable.min(128 - settled);
                PlacementGroups { total: 128, settled, unavailable, degraded: 128 - settled - unavailable }
            });
        }
        Event::Silent(silent) => world.silent = silent,
        Event::Delete(kind, name) => world.delete(kind, name),
        Event::Scale(replicas) => {
            if world.observed.stateful_sets.iter().any(|s| s.metadata.name.as_deref() == Some("demo-main-a"))
            {
                world.meddle("StatefulSet", "demo-main-a", "/spec/replicas", json!(replicas));
            }
        }
        Event::BadImage(bad) => {
            world.bad_images.clear();
            if bad {
                world.bad_images.insert("registry.example/cairn:2".to_owned());
            }
        }
        Event::Days(days) => world.now_s += days * 86_400,
        Event::Recreate => world.recreate(),
    }
}

/// What the world itself would call a loss, whatever the planner thinks.
#[derive(Default)]
struct Witness {
    /// The most nodes that each set ever had.
    nodes: BTreeMap<String, i32>,
}

impl Witness {
    fn watch(&mut self, observed: &Observed, plan: &Plan) {
        for step in &plan.steps {
            match &step.action {
                Action::WriteSecret(request) if request.kind == SecretKind::Key => {
                    assert!(observed.volume_claims.is_empty(), "a key is made, and disks exist");
                }
                Action::Apply(Object::StatefulSet(set)) => {
                    let name = set.metadata.name.clone().expect("a set has a name");
                    let replicas =
                        set.spec.as_ref().and_then(|spec| spec.replicas).expect("replicas are given");
                    let most = self.nodes.entry(name).or_insert(replicas);
                    assert!(replicas >= *most, "a set shrinks from {most} to {replicas}");
                    *most = replicas;
                }
                _ => {}
            }
        }
        let working = plan.steps.iter().filter(|step| {
            matches!(&step.action, Action::RestartPod { name, .. }
                if observed.pods.iter().any(|pod| pod.metadata.name.as_ref() == Some(name)
                    && pod.status.as_ref().is_some_and(|s| s.conditions.iter().flatten().any(|c| c.status == "True"))))
        });
        assert!(working.count() <= 1, "two ready pods restart at once");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn plans_pass_their_judge_in_whatever_happens(events in prop::collection::vec(event(), 1..40), fresh: bool) {
        let mut world = if fresh { World::new(CLUSTER) } else { settled() };
        let mut witness = Witness::default();
        for event in events {
            if matches!(event, Event::Operator) {
                let outcome = world.look();
                witness.watch(&world.observed, &outcome.plan);
                world.execute(&outcome);
            } else {
                happen(&mut world, event.clone());
            }
            let outcome = world.look();
            let violations = check(&world.observed, &outcome.plan);
            prop_assert!(violations.is_empty(), "after {event:?}: {violations:?}");
            let stalled = outcome.status.conditions.iter().find(|c| c.type_ == "Stalled");
            prop_assert!(stalled.is_none_or(|c| c.reason != "UnsafePlan"), "after {event:?}: {stalled:?}");
            prop_assert_eq!(world.look().plan, outcome.plan, "the same observation gives the same plan");
        }
    }

    #[test]
    fn whatever_happened_a_cluster_left_alone_comes_to_rest(events in prop::collection::vec(event(), 1..30)) {
        let mut world = settled();
        events.into_iter().for_each(|event| happen(&mut world, event));
        (world.groups, world.silent) = (None, false);
        world.bad_images.clear();
        for life in world.lives.values_mut() {
            *life = Life::Ready;
        }
        for _ in 0..40 {
            let outcome = world.look();
            world.execute(&outcome);
            world.kubelets();
        }
        let outcome = world.look();
        prop_assert!(outcome.plan.steps.is_empty(), "{:?}", outcome.plan);
        prop_assert!(!outcome.status_changed, "nothing is written at rest");
    }
}

fn sets(world: &World) -> Vec<StatefulSet> {
    world.observed.stateful_sets.clone()
}

fn apply_set(set: StatefulSet) -> Plan {
    let step = Step { action: Action::Apply(Object::StatefulSet(Box::new(set))), why: Why::Missing };
    Plan { steps: vec![step], waits: Vec::new() }
}

fn altered(set: &StatefulSet, pointer: &str, value: Value) -> StatefulSet {
    let mut whole = serde_json::to_value(set).expect("plain data");
    *whole.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer} exists")) = value;
    serde_json::from_value(whole).expect("readable")
}

#[test]
fn altered_stateful_sets_are_refused() {
    let world = settled();
    let set = &sets(&world)[0];
    assert_eq!(check(&world.observed, &apply_set(set.clone())), [], "as it is, it may be applied");
    let pod = "/spec/template/spec";
    let cases: Vec<(String, Value, &str)> = vec![
        ("/spec/replicas".into(), json!(1), "shrinks from 2 to 1"),
        ("/spec/replicas".into(), json!(0), "shrinks"),
        ("/spec/selector/matchLabels/cairn.storage~1zone".into(), json!("z"), "selector"),
        ("/spec/serviceName".into(), json!("other"), "serviceName"),
        ("/spec/podManagementPolicy".into(), json!("OrderedReady"), "podManagementPolicy"),
        (
            "/spec/volumeClaimTemplates/0/spec/resources/requests/storage".into(),
            json!("5Gi"),
            "volumeClaimTemplates",
        ),
        ("/spec/volumeClaimTemplates/0/metadata/name".into(), json!("other"), "volumeClaimTemplates"),
        ("/spec/updateStrategy/type".into(), json!("RollingUpdate"), "updateStrategy"),
        ("/spec/persistentVolumeClaimRetentionPolicy/whenDeleted".into(), json!("Delete"), "whenDeleted"),
        ("/spec/persistentVolumeClaimRetentionPolicy/whenScaled".into(), json!("Delete"), "whenScaled"),
        ("/metadata/labels/cairn.storage~1cluster".into(), json!("other"), "is not the cluster's"),
        ("/metadata/namespace".into(), json!("kube-system"), "is not the cluster's"),
        ("/metadata/ownerReferences/0/uid".into(), json!("other"), "is not the cluster's"),
        (format!("{pod}/securityContext/runAsNonRoot"), json!(false), "runAsNonRoot"),
        (format!("{pod}/securityContext/runAsUser"), json!(0), "runAsNonRoot"),
        (format!("{pod}/securityContext/seccompProfile/type"), json!("Unconfined"), "seccompProfile"),
        (format!("{pod}/automountServiceAccountToken"), json!(true), "serviceAccountToken"),
        (
            format!("{pod}/containers/0/securityContext/allowPrivilegeEscalation"),
            json!(true),
            "allowPrivilegeEscalation",
        ),
        (format!("{pod}/containers/0/securityContext/capabilities/drop"), json!([]), "capabilities"),
        (
            format!("{pod}/containers/0/securityContext/readOnlyRootFilesystem"),
            json!(false),
            "readOnlyRootFilesystem",
        ),
        (format!("{pod}/containers/0/securityContext"), json!({ "privileged": true }), "privileged"),
        (format!("{pod}/volumes"), json!([{ "name": "h", "hostPath": { "path": "/" } }]), "hostPath"),
    ];
    for (pointer, value, words) in cases {
        let found = check(&world.observed, &apply_set(altered(set, &pointer, value)));
        let text = found.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        assert!(text.contains(words), "{pointer}: {text:?}");
    }
}

fn restart(world: &World, names: &[&str]) -> Plan {
    let step = |name: &&str| {
        let pod = world
            .observed
            .pods
            .iter()
            .find(|pod| pod.metadata.name.as_deref() == Some(name))
            .expect("it exists");
        let uid = pod.metadata.uid.clone().expect("it has one");
        Step {
            action: Action::RestartPod { name: (*name).to_owned(), uid, zone: String::new() },
            why: Why::PodOutdated,
        }
    };
    Plan { steps: names.iter().map(step).collect(), waits: Vec::new() }
}

#[test]
fn unsafe_restarts_are_refused() {
    let mut world = settled();
    assert_eq!(check(&world.observed, &restart(&world, &PODS[..1])), [], "one, when all is well");

    let found = check(&world.observed, &restart(&world, &PODS[..2]));
    assert!(matches!(found[0], Violation::DisturbsTwo { .. }), "{found:?}");

    let mut unknown = restart(&world, &PODS[..1]);
    if let Action::RestartPod { uid, .. } = &mut unknown.steps[0].action {
        *uid = "another".to_owned();
    }
    assert!(matches!(check(&world.observed, &unknown)[0], Violation::UnknownPod { .. }));

    world.groups = Some(PlacementGroups { total: 128, settled: 127, degraded: 1, unavailable: 0 });
    world.look();
    assert!(matches!(
        check(&world.observed, &restart(&world, &PODS[..1]))[0],
        Violation::DisturbsUnsafely { .. }
    ));
    world.groups = None;

    world.silent = true;
    world.look();
    assert!(matches!(
        check(&world.observed, &restart(&world, &PODS[..1]))[0],
        Violation::DisturbsUnsafely { .. }
    ));
    world.silent = false;

    world.lives.insert(PODS[3].to_owned(), Life::Sick);
    world.look();
    let found = check(&world.observed, &restart(&world, &PODS[..1]));
    assert!(found.iter().any(|v| v.to_string().contains("zone c is disturbed")), "{found:?}");

    for pod in PODS {
        world.lives.insert(pod.to_owned(), Life::Waiting("ImagePullBackOff".into(), "no".into()));
    }
    world.look();
    assert_eq!(
        check(&world.observed, &restart(&world, &PODS)),
        [],
        "pods that never worked may all be restarted"
    );
}

#[test]
fn the_key_and_the_record_are_out_of_reach() {
    let world = settled();
    let write = |name: &str, kind: SecretKind, owned: bool| {
        let request = SecretRequest { name: name.to_owned(), kind, owned };
        let step = Step { action: Action::WriteSecret(request), why: Why::Missing };
        check(&world.observed, &Plan { steps: vec![step], waits: Vec::new() })
    };
    for (name, kind) in
        [("demo-kek", SecretKind::Key), ("other", SecretKind::Key), ("demo-kek", SecretKind::Client)]
    {
        assert!(matches!(write(name, kind, false)[0], Violation::TouchesKey { .. }));
    }
    assert!(
        write("fresh", SecretKind::Key, true).iter().any(|v| matches!(v, Violation::OwnsWhatStays { .. }))
    );
    assert_eq!(write("demo-tokens", SecretKind::Tokens, true), []);

    let record = world.observed.config_maps[0].clone();
    let alter = |from: &str, to: &str| {
        let mut map = record.clone();
        for text in map.data.iter_mut().flat_map(|data| data.values_mut()) {
            assert!(text.contains(from), "{from} is in the record: {text}");
            *text = text.replacen(from, to, 1);
        }
        let step = Step { action: Action::Apply(Object::ConfigMap(map)), why: Why::Missing };
        check(&world.observed, &Plan { steps: vec![step], waits: Vec::new() })
    };
    assert_eq!(alter("demo-kek", "demo-kek"), []);
    for (from, to) in
        [("demo-kek", "other"), ("\"nodes\": 2", "\"nodes\": 1"), ("\"prefix\"", "\"prefixes\"")]
    {
        assert!(matches!(alter(from, to)[0], Violation::RewritesRecord { .. }), "{from}");
    }
}
