use std::num::NonZeroU32;

use super::*;

fn policy() -> OutlierDetection {
    OutlierDetection {
        consecutive_5xx: 3,
        consecutive_gateway_errors: 0,
        split_local_origin: false,
        consecutive_local_origin: 0,
        interval_ms: NonZeroU32::new(1000).unwrap(),
        base_ejection_ms: NonZeroU32::new(10_000).unwrap(),
        ejection_percent_max: 50,
        health_percent_min: 0,
    }
}

fn name(text: &str) -> Arc<str> {
    Arc::from(text)
}

/// Enters these for one endpoint of four.
fn note(outliers: &mut Outliers, host: &str, answers: &[Answer], now: Instant) -> bool {
    answers.iter().fold(false, |_, answer| outliers.note(&name(host), *answer, now, || 4))
}

const BAD: Answer = Answer::Status(500);

#[test]
fn failures_in_a_row_put_an_endpoint_out() {
    let now = Instant::now();
    let mut outliers = Outliers::new(policy(), now);
    assert!(!note(&mut outliers, "a", &[BAD, BAD, Answer::Status(404), BAD, BAD], now));
    assert!(!outliers.is_out("a"));
    assert!(note(&mut outliers, "a", &[BAD], now));
    assert!(outliers.is_out("a") && !outliers.is_out("b"));
    // What it still answers changes nothing.
    assert!(!note(&mut outliers, "a", &[BAD; 9], now));
    for answer in [Answer::Unconnected, Answer::TimedOut, Answer::Status(599)] {
        let mut outliers = Outliers::new(policy(), now);
        assert!(note(&mut outliers, "a", &[answer; 3], now), "{answer:?}");
        assert!(!note(&mut outliers, "b", &[answer, answer, Answer::Connected, answer], now));
    }
    let mut outliers = Outliers::new(policy(), now);
    note(&mut outliers, "a", &[Answer::Status(200); 9], now);
    assert!(outliers.is_quiet(), "nothing is kept of those that do not fail");
}

#[test]
fn gateway_errors_and_local_ones_are_counted_apart() {
    let now = Instant::now();
    let gateway = OutlierDetection { consecutive_5xx: 0, consecutive_gateway_errors: 2, ..policy() };
    let mut outliers = Outliers::new(gateway, now);
    assert!(!note(&mut outliers, "a", &[BAD; 9], now));
    assert!(note(&mut outliers, "a", &[Answer::Status(503), Answer::Unconnected], now));
    let split = OutlierDetection { split_local_origin: true, consecutive_local_origin: 2, ..policy() };
    let mut outliers = Outliers::new(split, now);
    assert!(!note(&mut outliers, "a", &[Answer::Unconnected, BAD, BAD, Answer::Unconnected], now));
    assert!(note(&mut outliers, "a", &[Answer::TimedOut], now), "a 500 is an answer; two without one follow");
    assert!(!note(&mut outliers, "b", &[BAD, Answer::Unconnected, BAD], now));
    assert!(note(&mut outliers, "b", &[BAD], now));
}

#[test]
fn time_out_grows_with_each_ejection_and_is_lived_down() {
    let mut now = Instant::now();
    let mut outliers = Outliers::new(policy(), now);
    let time_out = |outliers: &mut Outliers, now: &mut Instant| {
        assert!(note(outliers, "a", &[BAD; 3], *now));
        let began = *now;
        while outliers.is_out("a") {
            *now += Duration::from_millis(500);
            outliers.advance(*now);
        }
        (*now - began).as_secs()
    };
    assert_eq!(time_out(&mut outliers, &mut now), 10);
    assert_eq!(time_out(&mut outliers, &mut now), 20);
    assert_eq!(time_out(&mut outliers, &mut now), 30);
    // Two sweeps live two of the three down.
    now += Duration::from_secs(2);
    assert_eq!(time_out(&mut outliers, &mut now), 20);
    now += Duration::from_mins(1);
    outliers.advance(now);
    assert!(outliers.is_quiet());
    assert_eq!(time_out(&mut outliers, &mut now), 10);
    for _ in 0..40 {
        assert!(time_out(&mut outliers, &mut now) <= EJECTION_MAX.as_secs());
    }
}

#[test]
fn a_long_pause_forgets_everything() {
    let now = Instant::now();
    let mut outliers = Outliers::new(policy(), now);
    note(&mut outliers, "a", &[BAD; 3], now);
    outliers.advance(now + Duration::from_secs(1 << 30));
    assert!(outliers.is_quiet() && outliers.out() == 0);
    assert!(note(&mut outliers, "a", &[BAD; 3], now), "an earlier moment is taken for the latest");
}

#[test]
fn never_more_are_out_than_the_share_and_few_left_end_it() {
    let now = Instant::now();
    let mut random = crate::random::Random(5);
    for (percent, total) in
        [(10, 4), (10, 10), (34, 3), (50, 5), (99, 7), (100, 2), (100, 9), (0, 9), (300, 3)]
    {
        let of_share = OutlierDetection { ejection_percent_max: percent, health_percent_min: 50, ..policy() };
        let mut outliers = Outliers::new(of_share, now);
        let mut later = now;
        for byte in random.bytes(2000) {
            let host = name(&(usize::from(byte) % total).to_string());
            later += Duration::from_millis(u64::from(byte));
            outliers.note(&host, BAD, later, || total);
            let hosts = (0..total).filter(|host| outliers.is_out(&host.to_string())).count();
            assert_eq!(hosts, outliers.out());
            assert!(
                hosts * 100 <= total * percent.min(100) as usize,
                "{hosts} of {total} at {percent} per cent"
            );
            assert_eq!(outliers.is_panic(total), (total - hosts) * 2 < total);
        }
    }
    let mut outliers = Outliers::new(OutlierDetection { ejection_percent_max: 100, ..policy() }, now);
    for host in ["a", "b", "c"] {
        note(&mut outliers, host, &[BAD; 3], now);
    }
    outliers.retain(|host| host == "b");
    assert_eq!((outliers.out(), outliers.is_out("a"), outliers.is_out("b")), (1, false, true));
}
