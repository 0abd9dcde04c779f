//! What was measured: a table for people, an object a line for programs.

use serde_json::json;

/// A number that was measured.
pub struct Measure {
    name: String,
    value: f64,
    unit: &'static str,
    peer: Option<(String, f64)>,
    target: Option<Target>,
}

/// What a number ought to be.
#[derive(Clone, Copy)]
enum Target {
    /// The value itself.
    AtLeast(f64),
    AtMost(f64),
    /// The value over the peer's.
    RatioAtLeast(f64),
    RatioAtMost(f64),
    /// The value is the peer's.
    Equal,
}

impl Measure {
    /// A measured value.
    pub fn new(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self { name: name.into(), value, unit, peer: None, target: None }
    }

    /// Beside what a peer reached in the same run.
    pub fn peer(mut self, peer: Option<(String, f64)>) -> Self {
        self.peer = peer;
        self
    }

    /// And what it ought to be at least.
    pub fn at_least(mut self, value: f64) -> Self {
        self.target = Some(Target::AtLeast(value));
        self
    }

    /// And what it ought to be at most.
    pub fn at_most(mut self, value: f64) -> Self {
        self.target = Some(Target::AtMost(value));
        self
    }

    /// And what its ratio to the peer's ought to be at least.
    pub fn ratio_at_least(mut self, ratio: f64) -> Self {
        self.target = Some(Target::RatioAtLeast(ratio));
        self
    }

    /// And what its ratio to the peer's ought to be at most.
    pub fn ratio_at_most(mut self, ratio: f64) -> Self {
        self.target = Some(Target::RatioAtMost(ratio));
        self
    }

    /// And that it ought to be the peer's, to the last digit.
    pub fn equal(mut self) -> Self {
        self.target = Some(Target::Equal);
        self
    }

    fn ratio(&self) -> Option<f64> {
        self.peer.as_ref().map(|(_, value)| self.value / value)
    }

    /// `None` without a target, or without the peer that it needs.
    fn pass(&self) -> Option<bool> {
        Some(match self.target? {
            Target::AtLeast(least) => self.value >= least,
            Target::AtMost(most) => self.value <= most,
            Target::RatioAtLeast(least) => self.ratio()? >= least,
            Target::RatioAtMost(most) => self.ratio()? <= most,
            Target::Equal => self.peer.as_ref().is_some_and(|(_, peer)| *peer == self.value),
        })
    }

    fn target(&self) -> Option<String> {
        Some(match self.target? {
            Target::AtLeast(least) => format!(">= {}", number(least)),
            Target::AtMost(most) => format!("<= {}", number(most)),
            Target::RatioAtLeast(least) => format!(">= {least:.2}x"),
            Target::RatioAtMost(most) => format!("<= {most:.2}x"),
            Target::Equal => "the same".into(),
        })
    }
}

/// All that was measured in one run.
pub struct Report {
    json: bool,
    processor: String,
    code_path: String,
    measures: Vec<Measure>,
}

impl Report {
    /// An empty report.
    pub fn new(json: bool) -> Self {
        Self { json, processor: processor(), code_path: String::new(), measures: Vec::new() }
    }

    /// Says which instructions the engine used.
    pub fn code_path(&mut self, path: impl ToString) {
        self.code_path = path.to_string();
    }

    /// Adds a number.
    pub fn add(&mut self, measure: Measure) {
        self.measures.push(measure);
    }

    /// A line for whoever waits, out of the way of the report.
    pub fn note(&self, text: &str) {
        eprintln!("{text}");
    }

    /// Prints the report.
    pub fn print(&self) {
        if self.json {
            for measure in &self.measures {
                println!("{}", self.object(measure));
            }
            return;
        }
        println!("\n{}; engine: {}\n", self.processor, if self.code_path.is_empty() { "-" } else { &self.code_path });
        println!(
            "{:<64} {:>12} {:<9} {:>12} {:>7}  {:<16} peer",
            "measure", "value", "unit", "peer", "ratio", "target"
        );
        for measure in &self.measures {
            let (peer, name) =
                measure.peer.as_ref().map_or(("-".into(), ""), |(name, value)| (number(*value), name.as_str()));
            let ratio = measure.ratio().map_or("-".into(), |ratio| format!("{ratio:.2}x"));
            let met = measure.pass().map_or("", |pass| if pass { " met" } else { " MISSED" });
            let target = measure.target().map_or(String::new(), |target| target + met);
            let (value, unit) = (number(measure.value), measure.unit);
            let line =
                format!("{:<64} {value:>12} {unit:<9} {peer:>12} {ratio:>7}  {target:<16} {name}", measure.name,);
            println!("{}", line.trim_end());
        }
    }

    fn object(&self, measure: &Measure) -> serde_json::Value {
        let mut object = json!({
            "name": measure.name, "value": measure.value, "unit": measure.unit,
            "processor": self.processor, "code_path": self.code_path,
        });
        if let Some((peer, value)) = &measure.peer {
            object["peer"] = json!(peer);
            object["peer_value"] = json!(value);
            object["ratio"] = json!(measure.ratio());
        }
        if let Some(target) = measure.target() {
            object["target"] = json!(target);
            object["pass"] = json!(measure.pass());
        }
        object
    }
}

/// The value in the middle of the sorted list at `quantile` (0 to 1).
pub fn quantile(values: &mut [f64], quantile: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * quantile).round() as usize]
}

fn number(value: f64) -> String {
    match value.abs() {
        1000.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown processor");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{}, {cores} cores", model.trim_start_matches(['\t', ' ', ':']))
}
