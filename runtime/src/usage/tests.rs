use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::*;

fn owner(tenant: &str, function: &str) -> Arc<Owner> {
    let revision = "r3".parse().unwrap();
    Arc::new(Owner { function: function.parse().unwrap(), revision, tenant: tenant.parse().unwrap() })
}

/// An invocation that ends at once.
fn run(usage: &Usage, owner: &Arc<Owner>, number: u64) {
    let meter = Arc::new(Meter::new(Instant::now()));
    meter.charge(Duration::from_micros(7));
    let tab = usage.begin(owner.clone(), number, Instant::now(), meter);
    tab.received(3);
    tab.sent(5);
    tab.close(End { outcome: "ok", wall: Duration::from_micros(11), queue: Duration::from_micros(2) });
}

fn all(usage: &Usage) -> Vec<NumberedRecord> {
    usage.records(&Query::default(), 0, usize::MAX).unwrap()
}

fn total(usage: &Usage) -> Totals {
    let mut sum = Totals::default();
    usage.report(&Query::default()).unwrap().rows.iter().for_each(|row| sum.add(&row.totals));
    sum
}

#[test]
fn what_was_used_is_there_after_a_restart_and_once() {
    let home = tempfile::tempdir().unwrap();
    for boot in 1..=3_u64 {
        let usage = Usage::open(home.path(), boot as u32).unwrap();
        for n in 1..=100 {
            run(&usage, &owner(if n % 2 == 0 { "acme" } else { "globex" }, "f"), n);
        }
        usage.stop();
        assert_eq!(usage.billed_through().record, boot * 100);
        let sum = total(&usage);
        assert_eq!(
            (sum.invocations, sum.cpu_us, sum.bytes_in, sum.bytes_out),
            (boot * 100, boot * 700, boot * 300, boot * 500)
        );
    }
    let usage = Usage::open(home.path(), 4).unwrap();
    let records = all(&usage);
    assert_eq!(records.iter().map(|record| record.record).collect::<Vec<_>>(), (1..=300).collect::<Vec<_>>());
    assert_eq!((records[0].of.id.as_str(), records[299].of.id.as_str()), ("00000001-1", "00000003-64"));
    let acme = Query { tenant: Some("acme".parse().unwrap()), by: By::Day, ..Query::default() };
    let rows = usage.report(&acme).unwrap().rows;
    assert_eq!((rows[0].tenant.as_str(), rows.iter().map(|row| row.totals.invocations).sum::<u64>()), ("acme", 150));
    assert!(rows[0].from.as_ref().unwrap().ends_with("T00:00:00Z"));
    let page = usage.records(&acme, 90, 10).unwrap();
    assert_eq!((page.len(), page[0].record, page[9].record), (10, 92, 110));
    let past = Query { until: Some(1_000_000), ..Query::default() };
    assert!(usage.report(&past).unwrap().rows.is_empty() && usage.records(&past, 0, 10).unwrap().is_empty());
}

/// The files of a process that was killed at this moment.
fn as_killed(home: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(home).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    copy
}

