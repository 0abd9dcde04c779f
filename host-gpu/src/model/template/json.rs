//! JSON as Python writes it: models were trained on prompts with a space after each comma and colon.

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, Value};
use serde::Serialize as _;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};
use std::io;

/// `json.dumps(value, ensure_ascii=False, indent=indent)`.
pub(super) fn tojson(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Others, as `ensure_ascii`, are for other readers.
    let failed = |e: serde_json::Error| Error::new(ErrorKind::BadSerialization, e.to_string());
    let mut out = Vec::new();
    match indent {
        Some(n) => {
            let spaces = " ".repeat(n.min(16));
            value.serialize(&mut Serializer::with_formatter(&mut out, PrettyFormatter::with_indent(spaces.as_bytes())))
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut out, Python)),
    }
    .map_err(failed)?;
    Ok(Value::from_safe_string(String::from_utf8(out).expect("serde_json writes UTF-8")))
}

/// The same of JSON that is no template's.
pub(super) fn python(value: &serde_json::Value) -> String {
    let mut out = Vec::new();
    let done = value.serialize(&mut Serializer::with_formatter(&mut out, Python));
    done.expect("a value has only string keys");
    String::from_utf8(out).expect("serde_json writes UTF-8")
}

struct Python;

impl Formatter for Python {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_pythons() {
        let value = serde_json::json!({ "a": [1, 2, "é\"<"], "b": { "c": null } });
        assert_eq!(python(&value), r#"{"a": [1, 2, "é\"<"], "b": {"c": null}}"#);
        let mut environment = minijinja::Environment::new();
        environment.add_filter("tojson", tojson);
        let text = environment.render_str(
            "{{ v | tojson }}{{ [1] | tojson(indent=2) }}",
            minijinja::context! { v => Value::from(minijinja::value::Serde(&value)) },
        );
        assert_eq!(text.unwrap(), "{\"a\": [1, 2, \"é\\\"<\"], \"b\": {\"c\": null}}[\n  1\n]");
    }
}
