use super::*;

/// A request that was answered, and one that was not.
struct Known {
    code: Option<i64>,
    path: &'static str,
}

impl Facts for Known {
    fn attribute(&self, attribute: Attribute) -> Option<Value<'_>> {
        match attribute {
            Attribute::RequestPath => Some(Value::Text(self.path.into())),
            Attribute::RequestMethod => Some(Value::Text("GET".into())),
            Attribute::ResponseCode => self.code.map(Value::Integer),
            Attribute::RequestDuration => Some(Value::Duration(1_500_000_000)),
            Attribute::ConnectionMtls => Some(Value::Boolean(true)),
            Attribute::RequestTotalSize => Some(Value::Integer(1024)),
            _ => None,
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        (name == "x-debug").then_some("on")
    }
}

const ANSWERED: Known = Known { code: Some(404), path: "/api/v1" };

fn holds(text: &str) -> bool {
    Filter::compile(text).unwrap_or_else(|error| panic!("{text}: {error}")).holds(&ANSWERED)
}

#[test]
fn what_filters_ask_is_answered() {
    for (text, expected) in [
        ("response.code >= 400", true),
        ("response.code >= 500", false),
        ("response.code >= 400 && response.code < 500", true),
        ("response.code == 200 || request.path.startsWith('/api')", true),
        ("!(response.code == 404)", false),
        ("response.code in [404, 503]", true),
        ("response.code in []", false),
        ("request.method != \"GET\"", false),
        ("request.url_path.contains('v1') && request.path.endsWith('1')", true),
        ("request.path.matches('^/api/v[0-9]+$')", true),
        ("request.path.matches('api')", true),
        ("request.path.matches('^api')", false),
        ("request.headers['X-Debug'] == 'on'", true),
        ("'x-debug' in request.headers && !('x-none' in request.headers)", true),
        ("has(request.headers.referer)", false),
        ("has(response.code)", true),
        ("request.duration > duration('1s')", true),
        ("request.duration > duration('1m500ms')", false),
        ("connection.mtls", true),
        ("connection.mtls ? response.code > 400 : false", true),
        ("request.total_size / 2 == 512 && request.total_size % 1000 == 24", true),
        ("-response.code + 405 == 1", true),
        ("double(response.code) > 403.5", true),
        ("response.code > 403.5", true),
        ("string(response.code) + '!' == '404!'", true),
        ("int('7') == 7 && size(request.path) == 7 && request.path.size() == 7", true),
        ("request.path < '/b'", true),
        ("1 + 2 * 3 == 7 && (1 + 2) * 3 == 9", true),
        ("true", true),
        ("'it\\'s' == \"it's\"", true),
    ] {
        assert_eq!(holds(text), expected, "{text}");
    }
}

#[test]
fn what_is_unknown_decides_nothing_and_holds_for_nobody() {
    let unanswered = Known { code: None, path: "/" };
    for (text, expected) in [
        ("response.code >= 400", false),
        ("response.code < 400", false),
        ("!(response.code >= 400)", false),
        ("response.code >= 400 || request.path == '/'", true),
        ("request.path == '/' || response.code >= 400", true),
        ("response.code >= 400 && request.path == '/'", false),
        ("!(response.code >= 400 && request.path == '/x')", true),
        ("!has(response.code)", true),
        ("request.headers['x-none'] == ''", false),
        ("response.code == 200 ? true : true", false),
        ("1 / 0 == 1 || 9223372036854775807 + 1 == 0", false),
        ("int('x') == 0", false),
    ] {
        assert_eq!(Filter::compile(text).unwrap().holds(&unanswered), expected, "{text}");
    }
}

#[test]
fn what_could_never_hold_is_refused_where_it_stands() {
    for (text, at, part) in [
        ("", 1, "ends too early"),
        ("response.code", 1, "a condition is expected, and this is a whole number"),
        ("response.kode >= 400", 1, "\"response.kode\" is not known here; known are request.path"),
        ("response.code >= '400'", 18, "a whole number is never compared with a text"),
        ("response.code >= 400 &&", 24, "ends too early"),
        ("response.code >= 400)", 21, "\")\" is not expected here"),
        ("(response.code >= 400", 22, "\")\" is expected and the end found"),
        ("response.code = 400", 15, "'=' has no meaning here"),
        ("request.path.startsWith(1)", 25, "a text is expected, and this is a whole number"),
        ("request.path.lower() == 'x'", 1, "\"lower\" is not known with these arguments"),
        ("request.path.matches('(')", 22, "regular expression"),
        ("request.path.matches('a)|(b')", 22, "regular expression"),
        ("request.headers", 1, "name the header"),
        ("request.headers[request.path] == ''", 17, "in quotes"),
        ("request['path'] == ''", 1, "only request.headers has entries"),
        ("'open", 1, "no closing quote"),
        ("response.code == 99999999999999999999", 18, "too large"),
        ("response.code in 404", 18, "a list such as"),
        ("[1] == [1]", 1, "a list stands only after"),
        ("request.duration > duration('soon')", 29, "write a duration"),
        ("connection.mtls ? 1 : 'a'", 23, "a whole number is expected, and this is a text"),
        ("{'a': 1} == {}", 1, "\"{\" is not expected here"),
    ] {
        let error = Filter::compile(text).unwrap_err();
        assert!(error.what.contains(part) && error.at == at, "{text}: {error}");
    }
}

#[test]
fn size_and_nesting_are_bounded() {
    let nested = format!("{}true{}", "(".repeat(40), ")".repeat(40));
    assert!(Filter::compile(&nested).unwrap_err().what.contains("nested deeper"));
    let long = format!("{}true", "!".repeat(300));
    assert!(Filter::compile(&long).unwrap_err().what.contains("more than 256 parts"));
    let long = format!("'{}' == ''", "x".repeat(EXPRESSION_BYTES_MAX));
    assert!(Filter::compile(&long).unwrap_err().what.contains("too many"));
    assert!(holds(&format!("{}true", "!".repeat(200))));
}

#[test]
fn a_text_alone_is_a_literal() {
    assert_eq!(literal("'on'").as_deref(), Some("on"));
    assert_eq!(literal("(\"a b\")").as_deref(), Some("a b"));
    assert_eq!([literal("request.host"), literal("1"), literal("'"), literal("")], [None, None, None, None]);
}

#[test]
fn headers_that_are_looked_at_are_named_once() {
    let filter = Filter::compile("request.headers['A'] == request.headers['a'] || 'B' in request.headers");
    let names: Vec<String> = filter.unwrap().headers().iter().map(ToString::to_string).collect();
    assert_eq!(names, ["a", "b"]);
}

#[test]
fn fuzz_no_text_makes_it_panic() {
    bolero::check!().with_type::<String>().for_each(|text| {
        if let Ok(filter) = Filter::compile(text) {
            filter.holds(&ANSWERED);
        }
    });
}
