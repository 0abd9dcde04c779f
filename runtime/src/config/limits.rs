//! Numbers that a function is held to: each with its default, its bounds and its unit, in one table.

use serde::{Deserialize, Serialize};

/// One number of a configuration, with what it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// As it is written, with its table: `limits.wall_ms`.
    pub name: &'static str,
    /// Its value.
    pub value: u64,
    /// What it is when nothing is said.
    pub default: u64,
    /// The least it can be.
    pub least: u64,
    /// The most it can be, on any host.
    pub most: u64,
}

impl Setting {
    /// What is wrong with the value.
    pub fn mistake(&self) -> Option<String> {
        let Self { name, value, least, most, .. } = *self;
        let bad = !(least..=most).contains(&value);
        bad.then(|| format!("`{name}` is {value}; it can be {least} to {most}"))
    }
}

macro_rules! settings {
    ($(#[$doc:meta])* $type:ident in $table:literal {
        $($(#[$field_doc:meta])* $field:ident: $int:ty = $default:expr, $least:expr => $most:expr;)*
    }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $type {
            $($(#[$field_doc])* pub $field: $int,)*
        }

        impl Default for $type {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        impl $type {
            /// Its keys, as they are written.
            pub const KEYS: &[&str] = &[$(stringify!($field),)*];

            /// Its numbers, with their bounds.
            pub fn settings(&self) -> Vec<Setting> {
                vec![$(Setting {
                    name: concat!($table, ".", stringify!($field)),
                    value: self.$field.into(),
                    default: $default,
                    least: $least,
                    most: $most,
                },)*]
            }

            /// Sets the number `key`. `false` if there is none, or `value` is too large to be one.
            pub fn set(&mut self, key: &str, value: u64) -> bool {
                match key {
                    $(stringify!($field) => match value.try_into() {
                        Ok(value) => { self.$field = value; true }
                        Err(_) => false,
                    },)*
                    _ => false,
                }
            }
        }
    };
}

/// A day: nothing that a request waits for takes longer.
const DAY_MS: u64 = 24 * 3_600_000;

settings! {
    /// What one invocation may use.
    Limits in "limits" {
        /// From the request to the last byte of the answer, in milliseconds.
        wall_ms: u32 = 300_000, 1 => DAY_MS;
        /// Time that the guest itself computes, in milliseconds.
        cpu_ms: u32 = 60_000, 1 => DAY_MS;
        /// Linear memory, in MiB. A host may allow less than the maximum (`hob serve --instance-memory`).
        memory_mib: u32 = 128, 1 => 4096;
        /// Tables that all modules of the component hold together.
        tables: u32 = 16, 1 => 100;
        /// Elements of one table.
        table_elements: u32 = 20_000, 1 => 100_000;
        /// Core instances that the component is made of.
        core_instances: u32 = 32, 1 => 100;
        /// Host resources held at once: streams, headers, tensors, models... Some keep up to 128 KiB in the host.
        handles: u32 = 1000, 8 => 100_000;
        /// Bytes that one call may bring into the host.
        hostcall_bytes: u64 = 32 << 20, 1 << 10 => 256 << 20;
        /// Bytes of a request's body.
        request_bytes: u64 = 64 << 20, 0 => 1 << 40;
        /// Bytes of an answer's body.
        response_bytes: u64 = 1 << 30, 0 => 1 << 40;
        /// Bytes of all headers of a request, or of an answer.
        header_bytes: u32 = 64 << 10, 256 => 1 << 20;
        /// Outgoing connections held at once.
        connections: u32 = 16, 1 => 1000;
    }
}

settings! {
    /// How many requests of one function run and wait at once.
    Concurrency in "concurrency" {
        /// Requests that run at once.
        running: u32 = 256, 1 => 100_000;
        /// Requests that wait for one of these to end; more are refused at once.
        queued: u32 = 1024, 0 => 1_000_000;
        /// Longest time that one waits, in milliseconds.
        queue_wait_ms: u32 = 5000, 0 => DAY_MS;
    }
}

settings! {
    /// Whether an instance answers more than one request. What one request leaves behind, or breaks, the next one
    /// finds: the default is a fresh instance each time.
    Reuse in "reuse" {
        /// Requests that an instance answers in its life.
        requests: u32 = 1, 1 => 1_000_000;
        /// Requests that an instance answers at once (WASI 0.3 only).
        concurrent: u32 = 1, 1 => 1000;
        /// Time that an instance is kept for a next request, in milliseconds.
        idle_ms: u32 = 1000, 0 => DAY_MS;
    }
}

settings! {
    /// What the generations of one function, or of one tenant over all its functions, may use. What is used up ends them, or
    /// refuses the next.
    Budget in "budget" {
        /// Tokens of prompts and answers in one request, over all its generations.
        request_tokens: u64 = 1 << 40, 1 => 1 << 40;
        /// The same in a minute, over all requests.
        minute_tokens: u64 = 1 << 40, 1 => 1 << 40;
        /// The same in a day of UTC.
        day_tokens: u64 = 1 << 40, 1 => 1 << 40;
        /// Generations at once, running and waiting.
        sequences: u32 = 100_000, 1 => 100_000;
        /// Bytes of KV that these hold at once.
        kv_bytes: u64 = 1 << 40, 1 => 1 << 40;
        /// Longest time that a generation waits for its turn, in milliseconds; one that would wait longer is refused at once.
        wait_ms: u32 = 86_400_000, 0 => DAY_MS;
        /// What it is due beside others where the engine is short: twice the weight, twice as much. A function's own
        /// counts under the default tenant, where each stands for itself; else that of its tenant does.
        weight: u32 = 100, 1 => 10_000;
    }
}

impl Limits {
    /// The wall-clock limit.
    pub fn wall(&self) -> std::time::Duration {
        std::time::Duration::from_millis(self.wall_ms.into())
    }

    /// The limit of time on a processor.
    pub fn cpu(&self) -> std::time::Duration {
        std::time::Duration::from_millis(self.cpu_ms.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_within_bounds() {
        let all = crate::config::FunctionConfig::default().settings();
        for setting in all {
            assert_eq!((setting.value, setting.mistake()), (setting.default, None), "{setting:?}");
        }
    }

    #[test]
    fn the_manual_has_every_number() {
        let manual = include_str!("../../../docs/hob-toml.md");
        let all = crate::config::FunctionConfig::default().settings();
        for Setting { name, default, least, most, .. } in all {
            let key = name.split_once('.').unwrap().1;
            let row = manual.lines().find(|line| line.starts_with(&format!("| `{key}`: ")));
            let row = row.unwrap_or_else(|| panic!("{name} is not in the manual"));
            assert!(row.ends_with(&format!(" | {default} | {least} to {most} |")), "{name}: {row}");
        }
    }

    #[test]
    fn numbers_are_set_by_name() {
        let mut limits = Limits::default();
        assert!(limits.set("wall_ms", 7) && limits.wall_ms == 7);
        assert!(!limits.set("wall", 7) && !limits.set("wall_ms", 1 << 40));
        assert!(Limits::KEYS.contains(&"wall_ms"));
    }
}
