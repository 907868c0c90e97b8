//! compose.yaml as it stands, without a container engine: each service is a process with a root folder, a network
//! address and an environment of its own, which runs the file's command under the file's rules.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cairn_tests::compose::ComposeFile;
use cairn_tests::compose::dockerfile::{self, Image};
use cairn_tests::compose::project::{Images, Project};
use cairn_tests::process::{Spec, poll};
use cairn_tests::tools::{Need, Tools, require};
use cairn_tests::{programs, scratch::Scratch};
use rand::{Rng, SeedableRng, rngs::StdRng};
use sha2::{Digest, Sha256};

const ETCDS: [&str; 3] = ["etcd-1", "etcd-2", "etcd-3"];
const NODES: [&str; 3] = ["node-1", "node-2", "node-3"];
/// For one command. Two cores may be busy with other tests.
const COMMAND_LIMIT: Duration = Duration::from_secs(180);

/// Content of a folder: path → bytes.
type Content = BTreeMap<PathBuf, Vec<u8>>;

fn repository(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn create(tools: &Tools, compose: &str) -> Project {
    let image: Image = dockerfile::parse(&repository("Dockerfile")).expect("the Dockerfile is understood");
    let file = ComposeFile::parse(compose).expect("compose.yaml is carried out as a whole");
    Project::create(file, &Images { cairn: &image, tools }).expect("containers can be made")
}

fn tools() -> Option<Tools> {
    require(&[Need::Namespaces, Need::Etcd, Need::System("ip"), Need::System("curl")]).ok()
}

/// A project, and somebody at its machine with a shell and `cairn`.
struct Desk {
    project: Project,
    folder: Scratch,
}

impl Desk {
    fn new(project: Project) -> Self {
        let folder = Scratch::new("desk").unwrap();
        Self { project, folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs a command, which must succeed; what it printed.
    fn run(&self, spec: Spec) -> String {
        let what = format!("{spec:?}");
        let output = self.project.run(spec.folder(self.folder.path()), COMMAND_LIMIT).unwrap();
        assert!(output.success, "{what}\n{}\n{}", output.stdout, output.stderr);
        output.stdout
    }

    fn shell(&self, line: &str) -> String {
        self.run(Spec::new("sh", "/bin/sh").args(["-c", line]))
    }

    /// The ports of the machine that lead to such a port of the nodes.
    fn published(&self, setting: &str) -> Vec<u16> {
        let port = |name: &&str| {
            let service = self.project.file().service(name).unwrap();
            let inside: u16 = service.environment[setting].parse().unwrap();
            service
                .ports
                .iter()
                .find(|port| port.container == inside)
                .expect("the node's port is published")
                .host
        };
        NODES.iter().map(port).collect()
    }

    fn cairn(&self, arguments: &[&str]) -> String {
        let ports = self.published("GRPC_PORT");
        let endpoints: Vec<_> = ports.iter().map(|port| format!("https://localhost:{port}")).collect();
        self.cairn_at(&endpoints.join(","), arguments)
    }

    fn cairn_at(&self, endpoints: &str, arguments: &[&str]) -> String {
        let spec = Spec::new("cairn", programs::built("cairn")).args(arguments).clear_env();
        let spec = spec.env("HOME", self.folder.path()).env("CAIRN_ENDPOINT", endpoints);
        self.run(spec.env("CAIRN_CA_FILE", "ca.crt").env("CAIRN_TOKEN_FILE", "client.token"))
    }

    /// Follows what compose.yaml's opening comment tells people to type; what the last command printed.
    fn follow_the_comment(&self) -> String {
        let text = repository("compose.yaml");
        let comment = text.lines().map_while(|line| line.strip_prefix('#'));
        let commands: Vec<&str> =
            comment.filter_map(|line| line.strip_prefix("   ")).flat_map(|line| line.split(" && ")).collect();
        let mut printed = String::new();
        for command in &commands {
            match command.split_whitespace().collect::<Vec<_>>().as_slice() {
                ["docker", "compose", "up", ..] => self.project.up().unwrap(),
                ["docker", "compose", "cp", from, "."] => {
                    let (service, path) = from.split_once(':').unwrap();
                    self.project.copy_out(service, path, self.folder.path()).unwrap();
                }
                // A node takes a moment to listen: people would ask again.
                ["curl", ..] => {
                    printed = self
                        .shell(&format!("{command} --fail -sS --retry 60 --retry-delay 1 --retry-all-errors"))
                }
                _ => panic!("a new command in compose.yaml's comment: {command}"),
            }
        }
        assert_eq!(commands.len(), 4, "{commands:?}");
        printed
    }

    fn put(&self, seed: u64, to: &str) -> Content {
        let folder = format!("in-{seed}");
        let content = some_files(seed);
        for (path, bytes) in &content {
            let path = self.path(&folder).join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        self.cairn(&["put", &folder, &format!("files/{to}")]);
        content
    }

    fn check(&self, from: &str, expected: &Content) {
        let back = tempfile::tempdir_in(self.folder.path()).unwrap();
        self.cairn(&["get", &format!("files/{from}"), &back.path().join("back").display().to_string()]);
        let got = read_folder(&back.path().join("back"));
        assert_eq!(got.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{from}");
        assert!(got == *expected, "files of {from} came back with other content");
    }

    fn wait_settled(&self) {
        self.cairn(&["status", "--wait-settled", "--timeout", "150s"]);
    }

    /// Every process has the user of its image and the file's environment, and no other.
    fn check_processes(&self) {
        for (names, user) in [(ETCDS, 0), (NODES, 65_532)] {
            for name in names {
                let process = PathBuf::from(format!("/proc/{}", self.project.pid(name).unwrap()));
                let given = String::from_utf8(fs::read(process.join("environ")).unwrap()).unwrap();
                let given: BTreeMap<_, _> =
                    given.split_terminator('\0').filter_map(|v| v.split_once('=')).collect();
                let wanted = &self.project.file().service(name).unwrap().environment;
                assert!(given.into_iter().eq(wanted.iter().map(|(k, v)| (k.as_str(), v.as_str()))), "{name}");
                assert_eq!(fs::metadata(&process).unwrap().uid(), user, "{name}");
            }
        }
    }

    fn secrets(&self) -> BTreeMap<PathBuf, String> {
        let files = read_folder(&self.project.volume("secrets"));
        files.into_iter().map(|(path, bytes)| (path, hex::encode(Sha256::digest(bytes)))).collect()
    }

    /// Waits until a killed service was started again.
    fn wait_restarted(&self, name: &str) {
        let again = || self.project.ends(name).unwrap() == 1 && self.project.pid(name).is_ok();
        let restarted = poll(COMMAND_LIMIT, Duration::from_millis(20), || again().then_some(()));
        assert!(restarted.is_some(), "{name} does not come back");
    }
}

/// Files of all kinds of sizes and names, which differ by seed.
fn some_files(seed: u64) -> Content {
    let mut random = StdRng::seed_from_u64(seed);
    let files = [
        ("empty", 0),
        ("one byte", 1),
        ("folder/frame", 64 << 10),
        ("folder/deeper/ü—漢字.bin", (64 << 10) + 1),
        ("folder/chunks", (9 << 20) + 17),
    ];
    let some = files.into_iter().map(|(name, length)| {
        let mut bytes = vec![0; length];
        random.fill(&mut bytes[..]);
        (PathBuf::from(name), bytes)
    });
    some.collect()
}

fn read_folder(folder: &Path) -> Content {
    let walk = walkdir::WalkDir::new(folder).into_iter().map(|entry| entry.unwrap());
    let files = walk.filter(|entry| entry.file_type().is_file());
    let read = |entry: walkdir::DirEntry| {
        (entry.path().strip_prefix(folder).unwrap().to_owned(), fs::read(entry.path()).unwrap())
    };
    files.map(read).collect()
}

#[test]
fn compose_brings_up_a_cluster_that_survives_what_it_should() {
    let Some(tools) = tools() else { return };
    let desk = Desk::new(create(&tools, &repository("compose.yaml")));
    let project = &desk.project;

    let status = desk.follow_the_comment();
    assert!(status.contains("node-1"), "{status}");
    ETCDS.iter().for_each(|name| project.wait_healthy(name).unwrap());
    desk.wait_settled();
    desk.check_processes();
    assert!(everything_runs_since_up(project));
    let secrets = desk.secrets();
    for port in desk.published("HTTP_PORT") {
        let line = "-H \"authorization: Bearer $(cat client.token)\"";
        let url = format!("https://localhost:{port}/v1/status");
        let status = desk.shell(&format!("curl -sS --fail --cacert ca.crt {line} {url}"));
        assert!(NODES.iter().all(|name| status.contains(name)), "{status}");
    }

    desk.cairn(&["mkvol", "files"]);
    let first = desk.put(1, "first");
    for port in desk.published("GRPC_PORT") {
        let listing = desk.cairn_at(&format!("https://localhost:{port}"), &["ls", "-r", "files"]);
        assert!(first.keys().all(|path| listing.contains(path.to_str().unwrap())), "{listing}");
    }
    desk.check("first", &first);

    project.kill("node-2").unwrap();
    project.kill("etcd-2").unwrap();
    desk.check("first", &first);
    let second = desk.put(2, "second");
    desk.wait_restarted("node-2");
    desk.wait_restarted("etcd-2");
    project.wait_healthy("etcd-2").unwrap();
    desk.wait_settled();
    desk.check("second", &second);

    for name in ["node-3", "etcd-3"] {
        project.stop(name).unwrap();
    }
    desk.check("second", &second);
    let third = desk.put(3, "third");
    assert!(project.pid("node-3").is_err(), "what was stopped is not restarted");
    project.up().unwrap();
    desk.wait_settled();
    desk.check("third", &third);

    for name in NODES.iter().chain(&ETCDS) {
        let took = project.stop(name).unwrap();
        println!("{name} stopped in {took:?}");
    }
    project.up().unwrap();
    assert!(project.whole_log("secrets").unwrap().contains("nothing was changed"));
    assert_eq!(desk.secrets(), secrets);
    desk.wait_settled();
    for (name, content) in [("first", &first), ("second", &second), ("third", &third)] {
        desk.check(name, content);
    }
    assert!(everything_runs_since_up(project));
}

/// Nothing ended, and so nothing was restarted.
fn everything_runs_since_up(project: &Project) -> bool {
    NODES.iter().chain(&ETCDS).all(|name| project.ends(name).unwrap() == 0 && project.pid(name).is_ok())
}

#[test]
fn what_is_wrong_in_the_file_is_noticed() {
    let Some(tools) = tools() else { return };
    let file = repository("compose.yaml");
    for (right, wrong, said) in [
        // The image's user may write to its volumes, and nowhere else …
        ("--folder=/certs", "--folder=/elsewhere", "Permission denied"),
        // … where the file lets it.
        ("- secrets:/certs\n", "- secrets:/certs:ro\n", "Read-only file system"),
        // There is no other program in the image.
        ("entrypoint: [/cairn-node]", "entrypoint: [/bin/sh]", "No such file"),
    ] {
        assert!(file.contains(right), "{right}");
        let error = create(&tools, &file.replacen(right, wrong, 1)).up().unwrap_err();
        assert!(format!("{error:#}").contains(said), "{wrong}: {error:#}");
    }
}
