//! Prometheus' older text form (0.0.4), made from OpenMetrics for readers that do not ask for it.
//!
//! The forms differ in little: there, the family of a counter has the name of its samples, and neither units nor an
//! end are known. <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>

/// What OpenMetrics adds to the name of a counter's family.
const COUNTER_SUFFIX: &str = "_total";

/// The same samples in the older form.
pub fn plain_text(open_metrics: &str) -> String {
    let mut plain = String::with_capacity(open_metrics.len());
    // The help of a family comes before its type, which says whether it is a counter.
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let suffix = if kind == "counter" { COUNTER_SUFFIX } else { "" };
            if let Some((_, text)) = help.take().filter(|(of, _)| *of == name) {
                push(&mut plain, &["# HELP ", name, suffix, " ", text]);
            }
            push(&mut plain, &["# TYPE ", name, suffix, " ", kind]);
        } else if !line.starts_with("# UNIT ") && line != "# EOF" {
            push(&mut plain, &[line]);
        }
    }
    plain
}

fn push(out: &mut String, parts: &[&str]) {
    for part in parts {
        out.push_str(part);
    }
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_of_counters_take_the_name_of_their_samples() {
        let open = "# HELP a_bytes Bytes.\n# TYPE a_bytes counter\n# UNIT a_bytes bytes\na_bytes_total{b=\"c\"} 1\n\
                    # HELP g Gauge.\n# TYPE g gauge\ng 2\n# EOF\n";
        let plain = "# HELP a_bytes_total Bytes.\n# TYPE a_bytes_total counter\na_bytes_total{b=\"c\"} 1\n\
                     # HELP g Gauge.\n# TYPE g gauge\ng 2\n";
        assert_eq!(plain_text(open), plain);
    }
}
