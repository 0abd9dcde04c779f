//! `hob usage`

use serde_json::Value;

use super::{size, table};
use crate::client::Client;
use crate::names::{FunctionName, ModelName, Tenant};
use crate::usage::{By, UsageRow};

#[derive(clap::Args)]
pub struct Args {
    /// Only this tenant's
    #[arg(long, value_name = "NAME")]
    tenant: Option<Tenant>,
    /// Only this function's
    #[arg(long, value_name = "NAME")]
    function: Option<FunctionName>,
    /// Only this model's
    #[arg(long, value_name = "NAME")]
    model: Option<ModelName>,
    /// From then on: 2026-11-25, 2026-11-25T03:00Z, 24h ago
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Until before then
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Apart by hour or day, of UTC
    #[arg(long, value_name = "hour|day")]
    by: Option<By>,
    /// A table for people, or csv, or jsonl: a line of JSON for each row
    #[arg(long, default_value = "table", value_name = "FORMAT", value_parser = ["table", "csv", "jsonl"])]
    format: String,
    /// Single invocations in place of sums, as jsonl
    #[arg(long, conflicts_with_all = ["by", "format"])]
    records: bool,
    /// With --records: only those after this number, the last one that was seen
    #[arg(long, value_name = "NUMBER", requires = "records")]
    after: Option<u64>,
}

pub fn run(client: &Client, args: &Args) -> anyhow::Result<()> {
    let by = args.by.map(|by| match by {
        By::Total => "total",
        By::Hour => "hour",
        By::Day => "day",
    });
    let after = args.after.map(|after| after.to_string());
    let query = [
        ("tenant", args.tenant.as_ref().map(Tenant::as_str)),
        ("function", args.function.as_ref().map(FunctionName::as_str)),
        ("model", args.model.as_ref().map(ModelName::as_str)),
        ("since", args.since.as_deref()),
        ("until", args.until.as_deref()),
        ("by", by),
        ("after", after.as_deref()),
    ];
    let query: Vec<_> = query.into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
    if args.records {
        print!("{}", client.usage_records(&query)?);
        return Ok(());
    }
    let report = client.usage(&query)?;
    match args.format.as_str() {
        "csv" => csv(&report.rows)?,
        "jsonl" => {
            for row in &report.rows {
                println!("{}", serde_json::to_string(row)?);
            }
        }
        _ if report.rows.is_empty() => println!("nothing was used"),
        _ => show(&report.rows),
    }
    Ok(())
}

fn show(rows: &[UsageRow]) {
    let time = |us: u64| format!("{:.1} s", us as f64 / 1e6);
    let row = |row: &UsageRow| {
        let UsageRow { from, tenant, function, model, totals } = row;
        // What is a model's and what is not are in different rows: nothing stands in both.
        let of_model = |text: String| if model.is_some() { text } else { String::new() };
        let own = |text: String| if model.is_none() { text } else { String::new() };
        [
            from.as_deref().map_or("", |from| from.trim_end_matches(":00Z")).to_owned(),
            tenant.clone(),
            function.clone(),
            model.clone().unwrap_or_default(),
            own(totals.invocations.to_string()),
            own(time(totals.cpu_us)),
            own(size(totals.bytes_in + totals.bytes_out)),
            of_model(totals.sequences.to_string()),
            of_model(totals.prompt_tokens.to_string()),
            of_model(totals.cached_tokens.to_string()),
            of_model(totals.generated_tokens.to_string()),
            of_model(time(totals.device_us)),
            of_model(format!("{:.1} MB s", totals.kv_byte_seconds as f64 / 1e6)),
        ]
    };
    let head = [
        "FROM",
        "TENANT",
        "FUNCTION",
        "MODEL",
        "CALLS",
        "CPU",
        "BYTES",
        "GENERATIONS",
        "PROMPT",
        "CACHED",
        "GENERATED",
        "DEVICE",
        "KV",
    ];
    table(head, &rows.iter().map(row).collect::<Vec<_>>());
}

/// All that rows have, under its name in JSON. Names have neither commas nor quotes.
fn csv(rows: &[UsageRow]) -> anyhow::Result<()> {
    let mut columns = vec!["from".to_owned(), "tenant".into(), "function".into(), "model".into()];
    let numbers = serde_json::to_value(crate::usage::Totals::default())?;
    columns.extend(numbers.as_object().into_iter().flat_map(|numbers| numbers.keys().cloned()));
    println!("{}", columns.join(","));
    for row in rows {
        let row = serde_json::to_value(row)?;
        let cell = |column: &String| match &row[column] {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            number => number.to_string(),
        };
        println!("{}", columns.iter().map(cell).collect::<Vec<_>>().join(","));
    }
    Ok(())
}
