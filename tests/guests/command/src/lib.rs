//! A command: prints its arguments, environment, input and what its directories hold, and exits as `--exit` says.

#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::io::Read as _;

struct Command;

wasip2::cli::command::export!(Command);

impl wasip2::exports::cli::run::Guest for Command {
    fn run() -> Result<(), ()> {
        let args: Vec<String> = std::env::args().collect();
        println!("args {:?}", &args[1..]);
        let mut variables: Vec<_> = std::env::vars().collect();
        variables.sort();
        println!("env {variables:?}");
        let mut input = String::new();
        std::io::stdin().read_to_string(&mut input).map_err(drop)?;
        println!("stdin {input:?}");
        for dir in ["/data", "/ro"] {
            let read = std::fs::read_to_string(format!("{dir}/in.txt")).ok();
            let wrote = std::fs::write(format!("{dir}/out.txt"), "written").is_ok();
            println!("{dir} read {read:?} wrote {wrote}");
        }
        eprintln!("to stderr");
        match args.iter().position(|arg| arg == "--exit").and_then(|at| args.get(at + 1)) {
            Some(code) => std::process::exit(code.parse().unwrap_or(1)),
            None if args.iter().any(|arg| arg == "--fail") => Err(()),
            None => Ok(()),
        }
    }
}
