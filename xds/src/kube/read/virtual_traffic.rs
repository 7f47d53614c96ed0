//! What happens beside the straight way of a request, as VirtualServices say it: retries, faults, mirrors, CORS.

use std::num::NonZeroU32;
use std::sync::Arc;

use l7::ir::{
    AbortWith, Cors, Fault, FaultAbort, FaultDelay, Fraction, OriginMatch, Retry, RetryOn, ValueTest,
};

use super::super::reader::{Fields, Findings, Item};
use super::super::traffic::Destination;
use super::super::yaml::{Value, shortened};
use super::virtual_match::text_match;
use super::{duration, virtual_service};

const ATTEMPTS_MAX: i64 = 100;
const MIRRORS_MAX: usize = 16;
/// Percentages have four places after the point.
const MILLION: NonZeroU32 = NonZeroU32::MIN.saturating_add(999_999);

// === Retries ===

/// The retries, and the limit on each try. Without `retries` those that Istio takes by default: two, where that is safe.
pub(super) fn retry(
    item: Option<&Item<'_>>,
    findings: &mut Findings,
) -> (Option<Arc<Retry>>, Option<NonZeroU32>) {
    let usual = || RetryOn {
        connect_failure: true,
        refused_stream: true,
        reset_before_request: true,
        // CANCELLED and UNAVAILABLE.
        grpc_codes: vec![1, 14],
        ..RetryOn::default()
    };
    let Some(item) = item else {
        return (Some(Arc::new(Retry { attempts: 2, on: usual(), ..Retry::default() })), None);
    };
    let Some(mut fields) = item.fields(findings) else {
        return (None, None);
    };
    let attempts = fields.optional("attempts").and_then(|item| item.integer(findings, 0, ATTEMPTS_MAX));
    let per_try = duration::optional(&mut fields, "perTryTimeout", findings);
    let on = match fields.optional("retryOn").filter(|item| item.node.as_text() != Some("")) {
        Some(item) => retry_on(&item, findings),
        None => usual(),
    };
    let backoff_ms = duration::optional(&mut fields, "backoff", findings);
    for preference in ["retryRemoteLocalities", "retryIgnorePreviousHosts"] {
        fields.refuse(findings, preference);
    }
    fields.finish(findings);
    let attempts = attempts.map_or(2, |attempts| u32::try_from(attempts).unwrap_or(2));
    let retry = Retry { attempts, on, backoff_ms, backoff_max_ms: None };
    ((attempts > 0).then(|| Arc::new(retry)), per_try)
}

fn retry_on(item: &Item<'_>, findings: &mut Findings) -> RetryOn {
    let mut on = RetryOn::default();
    for word in item.text(findings).unwrap_or_default().split(',').map(str::trim) {
        match word {
            "5xx" => {
                on.server_error = true;
                (on.connect_failure, on.refused_stream, on.reset, on.timeout) = (true, true, true, true);
            }
            "gateway-error" => (on.gateway_error, on.reset, on.timeout) = (true, true, true),
            "reset" => (on.reset, on.timeout) = (true, true),
            "reset-before-request" => on.reset_before_request = true,
            "connect-failure" => on.connect_failure = true,
            "refused-stream" => on.refused_stream = true,
            "retriable-4xx" => on.retriable_4xx = true,
            "cancelled" => on.grpc_codes.push(1),
            "deadline-exceeded" => on.grpc_codes.push(4),
            "resource-exhausted" => on.grpc_codes.push(8),
            "internal" => on.grpc_codes.push(13),
            "unavailable" => on.grpc_codes.push(14),
            // The codes themselves stand beside it.
            "retriable-status-codes" | "" => {}
            other => {
                let status = other.parse::<u16>().ok().filter(|status| (200..=599).contains(status));
                if status.is_none() {
                    let message = format!("retryOn {:?} is not known here", shortened(other));
                    let fix = "write 5xx, gateway-error, reset, reset-before-request, connect-failure, \
                               refused-stream, retriable-4xx, a status, or a condition of gRPC";
                    item.error(findings, message, fix);
                }
                on.statuses.extend(status);
            }
        }
    }
    on
}

// === Faults ===

