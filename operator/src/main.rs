//! `cairn-operator`: see `cairn-operator --help`.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use cairn_operator::cli::{self, Cli};
use clap::Parser;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli::main(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = writeln!(io::stderr(), "cairn-operator: {}", failure.message);
            ExitCode::from(failure.exit_code)
        }
    }
}
