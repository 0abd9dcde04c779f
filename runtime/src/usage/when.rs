//! Times as people write them, in UTC. Days are counted as in Howard Hinnant's `days_from_civil`.

/// The seconds since 1970 that `text` means: `2026-11-25`, `2026-11-25T03:00Z`, `90m`, `24h` or `7d` before `now`, or a number
/// of seconds since 1970.
///
/// # Errors
/// What can be written.
pub fn parse(text: &str, now: u64) -> Result<u64, String> {
    let bad = || format!("`{text}` is no time; write 2026-11-25, 2026-11-25T03:00Z, 90m, 24h or 7d");
    if text.bytes().all(|c| c.is_ascii_digit()) && text.len() > 4 {
        return text.parse().map_err(|_| bad());
    }
    if let Some((n, seconds)) = [("m", 60), ("h", 3600), ("d", 86_400)]
        .iter()
        .find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?.parse::<u64>().ok()?, seconds)))
    {
        return Ok(now.saturating_sub(n.saturating_mul(*seconds)));
    }
    civil(text).ok_or_else(bad)
}

fn civil(text: &str) -> Option<u64> {
    let (date, time) = text.split_once('T').map_or((text, None), |(date, time)| (date, Some(time)));
    let number = |part: &str, digits: usize| {
        let all = part.len() == digits && part.bytes().all(|c| c.is_ascii_digit());
        all.then(|| part.parse::<u64>().ok()).flatten()
    };
    let parts: Vec<_> = date.split('-').collect();
    let [year, month, day] = parts.as_slice() else { return None };
    let (year, month, day) = (number(year, 4)?, number(month, 2)?, number(day, 2)?);
    let seconds = days(year, month, day).checked_mul(86_400)?;
    if year < 1970 || !(1..=12).contains(&month) || date_of(seconds / 86_400) != (year, month, day) {
        return None;
    }
    let Some(time) = time else { return Some(seconds) };
    let parts: Vec<_> = time.strip_suffix('Z').unwrap_or(time).split(':').collect();
    let (hour, minute, second) = match parts.as_slice() {
        [hour, minute] => (number(hour, 2)?, number(minute, 2)?, 0),
        [hour, minute, second] => (number(hour, 2)?, number(minute, 2)?, number(second, 2)?),
        _ => return None,
    };
    (hour < 24 && minute < 60 && second < 60).then_some(seconds + hour * 3600 + minute * 60 + second)
}

/// As in `2026-11-25T03:00:00Z`.
pub fn show(seconds: u64) -> String {
    let (year, month, day) = date_of(seconds / 86_400);
    let of_day = seconds % 86_400;
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", of_day / 3600, of_day / 60 % 60, of_day % 60)
}

/// Days from 1970 to a date from then on.
fn days(year: u64, month: u64, day: u64) -> u64 {
    let year = if month <= 2 { year.saturating_sub(1) } else { year };
    let (era, of_era) = (year / 400, year % 400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day.saturating_sub(1);
    (era * 146_097 + of_era * 365 + of_era / 4 + of_year).saturating_sub(of_era / 100 + 719_468)
}

fn date_of(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era + of_era / 36_524 - of_era / 1460 - of_era / 146_096) / 365;
    let of_year = of_era + year / 100 - 365 * year - year / 4;
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_they_are_shown() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T23:59:59Z", 951_868_799),
            ("2024-02-29T00:00:00Z", 1_709_164_800),
            ("2026-11-25T03:04:05Z", 1_795_575_845),
            ("2100-03-01T00:00:00Z", 4_107_542_400),
        ] {
            assert_eq!(parse(text, 0), Ok(seconds), "{text}");
            assert_eq!(show(seconds), text);
        }
        for day in 0..80_000 {
            let (year, month, of_month) = date_of(day);
            assert_eq!(days(year, month, of_month), day);
        }
        let now = 1_795_575_845;
        assert_eq!(parse("2026-11-25", now), Ok(1_795_564_800));
        assert_eq!(parse("2026-11-25T03:04", now), Ok(1_795_575_840));
        assert_eq!(parse("90m", now), Ok(now - 5400));
        assert_eq!((parse("24h", now), parse("7d", now)), (Ok(now - 86_400), Ok(now - 604_800)));
        assert_eq!(parse("1795575845", 0), Ok(now));
        for bad in ["", "yesterday", "2026-13-01", "2026-02-29", "2026-11-25T24:00Z", "2026-1-1", "7w", "-1d", "2026"] {
            assert!(parse(bad, now).unwrap_err().contains("7d"), "{bad}");
        }
    }
}
