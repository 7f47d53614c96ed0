//! Path templates of authorization policies: `/users/{*}/files/{**}`.
//!
//! `{*}` stands for one non-empty segment, `{**}` for any text including slashes (its neighbouring slashes are part
//! of the literals and must be there). A template covers the whole path. As at most one `{**}` is allowed and no
//! operator may follow it, matching is one pass without backtracking and without allocation.

use std::sync::Arc;

/// A validated template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// What the path must begin with.
    head: Box<[Piece]>,
    /// After a `{**}`: what the path must end with. `None` where the template has no `{**}`.
    tail: Option<Box<str>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Literal(Box<str>),
    OneSegment,
}

/// Why a text is no template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    #[error(
        "path template {template:?}: segment {segment:?} holds a brace; write {{*}} or {{**}} as a whole segment"
    )]
    Brace { template: Arc<str>, segment: String },
    #[error("path template {template:?}: {{**}} must be the last operator and may stand only once")]
    AfterAny { template: Arc<str> },
    #[error(
        "path template {template:?}: segment {segment:?} is empty or holds a character that no template may hold"
    )]
    Literal { template: Arc<str>, segment: String },
}

impl Template {
    /// True if a path of a policy is meant as a template, that is, must pass [`Template::compile`].
    pub fn is_template(text: &str) -> bool {
        text.contains(['{', '}'])
    }

    /// Validates and compiles.
    pub fn compile(text: &Arc<str>) -> Result<Self, TemplateError> {
        // Slashes at both ends are significant to matching, but delimit no further segment.
        let trimmed = text.trim_matches('/');
        let start = text.find(|c| c != '/').unwrap_or(text.len());
        let mut head = Vec::new();
        let mut literal = text.get(..start).unwrap_or_default().to_owned();
        let mut any_seen = false;
        for (index, segment) in trimmed.split('/').enumerate() {
            if index > 0 {
                literal.push('/');
            }
            match segment {
                "{*}" | "{**}" if any_seen => {
                    return Err(TemplateError::AfterAny { template: text.clone() });
                }
                "{*}" => {
                    head.push(Piece::Literal(std::mem::take(&mut literal).into()));
                    head.push(Piece::OneSegment);
                }
                "{**}" => {
                    head.push(Piece::Literal(std::mem::take(&mut literal).into()));
                    any_seen = true;
                }
                _ => literal.push_str(check_literal(text, segment)?),
            }
        }
        literal.push_str(text.get(start + trimmed.len()..).unwrap_or_default());
        let tail = if any_seen {
            Some(literal.into_boxed_str())
        } else {
            head.push(Piece::Literal(literal.into()));
            None
        };
        head.retain(|piece| !matches!(piece, Piece::Literal(text) if text.is_empty()));
        Ok(Self { head: head.into(), tail })
    }

    /// True if the template covers the whole of `path` (normalised, without query).
    pub fn matches(&self, path: &str) -> bool {
        self.matches_bytes(path.as_bytes())
    }

    pub(crate) fn matches_bytes(&self, path: &[u8]) -> bool {
        let mut rest = path;
        for piece in &self.head {
            let taken = match piece {
                Piece::Literal(text) => rest.strip_prefix(text.as_bytes()),
                Piece::OneSegment => {
                    // An operator is a whole segment, so a slash or the end follows it: the longest run is the
                    // only candidate.
                    let length = rest.iter().take_while(|byte| is_path_character(**byte)).count();
                    rest.get(length..).filter(|_| length > 0)
                }
            };
            let Some(after) = taken else { return false };
            rest = after;
        }
        match &self.tail {
            None => rest.is_empty(),
            Some(tail) => rest
                .strip_suffix(tail.as_bytes())
                .is_some_and(|any| any.iter().all(|byte| *byte == b'/' || is_path_character(*byte))),
        }
    }

    /// The literal text that every matching path begins with; what an index may go by.
    pub(crate) fn literal_prefix(&self) -> &str {
        match self.head.first() {
            Some(Piece::Literal(text)) => text,
            _ => "",
        }
    }
}

fn check_literal<'a>(template: &Arc<str>, segment: &'a str) -> Result<&'a str, TemplateError> {
    if segment.contains(['{', '}']) {
        return Err(TemplateError::Brace { template: template.clone(), segment: segment.to_owned() });
    }
    if segment.is_empty() || !segment.bytes().all(|byte| byte != b'*' && is_path_character(byte)) {
        return Err(TemplateError::Literal { template: template.clone(), segment: segment.to_owned() });
    }
    Ok(segment)
}

