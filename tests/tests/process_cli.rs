//! `cairn` as people and scripts run it: a process beside a real node, judged by its exit code and by what it prints.

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::fd::{FromRawFd, OwnedFd},
    os::unix::fs::symlink,
    path::PathBuf,
    process::{Command, Stdio},
    ptr,
    sync::mpsc::{self, RecvTimeoutError},
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
        Self::with(|options| options).await
    }

    async fn with(change: impl FnOnce(ClusterOptions) -> ClusterOptions) -> Self {
        let folder = Scratch::new("cli").unwrap();
        let url = format!("embedded://{}", folder.path().join("meta").display());
        let options = change(ClusterOptions::new(&["a"], url));
        Self { cluster: CairnCluster::start(options).await, folder }
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
    desk.cairn(&["put", &here, "files/folder/"]);
    // An empty variable between two slashes is no way to name a whole volume.
    for command in [&["rm", "--recursive", "files//"][..], &["ls", "files//"], &["get", "files//", "all"]] {
        let refused = desk.run(command, b"");
        assert!(refused.code == Some(2) && refused.stderr.contains("empty variable"), "{refused:?}");
    }
    desk.fails(&["rm", "files/folder"], 3, "FILE_NOT_FOUND");
    let folder = desk.run(&["rm", "files/folder"], b"").stderr;
    assert!(folder.contains("files below it") && folder.contains("--recursive"), "{folder}");
    let partial = desk.run(&["rm", "files/nothing", "files/here.txt"], b"");
    assert_eq!(partial.code, Some(7), "{partial:?}");
    assert!(partial.stderr.contains("files/nothing: "), "{partial:?}");
    assert!(!desk.cairn(&["ls", "files"]).contains("here.txt"), "the others are done");
    desk.cluster.kill(0);
    desk.fails(&["ls", "files", "--timeout", "1s"], 6, "UNAVAILABLE");
}

