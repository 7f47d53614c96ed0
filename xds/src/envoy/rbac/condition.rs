//! Permissions and principals: the trees that RBAC is made of, and their leaves.

use l7::ir::{Attribute, Test};
use l7::template::Template;

use super::expression::Expression;
use super::token;
use crate::envoy::Refusal;
use crate::envoy::refusal::{Within, unpack};
use crate::envoy::text::{self, Case};
use crate::proto::waypoint::header_matcher::Specifier;
use crate::proto::waypoint::permission::Rule;
use crate::proto::waypoint::principal::Identifier;
use crate::proto::waypoint::string_matcher::Pattern;
use crate::proto::waypoint::{
    CidrRange, FilterStateMatcher, HeaderMatcher, PathMatcher, Permission, Principal, StringMatcher,
    TypedExtension, UriTemplate,
};

/// Where a waypoint keeps the identity of the peer of the tunnel.
const PEER_PRINCIPAL: &str = "io.istio.peer_principal";
const SCHEME: &str = "spiffe://";

pub(super) fn permission(permission: &Permission) -> Result<Expression, Refusal> {
    let Some(rule) = &permission.rule else { return Err(Refusal::new("the permission has no rule")) };
    match rule {
        Rule::AndRules(set) => list("and_rules.rules", &set.rules, self::permission).map(Expression::All),
        Rule::OrRules(set) => list("or_rules.rules", &set.rules, self::permission).map(Expression::Any),
        Rule::NotRule(inner) => Ok(self::permission(inner).within("not_rule")?.not()),
        Rule::Any(true) => Ok(Expression::Always),
        Rule::Any(false) => Err(Refusal::at("any", "false is not supported")),
        Rule::Header(header) => self::header(header).within("header"),
        Rule::UrlPath(path) => self::path(path).within("url_path"),
        Rule::UriTemplate(extension) => template(extension).within("uri_template"),
        Rule::DestinationIp(range) => address(Attribute::DestinationIp, range).within("destination_ip"),
        Rule::DestinationPort(port) => {
            let port =
                u16::try_from(*port).map_err(|_| Refusal::at("destination_port", format!("{port}")))?;
            Ok(Expression::Test(Attribute::DestinationPort, Test::Port(port)))
        }
        Rule::RequestedServerName(name) => {
            let test = text::test(name, Case::Heeded).within("requested_server_name")?;
            Ok(Expression::Test(Attribute::ConnectionSni, test))
        }
        Rule::Metadata(metadata) => token::metadata(metadata).within("metadata"),
    }
}

pub(super) fn principal(principal: &Principal) -> Result<Expression, Refusal> {
    let Some(identifier) = &principal.identifier else {
        return Err(Refusal::new("the principal has no identifier"));
    };
    match identifier {
        Identifier::AndIds(set) => match token::request_principal(&set.ids) {
            Some(test) => Ok(Expression::Test(Attribute::RequestPrincipal, test.within("and_ids")?)),
            None => list("and_ids.ids", &set.ids, self::principal).map(Expression::All),
        },
        Identifier::OrIds(set) => list("or_ids.ids", &set.ids, self::principal).map(Expression::Any),
        Identifier::NotId(inner) => Ok(self::principal(inner).within("not_id")?.not()),
        Identifier::Any(true) => Ok(Expression::Always),
        Identifier::Any(false) => Err(Refusal::at("any", "false is not supported")),
        Identifier::Authenticated(peer) => match &peer.principal_name {
            Some(name) => self::peer(name).within("authenticated.principal_name"),
            // Any peer whose certificate was verified.
            None => Ok(Expression::Test(Attribute::SourcePrincipal, Test::Present)),
        },
        Identifier::FilterState(state) => filter_state(state).within("filter_state"),
        Identifier::Header(header) => self::header(header).within("header"),
        Identifier::UrlPath(path) => self::path(path).within("url_path"),
        Identifier::DirectRemoteIp(range) => address(Attribute::SourceIp, range).within("direct_remote_ip"),
        Identifier::RemoteIp(range) => address(Attribute::RemoteIp, range).within("remote_ip"),
        Identifier::Metadata(metadata) => token::metadata(metadata).within("metadata"),
    }
}

