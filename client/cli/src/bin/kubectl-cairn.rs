//! `kubectl cairn`: the same as `cairn`, under the name by which kubectl finds plugins.

fn main() -> std::process::ExitCode {
    cairn_cli::run()
}