/// `pchar` of RFC 3986 section 3.3, a percent sign counting as an ordinary character. The star is one of them
/// (leaving it out let `/a*b` past a deny rule: CVE-2025-46821).
fn is_path_character(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;:@=".contains(&byte)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn template(text: &str) -> Template {
        Template::compile(&Arc::from(text)).unwrap()
    }

    #[test]
    fn operators_match_as_documented() {
        for (text, path, expected) in [
            ("/foo/{*}", "/foo/bar", true),
            ("/foo/{*}", "/foo/bar/", false),
            ("/foo/{*}", "/foo", false),
            ("/foo/{*}", "/foo/", false),
            ("/foo/{*}", "/foo/a%2Fb", true),
            ("/foo/{*}", "/foo/a*b", true),
            ("/foo/{*}", "/foo/a[b]", false),
            ("/foo/{*}", "/foo/%zz", true),
            ("/foo/{*}/", "/foo/a/", true),
            ("/foo/{*}/", "/foo/a", false),
            ("/foo/{**}", "/foo/", true),
            ("/foo/{**}", "/foo", false),
            ("/foo/{**}", "/foo/a/b//c/", true),
            ("/a/{**}/c", "/a//c", true),
            ("/a/{**}/c", "/a/c", false),
            ("/a/{**}/c", "/a/c/c", true),
            ("/a/{**}/c", "/a/b/c/d", false),
            ("/a/{**}/c", "/a/|/c", false),
            ("/{**}/bar", "/bar", false),
            ("/{**}/bar", "//bar", true),
            ("/foo/{*}/bar/{**}", "/foo/x/bar/", true),
            ("/foo/{*}/bar/{**}", "/foo//bar/", false),
            ("/{**}", "/", true),
            ("/{*}", "/", false),
            ("/v1.0/{*}/file.txt", "/v1x0/a/file.txt", false),
        ] {
            assert_eq!(template(text).matches(path), expected, "{text} {path}");
        }
    }

    #[test]
    fn refuses_what_is_no_template() {
        for text in [
            "/foo/{**}/{*}",
            "/foo/{**}/bar/{*}",
            "/{**}/{**}",
            "/foo/{*}.txt",
            "/foo/{bar}",
            "/foo/{}",
            "/foo/*}",
            "/foo}/bar",
            "/{*}/a*",
            "/*/{*}",
            "/{*}/a b",
            "/{*}//b",
            "/{*}/a?b",
            "/{*}/a#b",
            "/{*}/a|b",
        ] {
            let error = Template::compile(&Arc::from(text)).unwrap_err();
            assert!(error.to_string().contains(text), "{error}");
            assert!(Template::is_template(text), "{text}");
        }
        assert!(Template::compile(&Arc::from("/{*}/a!$&'()+,;:@=b")).is_ok());
        assert!(!Template::is_template("/a/*"));
    }

    /// Matching by trying every way to cut the path, over segments of the template's text.
    pub(crate) fn naive(template: &str, path: &str) -> bool {
        if let Some(after) = template.strip_prefix("{**}") {
            return (0..=path.len()).any(|end| {
                path.get(..end).is_some_and(|any| any.chars().all(|c| c == '/' || naive_character(c)))
                    && path.get(end..).is_some_and(|rest| naive(after, rest))
            });
        }
        if let Some(after) = template.strip_prefix("{*}") {
            return (1..=path.len()).any(|end| {
                path.get(..end).is_some_and(|one| one.chars().all(naive_character))
                    && path.get(end..).is_some_and(|rest| naive(after, rest))
            });
        }
        match (template.chars().next(), path.chars().next()) {
            (None, None) => true,
            (Some(t), Some(p)) => t == p && naive(&template[t.len_utf8()..], &path[p.len_utf8()..]),
            _ => false,
        }
    }

    fn naive_character(c: char) -> bool {
        matches!(c, 'a'..='z' | 'A'..='Z' | '0'..='9') || "-._~%!$&'()*+,;:@=".contains(c)
    }

    #[test]
    fn fuzz_agrees_with_the_naive_twin() {
        const TEMPLATE: &[&str] = &["/", "a", "b", "{*}", "{**}", "/{*}", "/{**}", "/a"];
        const PATH: &[&str] = &["/", "a", "b", "/", "a", "[", "*", "\u{e9}"];
        bolero::check!().with_type::<(Vec<u8>, Vec<u8>)>().for_each(|(template, path)| {
            let pick = |words: &[&str], picks: &[u8]| -> String {
                picks.iter().take(16).map(|byte| words[usize::from(*byte) % words.len()]).collect()
            };
            let text: Arc<str> = Arc::from(format!("/{}", pick(TEMPLATE, template)));
            let path = format!("/{}", pick(PATH, path));
            let Ok(compiled) = Template::compile(&text) else { return };
            assert_eq!(compiled.matches(&path), naive(&text, &path), "{text} {path}");
            if compiled.matches(&path) {
                assert!(path.starts_with(compiled.literal_prefix()));
            }
        });
    }
}
