//! Path normalisation: one text that policies match, routes match and the backend receives.
//!
//! A policy is only as good as its agreement with the server behind it on what a path means, so the path is
//! normalised exactly once and the same bytes serve all three. The four modes are those of Istio's mesh
//! configuration. Invariants:
//!
//! - the result starts with `/` (or is `*`), holds no control character, no space and no fragment;
//! - normalising a normalised path changes nothing (so a second proxy on the way sees the same path);
//! - a path that is already normal is borrowed (save a few with stray percent signs): the common case allocates
//!   nothing.
//!
//! The query is split off first and never rewritten.

use std::borrow::Cow;

/// How far paths are normalised (`meshConfig.pathNormalization`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, serde::Serialize, serde::Deserialize)]
pub enum Normalization {
    /// The path as sent.
    None,
    /// RFC 3986 section 6.2.2: unreserved octets decoded, dot segments removed; backslash becomes slash.
    #[default]
    Base,
    /// `Base`, then runs of slashes become one.
    MergeSlashes,
    /// `%2F` and `%5C` are decoded first, then as `MergeSlashes`.
    DecodeAndMergeSlashes,
}

/// A request target cut into what is matched and what is only carried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target<'a> {
    /// Normalised, without query and fragment.
    pub path: Cow<'a, str>,
    /// Without the question mark; `Some("")` where the mark stands alone.
    pub query: Option<&'a str>,
}

/// Why a request target is refused; each is answered with 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("the request target does not start with a slash")]
    NotAbsolute,
    #[error("the request target holds a control character or a space")]
    Character,
    #[error("the path holds an escaped NUL (%00)")]
    EscapedNul,
}

/// Splits and normalises an origin-form request target (RFC 9112 section 3.2.1), or `*`.
///
/// The fragment, which no client may send (RFC 9110 section 7.1), is cut rather than refused, as Istio does.
pub fn normalize(target: &str, mode: Normalization) -> Result<Target<'_>, PathError> {
    if target.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
        return Err(PathError::Character);
    }
    let target = target.split_once('#').map_or(target, |(before, _)| before);
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    if path == "*" && query.is_none() {
        return Ok(Target { path: Cow::Borrowed(path), query });
    }
    // An absolute-form target may end after its authority: its path is then the root (RFC 9112 section 3.2.1).
    let path = if path.is_empty() { "/" } else { path };
    if !path.starts_with('/') {
        return Err(PathError::NotAbsolute);
    }
    let rules = Rules::of(mode);
    let path = match survey(path.as_bytes(), &rules)? {
        Survey::Normal => Cow::Borrowed(path),
        Survey::NeedsRewriting => Cow::Owned(rewrite(path.as_bytes(), &rules)),
    };
    Ok(Target { path, query })
}

// === Rules ===

/// A mode taken apart into its independent steps.
struct Rules {
    canonical: bool,
    decode_slashes: bool,
    merge_slashes: bool,
}

impl Rules {
    fn of(mode: Normalization) -> Self {
        Self {
            canonical: mode != Normalization::None,
            decode_slashes: mode == Normalization::DecodeAndMergeSlashes,
            merge_slashes: matches!(mode, Normalization::MergeSlashes | Normalization::DecodeAndMergeSlashes),
        }
    }

    /// What an escape of `octet` turns into, if it is decoded at all.
    fn decoded(&self, octet: u8) -> Option<u8> {
        match octet {
            b'/' | b'\\' if self.decode_slashes => Some(b'/'),
            _ if is_unreserved(octet) => Some(octet),
            _ => None,
        }
    }
}

// === Survey: is there anything to do? ===

enum Survey {
    Normal,
    NeedsRewriting,
}

fn survey(path: &[u8], rules: &Rules) -> Result<Survey, PathError> {
    let mut result = Survey::Normal;
    let mut rest = path;
    let mut previous = 0;
    while let Some((&byte, after)) = rest.split_first() {
        let changes = match byte {
            b'%' => match escape(after) {
                // Refused in every mode: no server agrees with another on what follows a NUL.
                Some(0) => return Err(PathError::EscapedNul),
                Some(octet) => rules.decoded(octet).is_some(),
                None => false,
            },
            b'/' => is_dot_segment(after) || (rules.merge_slashes && previous == b'/'),
            b'\\' => true,
            _ => must_be_escaped(byte),
        };
        if changes && rules.canonical {
            result = Survey::NeedsRewriting;
        }
        previous = byte;
        rest = after;
    }
    Ok(result)
}

