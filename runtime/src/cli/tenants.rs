//! `hob tenants list` and `quota`

use super::{size, table};
use crate::client::Client;
use crate::config::Budget;
use crate::function_host::TenantStatus;
use crate::names::Tenant;

#[derive(clap::Subcommand)]
pub enum Command {
    /// List tenants: what they may use, and what they use
    List {
        /// As JSON, for programs
        #[arg(long)]
        json: bool,
    },
    /// Hold a tenant to a quota over all its functions, in place of the one it has; what is not named is not bounded
    Quota {
        /// Whom
        tenant: Tenant,
        /// Tokens of prompts and answers in one request
        #[arg(long, value_name = "N")]
        request_tokens: Option<u64>,
        /// Tokens in a minute
        #[arg(long, value_name = "N")]
        minute_tokens: Option<u64>,
        /// Tokens in a day of UTC
        #[arg(long, value_name = "N")]
        day_tokens: Option<u64>,
        /// Generations at once, running and waiting
        #[arg(long, value_name = "N")]
        sequences: Option<u32>,
        /// Bytes of KV that these hold
        #[arg(long, value_name = "BYTES")]
        kv_bytes: Option<u64>,
        /// Longest time that a generation waits for its turn, in milliseconds
        #[arg(long, value_name = "MS")]
        wait_ms: Option<u32>,
        /// What it is due beside others where the engine is short: twice the weight, twice as much [default: 100]
        #[arg(long, value_name = "N")]
        weight: Option<u32>,
    },
}

pub fn run(client: &Client, command: Command) -> anyhow::Result<()> {
    match command {
        Command::List { json: true } => println!("{}", serde_json::to_string_pretty(&client.tenants()?)?),
        Command::List { json: false } => list(&client.tenants()?),
        Command::Quota { tenant, request_tokens, minute_tokens, day_tokens, sequences, kv_bytes, wait_ms, weight } => {
            let none = Budget::default();
            let quota = Budget {
                request_tokens: request_tokens.unwrap_or(none.request_tokens),
                minute_tokens: minute_tokens.unwrap_or(none.minute_tokens),
                day_tokens: day_tokens.unwrap_or(none.day_tokens),
                sequences: sequences.unwrap_or(none.sequences),
                kv_bytes: kv_bytes.unwrap_or(none.kv_bytes),
                wait_ms: wait_ms.unwrap_or(none.wait_ms),
                weight: weight.unwrap_or(none.weight),
            };
            client.set_quota(&tenant, &quota)?;
            let bounded = if quota == none { "no quota" } else { "its quota" };
            println!("tenant {tenant} has {bounded} from now on");
        }
    }
    Ok(())
}

fn list(tenants: &[TenantStatus]) {
    if tenants.is_empty() {
        return println!("no tenant has a function, a key or a quota");
    }
    let none = Budget::default();
    let of = |used: String, most: String, bounded: bool| if bounded { format!("{used} of {most}") } else { used };
    let number = |used: u64, most: u64, free: u64| of(used.to_string(), most.to_string(), most != free);
    let row = |TenantStatus { name, quota, used }: &TenantStatus| {
        let request = quota.request_tokens;
        [
            name.to_string(),
            if request == none.request_tokens { String::new() } else { request.to_string() },
            number(used.minute_tokens, quota.minute_tokens, none.minute_tokens),
            number(used.day_tokens, quota.day_tokens, none.day_tokens),
            number(used.sequences, quota.sequences.into(), none.sequences.into()),
            of(size(used.kv_bytes), size(quota.kv_bytes), quota.kv_bytes != none.kv_bytes),
            quota.weight.to_string(),
        ]
    };
    let head = ["TENANT", "TOKENS/REQUEST", "TOKENS/MINUTE", "TOKENS/DAY", "SEQUENCES", "KV", "WEIGHT"];
    table(head, &tenants.iter().map(row).collect::<Vec<_>>());
}
