//! The `monoquant` command: parses arguments, calls one command, and turns its outcome into an exit status.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(monoquant::cli::main().code())
}
