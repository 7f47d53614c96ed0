//! Where spans go and which requests have one: OpenTelemetry's variables, and one of our own in Istio's unit.
//! <https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/>

use super::environment::{ConfigError, Environment};
use crate::trace::Sampling;
use crate::trace::export::check_address;

/// The collector's address, the more special variable first.
const COLLECTOR: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
const PERCENT: &str = "CORELANE_TRACE_SAMPLING";
const RATIO: &str = "OTEL_TRACES_SAMPLER_ARG";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tracing {
    /// Takes OTLP over gRPC: `http://HOST:PORT`.
    pub collector: String,
    /// Of requests whose clients have not begun a trace.
    pub sampling: Sampling,
}

impl Tracing {
    /// `None` where no collector is named.
    pub fn read(variables: &Environment) -> Result<Option<Self>, ConfigError> {
        let ratio = |text: &str| text.parse().ok().and_then(Sampling::of_ratio);
        let percent = |text: &str| text.parse().ok().and_then(Sampling::of_percent);
        let by_ratio = variables.parse(RATIO, "it must be a number from 0 to 1", ratio)?;
        let by_percent = variables.parse(PERCENT, "it must be a number from 0 to 100", percent)?;
        let named = COLLECTOR.into_iter().find_map(|name| Some((name, variables.filled(name)?)));
        let Some((name, address)) = named else { return Ok(None) };
        check_address(address).map_err(|error| ConfigError::value(name, address, error.to_string()))?;
        let sampling = by_percent.or(by_ratio).unwrap_or(Sampling::DEFAULT);
        Ok(Some(Self { collector: address.to_owned(), sampling }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<const N: usize>(pairs: [(&str, &str); N]) -> Result<Option<Tracing>, ConfigError> {
        Tracing::read(&Environment::from(pairs))
    }

    #[test]
    fn spans_are_made_where_a_collector_is_named() {
        assert_eq!(read([]), Ok(None));
        assert_eq!(read([(PERCENT, "50")]), Ok(None));
        let one = "http://127.0.0.1:4317";
        let tracing = read([("OTEL_EXPORTER_OTLP_ENDPOINT", one)]).unwrap().unwrap();
        assert_eq!((tracing.collector.as_str(), tracing.sampling), (one, Sampling::DEFAULT));
        let special =
            [("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://x:1"), ("OTEL_EXPORTER_OTLP_ENDPOINT", one)];
        assert_eq!(read(special).unwrap().unwrap().collector, "http://x:1");
        let sampled = read([("OTEL_EXPORTER_OTLP_ENDPOINT", one), (RATIO, "0.5")]).unwrap().unwrap();
        assert_eq!(Some(sampled.sampling), Sampling::of_percent(50.0));
        let both = read([("OTEL_EXPORTER_OTLP_ENDPOINT", one), (RATIO, "0.5"), (PERCENT, "2")]);
        assert_eq!(Some(both.unwrap().unwrap().sampling), Sampling::of_percent(2.0));
    }

    #[test]
    fn values_that_cannot_be_are_named() {
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector:4317"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "collector"),
            (PERCENT, "101"),
            (PERCENT, "all"),
            (RATIO, "-1"),
        ] {
            let error = read([(name, value)]).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{name}={value:?} cannot be used")), "{error}");
        }
    }
}
