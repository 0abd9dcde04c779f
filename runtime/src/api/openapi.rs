//! The description of the control API that programs read: OpenAPI 3.1, made from the table of calls.

use serde_json::{Map, Value, json};

use super::calls::{self, Call};
use crate::config::{FunctionConfig, Setting};
use crate::usage::Totals;

/// The document.
pub fn document() -> Value {
    let mut paths = Map::new();
    for call in calls::all() {
        let path = paths.entry(call.path).or_insert_with(|| json!({}));
        path[call.method] = operation(&call);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "hob control API",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Deploys functions and shows what they do. It has a listener of its own, apart from the functions'.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas(),
            "securitySchemes": { "key": { "type": "http", "scheme": "bearer", "description": "made with `hob keys create`" } },
        },
        "security": [{ "key": [] }],
    })
}

fn operation(call: &Call) -> Value {
    let (status, gives) = call.gives;
    let mut good = json!({ "description": "done" });
    if let Some(schema) = gives {
        good["content"] = content(schema);
    }
    let names = call.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let mut parameters: Vec<_> = names
        .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }))
        .collect();
    parameters.extend(call.query.iter().map(
        |(name, does)| json!({ "name": name, "in": "query", "description": does, "schema": { "type": "string" } }),
    ));
    let mut operation = json!({
        "summary": call.does,
        "description": format!("Needs a key of scope `{}`.", call.needs.as_str()),
        "operationId": operation_id(call),
        "parameters": parameters,
        "responses": {
            status.to_string(): good,
            "default": { "description": "refused", "content": content("Error") },
        },
    });
    if let Some(schema) = call.takes {
        operation["requestBody"] = json!({ "required": true, "content": content(schema) });
    }
    operation
}

/// `put_functions_name_traffic`
fn operation_id(call: &Call) -> String {
    let parts =
        call.path.split('/').filter(|part| !["", "v1"].contains(part)).map(|part| part.trim_matches(['{', '}']));
    parts.fold(call.method.to_owned(), |id, part| format!("{id}_{part}"))
}

fn content(schema: &str) -> Value {
    match schema {
        "binary" => return json!({ "application/wasm": {} }),
        "lines" => return json!({ "application/x-ndjson": {} }),
        "text" => return json!({ "application/openmetrics-text": {} }),
        _ => {}
    }
    let schema = match schema.strip_prefix('[').and_then(|list| list.strip_suffix(']')) {
        Some(item) => list(&reference(item)),
        None => reference(schema),
    };
    json!({ "application/json": { "schema": schema } })
}

fn reference(schema: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{schema}") })
}

fn list(items: &Value) -> Value {
    json!({ "type": "array", "items": items })
}

fn object(required: &[&str], properties: Value) -> Value {
    json!({ "type": "object", "required": required, "properties": properties, "additionalProperties": false })
}

fn text(what: &str) -> Value {
    json!({ "type": "string", "description": what })
}

fn number(what: &str) -> Value {
    json!({ "type": "integer", "minimum": 0, "description": what })
}

fn texts(what: &str) -> Value {
    json!({ "type": "object", "additionalProperties": { "type": "string" }, "description": what })
}

/// A table of numbers, each with its default and its bounds.
fn settings(all: &[Setting], table: &str) -> Value {
    let mut properties = Map::new();
    for setting in all {
        if let Some(key) = setting.name.strip_prefix(table).and_then(|rest| rest.strip_prefix('.')) {
            let Setting { default, least, most, .. } = *setting;
            let schema = json!({ "type": "integer", "default": default, "minimum": least, "maximum": most });
            properties.insert(key.to_owned(), schema);
        }
    }
    object(&[], properties.into())
}

