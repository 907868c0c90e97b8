//! `cairn-node`: a storage node. Exit codes: 0 stopped as asked, 1 failed, 2 settings that cannot be used.

#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // Before there is an `Env`.

use std::{
    io::{self, IsTerminal, Write},
    path::Path,
    process::ExitCode,
};

use cairn_node::{
    chunks,
    cluster::keyring::{self, PutBack},
    config::{self, Command, Given, InitSecrets, LogFormat, NodeConfig, Recover},
    env::real::{RealClock, RealRandom, without_network},
    run::{self, Done},
    secrets::{self, token::NewToken},
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// To standard output. Whoever does not read on (`| head`) changes no exit code.
macro_rules! say {
    ($($text:tt)*) => {{ let _ = writeln!(io::stdout(), $($text)*); }};
}

/// To standard error, the same.
macro_rules! complain {
    ($($text:tt)*) => {{ let _ = writeln!(io::stderr(), $($text)*); }};
}

const FAILED: u8 = 1;
const BAD_SETTINGS: u8 = 2;

fn main() -> ExitCode {
    match command() {
        Ok((Command::Run(config), warnings)) => run_node(*config, &warnings),
        Ok((Command::InitSecrets(wanted), _)) => init_secrets(&wanted),
        Ok((Command::Recover(wanted), _)) => recover(&wanted),
        Ok((Command::Verify { data_dir }, _)) => verify(&data_dir),
        Ok((Command::NewToken(wanted), _)) => new_token(&wanted),
        Err(problem) => {
            complain!("cairn-node: {problem}");
            ExitCode::from(BAD_SETTINGS)
        }
    }
}

/// What to do, and what to warn of when there is a log.
fn command() -> Result<(Command, Vec<String>), String> {
    let matches = config::grammar().get_matches();
    let named = matches.try_get_one::<String>("ENV_FILE").ok().flatten();
    let path = Path::new(named.map_or(".env", String::as_str));
    let dotenv = match std::fs::read_to_string(path) {
        Ok(content) => Some(content),
        Err(error) if error.kind() == io::ErrorKind::NotFound && named.is_none() => None,
        Err(error) => return Err(format!("{}: {error}; give --env-file another file", path.display())),
    };
    let host_name =
        std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
    let given = Given { environment: &|name| std::env::var_os(name), dotenv, host_name };
    let command = config::command(&matches, &given).map_err(|error| error.to_string())?;
    Ok((command, config::warnings(&given)))
}

fn run_node(config: NodeConfig, warnings: &[String]) -> ExitCode {
    start_log(&config);
    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("cannot start threads: {error}")),
    };
    let ended = runtime.block_on(async {
        let stop = CancellationToken::new();
        tokio::spawn(watch_signals(stop.clone()));
        run::run(config, stop).await
    });
    // Threads inside a system call are not waited for: nothing that matters is left to do.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error.to_string()),
    }
}

fn fail(problem: &str) -> ExitCode {
    tracing::error!("{problem}");
    complain!("cairn-node: {problem}");
    ExitCode::from(FAILED)
}

fn start_log(config: &NodeConfig) {
    let log = tracing_subscriber::fmt().with_env_filter(&config.log).with_writer(io::stderr);
    // Nodes go on when nobody takes their log any more; telling of that, it would panic.
    let log = log.log_internal_errors(false);
    match config.log_format {
        LogFormat::Text => log.with_ansi(io::stderr().is_terminal()).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}

/// The first signal stops the node in order, the second at once.
async fn watch_signals(stop: CancellationToken) {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("signals cannot be watched; the node will stop without order");
        return;
    };
    loop {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if stop.is_cancelled() {
            tracing::warn!("asked again: stopping at once");
            std::process::exit(i32::from(FAILED));
        }
        stop.cancel();
    }
}

