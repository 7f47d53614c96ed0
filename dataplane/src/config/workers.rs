//! How many workers a proxy has.

use super::environment::{ConfigError, Environment};
use super::values::{self, CORES_ALLOWED, PERCENT_ALLOWED};

/// Least number of workers where nothing is said of CPUs.
const WORKERS_MIN: usize = 2;
/// Share of the CPUs where nothing is said, in parts of the whole.
const QUARTER: usize = 4;

/// ZTUNNEL_WORKER_THREADS, else the ProxyConfig's `concurrency`, else the CPU limit of the container, at least what it
/// requests; else a quarter of the CPUs, at least what is requested and never less than two.
///
/// `cpus`: those of this machine; ZTUNNEL_CPU_LIMIT stands for them where it is set.
pub(super) fn count(
    variables: &Environment,
    concurrency: Option<u16>,
    cpus: usize,
) -> Result<usize, ConfigError> {
    let cpu = |name| variables.parse(name, CORES_ALLOWED, values::cores);
    let cpus = cpu("ZTUNNEL_CPU_LIMIT")?.filter(|&limit| limit > 0).unwrap_or(cpus).max(1);
    let limit = cpu("ZTUNNEL_RESOURCE_CPU_LIMIT")?.filter(|&limit| limit > 0);
    let request = cpu("ZTUNNEL_RESOURCE_CPU_REQUEST")?.unwrap_or(0);
    let asked =
        variables.parse("ZTUNNEL_WORKER_THREADS", PERCENT_ALLOWED, |text| values::threads(text, cpus))?;
    Ok(match (asked, concurrency, limit) {
        (Some(count), _, _) => count,
        (None, Some(0), _) => cpus,
        (None, Some(count), _) => count.into(),
        (None, None, Some(limit)) => limit.max(request),
        (None, None, None) => WORKERS_MIN.max(request).max(cpus.div_ceil(QUARTER)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)], concurrency: Option<u16>) -> usize {
        let variables = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        count(&variables, concurrency, 16).unwrap()
    }

    #[test]
    fn the_most_explicit_word_counts() {
        let limit = ("ZTUNNEL_RESOURCE_CPU_LIMIT", "3");
        assert_eq!(of(&[], None), 4);
        assert_eq!(of(&[limit], None), 3);
        assert_eq!(of(&[limit], Some(5)), 5);
        assert_eq!(of(&[limit], Some(0)), 16);
        assert_eq!(of(&[limit, ("ZTUNNEL_WORKER_THREADS", "7")], Some(5)), 7);
        assert_eq!(of(&[("ZTUNNEL_WORKER_THREADS", "0")], Some(5)), 16);
        assert_eq!(of(&[("ZTUNNEL_WORKER_THREADS", "50%")], None), 8);
        assert_eq!(of(&[("ZTUNNEL_WORKER_THREADS", "50%"), ("ZTUNNEL_CPU_LIMIT", "6")], None), 3);
        assert_eq!(of(&[("ZTUNNEL_CPU_LIMIT", "2")], None), 2);
    }

    #[test]
    fn a_request_raises_what_is_derived() {
        assert_eq!(of(&[("ZTUNNEL_RESOURCE_CPU_REQUEST", "6")], None), 6);
        assert_eq!(of(&[("ZTUNNEL_RESOURCE_CPU_REQUEST", "200m")], None), 4);
        assert_eq!(
            of(&[("ZTUNNEL_RESOURCE_CPU_REQUEST", "6"), ("ZTUNNEL_RESOURCE_CPU_LIMIT", "4")], None),
            6
        );
    }
}