fn schemas() -> Value {
    let mut schemas = function_schemas();
    for (name, schema) in [
        (
            "Error",
            object(
                &["error"],
                json!({ "error": object(&["code", "message"], json!({ "code": text("for programs"), "message": text("for people") })) }),
            ),
        ),
        (
            "Status",
            object(
                &["version", "listen", "code_path"],
                json!({
                    "version": text("the server's version"),
                    "listen": text("where functions are called"),
                    "code_path": text("which instructions the engine uses"),
                }),
            ),
        ),
        (
            "NewKey",
            object(
                &["name", "scope"],
                json!({
                    "name": text("what a person calls it"), "tenant": text("whose functions it reaches; `default` unless said"), "scope": scope(),
                }),
            ),
        ),
        (
            "Key",
            object(
                &["id", "name", "tenant", "scope", "created_at"],
                json!({
                    "id": text("what it is called in the audit log"), "name": text("what a person calls it"),
                    "tenant": text("whose functions it reaches"), "scope": scope(),
                    "created_at": number("in seconds since 1970"), "key": text("only when it was just made"),
                }),
            ),
        ),
        // These grow with what is measured.
        ("Invocation", json!({ "type": "object", "required": ["id", "function", "outcome"] })),
        (
            "Model",
            json!({ "type": "object", "required": ["name", "digest", "state", "tier", "device", "bytes", "leases", "unused_s"] }),
        ),
        // What is known of a model depends on what its file says.
        (
            "StoredModel",
            json!({ "type": "object", "required": ["name", "digest", "bytes", "source", "pulled_at", "tier"] }),
        ),
        (
            "PullRequest",
            object(
                &["source"],
                json!({
                    "source": text("a short name, or where a model lies, as `hob models pull` takes it; no file of the host"),
                    "name": text("what to call it; what its place suggests, unless said"),
                    "check": { "type": "boolean", "default": false, "description": "read what is here already, and get what is damaged" },
                }),
            ),
        ),
        ("CopyRequest", object(&["to"], json!({ "to": text("the other name") }))),
        (
            "Freed",
            object(
                &["files", "bytes"],
                json!({ "files": number("that were removed"), "bytes": number("that they had") }),
            ),
        ),
        ("UsageReport", usage_report()),
        (
            "Tenant",
            object(
                &["name", "quota", "used"],
                json!({ "name": text("the tenant"), "quota": reference("Budget"), "used": used() }),
            ),
        ),
        ("Evicted", object(&["evicted"], json!({ "evicted": { "type": "boolean" } }))),
    ] {
        schemas.insert(name.into(), schema);
    }
    schemas.into()
}

fn used() -> Value {
    object(
        &["minute_tokens", "day_tokens", "sequences", "kv_bytes"],
        json!({
            "minute_tokens": number("in the minute that runs"), "day_tokens": number("in the day that runs, of UTC"),
            "sequences": number("running and waiting"), "kv_bytes": number("that these hold"),
        }),
    )
}

fn usage_report() -> Value {
    let totals = serde_json::to_value(Totals::default()).expect("sums are numbers");
    let mut row = Map::new();
    row.insert("from".into(), text("when the hour or day begins"));
    for (key, what) in [("tenant", "who pays"), ("function", "the function"), ("model", "none for what is no model's")]
    {
        row.insert(key.into(), text(what));
    }
    for key in totals.as_object().into_iter().flat_map(Map::keys) {
        let what = match key.rsplit('_').next() {
            Some("us") => "in microseconds",
            Some("seconds") => "bytes of KV times the seconds for which they were held",
            _ => "how many",
        };
        row.insert(key.clone(), number(what));
    }
    let through = object(
        &["record", "at_ms"],
        json!({ "record": number("the number of the last durable record"), "at_ms": number("when that was, in milliseconds since 1970") }),
    );
    let rows = list(&object(&["tenant", "function"], row.into()));
    object(&["billed_through", "rows"], json!({ "billed_through": through, "rows": rows }))
}

fn scope() -> Value {
    json!({ "enum": ["read", "deploy", "admin"], "description": "each includes those before it" })
}

