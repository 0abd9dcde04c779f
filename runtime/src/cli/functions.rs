//! `hob list` and `hob rm`

use super::{ago, table};
use crate::client::Client;
use crate::data::DataDir;
use crate::names::FunctionName;

#[derive(clap::Args)]
pub struct ListArgs {
    /// As JSON, for programs
    #[arg(long)]
    json: bool,
}

pub fn list(data: &DataDir, args: ListArgs) -> anyhow::Result<()> {
    let functions = Client::find(data)?.functions()?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&functions)?);
        return Ok(());
    }
    let rows: Vec<_> = functions
        .iter()
        .map(|function| {
            let record = &function.record;
            let models: Vec<_> = record.models.iter().map(|model| model.as_str()).collect();
            [
                record.name.to_string(),
                record.route.to_string(),
                if models.is_empty() { "-".into() } else { models.join(", ") },
                record.component.short(),
                ago(record.deployed_at),
                function.broken.clone().unwrap_or_else(|| "ready".into()),
            ]
        })
        .collect();
    if rows.is_empty() {
        println!("no function is deployed; `hob deploy FILE.wasm` deploys one");
    } else {
        table(["NAME", "ROUTE", "MODELS", "COMPONENT", "DEPLOYED", "STATE"], &rows);
    }
    Ok(())
}

#[derive(clap::Args)]
pub struct RemoveArgs {
    /// The function
    name: FunctionName,
}

pub fn remove(data: &DataDir, args: &RemoveArgs) -> anyhow::Result<()> {
    Client::find(data)?.remove(&args.name)?;
    println!("{} is removed", args.name);
    Ok(())
}
