//! Which path is which call, and which paths nobody else may have.
//!
//! Reserved are the paths that are answered, all below them, and those of calls of the same APIs that are not answered here:
//! a client sends its prompts and its key there, too, and a tenant's function would get them.

use http::Method;

use super::refused::Dialect;

/// What is answered, by path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Chat,
    Completions,
    Embeddings,
    Responses,
    Models,
    Model,
    Live,
    Ready,
    Description,
    Messages,
    CountTokens,
    OllamaChat,
    Generate,
    Embed,
    OldEmbedding,
    Tags,
    Ps,
    Version,
    Running,
    Show,
    Pull,
    Copy,
    Create,
    Delete,
    Blob,
    /// A call that is not answered, and no function's either.
    Missing,
}

static READ: [Method; 2] = [Method::GET, Method::HEAD];
static POST: [Method; 1] = [Method::POST];
static DELETE: [Method; 1] = [Method::DELETE];
static SEND: [Method; 2] = [Method::HEAD, Method::POST];

/// What stands before the digest of a blob.
pub(super) const BLOBS: &str = "/api/blobs/";

impl What {
    /// The methods that it takes.
    pub fn methods(self) -> &'static [Method] {
        use What::{Description, Live, Model, Models, Ps, Ready, Running, Tags, Version};
        match self {
            Models | Model | Live | Ready | Description | Tags | Ps | Version | Running => &READ,
            Self::Delete => &DELETE,
            Self::Blob => &SEND,
            _ => &POST,
        }
    }

    /// Whether it changes which models there are.
    pub fn manages(self) -> bool {
        matches!(self, Self::Pull | Self::Copy | Self::Create | Self::Delete | Self::Blob)
    }

    /// Whether it uses models, and is metered.
    pub fn uses(self) -> bool {
        use What::{Chat, Completions, CountTokens, Generate, Messages, OllamaChat, Responses};
        matches!(self, Chat | Completions | Responses | Messages | CountTokens | OllamaChat | Generate)
            || matches!(self, Self::Embeddings | Self::Embed | Self::OldEmbedding)
    }
}

/// What a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub what: What,
    /// In whose words its errors are.
    pub dialect: Dialect,
    /// No function can have it.
    pub reserved: bool,
}

/// Calls that are answered.
pub(super) const CALLS: &[(&str, What, Dialect)] = &[
    ("/v1/chat/completions", What::Chat, Dialect::OpenAi),
    ("/v1/completions", What::Completions, Dialect::OpenAi),
    ("/v1/embeddings", What::Embeddings, Dialect::OpenAi),
    ("/v1/responses", What::Responses, Dialect::OpenAi),
    ("/v1/models", What::Models, Dialect::OpenAi),
    ("/v1/messages", What::Messages, Dialect::Anthropic),
    ("/v1/messages/count_tokens", What::CountTokens, Dialect::Anthropic),
    ("/v1/health/live", What::Live, Dialect::OpenAi),
    ("/v1/health/ready", What::Ready, Dialect::OpenAi),
    ("/v1/openapi.json", What::Description, Dialect::OpenAi),
    ("/api/chat", What::OllamaChat, Dialect::Ollama),
    ("/api/generate", What::Generate, Dialect::Ollama),
    ("/api/embed", What::Embed, Dialect::Ollama),
    ("/api/embeddings", What::OldEmbedding, Dialect::Ollama),
    ("/api/tags", What::Tags, Dialect::Ollama),
    ("/api/ps", What::Ps, Dialect::Ollama),
    ("/api/version", What::Version, Dialect::Ollama),
    ("/api/show", What::Show, Dialect::Ollama),
    ("/api/pull", What::Pull, Dialect::Ollama),
    ("/api/copy", What::Copy, Dialect::Ollama),
    ("/api/create", What::Create, Dialect::Ollama),
    ("/api/delete", What::Delete, Dialect::Ollama),
];

