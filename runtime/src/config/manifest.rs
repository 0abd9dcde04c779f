//! `hob.toml`: what a person writes about a function, and what that means.
//!
//! ```toml
//! name = "chat"
//! component = "chat.wasm"    # or "oci://...", or { url = "https://...", sha256 = "..." }
//! middleware = ["auth.wasm"] # before it, the outermost first; each as `component` is
//! routes = ["/chat", { host = "*.example.com", path = "/", methods = ["GET"] }]
//! models = ["smollm2:135m"]
//! egress = ["https://api.example.com"]
//! sticky = "x-user"
//! priority = "low"
//!
//! [environment]
//! LANG = "C.UTF-8"
//!
//! [config]
//! greeting = "hello"
//!
//! [secrets]
//! API_KEY = { env = "API_KEY" }
//! CERTIFICATE = { file = "certificate.pem" }
//!
//! [[directories]]
//! host = "data"
//! guest = "/data"
//!
//! [limits]
//! wall_ms = 30_000
//! ```
//!
//! Paths are relative to the file. Secrets are read when the function is deployed, and are never in the file.

use std::path::{Path, PathBuf};

use toml::de::DeTable;

use super::document::{Document, Mistakes, Value};
use super::{Budget, Concurrency, Directory, FunctionConfig, Limits, Reuse, RouteConfig, Secrets};
use crate::names::FunctionName;
use crate::sources::Source;

/// The file's usual name.
pub const FILE: &str = "hob.toml";

/// Largest manifest, and largest secret, in bytes.
const MAX_BYTES: u64 = 1 << 20;

const KEYS: &[&str] = &[
    "name",
    "component",
    "middleware",
    "routes",
    "sticky",
    "priority",
    "server_timing",
    "environment",
    "config",
    "secrets",
    "models",
    "egress",
    "directories",
    "limits",
    "concurrency",
    "reuse",
    "budget",
];

/// What a manifest means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The function.
    pub name: FunctionName,
    /// Its component.
    pub component: Source,
    /// What requests pass before it, the outermost first.
    pub middleware: Vec<Source>,
    /// What it is given and held to.
    pub config: FunctionConfig,
    /// The values of its secrets.
    pub secrets: Secrets,
}

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// There is none.
    #[error("there is no {path}; write one, or name a component, as in `hob deploy FILE.wasm`", path = .0.display())]
    Missing(PathBuf),
    /// It cannot be read at all.
    #[error("cannot read {path}: {why}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        why: std::io::Error,
    },
    /// Something in it is wrong.
    #[error(transparent)]
    Mistakes(#[from] Mistakes),
}

impl Manifest {
    /// Reads the manifest at `path`, and the secrets that it names.
    ///
    /// # Errors
    /// All mistakes together, each with its line.
    pub fn read(path: &Path) -> Result<Self, ManifestError> {
        let unreadable = |why| ManifestError::Unreadable { path: path.to_owned(), why };
        let text = read_bounded(path).map_err(|why| match why.kind() {
            std::io::ErrorKind::NotFound => ManifestError::Missing(path.to_owned()),
            _ => unreadable(why),
        })?;
        let folder = std::path::absolute(path).map_err(unreadable)?;
        let folder = folder.parent().unwrap_or(Path::new("/"));
        Ok(Self::parse(&text, &path.display().to_string(), folder, |name| std::env::var(name).ok())?)
    }

    /// What `text` means, where paths are relative to `folder` and variables come from `environment`.
    ///
    /// # Errors
    /// All mistakes together, each with its line.
    pub fn parse(
        text: &str,
        file: &str,
        folder: &Path,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, Mistakes> {
        let (document, table) = Document::parse(text);
        let mut reader = Reader { document, folder, config: FunctionConfig::default(), secrets: Secrets::default() };
        reader.document.known(&table, "", KEYS);
        let name = reader.name(&table);
        let component = reader.component(&table);
        let middleware = reader.middleware(&table);
        reader.config(&table);
        reader.secrets(&table, environment);
        reader.numbers(&table);
        let Reader { mut document, mut config, secrets, .. } = reader;
        if config.routes.is_empty() && !table.contains_key("routes") {
            config.routes.extend(name.as_ref().map(FunctionName::default_route).map(RouteConfig::path));
        }
        if !document.has_mistakes() {
            // What no single key is to blame for.
            config.mistakes().into_iter().for_each(|text| document.mistake(&(0..0), text));
        }
        document.finish(file)?;
        let (Some(name), Some(component)) = (name, component) else {
            unreachable!("what is missing is a mistake, and there was none")
        };
        Ok(Self { name, component, middleware, config, secrets })
    }
}

/// A manifest being read.
struct Reader<'i> {
    document: Document<'i>,
    folder: &'i Path,
    config: FunctionConfig,
    secrets: Secrets,
}

