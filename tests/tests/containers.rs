//! Dockerfile and `.env.example` say what is so: the image that the Dockerfile makes is the one that tests run, its
//! programs need nothing else, and every line of `.env.example` is a setting that a node takes.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use cairn_node::config::{self, Command, Given, NodeConfig};
use cairn_tests::bed::ImageSpec;
use cairn_tests::compose::dockerfile::{self, Owner};
use cairn_tests::programs;
use serde_json::Value;

fn repository(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What has no default.
const WITHOUT_DEFAULT: &str = "\
DATABASE_URL=embedded:///m
TLS_CERT_FILE=c
TLS_KEY_FILE=k
TLS_CA_FILE=a
KEK_FILE=e
CLIENT_TOKENS_FILE=t
";

/// The settings that result from a `.env` file alone.
fn settings(dotenv: &str) -> Result<NodeConfig, String> {
    let matches = config::grammar().try_get_matches_from(["cairn-node"]).unwrap();
    let given =
        Given { environment: &|_| None, dotenv: Some(dotenv.to_string()), host_name: "node-1".to_string() };
    match config::command(&matches, &given).map_err(|error| error.to_string())? {
        Command::Run(config) => Ok(*config),
        _ => Err("it does not run a node".to_string()),
    }
}

/// Files of an OCI archive's only layer, and what its configuration says.
fn unpack(archive: &Path) -> (BTreeSet<String>, Value) {
    let read = |name: &str| -> Vec<u8> {
        let mut archive = tar::Archive::new(fs::File::open(archive).unwrap());
        let find = |entry: &tar::Entry<'_, fs::File>| entry.path().unwrap().to_str() == Some(name);
        let mut entry = archive.entries().unwrap().map(Result::unwrap).find(find).expect(name);
        let mut content = Vec::new();
        std::io::copy(&mut entry, &mut content).unwrap();
        content
    };
    let blob = |digest: &Value| read(&digest.as_str().unwrap().replace("sha256:", "blobs/sha256/"));
    let index: Value = serde_json::from_slice(&read("index.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&blob(&index["manifests"][0]["digest"])).unwrap();
    let layer = blob(&manifest["layers"][0]["digest"]);
    let paths = tar::Archive::new(&layer[..])
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().display().to_string())
        .collect();
    (paths, serde_json::from_slice(&blob(&manifest["config"]["digest"])).unwrap())
}

#[test]
fn the_image_of_the_dockerfile_is_the_one_that_tests_run() {
    let image = dockerfile::parse(&repository("Dockerfile")).unwrap();
    assert_eq!(image.user, Owner { user: 65_532, group: 65_532 });
    assert_eq!(
        image.owner, image.user,
        "volumes that are mounted for the first time are for the image's user"
    );
    assert_eq!(image.entrypoint, ["/cairn-node"]);
    assert_eq!(image.programs, ["cairn-node", "cairn-operator", "cairn"]);
    assert_eq!(image.folders, ["data", "certs", "tmp"]);

    // What it exposes is what a node without settings of its own listens on.
    let config = settings(WITHOUT_DEFAULT).unwrap();
    assert_eq!(image.exposed, [config.grpc_port, config.http_port]);
    assert_eq!(config.data_dir, Path::new("/data"));

    // Images for kubelets are made by a harness: it makes the same. Small stand-ins, as their content does not matter.
    let folder = tempfile::tempdir().unwrap();
    let mut spec = ImageSpec::empty("localhost/same:1").entrypoint(&["/cairn-node"]);
    for program in &image.programs {
        let file = folder.path().join(program);
        fs::write(&file, "").unwrap();
        spec = spec.file(file, &format!("/{program}"));
    }
    let (paths, said) = unpack(&spec.build(folder.path()).unwrap().archive);
    assert_eq!(said["config"]["User"], format!("{}:{}", image.user.user, image.user.group));
    assert_eq!(said["config"]["Entrypoint"], serde_json::json!(image.entrypoint));
    // Kubernetes mounts `/data` and certificates itself.
    let wanted: BTreeSet<_> = image.programs.iter().cloned().chain(["tmp".to_string()]).collect();
    assert_eq!(paths, wanted);
}

#[test]
fn the_dockerfile_installs_what_setup_finds_missing() {
    let setup = repository(".ci/setup");
    let (build, _) = setup.split_once("!= build ]").expect("what only tests need comes after");
    let wants = build
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once("want ").map(|(_, words)| words));
    let packages: BTreeSet<&str> = wants.filter_map(|words| words.split_whitespace().nth(1)).collect();
    // The image of the stage that builds has a C compiler.
    let beyond_c: BTreeSet<&str> =
        packages.iter().copied().filter(|p| !["gcc", "libc6-dev"].contains(p)).collect();
    assert!(packages.len() - beyond_c.len() == 2 && !beyond_c.is_empty(), "{packages:?}");
    let dockerfile = repository("Dockerfile");
    let (_, installed) = dockerfile.split_once("--no-install-recommends ").expect("packages");
    let installed: BTreeSet<&str> =
        installed.lines().next().unwrap().trim_end_matches('\\').split_whitespace().collect();
    assert_eq!(installed, beyond_c);
}

/// The segments of a program that the kernel reads before it starts it (ELF64, little-endian: "Program header").
fn segments(program: &[u8]) -> Vec<u32> {
    assert_eq!(program[..6], *b"\x7fELF\x02\x01", "a 64-bit little-endian program");
    let number = |at: usize, bytes: usize| {
        program[at..at + bytes].iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte))
    };
    let (table, size, count) = (number(0x20, 8), number(0x36, 2), number(0x38, 2));
    (0..count).map(|index| number(table + index * size, 4) as u32).collect()
}