/// Calls of OpenAI's API, and of servers that speak it, that are not.
const OPENAI: &[&str] = &[
    "/v1/assistants",
    "/v1/audio",
    "/v1/batches",
    "/v1/containers",
    "/v1/conversations",
    "/v1/edits",
    "/v1/engines",
    "/v1/evals",
    "/v1/files",
    "/v1/fine-tunes",
    "/v1/fine_tuning",
    "/v1/images",
    "/v1/moderations",
    "/v1/organization",
    "/v1/realtime",
    "/v1/rerank",
    "/v1/threads",
    "/v1/uploads",
    "/v1/vector_stores",
    "/v1/videos",
];

/// Calls of Anthropic's API that are not.
const ANTHROPIC: &[&str] = &["/v1/complete", "/v1/organizations", "/v1/skills"];

/// Calls of Ollama's API that are not.
const OLLAMA: &[&str] = &["/api/blobs", "/api/push"];

/// What a path is; `None` if it is a function's.
pub(super) fn find(path: &str) -> Option<Found> {
    let open = |what, dialect| Some(Found { what, dialect, reserved: false });
    match path {
        "/health" => return open(What::Ready, Dialect::OpenAi),
        "/" => return open(What::Running, Dialect::Ollama),
        _ => {}
    }
    if let Some((_, what, dialect)) = CALLS.iter().find(|(call, ..)| *call == path) {
        return Some(Found { what: *what, dialect: *dialect, reserved: true });
    }
    if path.strip_prefix("/v1/models/").is_some_and(|id| !id.is_empty()) {
        return Some(Found { what: What::Model, dialect: Dialect::OpenAi, reserved: true });
    }
    if path.strip_prefix(BLOBS).is_some_and(|digest| !digest.is_empty()) {
        return Some(Found { what: What::Blob, dialect: Dialect::Ollama, reserved: true });
    }
    missing(path).map(|dialect| Found { what: What::Missing, dialect, reserved: true })
}

/// Whose call that is not answered a path is. A client that was given its base URL with a slash too many writes two of them.
fn missing(path: &str) -> Option<Dialect> {
    let mut begin = String::new();
    let mut found = None;
    for part in path.split('/').filter(|part| !part.is_empty()) {
        begin.push('/');
        begin.push_str(part);
        let all = [(OPENAI, Dialect::OpenAi), (ANTHROPIC, Dialect::Anthropic), (OLLAMA, Dialect::Ollama)];
        let known = CALLS.iter().find(|(call, ..)| *call == begin).map(|(_, _, dialect)| *dialect);
        found = found.or(known).or_else(|| Some(all.iter().find(|(list, _)| list.contains(&begin.as_str()))?.1));
        // None is deeper than four parts.
        if found.is_some() || begin.len() > 64 {
            break;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_reserved_with_all_below_them() {
        let what = |path| find(path).map(|found| (found.what, found.dialect, found.reserved));
        assert_eq!(what("/v1/messages"), Some((What::Messages, Dialect::Anthropic, true)));
        assert_eq!(what("/v1/models/a/b:c"), Some((What::Model, Dialect::OpenAi, true)));
        assert_eq!(what("/health"), Some((What::Ready, Dialect::OpenAi, false)));
        for (path, dialect) in [
            ("/v1/embeddings/", Dialect::OpenAi),
            ("/v1/files/x/content", Dialect::OpenAi),
            ("/v1/audio/speech", Dialect::OpenAi),
            ("/v1/responses/resp_1/cancel", Dialect::OpenAi),
            ("/v1/chat/completions/", Dialect::OpenAi),
            ("/v1//chat/completions", Dialect::OpenAi),
            ("//v1/models", Dialect::OpenAi),
            ("/v1/messages/batches", Dialect::Anthropic),
            ("/api/push", Dialect::Ollama),
            ("/api/blobs", Dialect::Ollama),
        ] {
            assert_eq!(what(path), Some((What::Missing, dialect, true)), "{path}");
        }
    }

    #[test]
    fn other_names_are_functions() {
        for path in
            ["/v1", "/v1/", "/v1/other", "/v1/chat", "/v1/filesystem", "/api", "/api/users", "/api/pusher", "/x"]
        {
            assert_eq!(find(path), None, "{path}");
        }
    }
}
