//! `hob revisions`, `hob traffic` and `hob rollback`

use anyhow::Context as _;

use super::{ago, table};
use crate::client::Client;
use crate::function_host::{FunctionStatus, RevisionState, RevisionStatus};
use crate::names::FunctionName;
use crate::records::{PartRecord, RevisionRecord};
use crate::traffic::Traffic;

#[derive(clap::Args)]
pub struct ListArgs {
    /// The function
    name: FunctionName,
    /// As JSON, for programs
    #[arg(long)]
    json: bool,
}

pub fn list(client: &Client, args: &ListArgs) -> anyhow::Result<()> {
    let revisions = client.revisions(&args.name)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&revisions)?);
        return Ok(());
    }
    let rows: Vec<_> = revisions.iter().map(row).collect();
    table(["REVISION", "TRAFFIC", "COMPONENT", "SOURCE", "DEPLOYED", "STATE"], &rows);
    Ok(())
}

fn row(revision: &RevisionStatus) -> [String; 6] {
    let record = &revision.record;
    let state = match (revision.state, &revision.why) {
        (_, Some(why)) => why.clone(),
        (RevisionState::Serving, None) => "serving".into(),
        (RevisionState::Warming, None) => "warming: takes over once its models are resident".into(),
        (RevisionState::Idle, None) => "idle".into(),
        (RevisionState::Broken, None) => "broken".into(),
    };
    [
        record.id.to_string(),
        if revision.share > 0 { format!("{} %", revision.share) } else { "-".into() },
        record.component.short(),
        source(record),
        ago(record.deployed_at),
        state,
    ]
}

/// Where the component came from; behind its middleware, if it has some: `auth.wasm > log.wasm > chat.wasm`.
fn source(record: &RevisionRecord) -> String {
    if !record.parts.is_empty() {
        return record.parts.iter().map(PartRecord::name).collect::<Vec<_>>().join(" > ");
    }
    if record.source.is_empty() { "-".into() } else { record.source.clone() }
}

#[derive(clap::Args)]
pub struct TrafficArgs {
    /// The function
    name: FunctionName,
    /// The new shares in percent, 100 together, as in r7=10 r6=90; without them, what they are is shown
    #[arg(long, num_args = 1.., value_name = "REVISION=PERCENT")]
    to: Vec<String>,
}

pub fn traffic(client: &Client, args: &TrafficArgs) -> anyhow::Result<()> {
    if args.to.is_empty() {
        let functions = client.functions()?;
        let function = functions.into_iter().find(|function| function.name == args.name);
        let function = function
            .with_context(|| format!("no function is called `{}`; `hob list` shows those that are", args.name))?;
        return show(&function);
    }
    // Commas too, as people write lists.
    let shares = args.to.iter().flat_map(|share| share.split(',')).filter(|share| !share.is_empty());
    let unchanged = || format!("the traffic of {} is as it was", args.name);
    let to = Traffic::parse(shares).with_context(unchanged)?;
    show(&client.set_traffic(&args.name, to).with_context(unchanged)?)
}

#[derive(clap::Args)]
pub struct RollbackArgs {
    /// The function
    name: FunctionName,
}

pub fn rollback(client: &Client, args: &RollbackArgs) -> anyhow::Result<()> {
    show(&client.rollback(&args.name)?)
}

/// `chat: r7=10 r6=90 (before: r6=100)`
fn show(function: &FunctionStatus) -> anyhow::Result<()> {
    let before = function.previous.as_ref().map(|previous| format!(" (before: {previous})")).unwrap_or_default();
    println!("{}: {}{before}", function.name, function.traffic);
    if let Some(pending) = &function.pending {
        println!("{}: {pending} once its models are resident; `hob rollback {0}` gives that up", function.name);
    }
    Ok(())
}
