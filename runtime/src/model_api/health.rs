//! Whether models answer: known by a token that one has made, not by a listener that listens.
//!
//! A host is ready when each model that is kept warm is in memory and has made a token there. One that keeps none warm
//! loads models as they are asked for, and is ready when it listens.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use hob_gpu::{Ask, ModelState, Prompt, Terms};
use http::{Response, StatusCode};
use serde_json::json;

use super::body;
use crate::function_host::Host;
use crate::models::Library;
use crate::names::ModelName;
use crate::request::Body;

/// What is known of models that are kept warm.
#[derive(Clone, Default)]
pub(super) struct Health(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    /// Digests of those that have made a token since they were loaded.
    proven: HashSet<String>,
    /// Those that are asked for one.
    asked: HashSet<String>,
}

impl Health {
    /// The answer to whoever asks.
    pub fn answer(&self, host: &Arc<Host>) -> Response<Body> {
        let waits = self.waits_for(host.library());
        if host.is_draining() {
            return body::json(StatusCode::SERVICE_UNAVAILABLE, &json!({ "status": "stopping" }));
        }
        if host.library().engines().is_lost() {
            return body::json(StatusCode::SERVICE_UNAVAILABLE, &json!({ "status": "device lost" }));
        }
        match waits {
            None => body::json(StatusCode::OK, &json!({ "status": "ok" })),
            Some(model) => {
                let loading = json!({ "status": "loading model", "model": model.as_str() });
                body::json(StatusCode::SERVICE_UNAVAILABLE, &loading)
            }
        }
    }

    /// The model that has not made a token yet, if there is one; it is asked for one.
    fn waits_for(&self, library: &Arc<Library>) -> Option<ModelName> {
        let warm = library.store().list().unwrap_or_default().into_iter().filter(|model| model.keep.warm);
        let models = library.engines().models();
        let resident = |digest: &str| models.iter().any(|m| m.digest == digest && m.state == ModelState::Resident);
        let mut first = None;
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.proven.retain(|digest| resident(digest));
        for model in warm {
            let digest = model.digest.to_string();
            if known.proven.contains(&digest) {
                continue;
            }
            if resident(&digest) && known.asked.insert(digest.clone()) {
                self.prove(library.clone(), model.name.clone(), digest);
            }
            first = first.or(Some(model.name));
        }
        first
    }

    fn prove(&self, library: Arc<Library>, name: ModelName, digest: String) {
        let known = self.0.clone();
        tokio::spawn(async move {
            let answered = answers(&library, &name).await;
            if let Err(why) = &answered {
                tracing::warn!(model = %name, why, "a model that is to be warm makes no token");
            }
            let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
            known.asked.remove(&digest);
            if answered.is_ok() {
                known.proven.insert(digest);
            }
        });
    }
}

/// Has a model make one token.
async fn answers(library: &Library, name: &ModelName) -> Result<(), String> {
    let model = library.join(name).await.map_err(|error| error.to_string())?;
    if !model.generates() {
        let tokens = model.embedding_tokens("a", true);
        let embedding = model.embed_on(tokens, 0, Terms::default()).map_err(|error| error.to_string());
        return embedding?.get().await.map(drop).map_err(|error| error.to_string());
    }
    let ask = Ask { max_tokens: Some(1), ..Ask::new(Prompt::Raw("a".into())) };
    let tokens = model.generate(ask).map_err(|error| error.to_string())?;
    tokens.text().await.map(drop).map_err(|error| error.to_string())
}