pub(super) fn fault(item: &Item<'_>, findings: &mut Findings) -> Option<Fault> {
    let mut fields = item.fields(findings)?;
    let delay = fields.optional("delay").and_then(|item| delay(&item, findings));
    let abort = fields.optional("abort").and_then(|item| abort(&item, findings));
    fields.finish(findings);
    (delay.is_some() || abort.is_some()).then_some(Fault { delay, abort })
}

fn delay(item: &Item<'_>, findings: &mut Findings) -> Option<FaultDelay> {
    let mut fields = item.fields(findings)?;
    let delay_ms =
        fields.required(findings, "fixedDelay").and_then(|item| duration::duration(&item, findings));
    fields.refuse(findings, "exponentialDelay");
    let share = share(&mut fields, "percent", item, findings);
    fields.finish(findings);
    Some(FaultDelay { delay_ms: delay_ms?, share })
}

fn abort(item: &Item<'_>, findings: &mut Findings) -> Option<FaultAbort> {
    let mut fields = item.fields(findings)?;
    let http = fields.optional("httpStatus").and_then(|item| item.integer(findings, 200, 599));
    let http = http.and_then(|status| u16::try_from(status).ok()).map(AbortWith::Http);
    let grpc = fields.optional("grpcStatus").and_then(|item| grpc_status(&item, findings));
    fields.refuse(findings, "http2Error");
    let share = share(&mut fields, "percent", item, findings);
    fields.finish(findings);
    if let (Some(_), Some(_)) = (&http, &grpc) {
        item.error(findings, "httpStatus and grpcStatus exclude each other", "keep one of them");
    }
    if http.is_none() && grpc.is_none() {
        item.error(findings, "the abort says no status", "write httpStatus or grpcStatus");
    }
    Some(FaultAbort { with: http.or(grpc)?, share })
}

fn grpc_status(item: &Item<'_>, findings: &mut Findings) -> Option<AbortWith> {
    const CODES: [(&str, u16); 17] = [
        ("OK", 0),
        ("CANCELLED", 1),
        ("UNKNOWN", 2),
        ("INVALID_ARGUMENT", 3),
        ("DEADLINE_EXCEEDED", 4),
        ("NOT_FOUND", 5),
        ("ALREADY_EXISTS", 6),
        ("PERMISSION_DENIED", 7),
        ("RESOURCE_EXHAUSTED", 8),
        ("FAILED_PRECONDITION", 9),
        ("ABORTED", 10),
        ("OUT_OF_RANGE", 11),
        ("UNIMPLEMENTED", 12),
        ("INTERNAL", 13),
        ("UNAVAILABLE", 14),
        ("DATA_LOSS", 15),
        ("UNAUTHENTICATED", 16),
    ];
    if let Some(code) = item.node.as_text().and_then(|text| text.parse().ok()).filter(|code| *code <= 16) {
        return Some(AbortWith::Grpc(code));
    }
    item.one_of(findings, &CODES).map(AbortWith::Grpc)
}

/// `percentage.value`, or the older whole number. Without either nobody is concerned, as Istio has it.
fn share(fields: &mut Fields<'_>, older: &'static str, item: &Item<'_>, findings: &mut Findings) -> Fraction {
    let newer = fields.optional("percentage").map(|item| percentage(&item, findings));
    let older = fields.optional(older).map(|item| percent(&item, findings));
    if newer.is_none() && older.is_none() {
        item.warning(
            findings,
            "no percentage is written, so no request is concerned",
            "write percentage: {value: 100}",
        );
    }
    let none = Fraction { numerator: 0, denominator: MILLION };
    newer.or(older).flatten().unwrap_or(none)
}

fn percentage(item: &Item<'_>, findings: &mut Findings) -> Option<Fraction> {
    let mut fields = item.fields(findings)?;
    let value = fields.optional("value");
    fields.finish(findings);
    match value {
        Some(item) => percent(&item, findings),
        None => Some(Fraction { numerator: 0, denominator: MILLION }),
    }
}

