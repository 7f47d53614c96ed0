//! The keys of token issuers in the rules of a catalog: which are to be fetched, and the rules with those that are known.

use std::sync::Arc;

use crate::issuer::{Keys, Pace, Wanted};
use crate::kube::istio::{KeySource, RequestAuthentication};
use crate::kube::{Catalog, Kind, Problem, Severity};

/// The sources that a catalog's rules name.
pub(super) fn sources(catalog: &Catalog) -> Wanted {
    let rules = catalog.request_authentications.values().flat_map(|object| &object.sources);
    rules.filter(|source| source.is_remote()).map(|source| (source.clone(), Pace::default())).collect()
}

/// The catalog with the keys that are known, and what is to be said of those that are not.
pub(super) fn completed(catalog: &Catalog, keys: &Keys) -> (Option<Catalog>, Vec<Problem>) {
    let mut problems = Vec::new();
    let mut completed: Option<Catalog> = None;
    for (name, object) in &catalog.request_authentications {
        if !object.sources.iter().any(KeySource::is_remote) {
            continue;
        }
        let mut filled = RequestAuthentication::clone(object);
        for (index, (rule, source)) in filled.rules.iter_mut().zip(&object.sources).enumerate() {
            let Some(known) = keys.get(source).filter(|_| source.is_remote()) else { continue };
            if let Some(text) = &known.keys {
                rule.jwks = text.clone();
            }
            if let Some(message) = known.complaint(source) {
                problems.push(failed(object, index, message));
            }
        }
        let catalog = completed.get_or_insert_with(|| catalog.clone());
        catalog.request_authentications.insert(name.clone(), Arc::new(filled));
    }
    (completed, problems)
}

fn failed(object: &RequestAuthentication, index: usize, message: String) -> Problem {
    Problem {
        file: object.meta.source.file.clone(),
        line: object.meta.source.line,
        column: 1,
        object: format!("{} {}", Kind::RequestAuthentication, object.meta.object_name()),
        field: format!("spec.jwtRules[{index}]"),
        message,
        fix: String::from("see that the control plane reaches the issuer, or write the keys under jwks"),
        severity: Severity::Warning,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::issuer::Known;
    use crate::kube::load_documents;

    const JWKS: &str = r#"{"keys":[{"kty":"oct","k":"c2VjcmV0","kid":"a","alg":"HS256"}]}"#;

    #[test]
    fn rules_get_their_keys_and_those_without_are_told() {
        let text = "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\n\
             metadata: {name: ra, namespace: app}\nspec:\n  jwtRules:\n  - {issuer: a, jwksUri: 'http://a/keys'}\n  \
             - {issuer: 'https://b'}\n  - {issuer: c, jwks: '{\"keys\":[]}'}\n";
        let loaded = load_documents(vec![("a.yaml", text)]);
        assert_eq!(loaded.problems, []);
        let wanted = sources(&loaded.catalog);
        let (a, b) = (KeySource::Address("http://a/keys".into()), KeySource::Issuer("https://b".into()));
        assert_eq!(wanted, Wanted::from([(a.clone(), Pace::default()), (b.clone(), Pace::default())]));
        let failure = Some(Arc::from("it is away"));
        let keys = Keys::from([
            (a, Known { keys: Some(JWKS.into()), failure: None }),
            (b, Known { keys: None, failure }),
        ]);
        let (completed, problems) = completed(&loaded.catalog, &keys);
        let completed = completed.unwrap();
        let rules = &completed.request_authentications.values().next().unwrap().rules;
        let texts: Vec<&str> = rules.iter().map(|rule| &*rule.jwks).collect();
        assert_eq!(texts, [JWKS, "", "{\"keys\":[]}"]);
        let [problem] = &problems[..] else { panic!("{problems:?}") };
        assert!(problem.message.contains("https://b") && problem.message.contains("is refused"), "{problem}");
    }
}