fn init_secrets(wanted: &InitSecrets) -> ExitCode {
    let (clock, random) = (RealClock::default(), RealRandom);
    let made = secrets::init(&wanted.folder, &wanted.cluster, &wanted.hosts, &clock, &random).and_then(
        |mut made| {
            if !wanted.etcd_hosts.is_empty() {
                made.new.extend(secrets::init_etcd(&wanted.folder, &wanted.etcd_hosts, &clock)?.new);
            }
            Ok(made)
        },
    );
    match made {
        Ok(made) => {
            for path in &made.new {
                say!("made {}", path.display());
            }
            if made.new.is_empty() {
                say!("everything is there already; nothing was changed");
            }
            let (authority, token) = (&made.files.authority_certificate, &made.files.client_token);
            say!("clients need {} and {}", authority.display(), token.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            complain!("cairn-node: {error}");
            ExitCode::from(FAILED)
        }
    }
}

fn recover(wanted: &Recover) -> ExitCode {
    let back = match block_on(run::recover(wanted)) {
        Ok(Done::Disk) => {
            say!("the disk is accepted as it is: start the node; `cairn status` lists what is missing");
            PutBack::default()
        }
        Ok(Done::Volume(back)) => back,
        Ok(Done::Store(done, back)) => {
            say!(
                "the metadata store is accepted as it is: {} nodes had reported; tick {}, map {}, epoch {}; deleting goes on",
                done.reports,
                done.tick,
                done.map_generation,
                done.epoch
            );
            back
        }
        Err(error) => {
            complain!("cairn-node: {error}");
            return ExitCode::from(FAILED);
        }
    };
    for volume in &back.volumes {
        say!("volume {volume} is back, with the key that this node keeps");
    }
    for why in &back.refused {
        complain!("cairn-node: not put back: {why}");
    }
    if back.refused.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
}

fn verify(data_dir: &Path) -> ExitCode {
    let tell = |id, volume, why: &str| say!("damaged: chunk {id} of volume {volume}: {why}");
    let env = without_network();
    match block_on(chunks::verify(&env, data_dir, tell)) {
        Ok(found) => {
            if found.removed_unreadable {
                say!(
                    "damaged: removed: it cannot be read, so segments that compaction gave back may be called missing here; nothing else is lost with it, and the next start writes it anew"
                );
            }
            for corrupt in &found.corrupt {
                let seems =
                    corrupt.seems.map_or_else(String::new, |id| format!(", which seems to be chunk {id}"));
                let (start, end) = (corrupt.range.start, corrupt.range.end);
                if corrupt.missing {
                    say!(
                        "missing: segments/{}, which had {end} bytes; if the file `removed` was damaged or is gone, compaction may have given it back",
                        corrupt.segment
                    );
                    continue;
                }
                say!("damaged: bytes {start} to {end} of segments/{}{seems}", corrupt.segment);
            }
            if let Some(fault) = &found.identity {
                say!("damaged: {fault}; the next start writes it again");
            }
            for name in &found.hints {
                say!("hints/{name} is damaged, and of no use; the next start reads its segment instead");
            }
            let volumes = keyring::read(&*env.disk, data_dir).err();
            if let Some(error) = &volumes {
                say!("damaged: volumes: {error}; it is written again while the node runs");
            }
            say!(
                "node {}: {} chunks with {} bytes of content, {} deletions remembered; {}",
                found.node,
                found.chunks,
                found.plain_bytes,
                found.tombstones,
                match found.is_sound() {
                    true if found.torn > 0 => format!(
                        "all of it is whole, but for {} chunks of the last writes before a crash: never acknowledged, or \
                         damaged since; started among the other nodes, this one mends what is missed",
                        found.torn
                    ),
                    true if found.segments == 0 => {
                        "no segment is there: nothing was ever stored on this disk, or it is gone".to_owned()
                    }
                    true => "all of it is whole".to_owned(),
                    false => format!(
                        "damaged chunks: {}, damaged ranges besides: {}",
                        found.damaged,
                        found.corrupt.len()
                    ),
                }
            );
            if found.is_sound() && volumes.is_none() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
        }
        Err(error) => {
            complain!("cairn-node: {error}");
            ExitCode::from(FAILED)
        }
    }
}

/// The token goes to the standard output alone, so that it can be kept by `>`. One that nobody got lets nobody in.
fn new_token(wanted: &NewToken) -> ExitCode {
    let made = match secrets::token::make(wanted, &RealClock::default(), &RealRandom) {
        Ok(made) => made,
        Err(error) => {
            complain!("cairn-node: {error}");
            return ExitCode::from(FAILED);
        }
    };
    let mut stdout = io::stdout().lock();
    if let Err(error) = writeln!(stdout, "{}", made.token).and_then(|()| stdout.flush()) {
        complain!("cairn-node: the token could not be written to standard output: {error}; nobody has it");
        let taken = wanted.file.as_ref().map_or(Ok(()), |file| secrets::token::take_back(file, &made));
        match taken {
            Ok(()) => complain!("it is good for nothing: ask for it again"),
            Err(error) => {
                complain!("remove its line from CLIENT_TOKENS_FILE by hand: {error}\n{}", made.line)
            }
        }
        return ExitCode::from(FAILED);
    }
    let until = made.expires.map_or("for ever".to_owned(), |expires| format!("until {expires}"));
    match &wanted.file {
        Some(file) => {
            if let Some(complaint) = &made.complaint {
                complain!("warning: {}: nodes pass over {complaint}", file.display());
            }
            complain!("{} is good {until}: added to {}", wanted.name, file.display());
        }
        None => {
            complain!(
                "good {until}, once the nodes' CLIENT_TOKENS_FILE has this line:\n{}",
                made.line.trim_end()
            );
        }
    }
    ExitCode::SUCCESS
}

/// Runs what a command does to its end.
fn block_on<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime without threads can be made").block_on(future)
}
