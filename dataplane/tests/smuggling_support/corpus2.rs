//! Requests of HTTP/2 that would be others, or more than one, if they were written as HTTP/1.1 as they stand. `@` stands
//! for the path of the case, `{S}` for a request that policy denies.

pub type Fields = &'static [(&'static str, &'static str)];

pub struct Case2 {
    pub name: &'static str,
    pub fields: Fields,
    pub body: Option<&'static str>,
    pub trailers: Fields,
    /// Whether the application gets it, as one request; else it gets none.
    pub passes: bool,
}

/// A request without a body.
const fn head(name: &'static str, fields: Fields) -> Case2 {
    Case2 { name, fields, body: None, trailers: &[], passes: false }
}

const fn body(name: &'static str, fields: Fields, body: &'static str) -> Case2 {
    Case2 { body: Some(body), ..head(name, fields) }
}

const fn trailer(name: &'static str, fields: Fields, trailers: Fields) -> Case2 {
    Case2 { trailers, ..body(name, fields, "abc") }
}

const fn passes(case: Case2) -> Case2 {
    Case2 { passes: true, ..case }
}

pub const CASES: &[Case2] = &[
    passes(head("plain", &[(":method", "POST"), (":scheme", "http"), (":authority", "web"), (":path", "@")])),
    passes(body(
        "body-of-unknown-length",
        &[(":method", "POST"), (":scheme", "http"), (":authority", "web"), (":path", "@")],
        "abc",
    )),
    passes(body(
        "body-is-a-request",
        &[(":method", "POST"), (":scheme", "http"), (":authority", "web"), (":path", "@")],
        "0\r\n\r\n{S}",
    )),
    passes(body(
        "length",
        &[
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "web"),
            (":path", "@"),
            ("content-length", "3"),
        ],
        "abc",
    )),
    passes(head(
        "te-trailers",
        &[
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "web"),
            (":path", "@"),
            ("te", "trailers"),
        ],
    )),
    passes(body(
        "underscore",
        &[
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "web"),
            (":path", "@"),
            ("transfer_encoding", "chunked"),
        ],
        "abc",
    )),
    body(
        "value-crlf",
        &[
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "web"),
            (":path", "@"),
            ("x", "a\r\nTransfer-Encoding: chunked"),
        ],
        "abc",
    ),
    body(
        "value-request",
        &[
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "web"),
            (":path", "@"),
            ("x", "a\r\n\r\nGET @/smuggled HTTP/1.1\r\nHost: web\r\n\r\n"),
        ],
        "abc",
    ),
    body(
        "value-lf",
        &[(":method", "POST"), (":scheme", "http"), (":authority", "web"), (":path", "@"), ("x", "a\nX: y")],
        "abc",
    ),
    body(
        "value-cr",
        &[(":method", "POST"), (":scheme", "http"), (":authority", "web"), (":path", "@"), ("x", "a\rX: y")],
        "abc",
    ),
    body(
        "value-nul",
        &[(":method", "POST"), (":scheme", "http"), (":authority", "web"), (":path", "@"), ("x", "a\0b")],
        "abc",
    ),
    body(
        "value-bell",
        &[(":method", "POST"), (":scheme", "http"), (":authority", "web"), (":path", "@"), ("x", "a\u{7}b")],
        "abc",
    ),
    body(
        "value-delete",
        &[(":method", "POST"), (":scheme", "http"), (":authority", "web"), (":path", "@"), ("x", "a\u{7f}b")],
        "abc",
    ),
    head(
        "value-space-before",
        &[(":method", "POST"), (":scheme", "http"), (":authority", "web"), (":path", "@"), ("x", " a")],
    ),
    head(
        "value-space-after",
        &[(":method", "POST"), (":scheme", "http"), (":authority", "web"), (":path", "@"), ("x", "a ")],
    ),
    body(
        "name-crlf",
        &[
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "web"),
            (":path", "@"),
            ("x\r\nhost", "chunked"),
        ],
        "abc",
    ),
    body(
        "name-colon",
        &[
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "web"),
            (":path", "@"),
            ("x: y", "chunked"),
        ],
        "abc",
    ),
    body(
        "name-space",
        &[
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "web"),
            (":path", "@"),
            ("x y", "chunked"),
        ],
        "abc",
    ),
    body(
        "name-space-after",
        &[
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "web"),
            (":path", "@"),
            ("transfer-encoding ", "chunked"),
        ],
        "abc",
    ),
    body(
        "name-upper",
        &[
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "web"),
            (":path", "@"),
            ("X-Upper", "chunked"),
        ],
        "abc",
    ),
    body(
        "name-empty",
        &[(":method", "POST"), (":scheme", "http"), (":authority", "web"), (":path", "@"), ("", "chunked")],
        "abc",
    ),
    body(
        "name-nul",
        &[
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "web"),
            (":path", "@"),
            ("x\0", "chunked"),
        ],
        "abc",
    ),
    body(
        "name-tab",
        &[
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "web"),
            (":path", "@"),
            ("x\ty", "chunked"),
        ],
        "abc",
    ),
    body(
        "name-lf",
        &[
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "web"),
            (":path", "@"),
            ("x\ny", "chunked"),
        ],
        "abc",
    ),
    body(
        "name-obs-text",
        &[
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "web"),
            (":path", "@"),
            ("x\u{e9}", "chunked"),
        ],
        "abc",
    ),
    body(
        "name-bracket",
        &[
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "web"),
            (":path", "@"),
            ("x[y]", "chunked"),
        ],
        "abc",
    ),
    body(
        "hop-connection",
        &[
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "web"),
            (":path", "@"),
            ("connection", "close"),
        ],
        "0\r\n\r\n{S}",
    ),
    body(
        "hop-keep-alive",
        &[
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "web"),
            (":path", "@"),
            ("keep-alive", "close"),
        ],
        "0\r\n\r\n{S}",
    ),
    body(
        "hop-proxy-connection",
        &[
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "web"),
            (":path", "@"),
            ("proxy-connection", "close"),
        ],
        "0\r\n\r\n{S}",
    ),
    body(
        "hop-transfer-encoding",
        &[
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "web"),
            (":path", "@"),
            ("transfer-encoding", "chunked"),
        ],
        "0\r\n\r\n{S}",
    ),
    body(
        "hop-upgrade",
        &[
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "web"),
            (":path", "@"),
            ("upgrade", "close"),
        ],
        "0\r\n\r\n{S}",
    ),
    head(
        "te-gzip",
        &[(":method", "POST"), (":scheme", "http"), (":authority", "web"), (":path", "@"), ("te", "gzip")],
    ),
    head("path-space", &[(":method", "GET"), (":scheme", "http"), (":authority", "web"), (":path", "@ x")]),
    head(
        "path-line",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "web"), (":path", "@ HTTP/1.1\r\nX: y")],
    ),
    head(
        "path-request",
        &[
            (":method", "GET"),
            (":scheme", "http"),
            (":authority", "web"),
            (":path", "@ HTTP/1.1\r\nHost: web\r\n\r\nGET @/smuggled HTTP/1.1\r\nX:"),
        ],
    ),
    head("path-nul", &[(":method", "GET"), (":scheme", "http"), (":authority", "web"), (":path", "@\0")]),
    head("path-lf", &[(":method", "GET"), (":scheme", "http"), (":authority", "web"), (":path", "@\n")]),
    head("path-tab", &[(":method", "GET"), (":scheme", "http"), (":authority", "web"), (":path", "@\tx")]),
    head("path-empty", &[(":method", "GET"), (":scheme", "http"), (":authority", "web"), (":path", "")]),
    head("path-relative", &[(":method", "GET"), (":scheme", "http"), (":authority", "web"), (":path", "x@")]),
    head(
        "path-absolute",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "web"), (":path", "http://web@")],
    ),
    head(
        "path-escaped-nul",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "web"), (":path", "@/%00")],
    ),
    head("path-star", &[(":method", "GET"), (":scheme", "http"), (":authority", "web"), (":path", "*")]),
    head(
        "path-obs-text",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "web"), (":path", "@/\u{e9}")],
    ),
    passes(head(
        "path-fragment",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "web"), (":path", "@/a#/smuggled")],
    )),
    head(
        "path-smuggled",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "web"), (":path", "@/x/../smuggled")],
    ),
    head(
        "method-line",
        &[
            (":method", "GET @/smuggled HTTP/1.1\r\nHost: web\r\n\r\nGET"),
            (":scheme", "http"),
            (":authority", "web"),
            (":path", "@"),
        ],
    ),
    head(
        "method-space",
        &[(":method", "GET @/smuggled"), (":scheme", "http"), (":authority", "web"), (":path", "@")],
    ),
    head("method-empty", &[(":method", ""), (":scheme", "http"), (":authority", "web"), (":path", "@")]),
    head("method-nul", &[(":method", "G\0T"), (":scheme", "http"), (":authority", "web"), (":path", "@")]),
    head(
        "method-connect",
        &[(":method", "CONNECT"), (":scheme", "http"), (":authority", "web"), (":path", "@")],
    ),
    head(
        "authority-crlf",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "web\r\nX: y"), (":path", "@")],
    ),
    head(
        "authority-space",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "web x"), (":path", "@")],
    ),
    head(
        "authority-path",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "web/smuggled"), (":path", "@")],
    ),
    head(
        "authority-user",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "u@web"), (":path", "@")],
    ),
    head(
        "authority-list",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "web,other"), (":path", "@")],
    ),
    head(
        "authority-nul",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "web\0"), (":path", "@")],
    ),
    head(
        "scheme-crlf",
        &[(":method", "GET"), (":scheme", "http\r\nX: y"), (":authority", "web"), (":path", "@")],
    ),
    head(
        "scheme-url",
        &[(":method", "GET"), (":scheme", "http://web@/smuggled?"), (":authority", "web"), (":path", "@")],
    ),
    head("scheme-empty", &[(":method", "GET"), (":scheme", ""), (":authority", "web"), (":path", "@")]),
    head("no-method", &[(":scheme", "http"), (":authority", "web"), (":path", "@")]),
    head("no-path", &[(":method", "GET"), (":scheme", "http"), (":authority", "web")]),
    head("no-scheme", &[(":method", "GET"), (":authority", "web"), (":path", "@")]),
    head(
        "two-methods",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "web"), (":path", "@"), (":method", "PUT")],
    ),
    head(
        "two-paths",
        &[
            (":method", "GET"),
            (":scheme", "http"),
            (":authority", "web"),
            (":path", "@"),
            (":path", "@/smuggled"),
        ],
    ),
    head(
        "two-authorities",
        &[
            (":method", "GET"),
            (":scheme", "http"),
            (":authority", "web"),
            (":path", "@"),
            (":authority", "other"),
        ],
    ),
    head(
        "late-pseudo",
        &[
            (":method", "GET"),
            (":scheme", "http"),
            (":authority", "web"),
            (":path", "@"),
            ("x", "y"),
            (":path", "@/smuggled"),
        ],
    ),
    head(
        "unknown-pseudo",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "web"), (":path", "@"), (":smuggle", "x")],
    ),
    head(
        "status-in-request",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "web"), (":path", "@"), (":status", "200")],
    ),
    head(
        "host-differs",
        &[(":method", "POST"), (":scheme", "http"), (":authority", "web"), (":path", "@"), ("host", "other")],
    ),
    head(
        "two-hosts",
        &[
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "web"),
            (":path", "@"),
            ("host", "web"),
            ("host", "web"),
        ],
    ),
    body(
        "length-longer",
        &[
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "web"),
            (":path", "@"),
            ("content-length", "100"),
        ],
        "abc{S}",
    ),
    body(
        "length-shorter",
        &[
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "web"),
            (":path", "@"),
            ("content-length", "3"),
        ],
        "abc{S}",
    ),
    head(
        "length-without-body",
        &[
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "web"),
            (":path", "@"),
            ("content-length", "3"),
        ],
    ),
    body(
        "two-lengths",
        &[
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "web"),
            (":path", "@"),
            ("content-length", "3"),
            ("content-length", "3"),
        ],
        "abc",
    ),
    body(
        "two-other-lengths",
        &[
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "web"),
            (":path", "@"),
            ("content-length", "3"),
            ("content-length", "4"),
        ],
        "abc",
    ),
    body(
        "length-plus",
        &[
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "web"),
            (":path", "@"),
            ("content-length", "+3"),
        ],
        "abc",
    ),
    body(
        "length-list",
        &[
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "web"),
            (":path", "@"),
            ("content-length", "3, 3"),
        ],
        "abc",
    ),
    body(
        "length-overflow",
        &[
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "web"),
            (":path", "@"),
            ("content-length", "18446744073709551619"),
        ],
        "abc",
    ),
    passes(trailer(
        "trailer",
        &[(":method", "POST"), (":scheme", "http"), (":authority", "web"), (":path", "@")],
        &[("x-t", "1")],
    )),
    trailer(
        "trailer-pseudo",
        &[(":method", "POST"), (":scheme", "http"), (":authority", "web"), (":path", "@")],
        &[(":path", "@/smuggled")],
    ),
    trailer(
        "trailer-crlf",
        &[(":method", "POST"), (":scheme", "http"), (":authority", "web"), (":path", "@")],
        &[("x", "a\r\n\r\nGET / HTTP/1.1")],
    ),
    trailer(
        "trailer-upper",
        &[(":method", "POST"), (":scheme", "http"), (":authority", "web"), (":path", "@")],
        &[("X", "a")],
    ),
    trailer(
        "trailer-hop",
        &[(":method", "POST"), (":scheme", "http"), (":authority", "web"), (":path", "@")],
        &[("transfer-encoding", "chunked")],
    ),
];
