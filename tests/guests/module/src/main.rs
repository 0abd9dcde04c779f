//! A core module of WASI 0.1: does what its first argument names, and prints what came of it.

#![allow(clippy::print_stdout)]

mod hostile;

use std::io::Read as _;

use wasi_nn::{ExecutionTarget, GraphBuilder, GraphEncoding, TensorType};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["ask", model, text] => match ask(model, text) {
            Ok([text, about]) => println!("{text}\n{about}"),
            Err(error) => println!("{error}"),
        },
        ["about"] => about(),
        ["hostile"] => hostile::run(),
        ["spin"] => loop {
            std::hint::black_box(0);
        },
        ["allocate"] => allocate(),
        ["trap"] => panic!("this guest always traps"),
        ["exit", code] => std::process::exit(code.parse().unwrap_or(1)),
        _ => println!("hello from WASI 0.1"),
    }
}

/// As other hosts' guests ask: the prompt and the options in, the text and its numbers out.
fn ask(model: &str, text: &str) -> Result<[String; 2], wasi_nn::Error> {
    let graph = GraphBuilder::new(GraphEncoding::Autodetec, ExecutionTarget::CPU).build_from_cache(model)?;
    let mut context = graph.init_execution_context()?;
    let options = r#"{"n-predict":16,"temp":0}"#;
    context.set_input(0, TensorType::U8, &[text.len()], text.as_bytes())?;
    context.set_input(1, TensorType::U8, &[options.len()], options.as_bytes())?;
    // Twice: what went in stays, what came out is made anew.
    context.compute()?;
    context.compute()?;
    let mut buffer = vec![0; 4096];
    let mut output = |index| -> Result<String, wasi_nn::Error> {
        let bytes = context.get_output(index, &mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..bytes]).into_owned())
    };
    Ok([output(0)?, output(1)?])
}

/// What a command is given.
fn about() {
    println!("args {:?}", std::env::args().skip(1).collect::<Vec<_>>());
    println!("env {:?}", std::env::vars().collect::<Vec<_>>());
    let mut input = String::new();
    let read = std::io::stdin().read_to_string(&mut input);
    println!("stdin {input:?} {}", read.is_ok());
    println!("file {:?}", std::fs::read_to_string("/data/in.txt").ok());
    println!("outside {:?}", std::fs::read_to_string("/etc/passwd").is_ok());
}

/// Takes memory until there is no more, and says how many MiB that were.
fn allocate() {
    let mut held: Vec<Vec<u8>> = Vec::new();
    let mut more = Vec::new();
    while more.try_reserve_exact(1 << 20).is_ok() {
        more.resize(1 << 20, 1);
        held.push(std::mem::take(&mut more));
    }
    println!("{} MiB", held.len());
}