impl<'i> Reader<'i> {
    fn name(&mut self, table: &DeTable<'i>) -> Option<FunctionName> {
        match table.get("name") {
            Some(value) => self.document.parsed(value, "name"),
            None => self.missing("name", "name = \"chat\""),
        }
    }

    fn component(&mut self, table: &DeTable<'i>) -> Option<Source> {
        match table.get("component") {
            Some(value) => self.source(value, "component"),
            None => self.missing("component", "component = \"chat.wasm\""),
        }
    }

    fn middleware(&mut self, table: &DeTable<'i>) -> Vec<Source> {
        let Some(value) = table.get("middleware") else { return Vec::new() };
        let list = self.document.list(value, "middleware");
        list.into_iter().filter_map(|value| self.source(value, "middleware")).collect()
    }

    /// A path, `oci://...`, or a table of `url` and `sha256`.
    fn source(&mut self, value: &Value<'i>, key: &str) -> Option<Source> {
        if let Some(table) = value.get_ref().as_table() {
            return self.source_url(value, table, key);
        }
        let text = self.document.string(value, key)?;
        if text.starts_with("oci://") {
            return self.document.parsed(value, key).map(Source::Oci);
        }
        if text.contains("://") {
            let key = if key == "component" { "component = " } else { "" };
            let way_out = format!("write {key}{{ url = \"{text}\", sha256 = \"...\" }}");
            self.document.mistake(&value.span(), format!("a URL needs the digest of what is there; {way_out}"));
            return None;
        }
        Some(Source::File(self.folder.join(text)))
    }

    fn source_url(&mut self, value: &Value<'i>, table: &DeTable<'i>, key: &str) -> Option<Source> {
        self.document.known(table, key, &["url", "sha256"]);
        let (Some(url), Some(sha256)) = (table.get("url"), table.get("sha256")) else {
            self.document.mistake(&value.span(), "a component from the web needs `url` and `sha256`");
            return None;
        };
        let url = self.document.string(url, &format!("{key}.url"));
        let sha256 = self.document.parsed(sha256, &format!("{key}.sha256"))?;
        Some(Source::Url { url: url?, sha256 })
    }

    fn missing<T>(&mut self, key: &str, example: &str) -> Option<T> {
        self.document.mistake(&(0..0), format!("`{key}` is missing; write {example}"));
        None
    }

    fn config(&mut self, table: &DeTable<'i>) {
        if let Some(value) = table.get("routes") {
            for route in self.document.list(value, "routes") {
                if let Some(read) = self.route(route) {
                    self.add_route(route, read);
                }
            }
        }
        if let Some(value) = table.get("sticky") {
            let header = self.document.parsed::<http::HeaderName>(value, "sticky");
            self.config.sticky = header.map(|header| header.to_string());
        }
        if let Some(value) = table.get("server_timing") {
            self.config.server_timing = self.document.boolean(value, "server_timing");
        }
        if let Some(value) = table.get("priority") {
            self.config.priority = self.document.parsed(value, "priority").unwrap_or_default();
        }
        if let Some(value) = table.get("models") {
            self.config.models = self.document.parsed_list(value, "models");
        }
        if let Some(value) = table.get("egress") {
            self.config.egress = self.document.parsed_list(value, "egress");
        }
        if let Some(value) = table.get("directories") {
            for directory in self.document.list(value, "directories") {
                let read = self.directory(directory);
                self.config.directories.extend(read);
            }
        }
        self.config.environment = self.texts(table, "environment");
        self.config.config = self.texts(table, "config");
    }

    fn add_route(&mut self, at: &Value<'i>, route: RouteConfig) {
        if let Some(mistake) = route.mistake() {
            return self.document.mistake(&at.span(), mistake);
        }
        if self.config.routes.iter().any(|other| other.overlaps(&route)) {
            return self.document.mistake(&at.span(), format!("route `{route}` is there twice"));
        }
        self.config.routes.push(route);
    }

    /// `"/chat"`, or a table of host, path and methods.
    fn route(&mut self, value: &Value<'i>) -> Option<RouteConfig> {
        if value.get_ref().is_str() {
            return self.document.parsed(value, "routes").map(RouteConfig::path);
        }
        let table = self.document.table(value, "routes")?;
        self.document.known(table, "routes", &["host", "path", "methods"]);
        let host = table.get("host").map(|value| self.document.parsed(value, "routes.host"));
        let methods = table.get("methods").map(|value| self.document.parsed_list(value, "routes.methods"));
        let path = match table.get("path") {
            Some(value) => self.document.parsed(value, "routes.path"),
            None => "/".parse().ok(),
        };
        Some(RouteConfig {
            host: host.map_or(Some(None), |host| host.map(Some))?,
            path: path?,
            methods: methods.unwrap_or_default(),
        })
    }