fn list<T>(
    field: &str,
    items: &[T],
    convert: impl Fn(&T) -> Result<Expression, Refusal>,
) -> Result<Vec<Expression>, Refusal> {
    if items.is_empty() {
        return Err(Refusal::at(field, "the list is empty"));
    }
    let convert = |(index, item)| convert(item).within_item(field, index);
    items.iter().enumerate().map(convert).collect()
}

fn address(attribute: Attribute, range: &CidrRange) -> Result<Expression, Refusal> {
    Ok(Expression::Test(attribute, Test::Ip(text::block(range)?)))
}

fn path(matcher: &PathMatcher) -> Result<Expression, Refusal> {
    let Some(path) = &matcher.path else { return Err(Refusal::at("path", "there is none")) };
    Ok(Expression::Test(Attribute::RequestPath, text::test(path, Case::Heeded).within("path")?))
}

/// Envoy writes `*` and `**` where Istio writes `{*}` and `{**}`.
fn template(extension: &TypedExtension) -> Result<Expression, Refusal> {
    const TYPE: &str = "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig";
    let config =
        extension.typed_config.as_ref().ok_or_else(|| Refusal::at("typed_config", "there is none"))?;
    let config: UriTemplate = unpack(config, TYPE).within("typed_config")?;
    let refused = |reason: String| Refusal::at("typed_config.path_template", reason);
    if Template::is_template(&config.path_template) {
        return Err(refused(format!("{:?} holds a variable, which is not supported", config.path_template)));
    }
    let segments: Vec<_> = config
        .path_template
        .split('/')
        .map(|segment| match segment {
            "*" => "{*}",
            "**" => "{**}",
            literal => literal,
        })
        .collect();
    let text = segments.join("/").into();
    Template::compile(&text).map_err(|error| refused(error.to_string()))?;
    Ok(Expression::Test(Attribute::RequestPath, Test::Template(text)))
}

fn header(matcher: &HeaderMatcher) -> Result<Expression, Refusal> {
    if matcher.invert_match || matcher.treat_missing_header_as_empty {
        return Err(Refusal::at("invert_match", "inverted matches and defaults are not supported here"));
    }
    let (attribute, case) = match matcher.name.as_str() {
        ":authority" => (Attribute::RequestHost, Case::Ignored),
        ":method" => (Attribute::RequestMethod, Case::Heeded),
        name if name.starts_with(':') => {
            return Err(Refusal::at("name", format!("{name} is not supported here")));
        }
        name => (Attribute::RequestHeader(text::lower(name)), Case::Heeded),
    };
    let test = match &matcher.specifier {
        Some(Specifier::PresentMatch(true)) => Test::Present,
        Some(Specifier::StringMatch(matcher)) => match text::test(matcher, case).within("string_match")? {
            // `Present` takes an empty header too, and this does not.
            Test::Present if matches!(attribute, Attribute::RequestHeader(_)) => {
                return Err(text::expression(".+"));
            }
            test => test,
        },
        Some(Specifier::ExactMatch(text)) if case == Case::Heeded => Test::Exact(text.as_str().into()),
        Some(Specifier::PrefixMatch(text)) if case == Case::Heeded => Test::Prefix(text.as_str().into()),
        Some(Specifier::SuffixMatch(text)) if case == Case::Heeded => Test::Suffix(text.as_str().into()),
        _ => return Err(Refusal::new(format!("this kind of match on {} is not supported", matcher.name))),
    };
    Ok(Expression::Test(attribute, test))
}

