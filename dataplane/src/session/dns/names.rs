//! The names under which a host may be known: what Kubernetes' resolvers would have made of it, and what is left when
//! a search domain is taken off again.

/// Longest host name in its text form (RFC 1035 section 2.3.4, without the root).
const NAME_BYTES_MAX: usize = 253;

/// A name to look up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) name: String,
    /// How many labels of the asked name were kept, where a search domain was taken off.
    pub(crate) kept: Option<usize>,
}

/// The search domains of Kubernetes for pods of a namespace.
pub(crate) fn cluster_search_domains(namespace: &str, domain: &str) -> Vec<String> {
    vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()]
}

/// What to look up for `host` (lower case, without the final dot), in order, none twice. At most three names for each
/// search domain and three more.
pub(crate) fn candidates(host: &str, namespace: &str, domain: &str, search: &[String]) -> Vec<Candidate> {
    let mut found: Vec<Candidate> = Vec::new();
    let mut add = |name: String, kept| {
        if name.len() <= NAME_BYTES_MAX && found.iter().all(|known| known.name != name) {
            found.push(Candidate { name, kept });
        }
    };
    add(host.to_owned(), None);
    for name in in_cluster(host, namespace, domain) {
        add(name, None);
    }
    for search_domain in search {
        let Some(stripped) = host.strip_suffix(&**search_domain).and_then(|rest| rest.strip_suffix('.'))
        else {
            continue;
        };
        if stripped.is_empty() {
            continue;
        }
        let kept = Some(labels(stripped));
        add(stripped.to_owned(), kept);
        for name in in_cluster(stripped, namespace, domain) {
            add(name, kept);
        }
    }
    found
}

/// `name` itself, then the wildcards that cover it, the most specific first.
pub(crate) fn with_wildcards<T>(name: &str, mut find: impl FnMut(&str) -> Option<T>) -> Option<(T, bool)> {
    if let Some(found) = find(name) {
        return Some((found, false));
    }
    let mut wildcard = String::with_capacity(name.len() + 1);
    for (dot, _) in name.match_indices('.') {
        wildcard.clear();
        wildcard.push('*');
        wildcard.push_str(name.get(dot..).unwrap_or_default());
        if let Some(found) = find(&wildcard) {
            return Some((found, true));
        }
    }
    None
}

/// The full names of Kubernetes that a shortened one may stand for, by its number of labels.
fn in_cluster(name: &str, namespace: &str, domain: &str) -> Vec<String> {
    let ends_in_svc = name.rsplit('.').next() == Some("svc");
    match labels(name) {
        1 => vec![format!("{name}.{namespace}.svc.{domain}")],
        2 => vec![format!("{name}.svc.{domain}"), format!("{name}.{namespace}.svc.{domain}")],
        3 if ends_in_svc => vec![format!("{name}.{domain}"), format!("{name}.svc.{domain}")],
        3 => vec![format!("{name}.svc.{domain}")],
        4 if ends_in_svc => vec![format!("{name}.{domain}")],
        _ => Vec::new(),
    }
}

fn labels(name: &str) -> usize {
    name.split('.').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(host: &str) -> Vec<(String, Option<usize>)> {
        let search = cluster_search_domains("app", "cluster.local");
        let candidates = candidates(host, "app", "cluster.local", &search);
        candidates.into_iter().map(|it| (it.name, it.kept)).collect()
    }

    fn check(host: &str, expected: &[(&str, Option<usize>)]) {
        let expected: Vec<_> = expected.iter().map(|(name, kept)| ((*name).to_owned(), *kept)).collect();
        assert_eq!(names(host), expected, "{host}");
    }

    #[test]
    fn short_names_are_completed_by_their_number_of_labels() {
        check("echo", &[("echo", None), ("echo.app.svc.cluster.local", None)]);
        check(
            "echo.other",
            &[
                ("echo.other", None),
                ("echo.other.svc.cluster.local", None),
                ("echo.other.app.svc.cluster.local", None),
            ],
        );
        check(
            "echo.other.svc",
            &[
                ("echo.other.svc", None),
                ("echo.other.svc.cluster.local", None),
                ("echo.other.svc.svc.cluster.local", None),
            ],
        );
        check("www.example.com", &[("www.example.com", None), ("www.example.com.svc.cluster.local", None)]);
        check("a.b.c.svc", &[("a.b.c.svc", None), ("a.b.c.svc.cluster.local", None)]);
        check("a.b.example.com", &[("a.b.example.com", None)]);
    }

    #[test]
    fn search_domains_are_taken_off() {
        check(
            "www.example.com.app.svc.cluster.local",
            &[
                ("www.example.com.app.svc.cluster.local", None),
                ("www.example.com", Some(3)),
                ("www.example.com.svc.cluster.local", Some(3)),
                ("www.example.com.app", Some(4)),
                ("www.example.com.app.svc", Some(5)),
            ],
        );
        check(
            "echo.app.svc.cluster.local",
            &[
                ("echo.app.svc.cluster.local", None),
                ("echo", Some(1)),
                ("echo.app", Some(2)),
                ("echo.app.app.svc.cluster.local", Some(2)),
                ("echo.app.svc", Some(3)),
                ("echo.app.svc.svc.cluster.local", Some(3)),
            ],
        );
        // The domain itself leaves nothing to look up.
        check(
            "svc.cluster.local",
            &[
                ("svc.cluster.local", None),
                ("svc.cluster.local.svc.cluster.local", None),
                ("svc", Some(1)),
                ("svc.app.svc.cluster.local", Some(1)),
            ],
        );
        // A longer last label is no search domain.
        check("echo.notcluster.local.x.y", &[("echo.notcluster.local.x.y", None)]);
    }

    #[test]
    fn names_that_grow_too_long_are_left_out() {
        let host = "a".repeat(240);
        assert_eq!(names(&host), [(host, None)]);
    }

    #[test]
    fn wildcards_go_from_specific_to_general() {
        let mut asked = Vec::new();
        let none: Option<((), bool)> = with_wildcards("www.example.com", |name| {
            asked.push(name.to_owned());
            None
        });
        assert_eq!(none, None);
        assert_eq!(asked, ["www.example.com", "*.example.com", "*.com"]);
        assert_eq!(with_wildcards("a.b", |name| (name == "*.b").then_some(1)), Some((1, true)));
        assert_eq!(with_wildcards("a.b", |_| Some(1)), Some((1, false)));
    }
}
