use super::*;
use proptest::prelude::*;

const SECOND: u64 = 1_000_000;

fn probe(delay: u64, period: u64, success: u32, failure: u32) -> Probe {
    Probe {
        check: Check::Tcp { port: 80 },
        initial_delay: Duration::from_secs(delay),
        period: Duration::from_secs(period),
        timeout: Duration::from_secs(1),
        success_threshold: success,
        failure_threshold: failure,
    }
}

/// Makes tries that take no time until `until`, each passing when `passes` says so; the changes with their moments.
fn run(
    progress: &mut Progress,
    until: u64,
    mut passes: impl FnMut(u64) -> bool,
) -> Vec<(u64, Verdict)> {
    let mut changes = Vec::new();
    while let Some(made) = progress.next().filter(|it| it.at_micros <= until) {
        let at = made.at_micros;
        changes.extend(progress.ended(made, passes(at), at).map(|verdict| (at, verdict)));
    }
    changes
}

#[test]
fn readiness_shows_within_milliseconds_although_the_first_declared_try_is_late() {
    let mut progress = Progress::begun(probe(10, 10, 1, 1), Purpose::Readiness, 0);
    let changes = run(&mut progress, 20 * SECOND, |at| at >= 137_000);
    let [(at, Verdict::Passing)] = changes[..] else { panic!("{changes:?}") };
    assert!(at < 137_000 + 25_000, "{at}");
}

#[test]
fn one_that_never_answers_has_its_whole_budget() {
    // The reference's own example: its 2 minutes cut a declared 10 s + 30 × 5 s.
    let mut progress = Progress::begun(probe(10, 5, 1, 30), Purpose::Readiness, 0);
    let changes = run(&mut progress, 1000 * SECOND, |_| false);
    assert_eq!(changes, [((10 + 29 * 5) * SECOND, Verdict::Failed)]);
    assert_eq!(progress.next(), None);
}

#[test]
fn more_than_one_success_is_counted_at_the_declared_period_only() {
    let mut progress = Progress::begun(probe(1, 2, 3, 1), Purpose::Readiness, 0);
    let changes = run(&mut progress, 60 * SECOND, |_| true);
    assert_eq!(changes, [((1 + 2 * 2) * SECOND, Verdict::Passing)]);
}

#[test]
fn readiness_goes_and_comes_back_while_it_runs() {
    let mut progress = Progress::begun(probe(1, 1, 2, 3), Purpose::Readiness, 0);
    let changes = run(&mut progress, 20 * SECOND, |at| !(5 * SECOND..10 * SECOND).contains(&at));
    let expected = [
        (2 * SECOND, Verdict::Passing),
        (7 * SECOND, Verdict::NotPassing),
        (11 * SECOND, Verdict::Passing),
    ];
    assert_eq!(changes, expected);
}

#[test]
fn liveness_fails_for_good_and_makes_no_early_tries() {
    let mut progress = Progress::begun(probe(3, 1, 1, 2), Purpose::Liveness, 0);
    assert_eq!(progress.next().map(|it| (it.at_micros, it.declared)), Some((3 * SECOND, true)));
    let changes = run(&mut progress, 60 * SECOND, |at| at < 6 * SECOND);
    assert_eq!(changes, [(3 * SECOND, Verdict::Passing), (7 * SECOND, Verdict::Failed)]);
}

#[test]
fn what_had_passed_before_a_restart_stays_ready_until_its_threshold() {
    let now = 500 * SECOND;
    let mut progress = Progress::resumed(probe(60, 1, 1, 3), Purpose::Readiness, true, now);
    assert_eq!(progress.verdict(), Verdict::Passing);
    let changes = run(&mut progress, now + 10 * SECOND, |_| false);
    assert_eq!(changes, [(now + 2 * SECOND, Verdict::NotPassing)]);
}

proptest! {
    #[test]
    fn time_never_stands_still_and_failure_takes_all_declared_tries(
        delay in 0..100_u64, period in 1..50_u64, success in 1..5_u32, failure in 1..8_u32,
        liveness: bool, outcomes in prop::collection::vec((any::<bool>(), 0..200_000_000_u64), 1..400),
        start in prop_oneof![Just(0), any::<u64>()],
    ) {
        let purpose = if liveness { Purpose::Liveness } else { Purpose::Readiness };
        let mut progress = Progress::begun(probe(delay, period, success, failure), purpose, start);
        let mut now = start;
        let (mut in_a_row, mut passed_in_a_row) = (0, 0);
        let mut seen = false;
        for (passed, took) in outcomes {
            let Some(made) = progress.next() else { break };
            prop_assert!(made.declared || (!liveness && success == 1 && !seen), "early at the wrong time");
            prop_assert!(made.at_micros >= now || made.declared || now == u64::MAX);
            prop_assert!(!made.timeout.is_zero());
            now = now.max(made.at_micros).saturating_add(took);
            if made.declared {
                (in_a_row, passed_in_a_row) = if passed { (0, passed_in_a_row + 1) } else { (in_a_row + 1, 0) };
            }
            let change = progress.ended(made, passed, now);
            match change {
                Some(Verdict::Failed) => prop_assert!(in_a_row >= failure && (liveness || !seen)),
                Some(Verdict::NotPassing) => prop_assert!(in_a_row >= failure && seen && !liveness),
                Some(Verdict::Passing) => {
                    prop_assert!(passed && (!made.declared || passed_in_a_row >= success));
                    seen = true;
                    if !made.declared { in_a_row = 0; }
                }
                Some(Verdict::Starting) => prop_assert!(false, "it began again"),
                None => {}
            }
            // No burst: the next declared try lies ahead, on the declared grid.
            if let Some(next) = progress.next() {
                prop_assert!(next.at_micros > now || !next.declared || now == u64::MAX || !made.declared);
            }
        }
    }
}