fn filter_state(matcher: &FilterStateMatcher) -> Result<Expression, Refusal> {
    if matcher.key != PEER_PRINCIPAL {
        return Err(Refusal::at("key", format!("{:?} is not supported", matcher.key)));
    }
    let Some(name) = &matcher.string_match else { return Err(Refusal::at("string_match", "there is none")) };
    peer(name).within("string_match")
}

/// The identity of the peer, with its scheme. istiod writes each kind of source in one way.
fn peer(matcher: &StringMatcher) -> Result<Expression, Refusal> {
    let without_scheme = |text: &str| {
        let rest = text.strip_prefix(SCHEME);
        rest.map(Into::into).ok_or_else(|| Refusal::new(format!("{text:?} does not begin with {SCHEME}")))
    };
    let principal = |test| Ok(Expression::Test(Attribute::SourcePrincipal, test));
    match text::pattern(matcher, Case::Heeded)? {
        Pattern::Exact(text) => principal(Test::Exact(without_scheme(text)?)),
        Pattern::Prefix(text) => principal(Test::Prefix(without_scheme(text)?)),
        Pattern::Suffix(text) => principal(Test::Suffix(text.as_str().into())),
        Pattern::Contains(_) => Err(Refusal::at("contains", "is not supported here")),
        Pattern::SafeRegex(regex) => {
            peer_expression(&regex.regex).ok_or_else(|| text::expression(&regex.regex))
        }
    }
}

fn peer_expression(regex: &str) -> Option<Expression> {
    if regex == ".+" {
        return Some(Expression::Test(Attribute::SourcePrincipal, Test::Present));
    }
    // source.namespaces
    if let Some(namespace) = regex.strip_prefix(".*/ns/").and_then(|rest| rest.strip_suffix("/.*")) {
        return namespace_test(namespace).map(|test| Expression::Test(Attribute::SourceNamespace, test));
    }
    // source.serviceAccounts
    if let Some(rest) = regex.strip_prefix("spiffe://.+/ns/") {
        let (namespace, account) = rest.strip_suffix("(/.+)?")?.split_once("/(.+/|)sa/")?;
        let plain = |text: &&str| !text.contains('/') && text::literal(text).is_some();
        let (namespace, account) =
            Some((namespace, account)).filter(|(left, right)| plain(left) && plain(right))?;
        let test = Test::Exact(format!("{namespace}/{account}").into());
        return Some(Expression::Test(Attribute::SourceServiceAccount, test));
    }
    // source.principals with a star in front; source.trustDomains.
    let rest = regex.strip_prefix(SCHEME)?;
    if let Some(suffix) = rest.strip_prefix(".*").and_then(text::literal) {
        return Some(Expression::Test(Attribute::SourcePrincipal, Test::Suffix(suffix.into())));
    }
    let domain = rest.strip_suffix("/.*").or_else(|| rest.strip_suffix("/.+"))?;
    trust_domain_test(domain).map(|test| Expression::Test(Attribute::SourceTrustDomain, test))
}

/// Of namespaces any star stands for any letters; the expression has `.*` in its place.
fn namespace_test(regex: &str) -> Option<Test> {
    let pieces: Vec<_> = regex.split(".*").collect();
    let plain = |piece: &&str| piece.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    if !pieces.iter().all(plain) {
        return None;
    }
    Some(match pieces[..] {
        [only] => Test::Exact(only.into()),
        _ => Test::Glob(pieces.join("*").into()),
    })
}

fn trust_domain_test(regex: &str) -> Option<Test> {
    let plain = |text: &str| !text.contains(['/', ':']) && text::literal(text).is_some();
    if let Some(suffix) = regex.strip_prefix(".*").filter(|text| plain(text) && !text.is_empty()) {
        return Some(Test::Suffix(suffix.into()));
    }
    if let Some(prefix) = regex.strip_suffix(".*").filter(|text| plain(text) && !text.is_empty()) {
        return Some(Test::Prefix(prefix.into()));
    }
    (plain(regex) && !regex.is_empty()).then(|| Test::Exact(regex.into()))
}
