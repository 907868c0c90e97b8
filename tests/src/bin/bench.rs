//! `make bench`: what this machine can do, what Cairn does on it, and what holds it back. See `docs/benchmarks.md`.

use std::process::ExitCode;

use anyhow::{Context, Result};
use cairn_tests::{
    bench::{self, Options, Setup, Size},
    tools::{Need, require},
};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Measures a cluster of four nodes on this machine, then one node alone, beside what the machine can do: TLS, durable
/// writes, sealing, etcd.
///
/// The table goes to standard output, progress to standard error; with --json the table, too. Ctrl-C ends everything that was started. Nothing else
/// should run meanwhile. How to read the result: docs/benchmarks.md.
#[derive(Parser)]
struct Arguments {
    /// Seconds of each case
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Sizes of files, each measured by itself; those above 256 MiB one at a time
    #[arg(long, value_name = "SIZE,…", value_delimiter = ',', default_value = "10MiB,4KiB,2GiB")]
    files: Vec<Size>,
    /// Files under way at a time, each measured by itself
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1,8,64",
          value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1024))]
    streams: Vec<usize>,
    /// What is measured
    #[arg(long, value_name = "SETUP,…", value_delimiter = ',', default_value = "cluster,alone")]
    setups: Vec<Setup>,
    /// Chunks of a store that is opened again, each of 2 KiB; 0 leaves that out
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(0..=2_000_000))]
    chunks: u64,
    /// Print everything that was measured as one JSON document; the table goes to standard error
    #[arg(long)]
    json: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let Arguments { seconds, files, streams, setups, chunks, json } = Arguments::parse();
    let stop = CancellationToken::new();
    let run = measure(Options { seconds, files, streams, setups, chunks }, stop.clone(), json);
    let result = tokio::select! {
        result = run => result,
        // What runs is dropped, and with it the nodes, etcd and their folders.
        told = told_to_end() => told.and_then(|()| Err(anyhow::anyhow!("interrupted"))),
    };
    stop.cancel();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn measure(options: Options, stop: CancellationToken, json: bool) -> Result<()> {
    let tools = tokio::task::spawn_blocking(|| require(&[Need::Etcd])).await??;
    let report = bench::run(options, tools, stop, &|step| eprintln!("{step}")).await?;
    if json {
        eprint!("{}", report.text());
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", report.text());
    }
    Ok(())
}

async fn told_to_end() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("signals")?;
    tokio::select! {
        told = tokio::signal::ctrl_c() => told.context("signals"),
        _ = terminate.recv() => Ok(()),
    }
}
