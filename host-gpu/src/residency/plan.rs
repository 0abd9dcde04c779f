//! Which models go when another needs room.

use std::time::Duration;

/// A model that takes room.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kept {
    pub(super) bytes: u64,
    /// For how long nobody has used it; `None` while somebody does, or while it is loading.
    pub(super) idle: Option<Duration>,
    pub(super) pinned: bool,
    pub(super) priority: u8,
}

/// Nothing that may go makes enough room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoRoom {
    /// Bytes that are free or could be made so now.
    pub(super) available: u64,
    /// Bytes that would be if nobody used any model.
    pub(super) ever: u64,
}

/// The models of `kept`, by number, that are to go so that `needed` bytes fit in `budget` beside the rest: of those that
/// nobody uses, that are not pinned and not above `priority`, the lowest and longest unused ones, and none that is not
/// needed for it.
pub(super) fn victims(needed: u64, priority: u8, budget: u64, kept: &[Kept]) -> Result<Vec<usize>, NoRoom> {
    let taken: u64 = kept.iter().map(|model| model.bytes).sum();
    let free = budget.saturating_sub(taken);
    // A budget that was made smaller may be overdrawn: what is over goes, too.
    let needed_of_victims = (taken + needed).saturating_sub(budget);
    let may_go = |model: &Kept| !model.pinned && model.priority <= priority;
    let mut idle: Vec<(usize, Duration)> =
        kept.iter().enumerate().filter(|(_, m)| may_go(m)).filter_map(|(n, m)| Some((n, m.idle?))).collect();
    idle.sort_by_key(|(n, idle)| (kept[*n].priority, std::cmp::Reverse(*idle)));
    let (mut chosen, mut freed) = (Vec::new(), 0);
    for (n, _) in idle {
        if freed >= needed_of_victims {
            break;
        }
        freed += kept[n].bytes;
        chosen.push(n);
    }
    if freed < needed_of_victims {
        let stays: u64 = kept.iter().filter(|m| !may_go(m)).map(|m| m.bytes).sum();
        return Err(NoRoom { available: free + freed, ever: budget.saturating_sub(stays) });
    }
    // A large one that was taken last may make those before it superfluous; the most recently used of them stay first.
    for at in (0..chosen.len()).rev() {
        let without = freed - kept[chosen[at]].bytes;
        if without >= needed_of_victims {
            freed = without;
            chosen.remove(at);
        }
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(bytes: u64, idle: Option<u64>) -> Kept {
        Kept { bytes, idle: idle.map(Duration::from_secs), pinned: false, priority: 0 }
    }

    #[test]
    fn the_longest_unused_go_and_no_more_than_needed() {
        let all = [kept(10, Some(5)), kept(20, Some(9)), kept(30, Some(1)), kept(40, None)];
        assert_eq!(victims(0, 0, 100, &all), Ok(vec![]));
        assert_eq!(victims(5, 0, 105, &all), Ok(vec![]), "it is free");
        assert_eq!(victims(20, 0, 100, &all), Ok(vec![1]));
        assert_eq!(victims(30, 0, 100, &all), Ok(vec![1, 0]));
        assert_eq!(victims(40, 0, 100, &all), Ok(vec![1, 2]), "the third and the second make the first superfluous");
        assert_eq!(victims(60, 0, 100, &all), Ok(vec![1, 0, 2]));
        assert_eq!(victims(61, 0, 100, &all), Err(NoRoom { available: 60, ever: 100 }));
        assert_eq!(victims(101, 0, 100, &all), Err(NoRoom { available: 60, ever: 100 }));
    }

    #[test]
    fn what_is_pinned_or_above_stays() {
        let pinned = Kept { pinned: true, ..kept(50, Some(100)) };
        let high = Kept { priority: 5, ..kept(30, Some(90)) };
        let all = [pinned, high, kept(20, Some(1))];
        assert_eq!(victims(20, 0, 100, &all), Ok(vec![2]));
        assert_eq!(victims(21, 0, 100, &all), Err(NoRoom { available: 20, ever: 20 }));
        assert_eq!(victims(21, 5, 100, &all), Ok(vec![1]), "the low one alone is not enough");
        assert_eq!(victims(50, 5, 100, &all), Ok(vec![2, 1]));
        assert_eq!(victims(51, 255, 100, &all), Err(NoRoom { available: 50, ever: 50 }));
    }

    #[test]
    fn a_smaller_budget_is_kept_with_the_next_one() {
        assert_eq!(victims(10, 0, 50, &[kept(40, Some(1)), kept(40, Some(2))]), Ok(vec![1]));
        assert_eq!(victims(20, 0, 50, &[kept(40, Some(1)), kept(40, Some(2))]), Ok(vec![1, 0]));
    }

    #[test]
    fn random_plans_are_minimal_and_touch_nobody_else() {
        let mut state = 1u64;
        let mut random = |n: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % n
        };
        for _ in 0..20_000 {
            let all: Vec<Kept> = (0..random(7))
                .map(|_| Kept {
                    bytes: 1 + random(30),
                    idle: (random(3) > 0).then(|| Duration::from_secs(random(10))),
                    pinned: random(5) == 0,
                    priority: random(3) as u8,
                })
                .collect();
            let (needed, priority, budget) = (random(80), random(3) as u8, random(150));
            let taken: u64 = all.iter().map(|m| m.bytes).sum();
            let may_go = |m: &Kept| m.idle.is_some() && !m.pinned && m.priority <= priority;
            let most: u64 = all.iter().filter(|m| may_go(m)).map(|m| m.bytes).sum();
            match victims(needed, priority, budget, &all) {
                Ok(chosen) => {
                    let freed: u64 = chosen.iter().map(|n| all[*n].bytes).sum();
                    assert!(chosen.iter().all(|n| may_go(&all[*n])));
                    assert!(taken + needed <= budget + freed, "it fits");
                    for n in &chosen {
                        assert!(taken + needed > budget + freed - all[*n].bytes, "each is needed");
                    }
                }
                Err(_) => assert!(taken + needed > budget + most, "there is no way"),
            }
        }
    }
}