#[test]
fn programs_need_no_other_file() {
    const LOAD: u32 = 1;
    const INTERPRETER: u32 = 3;
    for program in dockerfile::parse(&repository("Dockerfile")).unwrap().programs {
        let segments = segments(&fs::read(programs::built(&program)).unwrap());
        assert!(segments.contains(&LOAD), "{program}: {segments:?}");
        assert!(!segments.contains(&INTERPRETER), "{program} wants a dynamic linker, and the image has none");
    }
    let shell = segments(&fs::read("/bin/sh").unwrap());
    assert!(shell.contains(&INTERPRETER), "an ordinary program has one: {shell:?}");
}

#[test]
fn every_line_of_the_example_is_a_setting() {
    let example = repository(".env.example");
    let grammar = config::grammar();
    let known: BTreeSet<&str> = grammar.get_arguments().map(|argument| argument.get_id().as_str()).collect();
    // `#NAME=value` is a setting that is left out; `# text` is for people.
    let is_setting = |line: &&str| line.starts_with(|c: char| c.is_ascii_uppercase()) && line.contains('=');
    let lines: Vec<(bool, &str)> = example
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with("# "))
        .map(|line| (!line.starts_with('#'), line.trim_start_matches('#')))
        .collect();
    assert!(lines.len() > 15, "{lines:?}");
    for (_, line) in &lines {
        assert!(is_setting(line), "{line:?} is neither a setting nor a comment");
        let name = line.split('=').next().unwrap();
        assert!(known.contains(name), "{name} is no setting");
        assert!(name != "ENV_FILE" && !line.contains(" #"), "{line}");
    }
    let config = settings(&example).unwrap();
    assert_eq!((config.grpc_port, config.expected_nodes), (50_051, 3));

    // Each that is left out, alone: a later line wins. Certificate and key go together.
    let left_out: Vec<&str> = lines.iter().filter(|(set, _)| !set).map(|(_, line)| *line).collect();
    let (etcd, others): (Vec<&str>, Vec<&str>) =
        left_out.into_iter().partition(|line| line.starts_with("ETCD_"));
    assert!(!etcd.is_empty() && !others.is_empty());
    for more in others.iter().map(|line| line.to_string()).chain([etcd.join("\n")]) {
        let changed = settings(&format!("{example}\n{more}\n"));
        assert!(changed.is_ok(), "{more}: {changed:?}");
    }
    let wrong = settings(&example.replace("GRPC_PORT=50051", "GRPC_PORT=many")).unwrap_err();
    assert!(wrong.contains("GRPC_PORT"), "{wrong}");
}
