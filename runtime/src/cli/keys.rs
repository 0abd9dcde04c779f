//! `hob keys create`, `list` and `revoke`

use super::{ago, table};
use crate::api::NewKey;
use crate::client::Client;
use crate::keys::Scope;
use crate::names::Tenant;

#[derive(clap::Subcommand)]
pub enum Command {
    /// Make a key; it is shown this once
    Create {
        /// What to call it, as in ci
        name: String,
        /// What it allows: read (see), deploy (change the tenant's functions) or admin (everything)
        #[arg(long)]
        scope: Scope,
        /// Whose functions it reaches
        #[arg(long, default_value_t)]
        tenant: Tenant,
    },
    /// List keys, without the keys themselves
    List,
    /// Make a key worthless, from its next call on
    Revoke {
        /// Its id, from `hob keys list`
        id: String,
    },
}

pub fn run(client: &Client, command: Command) -> anyhow::Result<()> {
    match command {
        Command::Create { name, scope, tenant } => create(client, &NewKey { name, tenant, scope }),
        Command::List => list(client),
        Command::Revoke { id } => {
            client.revoke_key(&id)?;
            println!("key {id} is revoked");
            Ok(())
        }
    }
}

fn create(client: &Client, new: &NewKey) -> anyhow::Result<()> {
    let made = client.create_key(new)?;
    println!("{}", made.key.unwrap_or_default());
    // Apart from the key, so that it can be piped.
    eprintln!("key {} for tenant {}, scope {}; it is not shown again", made.id, made.tenant, made.scope.as_str());
    Ok(())
}

fn list(client: &Client) -> anyhow::Result<()> {
    let keys = client.keys()?;
    if keys.is_empty() {
        println!("no keys; commands on this machine use the one in control.json");
        return Ok(());
    }
    let row = |key: &crate::api::KeyStatus| {
        [key.id.clone(), key.name.clone(), key.tenant.to_string(), key.scope.as_str().to_owned(), ago(key.created_at)]
    };
    table(["ID", "NAME", "TENANT", "SCOPE", "CREATED"], &keys.iter().map(row).collect::<Vec<_>>());
    Ok(())
}
