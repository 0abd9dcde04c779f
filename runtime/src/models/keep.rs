//! How long models stay in memory: what people wish for each, and the thread that sees to it.

use std::sync::{Arc, Weak};
use std::time::Duration;

use hob_gpu::Policy;
use serde::{Deserialize, Serialize};

use super::Library;

/// How often it is looked whether a model has been idle for long enough, or is wished otherwise.
const ROUND: Duration = Duration::from_secs(1);

/// What is wished for a model; nothing, unless said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Keep {
    /// It is loaded when a server starts.
    pub warm: bool,
    /// It stays, whether anybody uses it or not.
    pub pinned: bool,
    /// It goes when nobody has used it for so many seconds; otherwise when another needs its room.
    pub idle_s: Option<u64>,
    /// Models of a higher priority do not go for it.
    pub priority: u8,
    /// Whose prompts find what others have had computed.
    pub share: Share,
}

/// Who shares the KV of prompts that begin alike. Who finds a prefix there is answered sooner, and told so by the count of cached tokens:
/// whoever shares learns what others have sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Share {
    /// A tenant's functions; under the default tenant each function shares with itself alone.
    #[default]
    Tenant,
    /// All who use the model.
    All,
}

impl Keep {
    /// The same for the engine.
    pub fn policy(&self) -> Policy {
        Policy { pinned: self.pinned, idle: self.idle_s.map(Duration::from_secs), priority: self.priority }
    }

    /// Whether nothing is wished.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

impl std::fmt::Display for Keep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut said = Vec::new();
        if self.warm {
            said.push("loaded when a server starts".into());
        }
        match (self.pinned, self.idle_s) {
            (true, _) => said.push("pinned".into()),
            (false, Some(seconds)) => said.push(format!("goes after {seconds} s without use")),
            (false, None) => said.push("goes when another needs its room".into()),
        }
        if self.priority > 0 {
            said.push(format!("priority {}", self.priority));
        }
        if self.share == Share::All {
            said.push("prefixes shared by all tenants".into());
        }
        f.write_str(&said.join(", "))
    }
}

/// Starts the thread that loads warm models, then sees to it that wishes are kept for as long as there is a library.
pub(crate) fn start(library: &Arc<Library>) -> std::io::Result<()> {
    let weak = Arc::downgrade(library);
    std::thread::Builder::new().name("hob-models".into()).spawn(move || {
        load_warm(&weak);
        let mut evictions = 0;
        while let Some(library) = weak.upgrade() {
            library.apply_wishes();
            let gone = library.engines().evict_expired();
            if gone > 0 {
                tracing::info!(models = gone, "unused for as long as they may be");
            }
            let so_far = library.engines().evictions();
            if std::mem::replace(&mut evictions, so_far) != so_far {
                hob_gpu::measure::give_back();
            }
            drop(library);
            std::thread::sleep(ROUND);
        }
    })?;
    Ok(())
}

fn load_warm(library: &Weak<Library>) {
    let Some(library) = library.upgrade() else { return };
    let warm = library.store().list().unwrap_or_default().into_iter().filter(|model| model.keep.warm);
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    for model in warm {
        let joined = match &runtime {
            Ok(runtime) => runtime.block_on(library.join(&model.name)).map(drop).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match joined {
            Ok(()) => tracing::info!(model = %model.name, "warm"),
            Err(error) => tracing::warn!(model = %model.name, error, "not warm"),
        }
    }
}