fn function_schemas() -> Map<String, Value> {
    let numbers = FunctionConfig::default().settings();
    let traffic = json!({
        "type": "object", "additionalProperties": { "type": "integer", "minimum": 0, "maximum": 100 },
        "description": "shares in percent, by revision, 100 together", "examples": [{ "r7": 10, "r6": 90 }],
    });
    let maybe = |schema: &str| json!({ "oneOf": [reference(schema), { "type": "null" }] });
    let pairs = [
        ("Traffic", traffic),
        ("TrafficRequest", object(&["to"], json!({ "to": reference("Traffic") }))),
        (
            "Route",
            object(
                &["path"],
                json!({
                    "host": text("the host it is for, or *.example.com; any, if none is named"),
                    "path": text("what its path begins with"),
                    "methods": list(&text("in capitals; any, if none is named")),
                }),
            ),
        ),
        (
            "Directory",
            object(
                &["host", "guest"],
                json!({
                    "host": text("absolute, on the host"), "guest": text("what the guest calls it"), "writable": { "type": "boolean", "default": false },
                }),
            ),
        ),
        ("Limits", settings(&numbers, "limits")),
        ("Concurrency", settings(&numbers, "concurrency")),
        ("Reuse", settings(&numbers, "reuse")),
        ("Budget", settings(&numbers, "budget")),
        (
            "FunctionConfig",
            object(
                &[],
                json!({
                    "routes": list(&reference("Route")),
                    "sticky": text("the request header that decides which revision answers"),
                    "server_timing": { "type": "boolean", "description": "whether answers say where their time went; as the host does, unless said" },
                    "environment": texts("variables"),
                    "config": texts("what wasi:config answers"),
                    "secrets": list(&text("names; the values are in the request's `secrets`")),
                    "models": list(&text("the first is its default")),
                    "egress": list(&text("SCHEME://HOST[:PORT], as in https://*.example.com")),
                    "directories": list(&reference("Directory")),
                    "limits": reference("Limits"),
                    "concurrency": reference("Concurrency"),
                    "reuse": reference("Reuse"),
                    "budget": reference("Budget"),
                    "priority": { "type": "string", "enum": ["low", "normal", "high"], "default": "normal", "description": "the class of its generations; `high` needs a key of scope `admin`" },
                }),
            ),
        ),
        (
            "Part",
            object(
                &["component"],
                json!({ "component": text("the digest of an uploaded component"), "source": text("where it came from") }),
            ),
        ),
        (
            "DeployRequest",
            object(
                &["component"],
                json!({
                    "component": text("the digest of an uploaded component"),
                    "config": reference("FunctionConfig"),
                    "secrets": texts("values; never shown again"),
                    "source": text("where the component came from, for people"),
                    "middleware": list(&reference("Part")),
                    "traffic": { "type": "boolean", "default": true, "description": "whether the new revision is to take all requests" },
                }),
            ),
        ),
        (
            "Deployed",
            object(
                &["revision", "function"],
                json!({ "revision": text("the new one"), "function": reference("FunctionStatus") }),
            ),
        ),
        (
            "FunctionStatus",
            object(
                &["name", "tenant", "latest", "traffic", "state"],
                json!({
                    "name": text("unique on the host"), "tenant": text("whose it is"),
                    "routes": list(&reference("Route")), "models": list(&text("that it may use")),
                    "component": { "type": ["string", "null"] }, "deployed_at": number("in seconds since 1970"),
                    "latest": text("the newest revision"), "traffic": reference("Traffic"),
                    "previous": maybe("Traffic"), "pending": maybe("Traffic"),
                    "state": { "enum": ["ready", "warming", "broken"] }, "why": { "type": ["string", "null"] },
                }),
            ),
        ),
        (
            "RevisionStatus",
            object(
                &["id", "component", "config", "deployed_at", "share", "state"],
                json!({
                    "id": text("as in r7"), "component": text("its digest"), "source": text("where it came from"),
                    "parts": list(&reference("Part")),
                    "config": reference("FunctionConfig"), "deployed_at": number("in seconds since 1970"),
                    "share": number("of requests, in percent"),
                    "state": { "enum": ["serving", "warming", "idle", "broken"] }, "why": { "type": ["string", "null"] },
                }),
            ),
        ),
    ];
    pairs.into_iter().map(|(name, schema)| (name.to_owned(), schema)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::QuotaUse;
    use crate::config::{Budget, Concurrency, Directory, Limits, Reuse, RouteConfig};
    use crate::digest::Digest;
    use crate::function_host::DeployRequest;
    use crate::function_host::TenantStatus;
    use crate::function_host::function::Function;
    use crate::names::Tenant;
    use crate::records::{FunctionRecord, PartRecord, RevisionRecord};
    use crate::usage::{BilledThrough, Report, UsageRow};

    /// What is sent and what is described must have the same keys.
    fn agrees(value: &Value, schema: &Value, document: &Value) {
        let schema = match schema["$ref"].as_str() {
            Some(reference) => document.pointer(reference.trim_start_matches('#')).unwrap(),
            None => schema,
        };
        if let (Some(fields), Some(properties)) = (value.as_object(), schema["properties"].as_object()) {
            for (key, value) in fields {
                let property = properties.get(key).unwrap_or_else(|| panic!("`{key}` is not described"));
                agrees(value, property, document);
            }
            let missing =
                schema["required"].as_array().unwrap().iter().find(|key| value.get(key.as_str().unwrap()).is_none());
            assert!(missing.is_none(), "{missing:?} is not sent");
        }
        if let (Some(items), Some(schema)) = (value.as_array(), schema.get("items")) {
            items.iter().for_each(|item| agrees(item, schema, document));
        }
    }

    // Not of `document()`, here or in another of the library's own tests: whatever reaches the table of calls is the whole host,
    // compiled once more. A case reads the document from a server.
    #[test]
    fn what_is_sent_is_what_is_described() {
        let document = json!({ "components": { "schemas": schemas() } });
        let config = FunctionConfig {
            routes: vec![RouteConfig {
                host: Some("h".parse().unwrap()),
                path: "/".parse().unwrap(),
                methods: vec!["GET".into()],
            }],
            sticky: Some("x".into()),
            server_timing: Some(false),
            environment: [("a".into(), "b".into())].into(),
            config: [("a".into(), "b".into())].into(),
            secrets: vec!["s".into()],
            models: vec!["m".parse().unwrap()],
            egress: vec!["http://x".parse().unwrap()],
            directories: vec![Directory { host: "/".into(), guest: "/".into(), writable: true }],
            limits: Limits { wall_ms: 1, ..Limits::default() },
            concurrency: Concurrency { running: 1, ..Concurrency::default() },
            reuse: Reuse { requests: 2, ..Reuse::default() },
            budget: Budget { sequences: 2, ..Budget::default() },
            priority: crate::config::Priority::Low,
        };
        let digest = Digest::of(b"");
        let part = PartRecord { component: digest, source: "x".into() };
        let middleware = vec![part.clone()];
        let request = DeployRequest { source: "x".into(), middleware, ..DeployRequest::new(digest, config.clone()) };
        let schema = |name: &str| document["components"]["schemas"][name].clone();
        agrees(&serde_json::to_value(&request).unwrap(), &schema("DeployRequest"), &document);
        let record = FunctionRecord::first("f".parse().unwrap(), Tenant::default());
        let revision = RevisionRecord {
            id: record.latest,
            component: digest,
            source: "x".into(),
            parts: vec![part],
            config,
            deployed_at: 1,
        };
        let function = Function::new(record, vec![revision]);
        agrees(&serde_json::to_value(function.status(None)).unwrap(), &schema("FunctionStatus"), &document);
        agrees(&serde_json::to_value(&function.revisions()[0]).unwrap(), &schema("RevisionStatus"), &document);
        let used = QuotaUse { minute_tokens: 1, day_tokens: 2, sequences: 3, kv_bytes: 4 };
        let tenant = TenantStatus { name: Tenant::default(), quota: Budget::default(), used };
        agrees(&serde_json::to_value(&tenant).unwrap(), &schema("Tenant"), &document);
        let row = UsageRow {
            from: Some("2026-11-25T03:00:00Z".into()),
            tenant: "t".into(),
            function: "f".into(),
            model: Some("m".into()),
            totals: Totals::default(),
        };
        let report = Report { billed_through: BilledThrough::default(), rows: vec![row] };
        agrees(&serde_json::to_value(&report).unwrap(), &schema("UsageReport"), &document);
    }
}
