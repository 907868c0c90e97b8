//! `cairn` as people and scripts run it: a process beside a real node, judged by its exit code and by what it prints.

use std::{
    fs::{self, File},
    io::Read,
    os::fd::{FromRawFd, OwnedFd},
    path::PathBuf,
    process::{Command, Stdio},
    ptr,
    time::Duration,
};

use cairn_tests::{
    cairn::{CairnCluster, ClusterOptions},
    files::content,
    process::{Output, Spec, poll, run},
    programs,
    scratch::Scratch,
};
use serde_json::Value;

/// For one command. Two cores may be busy with other tests.
const LIMIT: Duration = Duration::from_secs(120);

/// A node alone, and somebody who has a home of their own and has never heard of it.
struct Desk {
    /// Before the folder: it ends first.
    cluster: CairnCluster,
    folder: Scratch,
}

impl Desk {
    async fn new() -> Self {
        let folder = Scratch::new("cli").unwrap();
        let url = format!("embedded://{}", folder.path().join("meta").display());
        Self { cluster: CairnCluster::start(ClusterOptions::new(&["a"], url)).await, folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    fn endpoint(&self) -> String {
        format!("https://{}", self.cluster.grpc(0))
    }

    fn spec(&self, arguments: &[&str]) -> Spec {
        let spec = Spec::new("cairn", programs::built("cairn")).args(arguments).clear_env();
        spec.env("HOME", self.folder.path()).folder(self.folder.path())
    }

    fn run(&self, arguments: &[&str], input: &[u8]) -> Output {
        run(self.spec(arguments), Some(input), LIMIT).unwrap()
    }

    /// What it prints; it must end well and complain about nothing.
    #[track_caller]
    fn cairn(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments, b"");
        assert!(output.success && output.stderr.is_empty(), "{arguments:?}: {output:?}");
        output.stdout
    }

    /// The one document that it prints.
    #[track_caller]
    fn json(&self, arguments: &[&str]) -> Value {
        let printed = self.cairn(&[arguments, &["--output", "json"]].concat());
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {printed}"))
    }

    /// How it fails: with this exit code, an error and what to do, on two lines or as one document.
    #[track_caller]
    fn fails(&self, arguments: &[&str], exit: i32, code: &str) {
        let output = self.run(arguments, b"");
        assert_eq!(output.code, Some(exit), "{arguments:?}: {output:?}");
        let told = |line: &str| output.stderr.lines().any(|there| there.starts_with(line));
        assert!(told("error: ") && told("help: "), "{arguments:?}: {}", output.stderr);
        let output = self.run(&[arguments, &["--output", "json"]].concat(), b"");
        assert_eq!(output.code, Some(exit), "{arguments:?}: {output:?}");
        let document: Value = serde_json::from_str(&output.stderr).unwrap_or_default();
        assert_eq!(document["error"]["code"], code, "{arguments:?}: {}", output.stderr);
        let help = document["error"]["help"].as_str();
        assert!(help.is_some_and(|help| !help.is_empty()), "{arguments:?}: {}", output.stderr);
    }

    /// Makes a context of the node and its files, as people do first.
    fn make_context(&self, name: &str) {
        let secrets = self.cluster.secrets();
        let (ca, token) = (&secrets.authority_certificate, &secrets.client_token);
        let (ca, token) = (ca.display().to_string(), token.display().to_string());
        let endpoint = self.endpoint();
        let options = ["--endpoint", &endpoint, "--ca-file", &ca, "--token-file", &token];
        self.cairn(&[&["context", "set", name], &options[..]].concat());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_does_its_work_and_prints_one_document() {
    let desk = Desk::new().await;
    desk.make_context("one");
    let made = desk.json(&["mkvol", "notes", "--copies", "1", "--chunk-size", "1MiB"]);
    let volume = &made["volume"];
    assert_eq!((&volume["name"], &volume["copies"]), (&"notes".into(), &1.into()), "{made}");
    let volumes = desk.json(&["volumes"]).to_string();
    assert!(volumes.contains("\"notes\""), "{volumes}");

    let files = [("a/one.txt", content(1, 100)), ("a/b/two.bin", content(2, (2 << 20) + 1))];
    for (name, bytes) in &files {
        desk.write(&format!("in/{name}"), bytes);
    }
    let put = desk.json(&["put", "in", "notes/all"]);
    assert_eq!((&put["files"], &put["failed"]), (&2.into(), &0.into()), "{put}");
    let piped = desk.run(&["put", "-", "notes/piped"], b"from standard input");
    assert!(piped.success, "{piped:?}");
    let listed = desk.json(&["ls", "notes", "--recursive"]).to_string();
    for name in ["all/a/one.txt", "all/a/b/two.bin", "piped"] {
        assert!(listed.contains(&format!("\"{name}\"")), "{name}: {listed}");
    }
    let stat = desk.json(&["stat", "notes/all/a/b/two.bin", "--chunks"]);
    assert_eq!(stat["file"]["size_bytes"], (2 << 20) + 1, "{stat}");
    assert_eq!(stat["chunks"].as_array().map(Vec::len), Some(3), "{stat}");

    assert_eq!(desk.json(&["get", "notes/all", "back"])["files"], 2);
    for (name, bytes) in &files {
        assert!(fs::read(desk.path("back").join(name)).unwrap() == bytes[..], "{name} is another file");
    }
    let output = desk.run(&["get", "notes/piped", "-"], b"");
    assert_eq!(output.stdout, "from standard input", "{output:?}");
    let output = desk.run(&["get", "notes/piped", "-", "--offset", "5", "--length", "8"], b"");
    assert_eq!(output.stdout, "standard", "{output:?}");

    assert_eq!(desk.json(&["rm", "notes/piped"])["files"], 1);
    assert_eq!(desk.json(&["rm", "--recursive", "notes/all/a/b"])["files"], 1);
    let left = desk.cairn(&["ls", "--recursive", "notes"]);
    assert!(left.contains("one.txt") && !left.contains("two.bin") && !left.contains("piped"), "{left}");
    let status = desk.json(&["status"]);
    assert_eq!(status["nodes"].as_array().map(Vec::len), Some(1), "{status}");
    desk.json(&["rmvol", "notes", "--with-files"]);
    // Its records go in the background.
    let gone = poll(LIMIT, Duration::from_millis(100), || {
        (desk.run(&["ls", "notes"], b"").code == Some(3)).then_some(())
    });
    assert!(gone.is_some(), "it is still there: {}", desk.cairn(&["volumes"]));
    desk.fails(&["ls", "notes"], 3, "VOLUME_NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread")]
async fn contexts_say_which_cluster_is_meant() {
    let desk = Desk::new().await;
    assert_ne!(desk.run(&["volumes"], b"").code, Some(0), "nobody has said which cluster");
    desk.make_context("one");
    desk.cairn(&["mkvol", "files"]);
    let config = desk.path(".config/cairn/config.yaml");
    assert!(config.exists(), "it is kept where people look for it");

    // Another one, of a port where nobody listens.
    let ca = desk.cluster.secrets().authority_certificate.display().to_string();
    desk.cairn(&["context", "set", "away", "--endpoint", "https://127.0.0.1:1", "--ca-file", &ca]);
    let listed = desk.cairn(&["context", "list"]);
    assert!(listed.contains("one") && listed.contains("away"), "{listed}");
    assert!(desk.cairn(&["volumes"]).contains("files"), "the first is still the current one");
    desk.fails(&["volumes", "--context", "away", "--timeout", "1s"], 6, "UNAVAILABLE");
    desk.cairn(&["context", "use", "away"]);
    desk.fails(&["volumes", "--timeout", "1s"], 6, "UNAVAILABLE");
    assert!(desk.cairn(&["volumes", "--context", "one"]).contains("files"));
    let shown = desk.cairn(&["context", "show", "one"]);
    assert!(shown.contains(&desk.endpoint()) && !shown.contains(&desk.cluster.token()), "{shown}");
    desk.cairn(&["context", "remove", "away"]);
    desk.fails(&["context", "use", "away"], 3, "LOCAL");
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_have_their_exit_code_and_say_what_to_do() {
    let mut desk = Desk::new().await;
    desk.make_context("one");
    desk.cairn(&["mkvol", "files"]);
    let here = desk.write("here.txt", b"content").display().to_string();
    desk.cairn(&["put", &here, "files"]);

    desk.fails(&["put", "nowhere.txt", "files"], 1, "LOCAL");
    desk.fails(&["get", "files/nothing"], 3, "FILE_NOT_FOUND");
    desk.fails(&["put", &here, "nobody/x"], 3, "VOLUME_NOT_FOUND");
    desk.fails(&["put", "--if-absent", &here, "files"], 4, "PRECONDITION_FAILED");
    desk.fails(&["rmvol", "files"], 4, "VOLUME_NOT_EMPTY");
    let wrong = desk.write("wrong.token", b"not-this-one").display().to_string();
    desk.fails(&["ls", "files", "--token-file", &wrong], 5, "UNAUTHENTICATED");
    for (arguments, word) in
        [(["put", "--frobnicate", "x"], "--frobnicate"), (["put", &here, "files/../x"], "\"..\"")]
    {
        let usage = desk.run(&arguments, b"");
        assert_eq!(usage.code, Some(2), "{usage:?}");
        assert!(usage.stderr.contains(word), "{usage:?}");
    }
    desk.fails(&["rm", "files/a/"], 2, "INVALID_ARGUMENT");
    let partial = desk.run(&["rm", "files/nothing", "files/here.txt"], b"");
    assert_eq!(partial.code, Some(7), "{partial:?}");
    assert!(partial.stderr.contains("files/nothing: "), "{partial:?}");
    assert!(!desk.cairn(&["ls", "files"]).contains("here.txt"), "the others are done");
    desk.cluster.kill(0);
    desk.fails(&["ls", "files", "--timeout", "1s"], 6, "UNAVAILABLE");
}

/// What a program prints to a terminal of 100 columns that it has for itself.
fn on_a_terminal(desk: &Desk, arguments: &[&str]) -> String {
    let size = libc::winsize { ws_row: 25, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
    let (mut ours, mut its) = (-1, -1);
    // SAFETY: two places for descriptors, and a size; the rest may be left out.
    let made = unsafe { libc::openpty(&mut ours, &mut its, ptr::null_mut(), ptr::null(), &size) };
    assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: just made, and nobody else's.
    let (ours, its) = unsafe { (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(its)) };
    let mut command = Command::new(programs::built("cairn"));
    command.args(arguments).env_clear().env("HOME", desk.folder.path()).env("TERM", "xterm");
    command.stdin(Stdio::null()).stdout(its.try_clone().unwrap()).stderr(its);
    let mut child = command.spawn().unwrap();
    drop(command); // with it our hold of the other end: then reading ends with the child
    let mut seen = Vec::new();
    // Linux says EIO when nobody has the other end any more.
    let _ = File::from(ours).read_to_end(&mut seen);
    let status = child.wait().unwrap();
    let seen = String::from_utf8_lossy(&seen).into_owned();
    assert!(status.success(), "{arguments:?}: {status}\n{seen}");
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_is_drawn_on_a_terminal_and_nowhere_else() {
    let desk = Desk::new().await;
    desk.make_context("one");
    desk.cairn(&["mkvol", "files"]);
    // Large enough to be under way for a while.
    let large = desk.write("large.bin", &content(3, 128 << 20)).display().to_string();
    let back = desk.path("back.bin").display().to_string();
    for arguments in [["put", large.as_str(), "files"], ["get", "files/large.bin", back.as_str()]] {
        let seen = on_a_terminal(&desk, &arguments);
        assert!(seen.contains(" of 1 file") && seen.contains(" of 128.00 MiB"), "{seen:?}");
        let percents = seen.split('%').filter_map(|before| before.rsplit(' ').next()?.parse::<u32>().ok());
        let percents: Vec<u32> = percents.collect();
        assert!(percents.is_sorted() && percents.iter().all(|percent| *percent <= 100), "{percents:?}");
        assert!(percents.iter().any(|percent| *percent > 0), "it moves: {percents:?} in {seen:?}");
        let last = seen.trim_end().rsplit(['\n', '\r']).next().unwrap();
        assert!(last.contains("1 file, 128 MiB in ") && !last.contains('%'), "the bar has gone: {last:?}");

        let quiet = on_a_terminal(&desk, &[&arguments[..], &["--quiet"]].concat());
        assert_eq!(quiet, "", "{arguments:?}");
        let output = desk.run(&arguments, b"");
        assert!(output.success && output.stderr.is_empty(), "{output:?}");
        assert!(!output.stdout.contains(['\x1b', '\r', '%']), "{output:?}");
    }
}