/// The octet written by the two hexadecimal digits that follow a percent sign.
fn escape(after_percent: &[u8]) -> Option<u8> {
    match after_percent {
        [high, low, ..] => Some(hex(*high)? << 4 | hex(*low)?),
        _ => None,
    }
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// RFC 3986 section 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// Characters that a URI path cannot hold (RFC 3986 section 3.3) and that are commonly sent nevertheless; brackets
/// and stray percent signs are left as they are.
fn must_be_escaped(byte: u8) -> bool {
    byte >= 0x80 || matches!(byte, b'"' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}')
}

/// True if the segment that `rest` starts with is `.` or `..`, possibly with a parameter.
///
/// Servlet containers drop `;parameters` before they resolve dots (CVE-2026-73551), hence `..;x` is a dot segment.
fn is_dot_segment(rest: &[u8]) -> bool {
    dots(rest).is_some()
}

/// Number of dots of the dot segment that `rest` starts with.
fn dots(rest: &[u8]) -> Option<usize> {
    let (count, after) = match rest {
        [b'.', b'.', after @ ..] => (2, after),
        [b'.', after @ ..] => (1, after),
        _ => return None,
    };
    matches!(after.first(), None | Some(b'/' | b'\\' | b';')).then_some(count)
}

// === Rewriting ===

fn rewrite(path: &[u8], rules: &Rules) -> String {
    let decoded = decode(path, rules);
    let resolved = resolve_dots(&decoded);
    let merged = if rules.merge_slashes { merge_slashes(resolved) } else { resolved };
    // Every byte that is not ASCII was escaped by `decode`.
    String::from_utf8(merged).unwrap_or_else(|_| "/".to_owned())
}

/// Decodes what the mode decodes and escapes what a path cannot hold. The result is pure ASCII.
fn decode(path: &[u8], rules: &Rules) -> Vec<u8> {
    // Only octets of 0x80 and above and a handful of others grow, so this rarely grows again.
    let mut out = Vec::with_capacity(path.len() + 16);
    let mut rest = path;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'%' => match escape(after) {
                Some(octet) => {
                    rest = after.get(2..).unwrap_or_default();
                    match rules.decoded(octet) {
                        Some(plain) if !completes_stray_escape(&out, plain) => out.push(plain),
                        _ => {
                            out.push(b'%');
                            out.extend_from_slice(after.get(..2).unwrap_or_default());
                        }
                    }
                }
                None => out.push(b'%'),
            },
            b'\\' => out.push(b'/'),
            _ if must_be_escaped(byte) => {
                const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
                out.push(b'%');
                for nibble in [byte >> 4, byte & 0xf] {
                    out.extend(DIGITS.get(usize::from(nibble)));
                }
            }
            _ => out.push(byte),
        }
    }
    out
}

/// True if `plain`, appended to `out`, would stand in the place of a digit of a percent sign that was sent without
/// its digits: `%%32e` must not become `%2e`, a new escape that nobody has looked at.
fn completes_stray_escape(out: &[u8], plain: u8) -> bool {
    // A kept escape ends two digits after its sign, so a sign within the last two bytes is a stray one.
    plain.is_ascii_hexdigit()
        && match out {
            [.., b'%'] => true,
            [.., b'%', digit] => digit.is_ascii_hexdigit(),
            _ => false,
        }
}

/// RFC 3986 section 5.2.4. An empty segment is a segment: `/a//../b` is `/a/b`.
fn resolve_dots(path: &[u8]) -> Vec<u8> {
    let mut out: Vec<u8> = Vec::with_capacity(path.len());
    let mut segments = path.split(|byte| *byte == b'/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        let Some(count) = dots(segment) else {
            out.push(b'/');
            out.extend_from_slice(segment);
            continue;
        };
        if count == 2 {
            let parent_end = memchr::memrchr(b'/', &out).unwrap_or(0);
            out.truncate(parent_end);
        }
        if is_last {
            out.push(b'/');
        }
    }
    out
}