pub(super) fn percent(item: &Item<'_>, findings: &mut Findings) -> Option<Fraction> {
    #[allow(clippy::cast_precision_loss)] // out of range anyway where it matters
    let value = match item.node.value {
        Value::Integer(value) => value as f64,
        Value::Float(value) => value,
        _ => -1.0,
    };
    if !(0.0..=100.0).contains(&value) {
        item.error(findings, "this is no share of requests", "write a number from 0 to 100");
        return None;
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // in range, as was just seen
    let numerator = (value * 10_000.0).round() as u32;
    Some(Fraction { numerator, denominator: MILLION })
}

// === Mirrors ===

pub(super) fn mirrors(fields: &mut Fields<'_>, findings: &mut Findings) -> Vec<(Destination, Fraction)> {
    let single = fields.optional("mirror");
    let newer = fields.optional("mirrorPercentage").map(|item| percentage(&item, findings));
    let older = ["mirrorPercent", "mirror_percent"].map(|name| fields.optional(name));
    let older = older.into_iter().flatten().next().map(|item| percent(&item, findings));
    let several = fields.optional("mirrors");
    if let (Some(_), Some(item)) = (&single, &several) {
        item.error(findings, "mirror and mirrors exclude each other", "keep mirrors");
    }
    let mut mirrors = Vec::new();
    if let Some(destination) = single.and_then(|item| virtual_service::destination(&item, findings)) {
        let share = newer.or(older).map_or(Some(Fraction::ALL), |share| share);
        mirrors.extend(share.map(|share| (destination, share)));
    }
    if let Some(list) = several {
        let items = list.list(findings);
        if items.len() > MIRRORS_MAX {
            list.error(findings, "there are too many mirrors", format!("keep at most {MIRRORS_MAX}"));
        }
        for item in &items {
            let Some(mut fields) = item.fields(findings) else { continue };
            let destination = fields
                .required(findings, "destination")
                .and_then(|item| virtual_service::destination(&item, findings));
            let share = fields.optional("percentage").map(|item| percentage(&item, findings));
            fields.finish(findings);
            let share = share.map_or(Some(Fraction::ALL), |share| share);
            mirrors.extend(destination.zip(share));
        }
    }
    mirrors
}

// === CORS ===

pub(super) fn cors(item: &Item<'_>, findings: &mut Findings) -> Option<Cors> {
    const PREFLIGHTS: [(&str, bool); 3] = [("UNSPECIFIED", true), ("FORWARD", true), ("IGNORE", false)];
    let mut fields = item.fields(findings)?;
    let mut origins: Vec<OriginMatch> = Vec::new();
    if let Some(list) = fields.optional("allowOrigins") {
        for item in list.list(findings) {
            origins.extend(text_match(&item, findings).map(|test| match test {
                ValueTest::Exact(text) if &*text == "*" => OriginMatch::Any,
                ValueTest::Exact(text) => OriginMatch::Exact(text),
                ValueTest::Prefix(text) => OriginMatch::Prefix(text),
                ValueTest::Regex(text) => OriginMatch::Regex(text),
                ValueTest::Suffix(_) | ValueTest::Present => OriginMatch::Any,
            }));
        }
    }
    if let Some(list) = fields.optional("allowOrigin") {
        let exact = |text: Arc<str>| if &*text == "*" { OriginMatch::Any } else { OriginMatch::Exact(text) };
        origins.extend(list.texts(findings).into_iter().map(exact));
    }
    let mut texts = |name| fields.optional(name).map_or_else(Vec::new, |item| item.texts(findings));
    let (methods, headers, expose_headers) =
        (texts("allowMethods"), texts("allowHeaders"), texts("exposeHeaders"));
    let max_age = fields.optional("maxAge").and_then(|item| duration::duration_or_zero(&item, findings));
    let credentials = fields.optional("allowCredentials").and_then(|item| item.boolean(findings));
    let forward = fields.optional("unmatchedPreflights").and_then(|item| item.one_of(findings, &PREFLIGHTS));
    fields.finish(findings);
    Some(Cors {
        origins,
        methods,
        headers,
        expose_headers,
        credentials: credentials.unwrap_or_default(),
        max_age_s: max_age.map(|milliseconds| milliseconds / 1000),
        forward_unmatched_preflights: forward.unwrap_or(true),
    })
}
