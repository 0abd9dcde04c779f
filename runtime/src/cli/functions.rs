//! `hob list` and `hob rm`

use super::{ago, table};
use crate::client::Client;
use crate::function_host::{FunctionState, FunctionStatus};
use crate::names::FunctionName;

#[derive(clap::Args)]
pub struct ListArgs {
    /// As JSON, for programs
    #[arg(long)]
    json: bool,
}

pub fn list(client: &Client, args: &ListArgs) -> anyhow::Result<()> {
    let functions = client.functions()?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&functions)?);
        return Ok(());
    }
    let rows: Vec<_> = functions.iter().map(row).collect();
    if rows.is_empty() {
        println!("no function is deployed; `hob deploy FILE.wasm` deploys one");
    } else {
        table(["NAME", "ROUTES", "MODELS", "TRAFFIC", "DEPLOYED", "STATE"], &rows);
    }
    Ok(())
}

fn row(function: &FunctionStatus) -> [String; 6] {
    let state = match function.state {
        FunctionState::Ready => "ready",
        FunctionState::Warming => "warming",
        FunctionState::Broken => "broken",
    };
    [
        function.name.to_string(),
        list_of(&function.routes),
        list_of(&function.models),
        function.traffic.to_string(),
        ago(function.deployed_at),
        function.why.as_ref().map_or_else(|| state.to_owned(), |why| format!("{state}: {why}")),
    ]
}

/// `a, b and 3 more`
fn list_of<T: ToString>(things: &[T]) -> String {
    match things.len() {
        0 => "-".into(),
        1..4 => things.iter().map(T::to_string).collect::<Vec<_>>().join(", "),
        many => format!("{}, {} and {} more", things[0].to_string(), things[1].to_string(), many - 2),
    }
}

#[derive(clap::Args)]
pub struct RemoveArgs {
    /// The function
    name: FunctionName,
}

pub fn remove(client: &Client, args: &RemoveArgs) -> anyhow::Result<()> {
    client.remove(&args.name)?;
    println!("{} is removed", args.name);
    Ok(())
}
