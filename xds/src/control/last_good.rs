//! Keeps the last good version of every object in force while its newer version is refused.
//!
//! An object goes away only by being deleted from files that can be read: not by a typing error, not by a file that
//! cannot be parsed or opened, not by the loss of the folder itself.

use std::collections::BTreeSet;
use std::path::Path;

use crate::kube::{Catalog, Kind, Loaded, ObjectName, Objects, Problem};

/// The objects in force.
#[derive(Debug, Default)]
pub struct InForce {
    catalog: Catalog,
    /// Policies that never had a good version here: what stands for them denies in doubt.
    degraded: BTreeSet<ObjectName>,
}

impl InForce {
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Takes over what was just loaded, except where it would lose an object that is only missing because something
    /// is wrong with it or its file. `directory` is the folder as its problems name it.
    pub fn update(&mut self, loaded: Loaded, directory: &Path) -> Vec<Problem> {
        let Loaded { mut catalog, problems, refused, degraded } = loaded;
        let losses = Losses {
            directory: directory.display().to_string(),
            refused: refused.into_iter().collect(),
            // A problem that names no object concerns whatever the file held.
            files: problems
                .iter()
                .filter(|problem| problem.is_error() && problem.object.is_empty())
                .map(|problem| &*problem.file)
                .collect(),
        };
        // What stood for a policy without good version gives way to what stands for it now.
        for name in degraded.keys().filter(|name| self.degraded.contains(*name)) {
            self.catalog.authorization_policies.remove(name);
        }
        self.degraded.retain(|name| !catalog.authorization_policies.contains_key(name));
        losses.keep_all(&self.catalog, &mut catalog);
        self.degraded.retain(|name| catalog.authorization_policies.contains_key(name));
        for (name, policy) in degraded {
            if !catalog.authorization_policies.contains_key(&name) {
                catalog.authorization_policies.insert(name.clone(), policy);
                self.degraded.insert(name);
            }
        }
        self.catalog = catalog;
        problems
    }
}

/// What is missing without having been deleted.
struct Losses<'a> {
    directory: String,
    refused: BTreeSet<(Kind, ObjectName)>,
    files: BTreeSet<&'a str>,
}

