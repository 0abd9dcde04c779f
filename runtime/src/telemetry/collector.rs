//! Where traces go, as the variables of OpenTelemetry's specification say it.

use http::{HeaderName, HeaderValue};

/// Where traces go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collector {
    /// Its base, as in `http://localhost:4318`; or, if `is_whole`, the address itself.
    pub endpoint: String,
    /// Traces go to `endpoint` as it stands, not to `/v1/traces` below it.
    pub is_whole: bool,
    /// What the host is called there.
    pub service: String,
    /// More headers of each call: a key, mostly.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// More that is said of the host.
    pub attributes: Vec<(String, String)>,
}

/// A variable that cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the variable {name} cannot be used: {why}")]
pub struct VariableError {
    /// Which.
    pub name: &'static str,
    /// What is wrong with it. Never its value: that may be a key.
    pub why: String,
}

impl Collector {
    /// The collector at `endpoint`, for a host called `hob`.
    pub fn at(endpoint: &str) -> Self {
        let (service, headers, attributes) = ("hob".into(), Vec::new(), Vec::new());
        Self { endpoint: endpoint.into(), is_whole: false, service, headers, attributes }
    }

    /// The collector that is named: `endpoint` and `service` on the command line, and for what is not said there, and the
    /// rest, `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` or `OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_EXPORTER_OTLP_TRACES_HEADERS` or
    /// `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_EXPORTER_OTLP_TRACES_PROTOCOL` or `OTEL_EXPORTER_OTLP_PROTOCOL`,
    /// `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES`. `None` if no endpoint is.
    ///
    /// # Errors
    /// Which variable is wrong, if traces go anywhere.
    pub fn named(
        endpoint: Option<&str>,
        service: Option<&str>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, VariableError> {
        let set = |name| variable(name).filter(|value| !value.is_empty());
        let given = endpoint.filter(|endpoint| !endpoint.is_empty()).map(|endpoint| (endpoint.to_owned(), false));
        let own = || Some((set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")?, true));
        let general = || Some((set("OTEL_EXPORTER_OTLP_ENDPOINT")?, false));
        let Some((endpoint, is_whole)) = given.or_else(own).or_else(general) else { return Ok(None) };
        let either = |own, general| match set(own) {
            Some(value) => Some((own, value)),
            None => set(general).map(|value| (general, value)),
        };
        if let Some((name, protocol)) = either("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
            && protocol != "http/json"
        {
            return Err(VariableError { name, why: "traces are sent as http/json, and in no other way".into() });
        }
        let mut collector = Self { is_whole, ..Self::at(&endpoint) };
        if let Some((name, text)) = either("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS") {
            for (key, value) in pairs(name, &text)? {
                let bad = |what: &str| VariableError { name, why: format!("`{key}` has no good {what} for a header") };
                let header = HeaderName::try_from(&key).map_err(|_| bad("name"))?;
                let mut value = HeaderValue::try_from(value).map_err(|_| bad("value"))?;
                value.set_sensitive(true);
                collector.headers.push((header, value));
            }
        }
        if let Some(text) = set("OTEL_RESOURCE_ATTRIBUTES") {
            collector.attributes = pairs("OTEL_RESOURCE_ATTRIBUTES", &text)?;
        }
        let named = collector.attributes.iter().position(|(key, _)| key == "service.name");
        let named = named.map(|at| collector.attributes.remove(at).1);
        let service = service.map(str::to_owned).or_else(|| set("OTEL_SERVICE_NAME")).or(named);
        collector.service = service.unwrap_or(collector.service);
        Ok(Some(collector))
    }

    /// Where traces are sent to.
    pub(super) fn url(&self) -> String {
        match self.is_whole {
            true => self.endpoint.clone(),
            false => format!("{}/v1/traces", self.endpoint.trim_end_matches('/')),
        }
    }
}

/// `key=value,key=value`, values escaped with `%`, as in the baggage of W3C.
fn pairs(name: &'static str, text: &str) -> Result<Vec<(String, String)>, VariableError> {
    let pair = |part: &str| {
        let (key, value) = part.split_once('=')?;
        Some((key.trim().to_owned(), unescaped(value.trim())?)).filter(|(key, _)| !key.is_empty())
    };
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let bad = |n: usize| VariableError { name, why: format!("part {n} is not key=value; commas are written %2C") };
    parts.zip(1..).map(|(part, n)| pair(part).ok_or_else(|| bad(n))).collect()
}

/// Text in which bytes may be written as `%2C`.
pub(crate) fn unescaped(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                u8::try_from(digit(rest.next())? * 16 + digit(rest.next())?).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(endpoint: Option<&str>, set: &[(&str, &str)]) -> Result<Option<Collector>, VariableError> {
        let find = |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Collector::named(endpoint, None, find)
    }

    #[test]
    fn the_variables_are_those_of_the_specification() {
        assert_eq!(named(None, &[("OTEL_SERVICE_NAME", "x")]), Ok(None), "without an endpoint nothing is sent");
        let general = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a:4318/base/");
        let collector = named(None, &[general]).unwrap().unwrap();
        assert_eq!((collector.url().as_str(), collector.service.as_str()), ("http://a:4318/base/v1/traces", "hob"));
        let own = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://b/as/it/stands");
        assert_eq!(named(None, &[general, own]).unwrap().unwrap().url(), "http://b/as/it/stands");
        assert_eq!(named(Some("http://c"), &[general, own]).unwrap().unwrap().url(), "http://c/v1/traces");
        let collector = named(
            None,
            &[
                general,
                ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Basic%20abc%3D, x-team = stove ,"),
                ("OTEL_RESOURCE_ATTRIBUTES", "service.name=kitchen,deployment.environment=a%2Cb"),
                ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
            ],
        );
        let collector = collector.unwrap().unwrap();
        let headers: Vec<_> = collector.headers.iter().map(|(k, v)| (k.as_str(), v.to_str().unwrap())).collect();
        assert_eq!(headers, [("authorization", "Basic abc="), ("x-team", "stove")]);
        assert_eq!((collector.service.as_str(), collector.attributes.len()), ("kitchen", 1));
        assert_eq!(collector.attributes[0], ("deployment.environment".into(), "a,b".into()));
        let service =
            named(None, &[general, ("OTEL_RESOURCE_ATTRIBUTES", "service.name=a"), ("OTEL_SERVICE_NAME", "b")]);
        assert_eq!(service.unwrap().unwrap().service, "b");
    }

    #[test]
    fn a_variable_that_cannot_be_used_is_named_and_not_shown() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a");
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_HEADERS", "secret"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "se cret=1"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=secret%0A"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=secret%4"),
            ("OTEL_RESOURCE_ATTRIBUTES", "=secret"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ] {
            let error = named(None, &[endpoint, (name, value)]).unwrap_err().to_string();
            assert!(error.contains(name) && !error.contains("secret"), "{error}");
        }
    }
}
