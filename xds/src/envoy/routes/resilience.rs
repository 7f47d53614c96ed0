//! Further tries, and what routes tell the filters for faults and cross-origin requests.

use std::num::NonZeroU32;
use std::sync::Arc;

use l7::ir::{
    AbortWith, Cors, Fault, FaultAbort, FaultDelay, Filters, HttpRule, OriginMatch, Retry, RetryOn,
};
use prost_types::Any;

use crate::envoy::Refusal;
use crate::envoy::refusal::{Within, unpack};
use crate::envoy::text::{self, Case};
use crate::proto::waypoint::fault_abort::ErrorType;
use crate::proto::waypoint::string_matcher::Pattern;
use crate::proto::waypoint::{CorsPolicy, HttpFault, RetryPolicy, StringMatcher};

const FAULT: (&str, &str) = ("envoy.filters.http.fault", "envoy.extensions.filters.http.fault.v3.HTTPFault");
const CORS: (&str, &str) = ("envoy.filters.http.cors", "envoy.extensions.filters.http.cors.v3.CorsPolicy");

/// Conditions that our backends never meet, or that other fields would have to fill.
const WITHOUT_EFFECT: [&str; 3] = ["envoy-ratelimited", "retriable-headers", "http3-post-connect-failure"];

/// `None` where nothing is tried again.
pub(super) fn retry(policy: &RetryPolicy) -> Result<Option<Retry>, Refusal> {
    let attempts = policy.num_retries.unwrap_or(1);
    let on = retry_on(policy)?;
    if attempts == 0 || on == RetryOn::default() {
        return Ok(None);
    }
    let (mut backoff_ms, mut backoff_max_ms) = (None, None);
    if let Some(backoff) = &policy.retry_back_off {
        let of = |duration: Option<&_>| duration.map_or(Ok(None), text::milliseconds);
        backoff_ms = of(backoff.base_interval.as_ref()).within("retry_back_off.base_interval")?;
        backoff_max_ms = of(backoff.max_interval.as_ref()).within("retry_back_off.max_interval")?;
    }
    Ok(Some(Retry { attempts, on, backoff_ms, backoff_max_ms }))
}

fn retry_on(policy: &RetryPolicy) -> Result<RetryOn, Refusal> {
    let mut on = RetryOn::default();
    let conditions = policy.retry_on.split(',').map(str::trim).filter(|condition| !condition.is_empty());
    for condition in conditions {
        match condition {
            "connect-failure" => on.connect_failure = true,
            "refused-stream" => on.refused_stream = true,
            "reset" => on.reset = true,
            "reset-before-request" => on.reset_before_request = true,
            "5xx" => (on.server_error, on.timeout) = (true, true),
            "gateway-error" => (on.gateway_error, on.timeout) = (true, true),
            "retriable-4xx" => on.retriable_4xx = true,
            "retriable-status-codes" => {
                let codes = policy.retriable_status_codes.iter().map(|code| u16::try_from(*code));
                let codes: Result<_, _> = codes.collect();
                on.statuses =
                    codes.map_err(|_| Refusal::at("retriable_status_codes", "a code is out of range"))?;
            }
            "cancelled" => on.grpc_codes.push(1),
            "deadline-exceeded" => on.grpc_codes.push(4),
            "resource-exhausted" => on.grpc_codes.push(8),
            "internal" => on.grpc_codes.push(13),
            "unavailable" => on.grpc_codes.push(14),
            condition if WITHOUT_EFFECT.contains(&condition) => {}
            other => return Err(Refusal::at("retry_on", format!("{other:?} is not supported"))),
        }
    }
    Ok(on)
}

/// What a route tells one of the chain's filters.
pub(super) fn per_filter(
    name: &str,
    config: &Any,
    rule: &mut HttpRule,
    filters: &mut Filters,
) -> Result<(), Refusal> {
    if name == FAULT.0 {
        rule.fault = fault(&unpack(config, FAULT.1)?)?.map(Arc::new);
    } else if name == CORS.0 {
        filters.cors = Some(Arc::new(cors(&unpack(config, CORS.1)?)?));
    } else {
        return Err(Refusal::new("routes may not tell this filter anything"));
    }
    Ok(())
}

fn fault(wire: &HttpFault) -> Result<Option<Fault>, Refusal> {
    let mut fault = Fault::default();
    if let Some(delay) = &wire.delay {
        let share = text::share(delay.percentage.as_ref()).within("delay.percentage")?;
        let fixed = delay.fixed_delay.as_ref();
        let delay_ms = fixed.map_or(Ok(None), text::milliseconds).within("delay.fixed_delay")?;
        fault.delay = delay_ms.map(|delay_ms| FaultDelay { delay_ms, share });
    }
    if let Some(abort) = &wire.abort {
        let share = text::share(abort.percentage.as_ref()).within("abort.percentage")?;
        let code = |code: u32, most: u16| {
            let code = u16::try_from(code).ok().filter(|code| *code <= most);
            code.ok_or_else(|| Refusal::at("abort", "the code is out of range"))
        };
        let with = match &abort.error_type {
            Some(ErrorType::HttpStatus(status)) => AbortWith::Http(code(*status, 599)?),
            Some(ErrorType::GrpcStatus(status)) => AbortWith::Grpc(code(*status, 16)?),
            None => return Err(Refusal::at("abort", "nothing to answer with is given")),
        };
        fault.abort = Some(FaultAbort { with, share });
    }
    Ok(Some(fault).filter(|fault| *fault != Fault::default()))
}

fn cors(wire: &CorsPolicy) -> Result<Cors, Refusal> {
    if let Some(enabled) = &wire.filter_enabled {
        let share = text::share(enabled.default_value.as_ref()).within("filter_enabled")?;
        if NonZeroU32::new(share.numerator) != Some(share.denominator) {
            return Err(Refusal::at(
                "filter_enabled",
                "only all or nothing is supported, and nothing is left out",
            ));
        }
    }
    let origins = wire.allow_origin_string_match.iter().enumerate();
    let origins =
        origins.map(|(index, matcher)| origin(matcher).within_item("allow_origin_string_match", index));
    let list = |text: &str| -> Vec<Arc<str>> {
        text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(Arc::from).collect()
    };
    let max_age_s = match wire.max_age.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| Refusal::at("max_age", format!("{text:?} is no number")))?),
    };
    Ok(Cors {
        origins: origins.collect::<Result<_, _>>()?,
        methods: list(&wire.allow_methods),
        headers: list(&wire.allow_headers),
        expose_headers: list(&wire.expose_headers),
        credentials: wire.allow_credentials.unwrap_or(false),
        max_age_s,
        forward_unmatched_preflights: wire.forward_not_matching_preflights.unwrap_or(true),
    })
}

fn origin(matcher: &StringMatcher) -> Result<OriginMatch, Refusal> {
    Ok(match text::pattern(matcher, Case::Heeded)? {
        // Envoy also looks whether the star itself would be allowed.
        Pattern::Exact(text) if text == "*" => OriginMatch::Any,
        Pattern::Exact(text) => OriginMatch::Exact(text.as_str().into()),
        Pattern::Prefix(text) => OriginMatch::Prefix(text.as_str().into()),
        Pattern::Suffix(text) if !text.contains('*') => OriginMatch::Glob(format!("*{text}").into()),
        Pattern::SafeRegex(own) => OriginMatch::Regex(own.regex.as_str().into()),
        Pattern::Suffix(_) | Pattern::Contains(_) => {
            return Err(Refusal::new("this kind of match is not supported"));
        }
    })
}