#[test]
fn what_runs_when_the_host_dies_is_billed_as_far_as_known() {
    let home = tempfile::tempdir().unwrap();
    let usage = Usage::open(home.path(), 1).unwrap();
    let owner = owner("acme", "long");
    let meter = Arc::new(Meter::new(Instant::now()));
    let long = usage.begin(owner.clone(), 1, Instant::now(), meter.clone());
    let bill = long.bill(&"m:x".parse().unwrap());
    run(&usage, &owner, 2);
    meter.charge(Duration::from_millis(20));
    let deadline = Instant::now() + Duration::from_secs(20);
    let wait_for = |what: &dyn Fn(&Usage) -> bool| {
        // A copy of the files of a process that goes on may be torn anywhere: one is opened again and again.
        loop {
            let copy = as_killed(home.path());
            if let Ok(usage) = Usage::open(copy.path(), 2)
                && what(&usage)
            {
                return copy;
            }
            assert!(Instant::now() < deadline, "waited in vain");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    let known = |usage: &Usage| {
        let records = all(usage);
        records.len() == 2 && records[1].of.cpu_us == 20_000 && records[1].of.models.len() == 1
    };
    let copy = wait_for(&known);
    // And no more often, however often it is started after that.
    for boot in 3..6 {
        let usage = Usage::open(copy.path(), boot).unwrap();
        let records = all(&usage);
        let outcomes: Vec<_> =
            records.iter().map(|record| (record.of.id.as_str(), record.of.outcome.as_str())).collect();
        assert_eq!(outcomes, [("00000001-2", "ok"), ("00000001-1", "host-killed")]);
        assert_eq!((total(&usage).invocations, total(&usage).failed, total(&usage).cpu_us), (2, 1, 20_007));
    }
    // The process itself was not killed: it ends as it should.
    drop(bill);
    long.close(End { outcome: "client-left", wall: Duration::from_secs(1), queue: Duration::ZERO });
    usage.stop();
    assert_eq!(all(&usage).iter().map(|record| record.of.outcome.as_str()).collect::<Vec<_>>(), ["ok", "client-left"]);
}

#[test]
fn a_killed_clerk_loses_no_record_that_was_billed_and_doubles_none() {
    let home = tempfile::tempdir().unwrap();
    let usage = Usage::open(home.path(), 1).unwrap();
    let (stop, owner) = (AtomicBool::new(false), owner("acme", "f"));
    // Also when something fails here: a scope waits for its threads.
    struct Stops<'a>(&'a AtomicBool);
    impl Drop for Stops<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) {
                // `all` asks for so many at most.
                if n < 9_000 {
                    n += 1;
                    run(&usage, &owner, n);
                }
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        let _stops = Stops(&stop);
        for boot in 2..40 {
            std::thread::sleep(Duration::from_millis(37));
            let billed = usage.billed_through().record;
            let copy = as_killed(home.path());
            // Of a database that is copied while it is written nothing is known; the journal alone must be enough.
            std::fs::remove_file(copy.path().join("books.redb")).unwrap();
            for again in 0..2 {
                let after = Usage::open(copy.path(), boot).unwrap();
                let ids: Vec<_> = all(&after).into_iter().map(|record| record.of.id).collect();
                let distinct: std::collections::BTreeSet<_> = ids.iter().collect();
                assert_eq!(distinct.len(), ids.len(), "boot {boot}.{again}");
                assert!(ids.len() as u64 >= billed, "{} of {billed}", ids.len());
                assert_eq!(total(&after).invocations, ids.len() as u64);
            }
        }
    });
}

#[test]
fn tokens_of_the_minute_are_those_that_came_in_it() {
    let home = tempfile::tempdir().unwrap();
    let frame = |first: u64, at_s: u64, running: &[(u64, u64)], ended: &[(u64, u64)]| {
        let mut builder = FrameBuilder::new(first, 1, at_s * 1000, Instant::now());
        for (rows, outcome) in [(running, "running"), (ended, "ok")] {
            for (number, tokens) in rows {
                let meter = Arc::new(Meter::new(Instant::now()));
                let tab = Trays::new().mine().open(owner("acme", "f"), *number, Instant::now(), meter);
                builder.add_with_tokens(&tab.read(), outcome, *tokens);
            }
        }
        builder.build()
    };
    // One began in the minute before, and had used forty by then.
    let mut journal = Journal::begin(home.path(), &frame(1, 110, &[(1, 10)], &[])).unwrap();
    journal.append(&frame(1, 118, &[(1, 40)], &[(2, 1000)])).unwrap();
    journal.append(&frame(2, 121, &[(1, 45), (3, 7)], &[])).unwrap();
    journal.append(&frame(2, 122, &[(3, 9)], &[(1, 50)])).unwrap();
    // A frame that could not be written for sure is written again, in another file that says what runs.
    let again = Frame { begins: true, ..frame(3, 123, &[(3, 9)], &[]) };
    let mut journal = Journal::begin(home.path(), &again).unwrap();
    journal.append(&frame(2, 123, &[], &[(1, 50)])).unwrap();
    // Another process bills what ran when this one was killed.
    let killed = Frame { begins: true, ..frame(3, 130, &[], &[(3, 9)]) };
    Journal::begin(home.path(), &killed).unwrap();
    let taken =
        |since_s: u64| since::tokens(home.path(), since_s * 1000).unwrap().iter().map(|(_, _, n)| n).sum::<u64>();
    assert_eq!(taken(120), 10 + 9);
    assert_eq!(taken(122), 5 + 2);
    assert_eq!(taken(100), 1050 + 9);
    assert_eq!(taken(124), 0);
}
