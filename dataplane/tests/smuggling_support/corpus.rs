//! Requests that two parsers could read in two ways, and what may become of each.
//!
//! `@` stands for the path of the case, `{S}` for a request that policy denies and that must never reach the
//! application.

use Outcome::{Passed, Refused};

#[derive(Debug, Clone, Copy)]
pub enum Outcome {
    /// An error or a closed connection, and nothing whole at the application.
    Refused,
    /// Exactly these messages at the application: request line without version, and body.
    Passed(&'static [(&'static str, &'static str)]),
}

pub type Case = (&'static str, &'static str, Outcome);

pub const SMUGGLED: &str = "GET @/smuggled HTTP/1.1\r\nHost: web\r\n\r\n";

pub const CASES: &[Case] = &[
    // === Content-Length beside Transfer-Encoding ===
    (
        "cl-te",
        "POST @ HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{S}",
        Refused,
    ),
    (
        "te-cl",
        "POST @ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n32\r\n{S}\r\n0\r\n\r\n",
        Refused,
    ),
    (
        "cl-te-upper",
        "POST @ HTTP/1.1\r\nHost: web\r\nCONTENT-LENGTH: 5\r\nTRANSFER-ENCODING: CHUNKED\r\n\r\n0\r\n\r\n{S}",
        Refused,
    ),
    (
        "cl-zero-te",
        "POST @ HTTP/1.1\r\nHost: web\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{S}",
        Refused,
    ),
    (
        "cl-te-tab",
        "POST @ HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\nTransfer-Encoding:\tchunked\r\n\r\n0\r\n\r\n{S}",
        Refused,
    ),
    // === Codings that only one side takes for chunked ===
    (
        "te-space-before-colon",
        "POST @ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding : chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{S}",
        Refused,
    ),
    (
        "te-space-before-colon-alone",
        "POST @ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n{S}",
        Refused,
    ),
    (
        "te-twice",
        "POST @ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{S}",
        Refused,
    ),
    (
        "te-chunked-then-identity",
        "POST @ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{S}",
        Refused,
    ),
    (
        "te-identity-then-chunked",
        "POST @ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{S}",
        Refused,
    ),
    (
        "te-list-identity-first",
        "POST @ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n{S}",
        Refused,
    ),
    (
        "te-list-identity-last",
        "POST @ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked, identity\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{S}",
        Refused,
    ),
    (
        "te-gzip-chunked",
        "POST @ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n{S}",
        Refused,
    ),
    (
        "te-unknown",
        "POST @ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: xchunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{S}",
        Refused,
    ),
    (
        "te-empty",
        "POST @ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding:\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{S}",
        Refused,
    ),
    (
        "te-quoted",
        "POST @ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n{S}",
        Refused,
    ),
    (
        "te-parameter",
        "POST @ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n{S}",
        Refused,
    ),
    ("te-comma", "POST @ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked,\r\n\r\n0\r\n\r\n{S}", Refused),
    (
        "te-vertical-tab",
        "POST @ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: \u{b}chunked\r\n\r\n0\r\n\r\n{S}",
        Refused,
    ),
    ("te-nul", "POST @ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\0\r\n\r\n0\r\n\r\n{S}", Refused),
    (
        "te-nul-inside",
        "POST @ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chu\0nked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{S}",
        Refused,
    ),
    (
        "te-obs-text",
        "POST @ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: \u{a0}chunked\r\n\r\n0\r\n\r\n{S}",
        Refused,
    ),
    (
        "te-folded",
        "POST @ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n{S}",
        Refused,
    ),
    (
        "te-behind-fold",
        "POST @ HTTP/1.1\r\nHost: web\r\nX: y\r\n Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{S}",
        Refused,
    ),
    (
        "te-behind-bare-lf",
        "POST @ HTTP/1.1\r\nHost: web\r\nX: y\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{S}",
        Refused,
    ),
    (
        "te-behind-bare-cr",
        "POST @ HTTP/1.1\r\nHost: web\r\nX: y\rTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{S}",
        Refused,
    ),
    (
        "te-name-broken",
        "POST @ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding\r\n: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{S}",
        Refused,
    ),
    (
        "te-in-http10",
        "POST @ HTTP/1.0\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{S}",
        Refused,
    ),
    (
        "te-named-by-connection",
        "POST @ HTTP/1.1\r\nHost: web\r\nConnection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        Passed(&[("POST @", "abc")]),
    ),
    (
        "te-other-name",
        "POST @ HTTP/1.1\r\nHost: web\r\nContent-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        Passed(&[("POST @", "0\r\n\r\n")]),
    ),
    // === Lengths ===
    (
        "cl-twice-alike",
        "POST @ HTTP/1.1\r\nHost: web\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc{S}",
        Refused,
    ),
    (
        "cl-twice",
        "POST @ HTTP/1.1\r\nHost: web\r\nContent-Length: 3\r\nContent-Length: 53\r\n\r\nabc{S}",
        Refused,
    ),
    ("cl-list", "POST @ HTTP/1.1\r\nHost: web\r\nContent-Length: 3, 53\r\n\r\nabc{S}", Refused),
    ("cl-list-alike", "POST @ HTTP/1.1\r\nHost: web\r\nContent-Length: 3, 3\r\n\r\nabc{S}", Refused),
    ("cl-plus", "POST @ HTTP/1.1\r\nHost: web\r\nContent-Length: +3\r\n\r\nabc{S}", Refused),
    ("cl-minus", "POST @ HTTP/1.1\r\nHost: web\r\nContent-Length: -3\r\n\r\nabc{S}", Refused),
    ("cl-hex", "POST @ HTTP/1.1\r\nHost: web\r\nContent-Length: 0x3\r\n\r\nabc{S}", Refused),
    ("cl-space-inside", "POST @ HTTP/1.1\r\nHost: web\r\nContent-Length: 3 0\r\n\r\nabc{S}", Refused),
    ("cl-empty", "POST @ HTTP/1.1\r\nHost: web\r\nContent-Length:\r\n\r\n{S}", Refused),
    (
        "cl-overflow",
        "POST @ HTTP/1.1\r\nHost: web\r\nContent-Length: 18446744073709551619\r\n\r\nabc{S}",
        Refused,
    ),
    ("cl-fraction", "POST @ HTTP/1.1\r\nHost: web\r\nContent-Length: 3.0\r\n\r\nabc{S}", Refused),
    ("cl-space-before-colon", "POST @ HTTP/1.1\r\nHost: web\r\nContent-Length : 3\r\n\r\nabc{S}", Refused),
    ("cl-folded", "POST @ HTTP/1.1\r\nHost: web\r\nContent-Length:\r\n 3\r\n\r\nabc{S}", Refused),
    (
        "cl-zeros",
        "POST @ HTTP/1.1\r\nHost: web\r\nContent-Length: 003\r\n\r\nabc",
        Passed(&[("POST @", "abc")]),
    ),
    ("cl-of-get", "GET @ HTTP/1.1\r\nHost: web\r\nContent-Length: 3\r\n\r\nabc", Passed(&[("GET @", "abc")])),
    (
        "cl-named-by-connection",
        "POST @ HTTP/1.1\r\nHost: web\r\nConnection: content-length\r\nContent-Length: 3\r\n\r\nabc",
        Passed(&[("POST @", "abc")]),
    ),
    (
        "host-named-by-connection",
        "GET @ HTTP/1.1\r\nHost: web\r\nConnection: host\r\n\r\n",
        Passed(&[("GET @", "")]),
    ),
    (
        "body-longer-than-announced",
        "POST @ HTTP/1.1\r\nHost: web\r\nContent-Length: 3\r\n\r\nabcdef\r\n\r\n",
        Passed(&[("POST @", "abc")]),
    ),
    (
        "body-is-a-request",
        "POST @ HTTP/1.1\r\nHost: web\r\nContent-Length: 3\r\n\r\nabc{S}",
        Passed(&[("POST @", "abc")]),
    ),
    (
        "body-shorter-than-announced",
        "POST @ HTTP/1.1\r\nHost: web\r\nContent-Length: 300\r\n\r\nabc{S}",
        Refused,
    ),
    // === Chunks ===
    (
        "chunk-plus",
        "POST @ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n+3\r\nabc\r\n0\r\n\r\n{S}",
        Refused,
    ),
    (
        "chunk-minus",
        "POST @ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n-3\r\nabc\r\n0\r\n\r\n{S}",
        Refused,
    ),
    (
        "chunk-0x",
        "POST @ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n{S}",
        Refused,
    ),
    (
        "chunk-space-before",
        "POST @ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n 3\r\nabc\r\n0\r\n\r\n{S}",
        Refused,
    ),
    (
        "chunk-space-after",
        "POST @ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n3 \r\nabc\r\n0\r\n\r\n{S}",
        Refused,
    ),
    (
        "chunk-no-size",
        "POST @ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n\r\nabc\r\n0\r\n\r\n{S}",
        Refused,
    ),
    (
        "chunk-overflow",
        "POST @ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000003\r\nabc\r\n0\r\n\r\n{S}",
        Refused,
    ),
    (
        "chunk-bare-lf",
        "POST @ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\n0\n\n{S}",
        Refused,
    ),
    (
        "chunk-no-end",
        "POST @ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n{S}",
        Refused,
    ),
    (
        "chunk-extension",
        "POST @ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\n\r\n",
        Passed(&[("POST @", "abc")]),
    ),
    (
        "chunk-extension-bare-lf",
        "POST @ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n3;a\nabc\r\n0\r\n\r\n{S}",
        Refused,
    ),
    (
        "chunk-extension-bare-cr",
        "POST @ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n3;a\rb\r\nabc\r\n0\r\n\r\n{S}",
        Refused,
    ),
    (
        "chunk-extension-of-last",
        "POST @ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n0;\n\r\n\r\n{S}",
        Refused,
    ),
    (
        "trailer",
        "POST @ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-T: 1\r\n\r\n",
        Passed(&[("POST @", "abc")]),
    ),
    (
        "trailer-length",
        "POST @ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 50\r\n\r\n{S}",
        Refused,
    ),
    (
        "trailer-encoding",
        "POST @ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nTransfer-Encoding: identity\r\n\r\n{S}",
        Refused,
    ),
    (
        "trailer-host",
        "POST @ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nHost: other\r\n\r\n{S}",
        Refused,
    ),
    (
        "trailer-bare-lf",
        "POST @ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\n\r\n\r\n{S}",
        Refused,
    ),
    (
        "trailer-folded",
        "POST @ HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n z\r\n\r\n{S}",
        Refused,
    ),
    // === Lines ===
    ("bare-lf", "GET @ HTTP/1.1\nHost: web\n\n{S}", Refused),
    ("bare-lf-at-the-end", "GET @ HTTP/1.1\r\nHost: web\r\n\n{S}", Refused),
    ("bare-cr", "GET @ HTTP/1.1\r\nHost: web\r\nX: y\rz\r\n\r\n{S}", Refused),
    ("bare-cr-at-the-end", "GET @ HTTP/1.1\r\nHost: web\r\nX: y\r\r\n\r\n{S}", Refused),
    ("folded", "GET @ HTTP/1.1\r\nHost: web\r\nX: y\r\n\tz\r\n\r\n{S}", Refused),
    ("folded-first", "GET @ HTTP/1.1\r\n Host: web\r\nHost: web\r\n\r\n{S}", Refused),
    ("name-empty", "GET @ HTTP/1.1\r\nHost: web\r\n: y\r\n\r\n{S}", Refused),
    ("name-with-space", "GET @ HTTP/1.1\r\nHost: web\r\nX y: z\r\n\r\n{S}", Refused),
    ("name-space-before-colon", "GET @ HTTP/1.1\r\nHost: web\r\nX : y\r\n\r\n{S}", Refused),
    ("name-nul", "GET @ HTTP/1.1\r\nHost: web\r\nX\0: y\r\n\r\n{S}", Refused),
    ("name-obs-text", "GET @ HTTP/1.1\r\nHost: web\r\n\u{e9}: y\r\n\r\n{S}", Refused),
    ("no-colon", "GET @ HTTP/1.1\r\nHost: web\r\nX\r\n\r\n{S}", Refused),
    ("value-nul", "GET @ HTTP/1.1\r\nHost: web\r\nX: a\0b\r\n\r\n{S}", Refused),
    ("empty-line-first", "\r\nGET @ HTTP/1.1\r\nHost: web\r\n\r\n", Passed(&[("GET @", "")])),
    ("empty-lines-first", "\r\n\r\nGET @ HTTP/1.1\r\nHost: web\r\n\r\n", Refused),
    // === Request lines ===
    ("line-two-spaces", "GET  @ HTTP/1.1\r\nHost: web\r\n\r\n{S}", Refused),
    ("line-tab", "GET\t@ HTTP/1.1\r\nHost: web\r\n\r\n{S}", Refused),
    ("line-space-at-the-end", "GET @ HTTP/1.1 \r\nHost: web\r\n\r\n{S}", Refused),
    ("line-space-in-the-path", "GET @/a b HTTP/1.1\r\nHost: web\r\n\r\n{S}", Refused),
    ("line-http-inside", "GET @ HTTP/1.1 HTTP/1.1\r\nHost: web\r\n\r\n{S}", Refused),
    ("line-version-0.9", "GET @\r\n\r\n{S}", Refused),
    ("line-version-1.2", "GET @ HTTP/1.2\r\nHost: web\r\n\r\n{S}", Refused),
    ("line-version-2.0", "GET @ HTTP/2.0\r\nHost: web\r\n\r\n{S}", Refused),
    ("line-version-lower", "GET @ http/1.1\r\nHost: web\r\n\r\n{S}", Refused),
    ("line-method-bad", "G(T @ HTTP/1.1\r\nHost: web\r\n\r\n{S}", Refused),
    ("line-nul", "GET @/a\0b HTTP/1.1\r\nHost: web\r\n\r\n{S}", Refused),
    ("line-escaped-nul", "GET @/a%00b HTTP/1.1\r\nHost: web\r\n\r\n", Refused),
    (
        "line-escaped-line-end",
        "GET @/a%0d%0aX:%20y HTTP/1.1\r\nHost: web\r\n\r\n",
        Passed(&[("GET @/a%0d%0aX:%20y", "")]),
    ),
    ("line-fragment", "GET @/a#/../smuggled HTTP/1.1\r\nHost: web\r\n\r\n", Passed(&[("GET @/a", "")])),
    ("line-backslash", "GET @\\..\\b HTTP/1.1\r\nHost: web\r\n\r\n", Passed(&[("GET /b", "")])),
    // === Hosts ===
    ("host-missing", "GET @ HTTP/1.1\r\n\r\n{S}", Refused),
    ("host-twice", "GET @ HTTP/1.1\r\nHost: web\r\nHost: other\r\n\r\n{S}", Refused),
    ("host-twice-alike", "GET @ HTTP/1.1\r\nHost: web\r\nHost: web\r\n\r\n{S}", Refused),
    ("host-list", "GET @ HTTP/1.1\r\nHost: web, other\r\n\r\n{S}", Refused),
    ("host-space", "GET @ HTTP/1.1\r\nHost: web other\r\n\r\n{S}", Refused),
    ("host-path", "GET @ HTTP/1.1\r\nHost: web/smuggled\r\n\r\n{S}", Refused),
    ("host-user", "GET @ HTTP/1.1\r\nHost: web@other\r\n\r\n{S}", Refused),
    ("host-in-the-target", "GET http://other@ HTTP/1.1\r\nHost: web\r\n\r\n", Passed(&[("GET @", "")])),
    ("host-in-a-bad-target", "GET http://other:x@ HTTP/1.1\r\nHost: web\r\n\r\n{S}", Refused),
    ("target-of-another-scheme", "GET file://web@ HTTP/1.1\r\nHost: web\r\n\r\n{S}", Refused),
    ("target-without-slash", "GET web@ HTTP/1.1\r\nHost: web\r\n\r\n{S}", Refused),
    // === Other protocols, and bodies that nobody reads ===
    ("connect", "CONNECT web:80 HTTP/1.1\r\nHost: web:80\r\n\r\n{S}", Refused),
    ("connect-path", "CONNECT @ HTTP/1.1\r\nHost: web\r\nContent-Length: 0\r\n\r\n{S}", Refused),
    (
        "upgrade-refused",
        "GET @ HTTP/1.1\r\nHost: web\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n{S}",
        Passed(&[("GET @", "")]),
    ),
    (
        "upgrade-with-body",
        "POST @ HTTP/1.1\r\nHost: web\r\nConnection: upgrade\r\nUpgrade: echo\r\nContent-Length: 3\r\n\r\nabc{S}",
        Passed(&[("POST @", "abc")]),
    ),
    (
        "upgrade-h2c",
        "GET @ HTTP/1.1\r\nHost: web\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n{S}",
        Passed(&[("GET @", "")]),
    ),
    ("denied-with-body", "POST @/smuggled HTTP/1.1\r\nHost: web\r\nContent-Length: 60\r\n\r\n{S}", Refused),
    (
        "denied-with-chunks",
        "POST @/smuggled HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{S}",
        Refused,
    ),
    (
        "expectation-unknown",
        "POST @ HTTP/1.1\r\nHost: web\r\nExpect: 200-ok\r\nContent-Length: 3\r\n\r\nabc{S}",
        Refused,
    ),
    ("early-answer", "POST @/413 HTTP/1.1\r\nHost: web\r\nContent-Length: 600\r\n\r\n{S}", Refused),
    (
        "pipelined",
        "POST @ HTTP/1.1\r\nHost: web\r\nContent-Length: 1\r\n\r\naGET @/next HTTP/1.1\r\nHost: web\r\n\r\n",
        Passed(&[("POST @", "a"), ("GET @/next", "")]),
    ),
];
