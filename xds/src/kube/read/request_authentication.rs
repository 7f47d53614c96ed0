//! RequestAuthentication.

use std::sync::Arc;

use l7::filter;
use l7::ir::{HeaderValue, TokenRule};
use l7::jwt::check_jwks;

use super::super::catalog::Meta;
use super::super::istio::{KeySource, PolicyTarget, RequestAuthentication};
use super::super::reader::{Fields, Findings, Item};
use super::super::yaml::shortened;
use super::policy::target;

/// Bound of our own: each rule looks into every request.
const RULES_MAX: usize = 64;
/// Bound of our own on the lists of a rule.
const ENTRIES_MAX: usize = 64;
/// A bearer token needs no more than its header and the scheme.
const PREFIX_BYTES_MAX: usize = 256;

pub(super) fn request_authentication(
    fields: &mut Fields<'_>,
    meta: Meta,
    findings: &mut Findings,
) -> Option<RequestAuthentication> {
    let Some(spec) = fields.optional("spec") else {
        let (rules, sources) = (Vec::new(), Vec::new());
        return Some(RequestAuthentication { meta, target: PolicyTarget::Namespace, rules, sources });
    };
    let mut fields = spec.fields(findings)?;
    let target = target(&mut fields, findings)?;
    let list = fields.optional("jwtRules");
    let items = list.as_ref().map_or_else(Vec::new, |list| list.list(findings));
    if let Some(list) = list.filter(|_| items.len() > RULES_MAX) {
        list.error(findings, "there are too many rules", format!("keep at most {RULES_MAX}"));
    }
    let rules: Option<Vec<(TokenRule, KeySource)>> = items.iter().map(|item| rule(item, findings)).collect();
    fields.finish(findings);
    let (rules, sources) = rules?.into_iter().unzip();
    Some(RequestAuthentication { meta, target, rules, sources })
}

fn rule(item: &Item<'_>, findings: &mut Findings) -> Option<(TokenRule, KeySource)> {
    let mut fields = item.fields(findings)?;
    let issuer = fields.required(findings, "issuer").and_then(|item| item.filled(findings));
    let (jwks, source) = keys(&mut fields, item, issuer, findings);
    let rule = TokenRule {
        audiences: texts(&mut fields, "audiences", findings),
        jwks,
        from_headers: list(&mut fields, "fromHeaders", findings, from_header),
        from_parameters: texts(&mut fields, "fromParams", findings),
        from_cookies: texts(&mut fields, "fromCookies", findings),
        forward_original: fields
            .optional("forwardOriginalToken")
            .is_some_and(|item| item.boolean(findings).unwrap_or_default()),
        payload_to_header: fields
            .optional("outputPayloadToHeader")
            .and_then(|item| header_name(&item, findings)),
        claims_to_headers: list(&mut fields, "outputClaimToHeaders", findings, claim_to_header),
        space_delimited_claims: texts(&mut fields, "spaceDelimitedClaims", findings),
        issuer: Arc::from(issuer?),
    };
    fields.finish(findings);
    Some((rule, source))
}

/// The keys of the issuer, and where they come from where they do not stand here. Without usable keys the rule is in force
/// all the same and takes no token: leaving it out would let the issuer's tokens pass unseen.
fn keys(
    fields: &mut Fields<'_>,
    rule: &Item<'_>,
    issuer: Option<&str>,
    findings: &mut Findings,
) -> (Arc<str>, KeySource) {
    const REFUSED: &str = "every token of this issuer is refused";
    // How long a fetch may take, which is fixed here.
    fields.ignore(&["timeout"]);
    let address = fields.optional("jwksUri").or_else(|| fields.optional("jwks_uri"));
    if let Some(item) = fields.optional("jwks") {
        if let Some(address) = &address {
            address.error(findings, "jwks and jwksUri exclude each other", "keep one of them");
        }
        let text = item.text(findings).unwrap_or_default();
        if let Err(error) = check_jwks(text) {
            item.warning(findings, format!("{error}: {REFUSED}"), "write a JWKS as in RFC 7517, section 5");
        }
        return (Arc::from(text), KeySource::Written);
    }
    if let Some(item) = address {
        let text = item.filled(findings).unwrap_or_default();
        if !is_web_address(text) {
            let message = format!("{:?} is no address that keys could be fetched from", shortened(text));
            item.error(findings, message, "write one such as https://issuer.example/keys");
        }
        return (Arc::default(), KeySource::Address(Arc::from(text)));
    }
    if let Some(issuer) = issuer.filter(|issuer| is_web_address(issuer)) {
        return (Arc::default(), KeySource::Issuer(Arc::from(issuer)));
    }
    let message = format!("the rule has no keys, and its issuer is no address: {REFUSED}");
    rule.warning(findings, message, "write the issuer's JWKS under jwks, or its address under jwksUri");
    (Arc::default(), KeySource::Written)
}

fn is_web_address(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    rest.is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_graphic()))
}

fn from_header(item: &Item<'_>, findings: &mut Findings) -> Option<HeaderValue> {
    let mut fields = item.fields(findings)?;
    let name = fields.required(findings, "name").and_then(|item| name(&item, findings));
    let prefix = fields.optional("prefix");
    let value = prefix.as_ref().map_or(Some(""), |item| item.text(findings));
    fields.finish(findings);
    let value = value?;
    if let Some(item) = prefix.filter(|_| value.len() > PREFIX_BYTES_MAX) {
        item.error(findings, "the prefix is too long", format!("keep at most {PREFIX_BYTES_MAX} bytes"));
    }
    Some(HeaderValue { name: name?, value: Arc::from(value) })
}

fn claim_to_header(item: &Item<'_>, findings: &mut Findings) -> Option<(Arc<str>, Arc<str>)> {
    let mut fields = item.fields(findings)?;
    let header = fields.required(findings, "header").and_then(|item| header_name(&item, findings));
    let claim = fields.required(findings, "claim").and_then(|item| item.filled(findings)).map(Arc::from);
    fields.finish(findings);
    header.zip(claim)
}

/// The name of a header that is only read.
fn name(item: &Item<'_>, findings: &mut Findings) -> Option<Arc<str>> {
    Some(Arc::from(item.filled(findings)?.to_ascii_lowercase()))
}

/// The name of a header that we write.
fn header_name(item: &Item<'_>, findings: &mut Findings) -> Option<Arc<str>> {
    let name = name(item, findings)?;
    if let Err(fault) = filter::header_name(&name) {
        let message = format!("{:?}: {fault}", shortened(&name));
        item.error(findings, message, "name a header of the application's own, such as x-jwt-payload");
        return None;
    }
    Some(name)
}

fn texts(fields: &mut Fields<'_>, name: &'static str, findings: &mut Findings) -> Vec<Arc<str>> {
    list(fields, name, findings, |item, findings| item.filled(findings).map(Arc::from))
}

fn list<T>(
    fields: &mut Fields<'_>,
    name: &'static str,
    findings: &mut Findings,
    read: impl Fn(&Item<'_>, &mut Findings) -> Option<T>,
) -> Vec<T> {
    let Some(list) = fields.optional(name) else {
        return Vec::new();
    };
    let items = list.list(findings);
    if items.len() > ENTRIES_MAX {
        let message = format!("{} entries are too many", items.len());
        list.error(findings, message, format!("keep at most {ENTRIES_MAX}"));
    }
    items.iter().filter_map(|item| read(item, findings)).collect()
}
