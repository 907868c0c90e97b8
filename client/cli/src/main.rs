//! `cairn`: files and volumes of a Cairn cluster, for people.

fn main() -> std::process::ExitCode {
    cairn_cli::run()
}