    fn directory(&mut self, value: &Value<'i>) -> Option<Directory> {
        let table = self.document.table(value, "directories")?;
        self.document.known(table, "directories", &["host", "guest", "writable"]);
        let mut text = |key: &str| match table.get(key) {
            Some(value) => self.document.string(value, &format!("directories.{key}")),
            None => {
                self.document.mistake(
                    &value.span(),
                    format!("a directory needs `{key}`; write host = \"data\", guest = \"/data\""),
                );
                None
            }
        };
        let (host, guest) = (text("host"), text("guest"));
        let writable = table.get("writable").map(|value| self.document.boolean(value, "directories.writable"));
        let host = self.folder.join(host?);
        if !host.is_dir() {
            self.document.mistake(&value.span(), format!("{} is not a directory", host.display()));
        }
        Some(Directory { host, guest: guest?, writable: writable.flatten().unwrap_or(false) })
    }

    fn texts(&mut self, table: &DeTable<'i>, name: &str) -> std::collections::BTreeMap<String, String> {
        let Some(table) = table.get(name).and_then(|value| self.document.table(value, name)) else {
            return Default::default();
        };
        let mut texts = std::collections::BTreeMap::new();
        for (key, value) in table {
            if let Some(text) = self.document.string(value, &format!("{name}.{}", key.get_ref())) {
                texts.insert(key.get_ref().to_string(), text);
            }
        }
        texts
    }

    fn secrets(&mut self, table: &DeTable<'i>, environment: impl Fn(&str) -> Option<String>) {
        let Some(table) = table.get("secrets").and_then(|value| self.document.table(value, "secrets")) else { return };
        for (key, value) in table {
            let name = key.get_ref().to_string();
            if self.config.config.contains_key(&name) {
                self.document.mistake(&key.span(), format!("`{name}` is in `config` and in `secrets`; give it once"));
            }
            if let Some(secret) = self.secret(&name, value, &environment) {
                self.config.secrets.push(name.clone());
                self.secrets.insert(name, secret);
            }
        }
    }

    /// The value that `{ env = ... }` or `{ file = ... }` leads to. A value that is written out is refused, and not shown.
    fn secret(
        &mut self,
        name: &str,
        value: &Value<'i>,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Option<String> {
        let Some(table) = value.get_ref().as_table() else {
            let way_out = format!("write {name} = {{ env = \"{name}\" }} or {{ file = \"...\" }}");
            self.document.mistake(&value.span(), format!("secret `{name}` must not stand in the file; {way_out}"));
            return None;
        };
        self.document.known(table, &format!("secrets.{name}"), &["env", "file"]);
        let found = match (table.get("env"), table.get("file")) {
            (Some(variable), None) => {
                let variable = self.document.string(variable, &format!("secrets.{name}.env"))?;
                environment(&variable).ok_or_else(|| format!("the variable {variable} is not set"))
            }
            (None, Some(file)) => {
                let file = self.folder.join(self.document.string(file, &format!("secrets.{name}.file"))?);
                // What editors put at the end of a file is no part of a secret.
                let read = read_bounded(&file).map(|text| text.trim_end_matches(['\r', '\n']).to_owned());
                read.map_err(|error| format!("cannot read {}: {error}", file.display()))
            }
            _ => Err("it comes from either `env` or `file`".to_owned()),
        };
        found.map_err(|why| self.document.mistake(&value.span(), format!("secret `{name}`: {why}"))).ok()
    }

    fn numbers(&mut self, table: &DeTable<'i>) {
        let mut config = std::mem::take(&mut self.config);
        self.numbers_of(table, "limits", Limits::KEYS, |key, value| config.limits.set(key, value));
        self.numbers_of(table, "concurrency", Concurrency::KEYS, |key, value| config.concurrency.set(key, value));
        self.numbers_of(table, "reuse", Reuse::KEYS, |key, value| config.reuse.set(key, value));
        self.numbers_of(table, "budget", Budget::KEYS, |key, value| config.budget.set(key, value));
        // Each beside the line it stands on.
        for setting in config.settings() {
            let at = setting.name.split_once('.').and_then(|(place, key)| table.get(place)?.get_ref().get(key));
            if let (Some(at), Some(mistake)) = (at, setting.mistake()) {
                self.document.mistake(&at.span(), mistake);
            }
        }
        self.config = config;
    }