impl Losses<'_> {
    fn keep_all(&self, old: &Catalog, new: &mut Catalog) {
        macro_rules! keep {
            ($($field:ident: $kind:ident),* $(,)?) => {
                $(self.keep(
                    Kind::$kind,
                    &old.$field,
                    &mut new.$field,
                    |object| &object.meta.source.file,
                );)*
            };
        }
        keep! {
            namespaces: Namespace,
            nodes: Node,
            pods: Pod,
            services: Service,
            endpoint_slices: EndpointSlice,
            service_accounts: ServiceAccount,
            service_entries: ServiceEntry,
            workload_entries: WorkloadEntry,
            gateways: Gateway,
            gateway_classes: GatewayClass,
            http_routes: HttpRoute,
            grpc_routes: GrpcRoute,
            backend_tls_policies: BackendTlsPolicy,
            backend_traffic_policies: BackendTrafficPolicy,
            reference_grants: ReferenceGrant,
            authorization_policies: AuthorizationPolicy,
            peer_authentications: PeerAuthentication,
            request_authentications: RequestAuthentication,
            config_maps: ConfigMap,
            virtual_services: VirtualService,
            destination_rules: DestinationRule,
            telemetries: Telemetry,
        }
    }

    fn keep<T>(&self, kind: Kind, old: &Objects<T>, new: &mut Objects<T>, file: fn(&T) -> &str) {
        for (name, object) in old {
            let lost = || self.refused.contains(&(kind, name.clone())) || self.lost_file(file(object));
            if !new.contains_key(name) && lost() {
                new.insert(name.clone(), object.clone());
            }
        }
    }

    /// The file itself, a folder above it, or the whole configuration folder.
    fn lost_file(&self, file: &str) -> bool {
        self.files.contains(&*self.directory)
            || self.files.iter().any(|lost| {
                file.strip_prefix(lost).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube::load_documents;

    const NAMESPACE: &str = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: app\n";
    const POLICY: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  \
        name: p\n  namespace: app\nspec:\n  action: DENY\n  rules:\n  - to:\n    - operation:\n        \
        paths: [\"/a\"]\n";

    fn load(texts: &[(&str, &str)]) -> Loaded {
        load_documents(texts.to_vec())
    }

    fn update(good: &Catalog, loaded: Loaded) -> (Catalog, Vec<Problem>) {
        let mut in_force = InForce { catalog: good.clone(), degraded: BTreeSet::new() };
        let problems = in_force.update(loaded, Path::new("dir"));
        (in_force.catalog, problems)
    }

    fn policies(catalog: &Catalog) -> Vec<String> {
        catalog.authorization_policies.keys().map(ToString::to_string).collect()
    }

    #[test]
    fn refused_version_leaves_the_last_good_one_in_force() {
        let good = load(&[("a.yaml", NAMESPACE), ("b.yaml", POLICY)]).catalog;
        let bad = POLICY.replace("/a", "/{broken");
        let (merged, problems) = update(&good, load(&[("a.yaml", NAMESPACE), ("b.yaml", &bad)]));
        assert_eq!(merged, good);
        assert!(problems.iter().any(|problem| &*problem.file == "b.yaml" && problem.line > 0));
    }

    #[test]
    fn file_that_cannot_be_parsed_keeps_what_it_held() {
        let good = load(&[("a.yaml", NAMESPACE), ("sub/b.yaml", POLICY)]).catalog;
        let (merged, problems) =
            update(&good, load(&[("a.yaml", NAMESPACE), ("sub/b.yaml", "kind: [unclosed\n  : x: y")]));
        assert!(!problems.is_empty());
        assert_eq!(merged, good);
    }

    #[test]
    fn deleted_object_goes_even_while_another_file_is_broken() {
        let good = load(&[("a.yaml", NAMESPACE), ("b.yaml", POLICY)]).catalog;
        let (merged, _) = update(&good, load(&[("a.yaml", "kind: [unclosed")]));
        assert_eq!(merged.namespaces.len(), 1, "kept: its file is broken");
        assert!(policies(&merged).is_empty(), "gone: its file is gone");
    }

    #[test]
    fn new_good_version_wins_wherever_it_stands() {
        let good = load(&[("a.yaml", NAMESPACE), ("b.yaml", POLICY)]).catalog;
        let moved = POLICY.replace("/a", "/b");
        let (merged, _) = update(&good, load(&[("b.yaml", "kind: [unclosed"), ("c.yaml", &moved)]));
        assert_eq!(policies(&merged), ["app/p"]);
        let policy = merged.authorization_policies.values().next().unwrap();
        assert_eq!(&*policy.meta.source.file, "c.yaml");
    }

    #[test]
    fn loss_of_the_folder_keeps_everything() {
        let good = load(&[("a.yaml", NAMESPACE), ("b.yaml", POLICY)]).catalog;
        let directory = tempfile::tempdir().unwrap();
        let gone = directory.path().join("gone");
        let mut in_force = InForce { catalog: good.clone(), degraded: BTreeSet::new() };
        let problems = in_force.update(crate::kube::load_dir(&gone), &gone);
        assert_eq!(*in_force.catalog(), good);
        assert!(!problems.is_empty());
    }

    #[test]
    fn policy_that_never_was_good_denies_in_doubt_until_it_is() {
        let broken = POLICY.replace("/a", "/{broken");
        let mut in_force = InForce::default();
        in_force.update(load(&[("a.yaml", NAMESPACE), ("b.yaml", &broken)]), Path::new("dir"));
        let stands = |in_force: &InForce| {
            in_force.catalog().authorization_policies.values().map(|policy| policy.rules.clone()).next()
        };
        let degraded = stands(&in_force).expect("something stands for the policy");
        assert_eq!(in_force.degraded.len(), 1);

        in_force.update(load(&[("a.yaml", NAMESPACE), ("b.yaml", POLICY)]), Path::new("dir"));
        let good = stands(&in_force).unwrap();
        assert_ne!(good, degraded);
        assert!(in_force.degraded.is_empty());

        in_force.update(load(&[("a.yaml", NAMESPACE), ("b.yaml", &broken)]), Path::new("dir"));
        assert_eq!(stands(&in_force), Some(good), "the last good version wins over what denies in doubt");

        in_force.update(load(&[("a.yaml", NAMESPACE)]), Path::new("dir"));
        assert_eq!(stands(&in_force), None);
    }
}
