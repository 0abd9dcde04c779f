//! Uses what a function can be given beside HTTP and models, as `?do=` says, and gives what came of it as JSON.

use std::collections::BTreeMap;

use hob_sdk::json::{Value, json};
use hob_sdk::{Json, Query, handler};

mod config {
    #![allow(missing_docs, clippy::all)]
    wit_bindgen::generate!({ path: "../../../wit/wasi-config", world: "imports", generate_all });
    pub use self::wasi::config::store::*;
}
mod config_draft {
    #![allow(missing_docs, clippy::all)]
    wit_bindgen::generate!({ path: "../../../wit/wasi-config-draft", world: "imports", generate_all });
    pub use self::wasi::config::store::*;
}
mod keyvalue {
    #![allow(missing_docs, clippy::all)]
    wit_bindgen::generate!({ path: "../../../wit/wasi-keyvalue", world: "imports", generate_all });
    pub use self::wasi::keyvalue::{atomics, batch, store};
}
mod keyvalue2 {
    #![allow(missing_docs, clippy::all)]
    wit_bindgen::generate!({ path: "../../../wit/wasi-keyvalue-draft2", world: "imports", generate_all });
    pub use self::wasi::keyvalue::{atomics, batch, store};
}
mod logging {
    #![allow(missing_docs, clippy::all)]
    wit_bindgen::generate!({ path: "../../../wit/wasi-logging", world: "imports", generate_all });
    pub use self::wasi::logging::logging::*;
}

type Asked = BTreeMap<String, String>;

#[handler]
async fn interfaces(Query(asked): Query<Asked>) -> Json<Value> {
    let get = |name: &str| asked.get(name).cloned().unwrap_or_default();
    Json(match get("do").as_str() {
        "config" => {
            let key = get("key");
            json!({
                "one": config::get(&key).unwrap(),
                "draft": config_draft::get(&key).unwrap(),
                "all": config::get_all().unwrap(),
                "draft_all": config_draft::get_all().unwrap(),
                "env": std::env::vars().collect::<BTreeMap<_, _>>(),
            })
        }
        "log" => {
            logging::log(logging::Level::Warn, "billing", "a warning");
            logging::log(logging::Level::Info, "", &"long ".repeat(100_000));
            json!({})
        }
        "files" => files(),
        "draft2" => draft2().unwrap_or_else(|error| json!({ "error": format!("{error:?}") })),
        _ => store(&asked).unwrap_or_else(|error| json!({ "error": format!("{error:?}") })),
    })
}

fn files() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).map_err(|error| error.kind().to_string());
    let wrote = |path: &str| std::fs::write(path, "from the guest").map_err(|error| error.kind().to_string());
    json!({
        "read": read("/data/in.txt"),
        "wrote": wrote("/data/out.txt"),
        "read_only": [read("/ro/in.txt").is_ok(), wrote("/ro/out.txt").is_ok()],
        "outside": read("/data/../secret.txt").is_ok() || read("/data/link").is_ok() || read("/etc/passwd").is_ok(),
    })
}

/// The draft that Spin's guests import; two swaps race for one key.
fn draft2() -> Result<Value, keyvalue2::store::Error> {
    use keyvalue2::atomics::{Cas, CasError, increment, swap};
    let bucket = keyvalue2::store::open("draft2")?;
    bucket.set("a", b"1")?;
    let (first, second) = (Cas::new(&bucket, "a")?, Cas::new(&bucket, "a")?);
    let seen = first.current()?;
    let won = swap(first, b"2").is_ok();
    let (lost, again) = match swap(second, b"3") {
        Err(CasError::CasFailed(again)) => (again.current()?, swap(again, b"3").is_ok()),
        other => (Some(format!("{other:?}").into_bytes()), false),
    };
    let text = |value: Option<Vec<u8>>| value.map(|value| String::from_utf8_lossy(&value).into_owned());
    keyvalue2::batch::set_many(&bucket, &[("b".into(), b"x".to_vec())])?;
    Ok(json!({
        "seen": text(seen), "won": won, "lost": text(lost), "again": again, "now": text(bucket.get("a")?),
        "sums": [increment(&bucket, "n", 5)?, increment(&bucket, "n", -7)?],
        "keys": bucket.list_keys(None)?.keys, "cursor": bucket.list_keys(Some("no cursor")).is_err(),
    }))
}

fn store(asked: &Asked) -> Result<Value, keyvalue::store::Error> {
    let get = |name: &str| asked.get(name).cloned().unwrap_or_default();
    let bucket = keyvalue::store::open(&get("bucket"))?;
    let (key, value) = (get("key"), get("value"));
    Ok(match get("do").as_str() {
        "set" => json!(bucket.set(&key, value.as_bytes())?),
        "get" => json!(bucket.get(&key)?.map(|value| String::from_utf8_lossy(&value).into_owned())),
        "delete" => json!(bucket.delete(&key)?),
        "exists" => json!(bucket.exists(&key)?),
        "keys" => json!(bucket.list_keys(None)?.keys),
        "increment" => json!(keyvalue::atomics::increment(&bucket, &key, value.parse().unwrap_or(1))?),
        "many" => {
            keyvalue::batch::set_many(&bucket, &[("m1".into(), b"1".to_vec()), ("m2".into(), b"2".to_vec())])?;
            keyvalue::batch::delete_many(&bucket, &["m2".into()])?;
            let found = keyvalue::batch::get_many(&bucket, &["m1".into(), "m2".into()])?;
            json!(found.into_iter().map(|pair| pair.map(|(key, _)| key)).collect::<Vec<_>>())
        }
        "large" => json!(bucket.set("large", &vec![0; 5 << 20])?),
        other => json!({ "unknown": other }),
    })
}
