//! How a function's requests are shared out over its revisions, in percent.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::names::{NameError, RevisionId};

/// Points that shares are told apart by: hundredths of a percent, so that a hash fills small shares evenly.
const POINTS: u64 = 10_000;

/// Shares of all requests, by revision. Invariant: none is zero, and together they are 100.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<RevisionId, u8>", into = "BTreeMap<RevisionId, u8>")]
pub struct Traffic(BTreeMap<RevisionId, u8>);

/// Shares that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrafficError {
    /// Too much or too little.
    #[error("the shares {shares} are {sum} together; they must be 100")]
    Sum {
        /// As they were written.
        shares: String,
        /// What they amount to.
        sum: u32,
    },
    /// One is not a share.
    #[error("`{0}` is not a share; write REVISION=PERCENT, as in r7=10")]
    Share(String),
    /// One is not a revision.
    #[error(transparent)]
    Revision(#[from] NameError),
    /// One is named twice.
    #[error("{0} is there twice")]
    Twice(RevisionId),
}

impl Traffic {
    /// Everything to one revision.
    pub fn all(to: RevisionId) -> Self {
        Self(BTreeMap::from([(to, 100)]))
    }

    /// What `r7=10 r6=90` means.
    ///
    /// # Errors
    /// See [`TrafficError`].
    pub fn parse<'a>(shares: impl IntoIterator<Item = &'a str>) -> Result<Self, TrafficError> {
        let mut parsed = BTreeMap::new();
        for text in shares {
            let share = || TrafficError::Share(text.chars().take(60).collect());
            let (revision, percent) = text.split_once('=').ok_or_else(share)?;
            let percent: u8 = percent.trim_end_matches('%').parse().map_err(|_| share())?;
            let revision: RevisionId = revision.parse()?;
            if parsed.insert(revision, percent).is_some() {
                return Err(TrafficError::Twice(revision));
            }
        }
        parsed.try_into()
    }

    /// The shares, newest revision first.
    pub fn shares(&self) -> impl Iterator<Item = (RevisionId, u8)> + '_ {
        self.0.iter().rev().map(|(revision, percent)| (*revision, *percent))
    }

    /// Whether `revision` has a share.
    pub fn has(&self, revision: RevisionId) -> bool {
        self.0.contains_key(&revision)
    }

    /// The newest revision that has a share.
    pub fn newest(&self) -> RevisionId {
        self.0.keys().next_back().copied().expect("shares are 100 together, so there is one")
    }
}

impl TryFrom<BTreeMap<RevisionId, u8>> for Traffic {
    type Error = TrafficError;

    fn try_from(mut shares: BTreeMap<RevisionId, u8>) -> Result<Self, TrafficError> {
        shares.retain(|_, percent| *percent > 0);
        let sum = shares.values().map(|percent| u32::from(*percent)).sum();
        let traffic = Self(shares);
        if sum == 100 { Ok(traffic) } else { Err(TrafficError::Sum { shares: format!("`{traffic}`"), sum }) }
    }
}

impl From<Traffic> for BTreeMap<RevisionId, u8> {
    fn from(traffic: Traffic) -> Self {
        traffic.0
    }
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (revision, percent)) in self.shares().enumerate() {
            write!(f, "{}{revision}={percent}", if n == 0 { "" } else { " " })?;
        }
        Ok(())
    }
}

/// Of things with weights, the one at `point`, any number: equal points, equal things. Earlier things keep their
/// points when their weight grows.
pub fn pick<T>(weighted: &[(T, u8)], point: u64) -> Option<&T> {
    let sum: u64 = weighted.iter().map(|(_, weight)| u64::from(*weight)).sum();
    let point = point % POINTS * sum;
    let mut end = 0;
    let mut here = |weight: &u8| {
        end += u64::from(*weight) * POINTS;
        point < end
    };
    weighted.iter().find(|(_, weight)| here(weight)).map(|(thing, _)| thing)
}

/// A point for the `n`th request: any stretch of them is shared out about as exactly as it can be.
pub fn spread(n: u64) -> u64 {
    // Steps of the golden section never lump together.
    scale(n.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// A point for a header's value: the same after a restart, and another for another function.
pub fn sticky(function: &str, value: &[u8]) -> u64 {
    let bytes = function.as_bytes().iter().chain(&[0]).chain(value);
    let hash =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
    // The last bytes reach the upper bits late: mix once more.
    scale((hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// All numbers, evenly on all points.
fn scale(number: u64) -> u64 {
    ((u128::from(number) * u128::from(POINTS)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision(text: &str) -> RevisionId {
        text.parse().unwrap()
    }

    #[test]
    fn shares_are_100_together() {
        let traffic = Traffic::parse(["r6=90", "r7=10%", "r5=0"]).unwrap();
        assert_eq!((traffic.to_string(), traffic.newest()), ("r7=10 r6=90".into(), revision("r7")));
        assert_eq!(serde_json::to_string(&traffic).unwrap(), r#"{"r6":90,"r7":10}"#);
        assert!(serde_json::from_str::<Traffic>(r#"{"r6":90}"#).is_err());
        for (bad, said) in [
            (&["r7=10", "r6=80"][..], "`r7=10 r6=80` are 90 together; they must be 100"),
            (&[], "are 0 together"),
            (&["r7"], "`r7` is not a share"),
            (&["r7=many"], "`r7=many` is not a share"),
            (&["seven=100"], "`seven` is not a revision"),
            (&["r7=50", "r7=50"], "r7 is there twice"),
        ] {
            let error = Traffic::parse(bad.iter().copied()).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn requests_are_shared_out_as_told() {
        let shares = [("new", 10), ("old", 90)];
        let new = |points: &mut dyn Iterator<Item = u64>| {
            points.filter(|point| pick(&shares, *point) == Some(&"new")).count()
        };
        assert_eq!(new(&mut (0..POINTS)), 1000);
        let spread_out = new(&mut (0..1000).map(spread));
        assert!((98..=102).contains(&spread_out), "{spread_out}");
        let sticky_out = new(&mut (0..10_000).map(|n| sticky("chat", format!("user-{n}").as_bytes())));
        assert!((900..=1100).contains(&sticky_out), "{sticky_out}");
    }

    #[test]
    fn who_is_on_the_new_one_stays_there_as_its_share_grows() {
        for n in 0..1000 {
            let point = sticky("chat", format!("{n}").as_bytes());
            let before = pick(&[("new", 10), ("old", 90)], point);
            let after = pick(&[("new", 20), ("old", 80)], point);
            assert!(before != Some(&"new") || after == before);
        }
    }

    #[test]
    fn some_of_the_shares_are_shared_out_among_themselves() {
        // Of a route that only r7 has, r7 takes all.
        assert!((0..POINTS).all(|point| pick(&[("r7", 10)], point) == Some(&"r7")));
        assert_eq!(pick::<()>(&[], 3), None);
    }
}
