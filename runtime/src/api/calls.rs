//! Every call of the control API, in one table: what is routed is what is documented.

use axum::routing::{MethodRouter, delete, get, post, put};
use axum::{Json, extract::State};

use super::{App, MAX_COMPONENT_BYTES, functions, keys, models, observe, store, tenants, usage};
use crate::keys::Scope;

/// One call.
pub struct Call {
    /// Its method, in lower case, as OpenAPI writes it.
    pub method: &'static str,
    /// Its path.
    pub path: &'static str,
    /// What it does.
    pub does: &'static str,
    /// Parameters after the path, and what they do.
    pub query: &'static [(&'static str, &'static str)],
    /// What a key must allow.
    pub needs: Scope,
    /// The schema of its body; `binary` is bytes, `lines` a line of JSON each.
    pub takes: Option<&'static str>,
    /// The status when all is well, and the schema of its body; `[x]` is a list of x.
    pub gives: (u16, Option<&'static str>),
    /// What answers it.
    pub handler: MethodRouter<App>,
}

const USAGE_QUERY: &[(&str, &str)] = &[
    ("tenant", "only this tenant's; a key below admin sees its own only"),
    ("function", "only this function's"),
    ("model", "only this model's"),
    ("since", "from then on: 2026-11-25, 2026-11-25T03:00Z, 24h ago, or seconds since 1970; its whole hour"),
    ("until", "until before then; its whole hour"),
    ("by", "total (unless said), hour or day, of UTC"),
];
const RECORDS_QUERY: &[(&str, &str)] = &[
    ("tenant", "only this tenant's; a key below admin sees its own only"),
    ("function", "only this function's"),
    ("model", "only those that used this model"),
    ("since", "only those that ended from then on: 2026-11-25, 2026-11-25T03:00Z, 24h ago, or seconds since 1970"),
    ("until", "only those that ended before then"),
    ("after", "only records after this number: the last one that was seen"),
    ("limit", "so many at most, and 10000"),
];

/// All calls.
pub fn all() -> Vec<Call> {
    use Scope::{Admin, Deploy, Read};
    let upload = put(functions::upload).layer(axum::extract::DefaultBodyLimit::max(MAX_COMPONENT_BYTES));
    let status = get(|State(app): State<App>| async move { Json(app.status) });
    let call = |method, path, does, needs, takes, gives, handler| Call {
        method,
        path,
        does,
        query: &[],
        needs,
        takes,
        gives,
        handler,
    };
    vec![
        call(
            "get",
            "/v1/status",
            "version, data listener, code path of the engine",
            Read,
            None,
            (200, Some("Status")),
            status,
        ),
        call("put", "/v1/components/{digest}", "uploads a component", Deploy, Some("binary"), (201, None), upload),
        call(
            "get",
            "/v1/functions",
            "the tenant's functions; those of all tenants for an administrator",
            Read,
            None,
            (200, Some("[FunctionStatus]")),
            get(functions::list),
        ),
        call(
            "put",
            "/v1/functions/{name}",
            "makes a revision of a function, and the function if it is the first",
            Deploy,
            Some("DeployRequest"),
            (200, Some("Deployed")),
            put(functions::deploy),
        ),
        call(
            "delete",
            "/v1/functions/{name}",
            "removes a function with all its revisions and what it keeps",
            Deploy,
            None,
            (204, None),
            delete(functions::remove),
        ),
        call(
            "post",
            "/v1/functions/{name}/check",
            "says what deploying would be refused for",
            Deploy,
            Some("DeployRequest"),
            (204, None),
            post(functions::check),
        ),
        call(
            "get",
            "/v1/functions/{name}/revisions",
            "a function's revisions, newest first",
            Read,
            None,
            (200, Some("[RevisionStatus]")),
            get(functions::revisions),
        ),
        call(
            "put",
            "/v1/functions/{name}/traffic",
            "shares a function's requests out over its revisions",
            Deploy,
            Some("TrafficRequest"),
            (200, Some("FunctionStatus")),
            put(functions::traffic),
        ),
        call(
            "post",
            "/v1/functions/{name}/rollback",
            "goes back to how requests were shared out before",
            Deploy,
            None,
            (200, Some("FunctionStatus")),
            post(functions::rollback),
        ),
        Call {
            query: &[
                ("follow", "true: the answer goes on with the lines to come"),
                ("id", "only the lines of this invocation"),
                ("last", "only so many of the lines that are there"),
            ],
            ..call(
                "get",
                "/v1/functions/{name}/logs",
                "what a function's guests printed last, and what the host says of their ends; a line of JSON for each",
                Read,
                None,
                (200, Some("lines")),
                get(observe::logs),
            )
        },
        call(
            "get",
            "/metrics",
            "numbers for Prometheus: of the tenant's functions; for an administrator, of the whole host",
            Read,
            None,
            (200, Some("text")),
            get(observe::metrics),
        ),
        call(
            "get",
            "/v1/invocations",
            "the last invocations of the tenant's functions, with their times",
            Read,
            None,
            (200, Some("[Invocation]")),
            get(functions::invocations),
        ),
        Call {
            query: USAGE_QUERY,
            ..call(
                "get",
                "/v1/usage",
                "sums of what was used, by tenant, function and model, and up to where they are durable",
                Read,
                None,
                (200, Some("UsageReport")),
                get(usage::sums),
            )
        },
        Call {
            query: RECORDS_QUERY,
            ..call(
                "get",
                "/v1/usage/records",
                "what single invocations used, in the order of their numbers; a line of JSON for each",
                Read,
                None,
                (200, Some("lines")),
                get(usage::records),
            )
        },
        Call {
            query: &[
                ("follow", "true: a line with the list, and another one whenever it changes"),
                ("all", "true: also models that are on disk, and those that can be pulled"),
            ],
            ..call(
                "get",
                "/v1/models",
                "models that are in memory, on their way there or away, or failed to get there a moment ago",
                Read,
                None,
                (200, Some("[Model]")),
                get(models::list),
            )
        },
        call(
            "delete",
            "/v1/models/resident/{name}",
            "gives back the memory of an unused model, or stops its load",
            Admin,
            None,
            (200, Some("Evicted")),
            delete(models::evict),
        ),
        call(
            "get",
            "/v1/models/stored",
            "models that are on disk, with what is known about each",
            Read,
            None,
            (200, Some("[StoredModel]")),
            get(store::list),
        ),
        call(
            "get",
            "/v1/models/stored/{name}",
            "what is known about a model that is on disk",
            Read,
            None,
            (200, Some("StoredModel")),
            get(store::show),
        ),
        call(
            "delete",
            "/v1/models/stored/{name}",
            "removes a model's name, and those of its files that no other name needs",
            Admin,
            None,
            (200, Some("Freed")),
            delete(store::remove),
        ),
        call(
            "post",
            "/v1/models/stored/{name}/copy",
            "gives another name to a model",
            Admin,
            Some("CopyRequest"),
            (204, None),
            post(store::copy),
        ),
        call(
            "post",
            "/v1/models/pull",
            "gets a model; a line of JSON for each step, the last has the status `success` or an `error`; it stops when the caller leaves, and goes on the next time",
            Admin,
            Some("PullRequest"),
            (200, Some("lines")),
            post(store::pull),
        ),
        call(
            "post",
            "/v1/models/gc",
            "removes files that no model needs, and what is left of pulls",
            Admin,
            None,
            (200, Some("Freed")),
            post(store::collect),
        ),
        call(
            "get",
            "/v1/tenants",
            "tenants, what they may use, and what they use: the key's own; all of them for an administrator",
            Read,
            None,
            (200, Some("[Tenant]")),
            get(tenants::list),
        ),
        call(
            "put",
            "/v1/tenants/{name}/quota",
            "holds a tenant to a budget over all its functions, at once; what is left out is not bounded",
            Admin,
            Some("Budget"),
            (204, None),
            put(tenants::set_quota),
        ),
        call(
            "get",
            "/v1/keys",
            "all keys, without the keys themselves",
            Admin,
            None,
            (200, Some("[Key]")),
            get(keys::list),
        ),
        call(
            "post",
            "/v1/keys",
            "makes a key; this answer alone shows it",
            Admin,
            Some("NewKey"),
            (201, Some("Key")),
            post(keys::create),
        ),
        call("delete", "/v1/keys/{id}", "makes a key worthless", Admin, None, (204, None), delete(keys::revoke)),
    ]
}
