//! The command line of Cairn. Each command has a file; what they share:
//!
//! - `args` what can be typed, `address` what `VOLUME/PATH` means, `connect` which cluster is meant;
//! - `failure` errors and exit codes, `output` text and JSON, `local` this machine's files;
//! - `transfer` many files at once, `below` what is in a folder of a volume, `places` where it goes, `present` what need not be transferred again.

mod address;
mod args;
mod below;
mod connect;
mod context;
mod cp;
mod du;
mod failure;
mod get;
mod local;
mod ls;
mod mv;
mod output;
mod places;
mod present;
mod put;
mod rm;
mod stat;
mod status;
mod transfer;
mod volumes;

use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches};

use args::{Arguments, Command, NodeCommand};
use connect::Target;
use failure::{Exit, Failure};
use output::Output;

/// What blocking work, such as a write to a slow disk, may take to end after everything else has.
const SHUTDOWN: Duration = Duration::from_secs(2);

/// Runs the command that was typed; the answer is the exit code of the process.
pub fn run() -> ExitCode {
    let readable = connect::check_environment(|name| std::env::var_os(name));
    let arguments = match (parse(std::env::args_os()), readable) {
        (Ok(arguments), Ok(())) => arguments,
        (Ok(arguments), Err(failure)) => {
            return Output::new(arguments.common.output, true).failed(&failure);
        }
        // Variables are parsed like options, but the parser does not say which one it could not read.
        (Err(error), Err(failure)) if error.kind() == clap::error::ErrorKind::InvalidUtf8 => {
            let format = if asked_for_json() { args::Format::Json } else { args::Format::Text };
            return Output::new(format, true).failed(&failure);
        }
        (Err(error), _) => return not_a_command(&error),
    };
    let output = Output::new(arguments.common.output, arguments.common.quiet);
    log_to_stderr(arguments.common.verbose);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return output.failed(&Failure::local(format!("cannot start threads: {error}"), "try again"));
        }
    };
    let outcome = runtime.block_on(async {
        tokio::select! {
            outcome = dispatch(arguments, &output) => outcome,
            _ = tokio::signal::ctrl_c() => Err(Failure::interrupted()),
        }
    });
    // Temporary files are removed as the tasks that write them are dropped.
    runtime.shutdown_timeout(SHUTDOWN);
    match outcome {
        Ok(exit) => exit.into(),
        Err(failure) => output.failed(&failure),
    }
}

/// Help and version are not failures; anything else is a usage error, in the form that was asked for.
fn not_a_command(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        let _ = error.print();
        return Exit::Ok.into();
    }
    if !asked_for_json() {
        let _ = error.print();
        return Exit::Usage.into();
    }
    let text = error.to_string();
    let cause = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
    Output::new(args::Format::Json, true).failed(&Failure::usage(cause, "see `cairn --help`"))
}

/// Of a line that could not be parsed.
fn asked_for_json() -> bool {
    let typed: Vec<_> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    typed.iter().any(|word| word == "--output=json" || word == "-ojson")
        || typed.windows(2).any(|pair| matches!(pair[0].as_str(), "-o" | "--output") && pair[1] == "json")
}

fn parse(typed: impl IntoIterator<Item = std::ffi::OsString>) -> Result<Arguments, clap::Error> {
    let typed: Vec<_> = typed.into_iter().collect();
    let program = typed.first().map(std::path::Path::new).and_then(|path| path.file_stem());
    let mut command = Arguments::command();
    if program.is_some_and(|name| name == "kubectl-cairn") {
        command = command.bin_name("kubectl cairn");
    }
    Arguments::from_arg_matches(&command.try_get_matches_from_mut(typed)?)
}

fn log_to_stderr(verbose: bool) {
    let filter = if verbose { "cairn_client=debug,cairn_cli=debug" } else { "off" };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .log_internal_errors(false)
        .without_time()
        .init();
}

async fn dispatch(arguments: Arguments, output: &Output) -> Result<Exit, Failure> {
    let Arguments { common, command } = arguments;
    let target = Target::new(&common);
    let client = |parallel| target.client(parallel);
    match command {
        Command::Put(put) => put::run(&client(put.jobs.get())?, put, output).await,
        Command::Get(get) => get::run(&client(get.jobs.get())?, get, output).await,
        Command::Cp(cp) => cp::run(&client(cp.jobs.get())?, cp, output).await,
        Command::Mv(mv) => mv::run(&client(mv.jobs.get())?, mv, output).await,
        Command::Ls(ls) => ls::run(&client(1)?, ls, output).await,
        Command::Du(du) => du::run(&client(1)?, du, output).await,
        Command::Rm(rm) => rm::run(&client(rm.jobs.get())?, rm, output).await,
        Command::Stat(stat) => stat::run(&client(1)?, stat, output).await,
        Command::Volumes => volumes::list(&client(1)?, output).await,
        Command::Mkvol(volume) => volumes::create(&client(1)?, volume, output).await,
        Command::Rmvol(volume) => volumes::delete(&client(1)?, volume, output).await,
        Command::Status(status) => status::run(&client(1)?, status, common.timeout, output).await,
        Command::Node { command: NodeCommand::Stop { name } } => {
            status::stop(&client(1)?, &name, output).await
        }
        Command::Node { command: NodeCommand::Start { name } } => {
            status::start(&client(1)?, &name, output).await
        }
        Command::Context { command } => context::run(command, &target, output),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plugin_calls_itself_by_kubectls_name() {
        let help =
            |program: &str| parse([program.into(), "put".into(), "--help".into()]).unwrap_err().to_string();
        assert!(help("/usr/bin/kubectl-cairn").contains("Usage: kubectl cairn put"));
        assert!(help("cairn").contains("Usage: cairn put"));
    }
}