/// The exit code of a program that nobody listens to.
fn unheard(desk: &Desk, arguments: &[&str]) -> Option<i32> {
    let mut command = Command::new(programs::built("cairn"));
    command.args(arguments).env_clear().env("HOME", desk.folder.path()).current_dir(desk.folder.path());
    let nobody = || std::io::pipe().unwrap().1;
    command.stdin(Stdio::null()).stdout(nobody()).stderr(nobody());
    command.status().unwrap().code()
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_nobody_reads_change_nothing() {
    let desk = Desk::new().await;
    desk.make_context("one");
    desk.cairn(&["mkvol", "files"]);
    let here = desk.write("in/here.txt", b"content").parent().unwrap().display().to_string();
    desk.cairn(&["put", &here, "files/docs"]);
    // A folder where a file is in the way: each of its files fails, and is named.
    for name in ["file", "in.the.way"] {
        desk.write(name, b"mine");
    }
    for json in [&[][..], &["--output", "json"]] {
        let code = |arguments: &[&str]| unheard(&desk, &[arguments, json].concat());
        assert_eq!(code(&["get", "files/docs", "file"]), Some(7));
        assert_eq!(code(&["get", "files/nothing"]), Some(3));
        assert_eq!(code(&["rm", "files/nothing", "files/none"]), Some(7));
        assert_eq!(code(&["put", "--frobnicate"]), Some(2));
        assert_eq!(
            code(&["ls", "files", "--recursive"]),
            Some(1),
            "it ends: the rest would be read by nobody"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_log_nobody_reads_serves_on_and_ends_in_order() {
    let mut desk = Desk::with(|options| ClusterOptions { unread_log: true, ..options }).await;
    desk.make_context("one");
    desk.cairn(&["mkvol", "files"]);
    desk.write("in", b"to be stored");
    desk.cairn(&["put", "in", "files/in"]);
    assert_eq!(desk.cairn(&["get", "files/in", "-"]), "to be stored");
    desk.cluster.stop(0);
}

/// What a program prints to a terminal of 100 columns that it has for itself.
fn on_a_terminal(desk: &Desk, arguments: &[&str], input: Stdio) -> String {
    let size = libc::winsize { ws_row: 25, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
    let (mut ours, mut its) = (-1, -1);
    // SAFETY: two places for descriptors, and a size; the rest may be left out.
    let made = unsafe { libc::openpty(&mut ours, &mut its, ptr::null_mut(), ptr::null(), &size) };
    assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: just made, and nobody else's.
    let (ours, its) = unsafe { (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(its)) };
    let mut command = Command::new(programs::built("cairn"));
    command.args(arguments).env_clear().env("HOME", desk.folder.path()).env("TERM", "xterm");
    command.stdin(input).stdout(its.try_clone().unwrap()).stderr(its);
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
        let seen = on_a_terminal(&desk, &arguments, Stdio::null());
        assert!(seen.contains(" of 1 file") && seen.contains(" of 128.00 MiB"), "{seen:?}");
        let percents = seen.split('%').filter_map(|before| before.rsplit(' ').next()?.parse::<u32>().ok());
        let percents: Vec<u32> = percents.collect();
        assert!(percents.is_sorted() && percents.iter().all(|percent| *percent <= 100), "{percents:?}");
        assert!(percents.iter().any(|percent| *percent > 0), "it moves: {percents:?} in {seen:?}");
        let last = seen.trim_end().rsplit(['\n', '\r']).next().unwrap();
        assert!(last.contains("1 file, 128 MiB in ") && !last.contains('%'), "the bar has gone: {last:?}");

        let quiet = on_a_terminal(&desk, &[&arguments[..], &["--quiet"]].concat(), Stdio::null());
        assert_eq!(quiet, "", "{arguments:?}");
        let output = desk.run(&arguments, b"");
        assert!(output.success && output.stderr.is_empty(), "{output:?}");
        assert!(!output.stdout.contains(['\x1b', '\r', '%']), "{output:?}");
    }
    // Of a length that nobody knows, no share can be shown.
    let piped = File::open(&large).unwrap();
    let seen = on_a_terminal(&desk, &["put", "-", "files/piped.bin"], piped.into());
    assert!(seen.contains("0 of 1 file") && seen.contains("MiB/s"), "{seen:?}");
    assert!(!seen.contains('%') && !seen.contains(" of 1 B"), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn standard_input_and_output_carry_content_and_nothing_else() {
    let desk = Desk::new().await;
    desk.make_context("one");
    desk.cairn(&["mkvol", "files"]);
    let content = "one line of many\n".repeat(300_000);
    for content in ["", content.as_str()] {
        let put = desk.run(&["put", "-", "files/piped", "--output", "json"], content.as_bytes());
        assert!(put.success && put.stderr.is_empty(), "{:?} {}", put.code, put.stderr);
        let put: Value = serde_json::from_str(&put.stdout).unwrap();
        assert_eq!((&put["files"], &put["bytes"]), (&1.into(), &content.len().into()), "{put}");
        let got = desk.run(&["get", "files/piped", "-"], b"");
        assert!(
            got.success && got.stdout == content && got.stderr.is_empty(),
            "{:?} {}",
            got.code,
            got.stderr
        );
        // The document makes way for the content.
        let got = desk.run(&["get", "files/piped", "-", "--output", "json"], b"");
        assert!(got.success && got.stdout == content, "{:?} {}", got.code, got.stderr);
        let told: Value = serde_json::from_str(&got.stderr).unwrap();
        assert_eq!((&told["files"], &told["bytes"]), (&1.into(), &content.len().into()), "{told}");
    }
    let nothing = desk.run(&["get", "files/nothing", "-"], b"");
    assert_eq!((nothing.code, nothing.stdout.as_str()), (Some(3), ""), "{}", nothing.stderr);
    desk.cairn(&["put", &desk.write("in/x", b"x").display().to_string(), "files/folder/"]);
    desk.fails(&["get", "files/folder", "-"], 2, "INVALID_ARGUMENT");
    desk.fails(&["put", "-", "files/folder/"], 2, "INVALID_ARGUMENT");
}

/// `c` and `c/d` are two files of a volume. On a disk one of them has no place, and that is said.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_can_be_a_files_and_a_folders() {
    let desk = Desk::new().await;
    desk.make_context("one");
    desk.cairn(&["mkvol", "files"]);
    let local = |name: &str| desk.write(&format!("in/{name}"), name.as_bytes()).display().to_string();
    for name in ["t/c", "t/c/d", "t/c/e/f", "t/z"] {
        let bytes = local(&name.replace('/', "-"));
        desk.cairn(&["put", &bytes, &format!("files/{name}")]);
    }
    assert_eq!(desk.json(&["get", "files/t/c", "file"])["files"], 1);
    assert_eq!(fs::read_to_string(desk.path("file")).unwrap(), "t-c");
    assert_eq!(desk.json(&["get", "files/t/c/", "folder"])["files"], 2);
    assert_eq!(fs::read_to_string(desk.path("folder/e/f")).unwrap(), "t-c-e-f");
    let below = desk.cairn(&["ls", "files/t/c/"]);
    assert!(below.contains("t/c/d") && below.contains("t/c/e/") && !below.contains("t/c\n"), "{below}");
    let both = desk.cairn(&["ls", "files/t"]);
    assert!(both.contains("t/c\n") && both.contains("t/c/\n"), "{both}");
    assert_eq!(desk.json(&["cp", "files/t", "files/u"])["files"], 4, "a volume has room for both");

    for _ in 0..2 {
        let output = desk.run(&["get", "files/t", "tree"], b"");
        assert_eq!(output.code, Some(7), "{output:?}");
        let there = |name: &str| desk.path("tree").join(name).is_file();
        let lost: Vec<_> =
            ["t/c", "t/c/d", "t/c/e/f", "t/z"].into_iter().filter(|name| !there(&name[2..])).collect();
        assert!(lost == ["t/c"] || lost == ["t/c/d", "t/c/e/f"], "{lost:?}: {output:?}");
        let said: Vec<_> = output.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(said.len(), lost.len(), "{output:?}");
        for name in lost {
            let named = said.iter().any(|line| line.starts_with(&format!("error: {name}: ")));
            assert!(
                named && said.iter().all(|line| line.contains("a local path cannot be both")),
                "{output:?}"
            );
        }
        assert!(output.stderr.contains("help: get this one by itself, to another place"), "{output:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn symbolic_links_in_a_folder_are_left_out_and_named() {
    let desk = Desk::new().await;
    desk.make_context("one");
    desk.cairn(&["mkvol", "files"]);
    desk.write("outside/secret", b"not to be stored");
    desk.write("in/a/plain", b"to be stored");
    let links = [("file", "../outside/secret"), ("folder", "../outside"), ("loop", "."), ("nowhere", "gone")];
    for (name, target) in links {
        symlink(target, desk.path("in").join(name)).unwrap();
    }
    let put = desk.run(&["put", "in", "files/all"], b"");
    assert!(put.success && put.stdout.contains("1 file") && put.stdout.contains("left out 4"), "{put:?}");
    let warnings: Vec<&str> = put.stderr.lines().collect();
    for (name, _) in links {
        let warning = format!("warning: in/{name}: left out, it is a symbolic link");
        assert!(warnings.contains(&warning.as_str()), "{name}: {warnings:?}");
    }
    assert_eq!(warnings.len(), links.len(), "{warnings:?}");
    let put = desk.json(&["put", "in", "files/again"]);
    assert_eq!((&put["left_out"], put["skipped"].as_array().map(Vec::len)), (&4.into(), Some(4)), "{put}");
    assert_eq!(paths(&desk, "files"), ["again/a/plain", "all/a/plain"]);
}

/// A log that goes on while it is read is not what it was said to be: it fails, by name, and keeps no other file from being stored.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_grows_while_it_is_read_fails_alone() {
    let desk = Desk::new().await;
    desk.make_context("one");
    desk.cairn(&["mkvol", "files"]);
    let path = desk.write("in/0-log", &content(1, 16 << 20));
    for name in 0..60 {
        desk.write(&format!("in/{name:02}"), &content(name, 1_000));
    }
    let (done, go_on) = mpsc::channel::<()>();
    let writer = std::thread::spawn(move || {
        let mut log = File::options().append(true).open(path).unwrap();
        while go_on.recv_timeout(Duration::from_micros(200)) == Err(RecvTimeoutError::Timeout) {
            log.write_all(b"one more line\n").unwrap();
        }
    });
    let put = desk.run(&["put", "in", "files", "--output", "json"], b"");
    drop(done);
    writer.join().unwrap();
    assert_eq!(put.code, Some(7), "{put:?}");
    let summary: Value = serde_json::from_str(&put.stdout).unwrap_or_default();
    assert_eq!((&summary["files"], &summary["failed"]), (&60.into(), &1.into()), "{put:?}");
    assert!(summary.get("stopped").is_none(), "{summary}");
    let failure = &summary["failures"][0];
    assert_eq!((&failure["path"], &failure["code"]), (&"in/0-log".into(), &"LOCAL".into()), "{summary}");
    let cause = failure["cause"].as_str().unwrap_or_default();
    assert!(cause.ends_with("changed its length while it was read"), "{summary}");
    let stored = paths(&desk, "files");
    assert!(stored.len() == 60 && !stored.contains(&"0-log".to_owned()), "{stored:?}");
}

/// Every file of a volume.
fn paths(desk: &Desk, source: &str) -> Vec<String> {
    let listed = desk.json(&["ls", "--recursive", source]);
    listed["files"].as_array().unwrap().iter().map(|file| file["path"].as_str().unwrap().to_owned()).collect()
}

/// How many files were transferred, and how many passed over.
#[track_caller]
fn transferred(desk: &Desk, arguments: &[&str]) -> (u64, u64) {
    let summary = desk.json(arguments);
    assert_eq!(summary["failed"], 0, "{summary}");
    (summary["files"].as_u64().unwrap(), summary["unchanged"].as_u64().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn folders_are_taken_up_again_where_a_transfer_broke_off() {
    let desk = Desk::new().await;
    desk.make_context("one");
    desk.cairn(&["mkvol", "files"]);
    // Names whose order in a folder is not that of their paths.
    let names = ["a", "a.txt", "b-c/1", "b/1", "b/2/3", "b.d", "ü/x y"];
    for (seed, name) in names.into_iter().enumerate() {
        desk.write(&format!("in/{name}x"), &content(seed as u64, 70_000));
    }
    let put = ["put", "in", "files/p"];
    assert_eq!(transferred(&desk, &put), (7, 0));
    assert_eq!(transferred(&desk, &put), (0, 7));
    assert_eq!(transferred(&desk, &["put", "in", "files/p", "--force"]), (7, 0));
    assert_eq!(
        transferred(&desk, &["put", "in", "files/p", "--content-type", "a/b"]),
        (7, 0),
        "it would change"
    );
    assert_eq!(transferred(&desk, &["put", "in", "files/p", "--content-type", "a/b"]), (0, 7));
    assert_eq!(transferred(&desk, &put), (7, 0));

    // One of the same size and another content, one longer, one new.
    let other = content(100, 70_000);
    desk.write("in/b/1x", &other);
    desk.write("in/ax", &content(0, 70_001));
    desk.write("in/new", b"");
    let absent = desk.run(&["put", "in", "files/p", "--if-absent"], b"");
    assert_eq!(absent.code, Some(7), "what differs is not replaced: {absent:?}");
    assert!(absent.stdout.contains("1 file,") && absent.stdout.contains("2 failed"), "{absent:?}");
    let text = desk.cairn(&put);
    assert!(
        text.starts_with("uploaded 2 files, ") && text.contains("; skipped 6 files, there already"),
        "{text}"
    );

    let get = ["get", "files/p", "back"];
    assert_eq!(transferred(&desk, &get), (8, 0));
    assert_eq!(transferred(&desk, &get), (0, 8));
    assert_eq!(transferred(&desk, &["get", "files/p", "back", "--force"]), (8, 0));
    desk.write("back/b/1x", &content(101, 70_000));
    desk.write("back/ax", b"");
    fs::remove_file(desk.path("back/new")).unwrap();
    assert_eq!(transferred(&desk, &get), (3, 5));
    for name in names.map(|name| format!("{name}x")).iter().map(String::as_str).chain(["new"]) {
        let (sent, back) = (desk.path("in").join(name), desk.path("back").join(name));
        assert!(fs::read(sent).unwrap() == fs::read(back).unwrap(), "{name} is another file");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_is_found_over_many_pages() {
    /// Enough that a listing is too long to be gone through for a single file.
    const FILES: u64 = 4_200;
    let desk = Desk::new().await;
    desk.make_context("one");
    desk.cairn(&["mkvol", "files"]);
    for number in 0..FILES {
        desk.write(&format!("in/{}/{number:04}", number % 3), &content(number, 10));
    }
    let put = ["put", "in", "files/p", "--jobs", "64"];
    assert_eq!(transferred(&desk, &put), (FILES, 0));
    desk.write("in/1/2500", &content(1, 10));
    assert_eq!(transferred(&desk, &put), (1, FILES - 1));
    desk.write("one/2/4199", &content(4_199, 10));
    assert_eq!(transferred(&desk, &["put", "one", "files/p"]), (0, 1), "at the end of a long listing");
    desk.write("one/2/4199", &content(4_198, 10));
    assert_eq!(transferred(&desk, &["put", "one", "files/p"]), (1, 0));
    desk.cairn(&["cp", "files/p", "files/q", "--jobs", "64"]);
    assert_eq!(transferred(&desk, &["cp", "files/p/2", "files/q/2"]), (0, FILES / 3));
    assert_eq!(desk.json(&["du", "files"])["total"]["files"], 2 * FILES);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_and_folders_are_copied_within_the_cluster() {
    let desk = Desk::new().await;
    desk.make_context("one");
    desk.cairn(&["mkvol", "files"]);
    desk.cairn(&["mkvol", "archive", "--chunk-size", "64KiB"]);
    let files = [("a.txt", content(1, 0)), ("b/one", content(2, 200_000)), ("b/two", content(3, 1))];
    for (name, bytes) in &files {
        desk.write(&format!("in/{name}"), bytes);
    }
    desk.cairn(&["put", "in", "files/p", "--content-type", "text/plain"]);

    desk.cairn(&["cp", "files/p/b/one", "archive"]);
    desk.cairn(&["cp", "files/p/b/one", "files/q"]);
    let (from, to) = (desk.json(&["stat", "files/p/b/one"]), desk.json(&["stat", "archive/one"]));
    for field in ["size_bytes", "blake3", "content_type"] {
        assert_eq!(from["file"][field], to["file"][field], "{field}");
    }
    assert_ne!(from["file"]["etag"], to["file"]["etag"], "a generation of its own");
    desk.fails(&["cp", "files/p/b/one", "files/q", "--if-absent"], 4, "PRECONDITION_FAILED");
    let other = "0".repeat(32);
    desk.fails(&["cp", "files/p/b/one", "files/q", "--if-match", &other], 4, "PRECONDITION_FAILED");
    desk.fails(&["cp", "files/q", "files/q"], 2, "INVALID_ARGUMENT");
    desk.fails(&["cp", "files/p", "files/p/b"], 2, "INVALID_ARGUMENT");
    desk.fails(&["cp", "files/nothing", "archive"], 3, "FILE_NOT_FOUND");
    desk.fails(&["cp", "files/p", "nobody/x"], 3, "VOLUME_NOT_FOUND");

    let copy = ["cp", "files/p", "archive/p"];
    assert_eq!(transferred(&desk, &copy), (3, 0));
    assert_eq!(transferred(&desk, &copy), (0, 3));
    assert_eq!(transferred(&desk, &["cp", "files/p", "archive/p", "--force"]), (3, 0));
    let other = desk.write("other", &content(4, 200_000)).display().to_string();
    desk.cairn(&["put", &other, "files/p/b/one", "--content-type", "text/plain"]);
    assert_eq!(transferred(&desk, &copy), (1, 2), "the one that differs");
    assert_eq!(paths(&desk, "archive"), ["one", "p/a.txt", "p/b/one", "p/b/two"]);
    assert_eq!(transferred(&desk, &["get", "archive/p", "back"]), (3, 0));
    assert!(fs::read(desk.path("back/b/one")).unwrap() == content(4, 200_000));
    assert!(fs::read(desk.path("back/b/two")).unwrap() == files[2].1);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_and_folders_are_moved() {
    let desk = Desk::new().await;
    desk.make_context("one");
    desk.cairn(&["mkvol", "files"]);
    desk.cairn(&["mkvol", "archive"]);
    for (name, bytes) in [("a.txt", content(1, 0)), ("b/one", content(2, 200_000)), ("b/two", content(3, 1))]
    {
        desk.write(&format!("in/{name}"), &bytes);
    }
    desk.cairn(&["put", "in", "files/p", "--content-type", "text/plain"]);

    let before = desk.json(&["stat", "files/p/b/one"]);
    desk.cairn(&["mv", "files/p/b/one", "files/q/ü 1"]);
    let mut after = desk.json(&["stat", "files/q/ü 1"]);
    assert_eq!(after["file"]["path"], "q/ü 1");
    after["file"]["path"] = before["file"]["path"].clone();
    assert_eq!(after["file"], before["file"], "the same version, under another name");
    desk.fails(&["stat", "files/p/b/one"], 3, "FILE_NOT_FOUND");
    desk.fails(&["mv", "files/p/b/one", "files/x"], 3, "FILE_NOT_FOUND");
    desk.fails(&["mv", "files/p/a.txt", "files/q/ü 1", "--if-absent"], 4, "PRECONDITION_FAILED");
    desk.fails(&["mv", "files/p/a.txt", "files/p/"], 2, "INVALID_ARGUMENT");
    desk.fails(&["mv", "files/p", "files/p/b"], 2, "INVALID_ARGUMENT");
    desk.fails(&["mv", "files/p", "nobody/x"], 3, "VOLUME_NOT_FOUND");
    assert_eq!(paths(&desk, "files"), ["p/a.txt", "p/b/two", "q/ü 1"]);

    assert_eq!(transferred(&desk, &["mv", "files/p", "files/r"]), (2, 0));
    assert_eq!(paths(&desk, "files"), ["q/ü 1", "r/a.txt", "r/b/two"]);
    desk.cairn(&["mv", "files/r/a.txt", "files/r/b/two"]);
    assert_eq!(desk.json(&["stat", "files/r/b/two"])["file"]["size_bytes"], 0, "what was there is replaced");
    assert_eq!(transferred(&desk, &["mv", "files/q", "archive/"]), (1, 0));
    assert_eq!(
        (paths(&desk, "files"), paths(&desk, "archive")),
        (vec!["r/b/two".into()], vec!["q/ü 1".into()])
    );
    assert_eq!(transferred(&desk, &["get", "archive/q", "back"]), (1, 0));
    assert!(fs::read(desk.path("back/ü 1")).unwrap() == content(2, 200_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_files_take_is_summed_up() {
    let desk = Desk::new().await;
    desk.make_context("one");
    desk.cairn(&["mkvol", "files"]);
    desk.cairn(&["mkvol", "empty"]);
    for (name, length) in [("a", 0), ("a.txt", 1), ("b/1", 65_536), ("b/2/3", 65_537), ("c/d", 10)] {
        desk.write(&format!("in/{name}"), &content(1, length));
    }
    desk.cairn(&["put", "in", "files/p"]);
    let usage =
        |document: &Value| ["files", "size_bytes", "stored_bytes"].map(|key| document[key].as_u64().unwrap());
    let du = desk.json(&["du", "files/p"]);
    assert_eq!(du["copies"], 1, "{du}");
    let folders = du["folders"]
        .as_array()
        .unwrap()
        .iter()
        .map(|folder| (folder["path"].as_str().unwrap(), usage(folder)));
    // A tag of 16 bytes for every 64 KiB, or part of that.
    let want = [("p/b/", [2, 131_073, 131_073 + 3 * 16]), ("p/c/", [1, 10, 26])];
    assert_eq!(folders.collect::<Vec<_>>(), want, "{du}");
    let total = [5, 131_084, 131_084 + 5 * 16];
    assert_eq!(usage(&du["total"]), total, "{du}");
    let du = desk.json(&["du"]);
    let volumes = du["volumes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|volume| (volume["name"].as_str().unwrap(), usage(volume)));
    assert_eq!(volumes.collect::<Vec<_>>(), [("empty", [0; 3]), ("files", total)], "{du}");
    assert_eq!(usage(&du["total"]), total, "{du}");
    assert_eq!(usage(&desk.json(&["du", "files/p/b/1"])["total"]), [1, 65_536, 65_552]);
    assert_eq!(usage(&desk.json(&["du", "empty"])["total"]), [0; 3]);
    let text = desk.cairn(&["du", "files"]);
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["SIZE", "STORED", "FILES", "NAME"], "{text}");
    assert_eq!(lines[1], ["128", "KiB", "128", "KiB", "5", "p/"], "{text}");
    assert_eq!(lines[2], ["128", "KiB", "128", "KiB", "5", "files"], "{text}");
    desk.fails(&["du", "files/nothing"], 3, "FILE_NOT_FOUND");
    desk.fails(&["du", "nobody"], 3, "VOLUME_NOT_FOUND");
}
