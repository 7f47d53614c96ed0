//! The parameters of a query: what stands between its `&`, named by what comes before the first `=`.

use crate::ir::QueryEdits;

/// The query after the edits; `None` if nothing is left of it.
pub(super) fn edited(query: Option<&str>, edits: &QueryEdits) -> Option<String> {
    let is_kept = |name: &str| {
        let mut gone = edits.remove.iter().chain(edits.set.iter().map(|(name, _)| name));
        !gone.any(|own| **own == *name)
    };
    let name = |pair: &&str| pair.split_once('=').map_or(*pair, |(name, _)| name).to_owned();
    let pairs = query.into_iter().flat_map(|query| query.split('&')).filter(|pair| is_kept(&name(pair)));
    let mut left: Vec<String> = pairs.map(str::to_owned).collect();
    left.extend(edits.set.iter().map(|(name, value)| format!("{name}={value}")));
    (!left.is_empty()).then(|| left.join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_removed_and_set_and_the_others_stay_as_they_are() {
        let edits = QueryEdits {
            remove: vec!["t".into()],
            set: vec![("u".into(), "1".into()), ("v".into(), "2".into())],
        };
        let cases = [
            (Some("t=x"), Some("u=1&v=2")),
            (Some("a=%20&t=x&&t&tt=1&u=0&b"), Some("a=%20&&tt=1&b&u=1&v=2")),
            (None, Some("u=1&v=2")),
        ];
        for (query, expected) in cases {
            assert_eq!(edited(query, &edits).as_deref(), expected, "{query:?}");
        }
        let only_removes = QueryEdits { set: Vec::new(), ..edits };
        assert_eq!(edited(Some("t=x&t"), &only_removes), None);
        assert_eq!(edited(None, &only_removes), None);
    }
}
