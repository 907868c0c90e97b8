//! `make kube`: a real Kubernetes with three kubelets on this machine, and Cairn on it as the documentation installs it.
//! Runs the Job that writes and reads files, shows how to look around, and takes everything down at Ctrl-C.

use std::{
    io::{self, Write},
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use cairn_tests::{
    installation::{Installation, OPERATOR_NAMESPACE},
    programs,
    stop::Stop,
    tools::{Need, require},
};
use clap::Parser;

/// Brings up Kubernetes with three nodes, an etcd and Cairn; Ctrl-C takes everything down.
#[derive(Parser)]
struct Arguments {
    /// End after the Job has run, without waiting for Ctrl-C.
    #[arg(long)]
    once: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let shown = Stop::on_signals("kube").and_then(|stop| show(&stop, arguments.once).map(|()| stop));
    match shown {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kube: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn show(stop: &Stop, once: bool) -> Result<()> {
    let begun = Instant::now();
    let say = |step: &str| println!("== {:3.0} s: {step}", begun.elapsed().as_secs_f64());
    let tools = require(&[Need::Kubelets])?;
    let cairn = Installation::start(&tools, stop, &say)?;
    println!("\n$ kubectl get storageclusters,volumes\n{}", cairn.status()?);
    say("run the Job of docs/examples/kubernetes/job.yaml, which writes files and reads them back");
    let printed = cairn.run_job()?;
    println!("\n$ kubectl logs job/cairn-tour --container=show\n{printed}");
    if !once {
        tour(&cairn)?;
        while !stop.is_set() {
            std::thread::sleep(Duration::from_millis(100));
        }
        println!();
    }
    say("take everything down");
    cairn.down();
    say("done: nothing is left running");
    Ok(())
}

/// What one may type now, in another terminal.
fn tour(cairn: &Installation) -> Result<()> {
    let folder = |program: &Path| program.parent().unwrap_or(program).display().to_string();
    let (kubectl, client) = (cairn.tools().path("kubectl"), programs::built("cairn"));
    let mut text = format!(
        "Everything runs. In another terminal, as root:\n\n  export KUBECONFIG={}\n  export PATH={}:{}:$PATH\n",
        cairn.bed().kubeconfig().display(),
        folder(kubectl),
        folder(&client),
    );
    for (name, value) in cairn.outside()?.environment() {
        text.push_str(&format!("  export {name}={value}\n"));
    }
    let commands = [
        ("the cluster and its conditions", "kubectl describe storagecluster demo"),
        ("nodes, pods and disks", "kubectl get nodes,pods,pvc -o wide"),
        ("what the operator says", &format!("kubectl logs -n {OPERATOR_NAMESPACE} deployment/cairn")),
        ("store a file from this machine", "cairn put README.md files/readme"),
        ("read it", "cairn get files/readme -"),
        ("who holds what", "cairn status"),
        ("lose a storage node: files stay readable", "kubectl delete pod demo-main-zone-b-0 --wait=false"),
    ];
    text.push('\n');
    for (what, command) in commands {
        text.push_str(&format!("  # {what}\n  {command}\n"));
    }
    text.push_str("\nCtrl-C takes everything down.\n");
    io::stdout().write_all(text.as_bytes()).context("standard output")
}
