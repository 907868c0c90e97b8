//! Finds or builds the outside programs of the tests ahead of time: `make setup` calls it, so that no test waits for a
//! compiler.

use std::process::ExitCode;
use std::time::Instant;

use cairn_tests::tools::{ToolError, build, catalog, system};
use clap::{Parser, ValueEnum};

/// Finds or builds the outside programs that the tests use.
#[derive(Parser)]
struct Arguments {
    /// Which programs.
    #[arg(long, value_enum, default_value = "all")]
    group: Group,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Group {
    /// etcd and etcdctl
    Etcd,
    /// a whole Kubernetes with kubelets
    Kube,
    /// everything, grpcurl too
    All,
}

fn main() -> ExitCode {
    let Arguments { group } = Arguments::parse();
    match run(group) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(group: Group) -> Result<(), ToolError> {
    let start = Instant::now();
    let wanted: Vec<_> = catalog::programs()
        .filter(|p| match group {
            Group::Etcd => catalog::ETCD.contains(&p.name),
            Group::Kube => catalog::KUBELETS.contains(&p.name),
            Group::All => true,
        })
        .collect();
    let mut missing = Vec::new();
    for program in &wanted {
        if build::find(program)?.is_none() {
            missing.push(*program);
        }
    }
    build::build(&missing, build::Progress::Stdout)?;
    if group != Group::Etcd && system::is_root() {
        system::ensure(&["runc", "nft", "conntrack", "ip", "bridge", "host-local", "loopback", "tcpdump"])?;
    }
    let (all, built) = (wanted.len(), missing.len());
    println!("{all} programs: {} there, {built} built, {:.1} s", all - built, start.elapsed().as_secs_f64());
    Ok(())
}