    fn numbers_of(&mut self, table: &DeTable<'i>, place: &str, keys: &[&str], mut set: impl FnMut(&str, u64) -> bool) {
        let Some(table) = table.get(place).and_then(|value| self.document.table(value, place)) else { return };
        self.document.known(table, place, keys);
        for (key, value) in table.iter().filter(|(key, _)| keys.contains(&key.get_ref().as_ref())) {
            let name = format!("{place}.{}", key.get_ref());
            if let Some(number) = self.document.number(value, &name)
                && !set(key.get_ref(), number)
            {
                self.document.mistake(&value.span(), format!("`{name}` is {number}, which is too large"));
            }
        }
    }
}

fn read_bounded(path: &Path) -> std::io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(std::io::Error::other(format!("it is larger than {MAX_BYTES} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Manifest, Mistakes> {
        Manifest::parse(text, "hob.toml", Path::new("/project"), |name| (name == "KEY").then(|| "hunter2".to_owned()))
    }

    #[test]
    fn the_smallest_one_has_all_defaults() {
        let manifest = parse("name = \"chat\"\ncomponent = \"out/chat.wasm\"\n").unwrap();
        assert_eq!(manifest.component, Source::File("/project/out/chat.wasm".into()));
        let routes = vec![RouteConfig::path("/chat".parse().unwrap())];
        assert_eq!(manifest.config, FunctionConfig { routes, ..FunctionConfig::default() });
    }

    #[test]
    fn everything_in_it_is_read() {
        let manifest = parse(
            r#"
            name = "chat"
            component = "/abs/chat.wasm"
            middleware = ["auth.wasm", "oci://ghcr.io/acme/log:1"]
            routes = ["/a", { host = "*.Example.com", methods = ["GET", "PUT"] }]
            sticky = "X-User"
            priority = "low"
            server_timing = false
            models = ["smollm2:135m"]
            egress = ["https://*.example.com:443"]
            environment = { LANG = "C" }
            config.greeting = "hello"
            secrets.API_KEY = { env = "KEY" }
            limits = { wall_ms = 30_000, memory_mib = 0x40 }
            concurrency.running = 3
            budget.day_tokens = 1_000_000
            [[directories]]
            host = "/"
            guest = "/data"
            [reuse]
            requests = 100
            "#,
        )
        .unwrap();
        let middleware: Vec<_> = manifest.middleware.iter().map(ToString::to_string).collect();
        assert_eq!(middleware, ["/project/auth.wasm", "oci://ghcr.io/acme/log:1"]);
        let config = &manifest.config;
        assert_eq!(config.routes.iter().map(ToString::to_string).collect::<Vec<_>>(), ["/a", "GET,PUT *.example.com/"]);
        assert_eq!((config.sticky.as_deref(), config.models.len(), config.egress.len()), (Some("x-user"), 1, 1));
        assert_eq!(config.server_timing, Some(false));
        assert_eq!((&*config.environment["LANG"], &*config.config["greeting"]), ("C", "hello"));
        assert_eq!((config.limits.wall_ms, config.limits.memory_mib), (30_000, 64));
        assert_eq!((config.concurrency.running, config.reuse.requests), (3, 100));
        assert_eq!(config.priority, crate::config::Priority::Low);
        assert_eq!(config.budget, Budget { day_tokens: 1_000_000, ..Budget::default() });
        assert_eq!(config.directories, [Directory { host: "/".into(), guest: "/data".into(), writable: false }]);
        assert_eq!(
            (config.secrets.as_slice(), manifest.secrets.reveal("API_KEY")),
            (&["API_KEY".to_owned()][..], Some("hunter2"))
        );
    }

    #[test]
    fn the_manual_s_example_reads() {
        let manual = include_str!("../../../docs/hob-toml.md");
        let example = manual.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("data")).unwrap();
        std::fs::write(folder.path().join("certificate.pem"), "c").unwrap();
        let manifest = Manifest::parse(example, "hob.toml", folder.path(), |_| Some("v".into())).unwrap();
        assert_eq!(
            (manifest.config.routes.len(), manifest.config.egress.len(), manifest.config.secrets.len()),
            (2, 2, 2)
        );
        let keys: Vec<_> =
            KEYS.iter().filter(|key| !manual.contains(&format!("[{key}]")) && !example.contains(**key)).collect();
        assert!(keys.is_empty(), "{keys:?} are not in the manual");
    }

    #[test]
    fn all_mistakes_are_told_each_with_its_line() {
        let text = r#"nam = "chat"
component = 7
routes = ["chat", { path = "/a", method = ["GET"] }, { methods = ["get"] }]
models = ["../x"]
egress = ["example.com"]
[limits]
wall_ms = 0
wal_ms = 5
memory_mib = "128"
[secrets]
PASSWORD = "swordfish"
OTHER = { env = "UNSET" }
THIRD = { file = "/no/such/file" }
[enviroment]
A = "b"
"#;
        let mistakes = parse(text).unwrap_err();
        let shown = mistakes.to_string();
        for (line, said) in [
            (1, "`nam` is unknown; did you mean `name`?"),
            (1, "`name` is missing"),
            (2, "`component` is of type integer"),
            (3, "`chat` is not a route"),
            (3, "`method` in `routes` is unknown; did you mean `methods`?"),
            (3, "`get` is not a method"),
            (4, "cannot name a model"),
            (5, "it has no scheme"),
            (7, "`limits.wall_ms` is 0; it can be 1 to 86400000"),
            (8, "`wal_ms` in `limits` is unknown; did you mean `wall_ms`?"),
            (9, "`limits.memory_mib` is of type string; write a whole number"),
            (11, "secret `PASSWORD` must not stand in the file; write PASSWORD = { env = \"PASSWORD\" }"),
            (12, "the variable UNSET is not set"),
            (13, "cannot read /no/such/file"),
            (14, "`enviroment` is unknown; did you mean `environment`?"),
        ] {
            let told = mistakes.list.iter().any(|mistake| mistake.line == line && mistake.text.contains(said));
            assert!(told, "line {line}: {said}\n{shown}");
        }
        assert_eq!(mistakes.list.len(), 15, "{shown}");
        assert!(!shown.contains("swordfish"), "a secret is not shown");
    }

    #[test]
    fn components_from_elsewhere() {
        let component =
            |text: &str| parse(&format!("name = \"a\"\ncomponent = {text}\n")).map(|manifest| manifest.component);
        let digest = crate::digest::Digest::of(b"");
        let url = format!("{{ url = \"https://x/a.wasm\", sha256 = \"{}\" }}", digest.hex());
        assert_eq!(component(&url).unwrap(), Source::Url { url: "https://x/a.wasm".into(), sha256: digest });
        assert_eq!(component("\"oci://h/a:1\"").unwrap().to_string(), "oci://h/a:1");
        for (bad, said) in [
            ("\"https://x/a.wasm\"", "needs the digest of what is there; write component = { url ="),
            ("{ url = \"https://x\" }", "needs `url` and `sha256`"),
            ("{ url = \"https://x\", sha256 = \"12\" }", "is not a digest"),
            ("\"oci://h\"", "names no repository"),
        ] {
            let error = component(bad).unwrap_err().to_string();
            assert!(error.contains(said) && error.contains("line 2"), "{error}");
        }
    }

    #[test]
    fn damaged_text_is_read_or_refused_with_lines() {
        let good = "name = \"a\"\ncomponent = \"a\"\nroutes = [\"/a\", { host = \"*.b\", methods = [\"GET\"] }]\nmodels = [\"m:1\"]\n\
                    egress = [\"http://[::1]/8:80\"]\nsecrets.K = { env = \"KEY\" }\n[limits]\nwall_ms = 1_000\n[[directories]]\nhost = \"/\"\n";
        const MARKS: &[u8] = b"\"'[]{}=.,#\n\\-_0aZ ";
        let mut random = 1_u64;
        let mut next = |below: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) as usize % below
        };
        for _ in 0..20_000 {
            let mut text = good.as_bytes().to_vec();
            for _ in 0..=next(4) {
                let at = next(text.len());
                match next(4) {
                    0 if text.len() > 1 => drop(text.remove(at)),
                    1 => text[at] = MARKS[next(MARKS.len())],
                    2 => text.truncate(at.max(1)),
                    _ => text.insert(at, good.as_bytes()[next(good.len())]),
                }
            }
            let text = String::from_utf8(text).unwrap();
            if let Err(mistakes) = parse(&text) {
                let lines = text.split('\n').count();
                assert!(mistakes.list.iter().all(|mistake| (1..=lines).contains(&mistake.line)), "{text}\n{mistakes}");
            }
        }
    }

    #[test]
    fn hostile_text_is_refused_and_nothing_else_happens() {
        for text in [
            "\0",
            "[",
            "a = ",
            "[[[[",
            "= 1",
            "name = \"\"\"",
            "\u{feff}\u{7f}",
            &"[a.".repeat(5000),
            &"[".repeat(100_000),
        ] {
            assert!(parse(text).is_err());
        }
    }
}