fn merge_slashes(mut path: Vec<u8>) -> Vec<u8> {
    path.dedup_by(|next, previous| *next == b'/' && *previous == b'/');
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODES: [Normalization; 4] = [
        Normalization::None,
        Normalization::Base,
        Normalization::MergeSlashes,
        Normalization::DecodeAndMergeSlashes,
    ];

    fn path(target: &str, mode: Normalization) -> String {
        normalize(target, mode).unwrap().path.into_owned()
    }

    #[test]
    fn base_decodes_unreserved_octets_and_removes_dot_segments() {
        for (sent, expected) in [
            ("/", "/"),
            ("", "/"),
            ("/app/", "/app/"),
            ("/app/%2f", "/app/%2f"),
            ("/xyz%30..//abc", "/xyz0..//abc"),
            ("/app/%2E./admin", "/admin"),
            ("/app\\admin", "/app/admin"),
            ("/app/\\/\\/\\admin", "/app//////admin"),
            ("/%5Capp%2f%5c%2F%2e%2e%2fadmin%5c\\abc", "/%5Capp%2f%5c%2F..%2fadmin%5c/abc"),
            ("/app//../admin", "/app/admin"),
            ("/../x", "/x"),
            ("/a/./b", "/a/b"),
            ("/a/b/..", "/a/"),
            ("/a/b/.", "/a/b/"),
            ("/..", "/"),
            ("/x/..;/admin", "/admin"),
            ("/x/.;a=b/admin", "/x/admin"),
            ("/x/%2e%2e;/admin", "/admin"),
            ("/x/..%3b/admin", "/x/..%3b/admin"),
            ("/x;k=v/admin", "/x;k=v/admin"),
            ("/.../admin", "/.../admin"),
            ("/a\"b|c", "/a%22b%7Cc"),
            ("/\u{e9}", "/%C3%A9"),
            ("/\u{80}", "/%C2%80"),
            ("/%zz", "/%zz"),
            ("/a%", "/a%"),
            ("/%252e%252e/admin", "/%252e%252e/admin"),
            ("/%%32e%%32e/admin", "/%%32e%%32e/admin"),
            ("/%2%65/x", "/%2%65/x"),
        ] {
            assert_eq!(path(sent, Normalization::Base), expected, "{sent}");
        }
    }

    #[test]
    fn slashes_are_merged_after_dots_are_resolved() {
        assert_eq!(path("/app//../admin", Normalization::MergeSlashes), "/app/admin");
        assert_eq!(path("//a///b//", Normalization::MergeSlashes), "/a/b/");
        assert_eq!(path("/app/%2f", Normalization::MergeSlashes), "/app/%2f");
        assert_eq!(path("/%2fadmin", Normalization::DecodeAndMergeSlashes), "/admin");
        assert_eq!(path("/x%5c..%5Cadmin", Normalization::DecodeAndMergeSlashes), "/admin");
    }

    #[test]
    fn none_keeps_the_path() {
        for sent in ["/app/../admin", "/app//", "/app/%2E./x", "/app\\admin", "/x/..;/y", "/a|b"] {
            assert_eq!(path(sent, Normalization::None), sent);
        }
    }

    #[test]
    fn query_is_split_first_and_never_rewritten() {
        let target = normalize("/a/../b?x=../%2e&y=1?#z", Normalization::Base).unwrap();
        assert_eq!(target, Target { path: "/b".into(), query: Some("x=../%2e&y=1?") });
        assert_eq!(normalize("/a?", Normalization::Base).unwrap().query, Some(""));
        assert_eq!(normalize("/a#?b", Normalization::Base).unwrap().query, None);
    }

    #[test]
    fn every_mode_refuses_what_servers_disagree_about() {
        for mode in MODES {
            assert_eq!(normalize("/admin%00", mode), Err(PathError::EscapedNul));
            assert_eq!(normalize("/a\0", mode), Err(PathError::Character));
            assert_eq!(normalize("/a b", mode), Err(PathError::Character));
            assert_eq!(normalize("/a?b\r\n", mode), Err(PathError::Character));
            assert_eq!(normalize("admin", mode), Err(PathError::NotAbsolute));
            assert_eq!(normalize("\\admin", mode), Err(PathError::NotAbsolute));
            assert_eq!(normalize("*", mode).unwrap().path, "*");
        }
    }

    #[test]
    fn a_normal_path_is_borrowed() {
        for sent in ["/", "/api/v1/users/a%20b;c=d/.well-known/...x", "/a//b", "/%2F%5c", "/%zz"] {
            let target = normalize(sent, Normalization::Base).unwrap();
            assert!(matches!(target.path, Cow::Borrowed(_)), "{sent}");
        }
    }

    /// The same rules written as plainly as possible, over lists of tokens instead of bytes.
    fn naive(path: &str, mode: Normalization) -> Option<String> {
        // A token is an ordinary octet or an escape that stays.
        let mut tokens: Vec<String> = Vec::new();
        let bytes = path.as_bytes();
        let canonical = mode != Normalization::None;
        let mut at = 0;
        while at < bytes.len() {
            let digits = path.get(at + 1..at + 3).filter(|text| text.bytes().all(|b| b.is_ascii_hexdigit()));
            if let (b'%', Some(digits)) = (bytes[at], digits) {
                let octet = u8::from_str_radix(digits, 16).unwrap();
                if octet == 0 {
                    return None;
                }
                let unreserved = octet.is_ascii_alphanumeric() || b"-._~".contains(&octet);
                let slash = mode == Normalization::DecodeAndMergeSlashes && (octet == b'/' || octet == b'\\');
                let stray = octet.is_ascii_hexdigit()
                    && (tokens.last().is_some_and(|last| last == "%")
                        || (tokens.len() >= 2
                            && tokens[tokens.len() - 2] == "%"
                            && tokens.last().unwrap().len() == 1
                            && tokens.last().unwrap().as_bytes()[0].is_ascii_hexdigit()));
                if canonical && slash {
                    tokens.push("/".into());
                } else if canonical && unreserved && !stray {
                    tokens.push(char::from(octet).to_string());
                } else {
                    tokens.push(format!("%{digits}"));
                }
                at += 3;
                continue;
            }
            let text = path[at..].chars().next().unwrap().to_string();
            at += text.len();
            if !canonical {
                tokens.push(text);
            } else if text == "\\" {
                tokens.push("/".into());
            } else if !text.is_ascii() || "\"<>^`{|}".contains(&text) {
                tokens.extend(text.bytes().map(|byte| format!("%{byte:02X}")));
            } else {
                tokens.push(text);
            }
        }
        let text = tokens.concat();
        if !canonical {
            return Some(text);
        }
        let mut kept: Vec<&str> = Vec::new();
        let segments: Vec<&str> = text.split('/').skip(1).collect();
        for (index, segment) in segments.iter().enumerate() {
            let is_last = index + 1 == segments.len();
            match segment.split(';').next().unwrap() {
                "." => {}
                ".." => {
                    kept.pop();
                }
                _ => {
                    kept.push(segment);
                    continue;
                }
            }
            if is_last {
                kept.push("");
            }
        }
        let mut result = format!("/{}", kept.join("/"));
        if mode != Normalization::Base {
            while result.contains("//") {
                result = result.replace("//", "/");
            }
        }
        Some(result)
    }

    /// Few characters, so that the interesting ones meet often.
    const ALPHABET: &[&str] = &[
        "/", ".", "..", "%2e", "%2E", "%2f", "%5C", "\\", ";", "%", "%3", "2", "e", "a", "|", "\u{e9}",
        "%00", "[", "%61",
    ];

    #[test]
    fn fuzz_agrees_with_the_naive_twin_and_is_idempotent() {
        bolero::check!().for_each(|input: &[u8]| {
            let text: String =
                input.iter().map(|byte| ALPHABET[usize::from(*byte) % ALPHABET.len()]).collect();
            let sent = format!("/{text}");
            for mode in MODES {
                let ours = normalize(&sent, mode).ok().map(|target| target.path.into_owned());
                assert_eq!(ours, naive(&sent, mode), "{sent} {mode:?}");
                if let Some(normal) = ours {
                    assert_eq!(path(&normal, mode), normal, "twice: {sent} {mode:?}");
                }
            }
        });
    }

    #[test]
    fn fuzz_any_target_is_refused_or_normal() {
        bolero::check!().for_each(|input: &[u8]| {
            let Ok(text) = std::str::from_utf8(input) else { return };
            for mode in MODES {
                let Ok(target) = normalize(text, mode) else { continue };
                assert!(target.path == "*" || target.path.starts_with('/'));
                assert!(!target.path.contains(['#', '?', ' ', '\0']));
            }
        });
    }
}
