//! Replacement of a path, or of the prefix of it that matched.

use std::borrow::Cow;

use crate::ir::PathRewrite;

/// The new path. `prefix` is that of the match, by which `path` was found.
pub(super) fn rewritten<'a>(rewrite: &'a PathRewrite, prefix: Option<&str>, path: &'a str) -> Cow<'a, str> {
    match rewrite {
        PathRewrite::Full(full) => Cow::Borrowed(full),
        PathRewrite::Prefix(replacement) => match rest(prefix, path) {
            Some(rest) => join(replacement, rest),
            // Not found by a prefix, which `check` rules out: nothing to replace.
            None => Cow::Borrowed(path),
        },
        PathRewrite::TextPrefix(replacement) => match prefix.and_then(|prefix| path.strip_prefix(prefix)) {
            Some(rest) if rest.starts_with('/') => join(replacement, rest),
            Some(rest) => Cow::Owned([replacement, rest].concat()),
            None => Cow::Borrowed(path),
        },
    }
}

/// What follows the prefix: empty, or starting with a slash, since prefixes compare whole elements.
fn rest<'a>(prefix: Option<&str>, path: &'a str) -> Option<&'a str> {
    let prefix = prefix?;
    path.strip_prefix(prefix.strip_suffix('/').unwrap_or(prefix))
        .filter(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Joins with one slash; whether the path ends with one is the request's choice, not the replacement's. The path that
/// results from an empty replacement begins with a single slash even if the rest began with two: `//host/x` would be
/// read as an authority.
fn join<'a>(replacement: &'a str, rest: &'a str) -> Cow<'a, str> {
    let base = replacement.strip_suffix('/').unwrap_or(replacement);
    match (base, rest) {
        ("", "") => Cow::Borrowed("/"),
        ("", rest) => {
            let extra = rest.len() - rest.trim_start_matches('/').len();
            Cow::Borrowed(rest.get(extra.saturating_sub(1)..).unwrap_or("/"))
        }
        (base, "") => Cow::Borrowed(base),
        (base, rest) => Cow::Owned([base, rest].concat()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_joined_without_a_double_or_a_missing_slash() {
        for (path, prefix, replacement, expected) in [
            // The table of the Gateway API, HTTPPathModifier.
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
            // The root, on either side.
            ("/", "/", "/xyz", "/xyz/"),
            ("/bar", "/", "/xyz", "/xyz/bar"),
            ("/bar", "/", "/xyz/", "/xyz/bar"),
            ("/bar", "/", "/", "/bar"),
            ("/", "/", "", "/"),
            // A slash at the end that only one side has.
            ("/foo", "/foo/", "/xyz", "/xyz"),
            ("/foo", "/foo", "/xyz/", "/xyz"),
            ("/foo", "/foo/", "/xyz/", "/xyz"),
            ("/foo/", "/foo/", "/xyz/", "/xyz/"),
            // Empty elements, which normalisation keeps.
            ("/foo//bar", "/foo", "/xyz", "/xyz//bar"),
            ("/foo//bar", "/foo", "", "/bar"),
            ("/foo///", "/foo", "/", "/"),
        ] {
            let rewrite = PathRewrite::Prefix(replacement.into());
            let got = rewritten(&rewrite, Some(prefix), path);
            assert_eq!(got, expected, "{path} with {prefix} replaced by {replacement:?}");
        }
    }

    #[test]
    fn letters_are_replaced_where_elements_do_not_matter() {
        for (path, prefix, replacement, expected) in [
            ("/v10/x", "/v1", "/w", "/w0/x"),
            ("/api/x", "/api", "/", "/x"),
            ("/api/x", "/api/", "/", "/x"),
            ("/api/x", "/api/", "/v", "/vx"),
            ("/api", "/api", "/v", "/v"),
            ("/other", "/api", "/v", "/other"),
        ] {
            let rewrite = PathRewrite::TextPrefix(replacement.into());
            assert_eq!(rewritten(&rewrite, Some(prefix), path), expected, "{path} {prefix} {replacement}");
        }
    }

    #[test]
    fn a_full_path_replaces_all() {
        for path in ["/", "/a/b", "*"] {
            assert_eq!(rewritten(&PathRewrite::Full("/one".into()), None, path), "/one");
        }
    }

    #[test]
    fn without_its_prefix_a_path_stays() {
        let rewrite = PathRewrite::Prefix("/xyz".into());
        assert_eq!(rewritten(&rewrite, None, "/foo"), "/foo");
        assert_eq!(rewritten(&rewrite, Some("/foo"), "/foobar"), "/foobar");
    }
}
