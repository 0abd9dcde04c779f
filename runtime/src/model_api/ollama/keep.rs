//! `keep_alive`: how long a model stays after it was used.

use std::time::Duration;

use serde_json::Value;

use crate::model_api::refused::Refused;
use crate::models::Stay;

/// Reads `"10m"`, seconds, or a negative number for ever.
pub(super) fn read(given: Option<&Value>) -> Result<Option<Stay>, Refused> {
    let wrong = || Refused::invalid("keep_alive", "keep_alive is no time; give seconds, or as in \"10m\" or \"1h30m\"");
    match given {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Number(seconds)) => Ok(Some(stay(seconds.as_f64().unwrap_or(0.0)))),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) => match text.parse::<f64>() {
            Ok(seconds) if seconds.is_finite() => Ok(Some(stay(seconds))),
            _ => Ok(Some(stay(duration(text).ok_or_else(wrong)?))),
        },
        Some(_) => Err(wrong()),
    }
}

fn stay(seconds: f64) -> Stay {
    match seconds {
        s if s < 0.0 => Stay::Forever,
        s => Stay::Idle(Duration::from_secs_f64(s.min(1e9))),
    }
}

/// Seconds, as in `1h30m`, `-1m` or `500ms`.
fn duration(text: &str) -> Option<f64> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text),
    };
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let units = [("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9), ("h", 3600.0), ("m", 60.0), ("s", 1.0)];
        let (unit, factor) = units.into_iter().find(|(unit, _)| rest.starts_with(unit))?;
        seconds += number * factor;
        rest = &rest[unit.len()..];
    }
    (!text.is_empty()).then_some(sign * seconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_way_to_say_a_time_is_read() {
        let idle = |seconds| Some(Stay::Idle(Duration::from_secs_f64(seconds)));
        for (given, stay) in [
            (json!("10m"), idle(600.0)),
            (json!("1h30m"), idle(5400.0)),
            (json!("500ms"), idle(0.5)),
            (json!(30), idle(30.0)),
            (json!("30"), idle(30.0)),
            (json!(0), idle(0.0)),
            (json!(-1), Some(Stay::Forever)),
            (json!("-1m"), Some(Stay::Forever)),
            (Value::Null, None),
        ] {
            assert_eq!(read(Some(&given)).unwrap(), stay, "{given}");
        }
        for bad in [json!("soon"), json!("10"), json!([1]), json!("10 m")] {
            assert_eq!(read(Some(&bad)).is_err(), bad != json!("10"), "{bad}");
        }
    }
}
