//! The `hob` command: parses, calls, prints the error.

use std::process::ExitCode;

fn main() -> ExitCode {
    hob::cli::main()
}
