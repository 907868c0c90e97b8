//! `cairn-node token new`: who gets a token gets in, until it expires or its line is removed; no restart is needed.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use cairn_tests::{
    cairn::{CairnCluster, ClusterOptions, until},
    process::{Output, Spec, run},
    programs,
    scratch::Scratch,
};

/// Runs `cairn-node token new`, with what else the environment has.
fn token_new(arguments: &[&str], tokens_file: Option<&Path>) -> Output {
    let program = Spec::new("cairn-node", programs::built("cairn-node")).clear_env();
    let spec = program.args(["token", "new"]).args(arguments);
    let spec = match tokens_file {
        Some(file) => spec.env("CLIENT_TOKENS_FILE", file.to_str().expect("a path of text")),
        None => spec,
    };
    run(spec, None, Duration::from_secs(60)).expect("cairn-node runs")
}

/// What a node answers to a token.
fn answer(cluster: &CairnCluster, token: &str) -> String {
    let ca = cluster.secrets().authority_certificate.display();
    let url = format!("{}/v1/volumes", cluster.https(0));
    let curl = format!("curl -sS --max-time 20 --cacert '{ca}' -H 'authorization: Bearer {token}' {url}");
    let shell = Spec::new("sh", "/bin/sh").args(["-c", &curl]);
    run(shell, None, Duration::from_secs(60)).expect("a shell runs").stdout
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_token_opens_the_door_until_it_expires() {
    let scratch = Scratch::new("tokens").unwrap();
    let url = format!("embedded://{}/metadata", scratch.path().display());
    let cluster = CairnCluster::start(ClusterOptions::new(&["a"], url)).await;
    let file = cluster.secrets().tokens.clone();
    let make = |name: &str, expires: &str| {
        let output = token_new(&[name, "--expires", expires], Some(&file));
        assert_eq!(output.code, Some(0), "{output:?}");
        assert!(output.stderr.contains(name) && output.stderr.contains("until 20"), "{output:?}");
        output.stdout.trim().to_owned()
    };
    let (long, short) = (make("jobs", "90d"), make("visitor", "1s"));
    until("the new token is known", async || said(&answer(&cluster, &long), "\"volumes\"")).await;
    until("the other one has expired", async || {
        said(&answer(&cluster, &short), "\\\"visitor\\\" expired at")
    })
    .await;

    let stored = std::fs::read_to_string(&file).unwrap();
    assert!(!stored.contains(&long) && !stored.contains(&short), "only digests are stored: {stored}");
    assert!(stored.starts_with("default "), "what was there stays: {stored}");

    // A mistake elsewhere in the file keeps nobody's token in force, and somebody hears of it.
    let mut left = stored.lines().filter(|line| !line.starts_with("jobs")).collect::<Vec<_>>().join("\n");
    left.push_str("\nsomeone with a mistake\n");
    std::fs::write(&file, left).unwrap();
    until("the token was taken back", async || said(&answer(&cluster, &long), "not known here")).await;
    let output = token_new(&["later", "--expires", "never"], Some(&file));
    assert!(output.code == Some(0) && output.stderr.contains("nodes pass over line 3"), "{output:?}");
    let later = output.stdout.trim().to_owned();
    until("lines after the mistake count", async || said(&answer(&cluster, &later), "\"volumes\"")).await;
    let status = cluster.cairn(&["status"]).stdout;
    assert!(status.contains("warning: n1: CLIENT_TOKENS_FILE") && status.contains("line 3"), "{status}");
}

fn said(answer: &str, wanted: &str) -> Result<(), String> {
    if answer.contains(wanted) { Ok(()) } else { Err(answer.to_owned()) }
}

#[test]
fn mistakes_are_told_and_change_nothing() {
    let folder = tempfile::TempDir::new().unwrap();
    let file = folder.path().join("tokens");
    for (arguments, why) in [
        (&["jobs"][..], "--expires"),
        (&["jobs", "--expires", "yesterday"], "such as 90d"),
        (&["jobs", "--expires", "2020-01-01"], "not in the future"),
        (&["two words", "--expires", "1d"], "no name for a token"),
    ] {
        let output = token_new(arguments, Some(&file));
        assert_ne!(output.code, Some(0), "{output:?}");
        assert!(output.stdout.is_empty() && output.stderr.contains(why), "{output:?}");
    }
    assert!(!file.exists());
    // Without a file, the line is there to be copied.
    let output = token_new(&["jobs", "--expires", "never"], None);
    let line = output.stderr.lines().last().unwrap_or_default().to_owned();
    assert!(line.starts_with("jobs ") && output.stdout.starts_with("cairn_"), "{output:?}");
    // Nobody got the token: nobody has it. Nobody read the message: that changes nothing.
    let code = |out: Stdio, err: Stdio| {
        let mut command = Command::new(programs::built("cairn-node"));
        command.env_clear().env("CLIENT_TOKENS_FILE", &file).stdin(Stdio::null()).stdout(out).stderr(err);
        command.args(["token", "new", "lost", "--expires", "1d"]).status().unwrap().code()
    };
    let nobody = || std::io::pipe().unwrap().1.into();
    assert_eq!(code(nobody(), Stdio::null()), Some(1));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "");
    assert_eq!(code(Stdio::null(), nobody()), Some(0));
    assert!(std::fs::read_to_string(&file).unwrap().starts_with("lost "));
    // A file that ends in the middle of a line.
    std::fs::write(&file, line.trim_end()).unwrap();
    assert_eq!(token_new(&["more", "--expires", "12h"], Some(&file)).code, Some(0));
    let output = token_new(&["jobs", "--expires", "12h"], Some(&file));
    assert!(output.code == Some(1) && output.stderr.contains("already"), "{output:?}");
    let lines: Vec<String> = std::fs::read_to_string(&file).unwrap().lines().map(str::to_owned).collect();
    assert!(lines.len() == 2 && lines[0] == line && lines[1].starts_with("more "), "{lines:?}");
}
