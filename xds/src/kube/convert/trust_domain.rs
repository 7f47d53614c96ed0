//! Trust domain aliases: one written principal stands for the same account under every name of the mesh.

use std::sync::Arc;

use super::super::catalog::MeshSettings;

/// Written as a trust domain it means "ours, whatever its name".
const LOCAL: &str = "cluster.local";

/// The principals that a written one stands for, itself included where it names a domain of the mesh or none.
///
/// Only full five-part identities are looked at; `*` as trust domain already covers every name. A domain that begins
/// with a star stays as it is for each name that it covers.
pub fn expand(principal: &str, mesh: &MeshSettings) -> Vec<Arc<str>> {
    let as_written = || vec![Arc::from(principal)];
    let Some((domain, rest)) = principal.split_once('/') else {
        return as_written();
    };
    let is_identity = principal.split('/').count() == 5;
    let names = || std::iter::once(&mesh.trust_domain).chain(&mesh.trust_domain_aliases);
    if !is_identity || domain == "*" || !(domain == LOCAL || names().any(|name| covers(domain, name))) {
        return as_written();
    }
    let mut principals: Vec<Arc<str>> = Vec::new();
    for name in names() {
        let expanded: Arc<str> =
            if covers(domain, name) { Arc::from(principal) } else { Arc::from(format!("{name}/{rest}")) };
        if !principals.contains(&expanded) {
            principals.push(expanded);
        }
    }
    principals
}

fn covers(written: &str, name: &str) -> bool {
    written == name || written.strip_prefix('*').is_some_and(|suffix| name.ends_with(suffix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(principal: &str, trust_domain: &str, aliases: &[&str]) -> Vec<String> {
        let mesh = MeshSettings {
            trust_domain: Arc::from(trust_domain),
            trust_domain_aliases: aliases.iter().copied().map(Arc::from).collect(),
            ..MeshSettings::default()
        };
        expand(principal, &mesh).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn principals_of_the_mesh_stand_for_every_name_of_it() {
        let all = ["td/ns/a/sa/b", "old/ns/a/sa/b"];
        assert_eq!(expanded("cluster.local/ns/a/sa/b", "td", &["old"]), all);
        assert_eq!(expanded("td/ns/a/sa/b", "td", &["old"]), all);
        assert_eq!(expanded("old/ns/a/sa/b", "td", &["old"]), all);
        assert_eq!(expanded("cluster.local/ns/a/sa/b", "cluster.local", &[]), ["cluster.local/ns/a/sa/b"]);
    }

    #[test]
    fn others_stay_as_written() {
        for principal in ["*", "*/ns/a/sa/b", "foreign/ns/a/sa/b", "td/ns/a/*", "td/*", "*/sa/b"] {
            assert_eq!(expanded(principal, "td", &["old"]), [principal]);
        }
        assert_eq!(expanded("*d/ns/a/sa/b", "td", &["old"]), ["*d/ns/a/sa/b"], "covers both");
        assert_eq!(expanded("*t/ns/a/sa/b", "t", &["x"]), ["*t/ns/a/sa/b", "x/ns/a/sa/b"]);
    }
}
