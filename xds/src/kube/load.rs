//! A folder, or a list of texts, to a catalog.
//!
//! Pure but for [`load_dir`]; total in any case. One bad object never hides another.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use model::SourceRef;

use super::catalog::{Catalog, Kind, Objects};
use super::kinds::kind_of;
use super::problem::{Problem, Severity};
use super::read::{self, Object};
use super::reader::{Findings, Item};
use super::yaml::{self, Node, Value};
use super::{Loaded, ObjectName};

/// Largest file that is read.
pub const FILE_BYTES_MAX: usize = 64 << 20;
/// Most bytes of all files together.
pub const FOLDER_BYTES_MAX: usize = 512 << 20;
/// Most files of a folder.
pub const FILES_MAX: usize = 10_000;
/// Deepest folder below the one given.
pub const FOLDER_DEPTH_MAX: usize = 16;
/// Most folder entries looked at, so that a folder of other things ends too.
const ENTRIES_MAX: usize = 200_000;

/// Reads every `*.yaml`, `*.yml` and `*.json` below a folder, in the order of their paths.
///
/// Symbolic links are followed, names that begin with a dot are passed over: thereby a mounted ConfigMap, whose
/// files link into a hidden folder, is read once.
pub fn load_dir(dir: &Path) -> Loaded {
    let mut walk = Walk::default();
    walk.folder(dir, "", 0);
    let mut problems = walk.problems;
    if walk.files.is_empty() && problems.is_empty() {
        problems.push(file_problem(
            Arc::from(dir.display().to_string()),
            Severity::Warning,
            String::from("there is no configuration in this folder"),
            "put files that end in .yaml, .yml or .json into it",
        ));
    }
    let mut texts = Vec::new();
    let mut bytes_total = 0_usize;
    for (name, path) in walk.files {
        match read_file(&path) {
            Ok(text) => {
                bytes_total = bytes_total.saturating_add(text.len());
                if bytes_total > FOLDER_BYTES_MAX {
                    let message =
                        format!("the folder holds more than {FOLDER_BYTES_MAX} bytes; this file is left out");
                    problems.push(file_problem(name, Severity::Error, message, "split the folder"));
                    break;
                }
                texts.push((name, text));
            }
            Err(message) => problems.push(file_problem(name, Severity::Error, message, "")),
        }
    }
    let mut loaded = load_documents(texts);
    problems.append(&mut loaded.problems);
    loaded.problems = problems;
    loaded
}

/// Reads texts, each with the file name that its findings carry. Names should be unique.
pub fn load_documents(texts: Vec<(impl Into<Arc<str>>, impl AsRef<str>)>) -> Loaded {
    let mut loader = Loader::default();
    for (name, text) in texts {
        loader.text(name.into(), text.as_ref());
    }
    loader.loaded
}

fn file_problem(file: Arc<str>, severity: Severity, message: String, fix: &str) -> Problem {
    Problem {
        file,
        line: 0,
        column: 0,
        object: String::new(),
        field: String::new(),
        message,
        fix: fix.to_owned(),
        severity,
    }
}

fn read_file(path: &Path) -> Result<String, String> {
    let unreadable = |error: std::io::Error| format!("this file cannot be read: {error}");
    let file = fs::File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    // One byte more than allowed tells a file that is too large from one that just fits.
    file.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() > FILE_BYTES_MAX {
        return Err(format!("this file is larger than {FILE_BYTES_MAX} bytes"));
    }
    String::from_utf8(bytes).map_err(|error| format!("this file is not UTF-8: {error}"))
}

// === Walk ===

/// The files found so far, sorted by their path relative to the folder.
#[derive(Default)]
struct Walk {
    files: BTreeMap<Arc<str>, PathBuf>,
    /// Folders already entered, by their real path: links may form a circle.
    entered: BTreeSet<PathBuf>,
    entries: usize,
    problems: Vec<Problem>,
}

impl Walk {
    fn folder(&mut self, dir: &Path, relative: &str, depth: usize) {
        let shown = if relative.is_empty() { dir.display().to_string() } else { relative.to_owned() };
        if depth > FOLDER_DEPTH_MAX {
            let message = format!("folders deeper than {FOLDER_DEPTH_MAX} are not read");
            self.problem(&shown, message, "move the files further up");
            return;
        }
        let entries = fs::canonicalize(dir)
            .and_then(|real| if self.entered.insert(real) { fs::read_dir(dir).map(Some) } else { Ok(None) });
        let entries = match entries {
            Ok(Some(entries)) => entries,
            Ok(None) => return,
            Err(error) => return self.problem(&shown, format!("this folder cannot be read: {error}"), ""),
        };
        let mut paths: Vec<PathBuf> = Vec::new();
        for entry in entries {
            self.entries += 1;
            if self.entries > ENTRIES_MAX {
                return self.problem(&shown, format!("more than {ENTRIES_MAX} entries"), "split the folder");
            }
            match entry {
                Ok(entry) => paths.push(entry.path()),
                Err(error) => self.problem(&shown, format!("an entry cannot be read: {error}"), ""),
            }
        }
        paths.sort();
        for path in paths {
            self.entry(&path, relative, depth);
        }
    }

    fn entry(&mut self, path: &Path, relative: &str, depth: usize) {
        let Some(name) = path.file_name().map(|name| name.to_string_lossy().into_owned()) else {
            return;
        };
        if name.starts_with('.') {
            return;
        }
        let relative = if relative.is_empty() { name } else { format!("{relative}/{name}") };
        let is_configuration = path
            .extension()
            .and_then(|extension| extension.to_str())
            .is_some_and(|extension| matches!(extension, "yaml" | "yml" | "json"));
        // `metadata` follows links.
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => self.folder(path, &relative, depth + 1),
            Ok(metadata) if metadata.is_file() && is_configuration => {
                if self.files.len() == FILES_MAX {
                    let message = format!("more than {FILES_MAX} files; this one is left out");
                    return self.problem(&relative, message, "split the folder");
                }
                self.files.insert(Arc::from(relative), path.to_owned());
            }
            Err(error) if is_configuration => {
                self.problem(&relative, format!("this file cannot be read: {error}"), "");
            }
            _ => {}
        }
    }

    fn problem(&mut self, shown: &str, message: String, fix: &str) {
        self.problems.push(file_problem(Arc::from(shown), Severity::Error, message, fix));
    }
}

// === Documents ===

#[derive(Default)]
struct Loader {
    loaded: Loaded,
    /// Where each object was first seen, good or not.
    places: BTreeMap<(Kind, ObjectName), SourceRef>,
}

impl Loader {
    fn text(&mut self, file: Arc<str>, text: &str) {
        let mut findings = Findings::new(file);
        for document in yaml::documents(text) {
            match document {
                Ok(node) => self.document(&node, &mut findings),
                Err(error) => {
                    findings.begin(String::new(), true);
                    findings.add(Severity::Error, error.at, "", error.message, error.fix);
                }
            }
        }
        findings.problems.sort_by_key(|problem| (problem.line, problem.column));
        self.loaded.problems.append(&mut findings.problems);
    }

    /// One object, or a `List` of them. Lists in lists end with the depth bound of the text.
    fn document(&mut self, node: &Node, findings: &mut Findings) {
        findings.begin(String::new(), true);
        let root = Item { node, path: String::new() };
        if !matches!(node.value, Value::Map(_)) {
            let fix = "begin with `apiVersion:`, `kind:` and `metadata:`";
            return root.error(
                findings,
                format!("an object is expected here, but this is {}", node.describe()),
                fix,
            );
        }
        let kind = node.get("kind").and_then(Node::as_text).unwrap_or_default();
        match node.get("items").map(|items| &items.value) {
            Some(Value::List(items)) if kind.ends_with("List") => {
                for item in items {
                    self.document(item, findings);
                }
            }
            _ => self.object(&root, findings),
        }
    }

    fn object(&mut self, root: &Item<'_>, findings: &mut Findings) {
        let Some(kind) = kind_of(root, findings) else {
            return;
        };
        let Some(meta) = read::meta(kind, root, findings) else {
            return;
        };
        let name = meta.object_name();
        let place = meta.source.clone();
        let object = read::object(kind, root, meta, findings);
        let key = (kind, name);
        if let Some(first) = self.places.get(&key) {
            let message = format!("{kind} {} is already written at {first}", key.1);
            return root.error(findings, message, "remove one of the two, or give it another name");
        }
        self.places.insert(key.clone(), place);
        match object {
            Some(object) if findings.errors == 0 => return self.loaded.catalog.insert(key.1, object),
            Some(Object::AuthorizationPolicy(policy)) => {
                self.loaded.degraded.insert(key.1.clone(), Arc::new(policy));
            }
            _ => {}
        }
        self.loaded.refused.push(key);
    }
}

impl Catalog {
    fn insert(&mut self, name: ObjectName, object: Object) {
        fn put<T>(objects: &mut Objects<T>, name: ObjectName, object: T) {
            objects.insert(name, Arc::new(object));
        }
        match object {
            Object::Namespace(object) => put(&mut self.namespaces, name, object),
            Object::Node(object) => put(&mut self.nodes, name, object),
            Object::Pod(object) => put(&mut self.pods, name, object),
            Object::Service(object) => put(&mut self.services, name, object),
            Object::EndpointSlice(object) => put(&mut self.endpoint_slices, name, object),
            Object::ServiceAccount(object) => put(&mut self.service_accounts, name, object),
            Object::ServiceEntry(object) => put(&mut self.service_entries, name, object),
            Object::WorkloadEntry(object) => put(&mut self.workload_entries, name, object),
            Object::Gateway(object) => put(&mut self.gateways, name, object),
            Object::GatewayClass(object) => put(&mut self.gateway_classes, name, object),
            Object::HttpRoute(object) => put(&mut self.http_routes, name, object),
            Object::GrpcRoute(object) => put(&mut self.grpc_routes, name, object),
            Object::BackendTlsPolicy(object) => put(&mut self.backend_tls_policies, name, object),
            Object::BackendTrafficPolicy(object) => put(&mut self.backend_traffic_policies, name, object),
            Object::ReferenceGrant(object) => put(&mut self.reference_grants, name, object),
            Object::AuthorizationPolicy(object) => put(&mut self.authorization_policies, name, object),
            Object::PeerAuthentication(object) => put(&mut self.peer_authentications, name, object),
            Object::RequestAuthentication(object) => put(&mut self.request_authentications, name, object),
            Object::ConfigMap(object) => put(&mut self.config_maps, name, object),
            Object::VirtualService(object) => put(&mut self.virtual_services, name, object),
            Object::DestinationRule(object) => put(&mut self.destination_rules, name, object),
            Object::Telemetry(object) => put(&mut self.telemetries, name, object),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMESPACE: &str = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: app\n";

    #[test]
    fn lists_are_opened() {
        let text = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Namespace\n  metadata: {name: a}\n- apiVersion: v1\n  kind: Namespace\n  metadata: {name: b}\n";
        let loaded = load_documents(vec![("a.yaml", text)]);
        assert_eq!(loaded.problems, []);
        let lines: Vec<u32> =
            loaded.catalog.namespaces.values().map(|object| object.meta.source.line).collect();
        assert_eq!(lines, [4, 7]);
    }

    #[test]
    fn json_is_read() {
        let text = r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a", "creationTimestamp": null}}"#;
        assert_eq!(load_documents(vec![("a.json", text)]).catalog.namespaces.len(), 1);
    }

    #[test]
    fn the_same_object_twice_names_both_places() {
        let loaded =
            load_documents(vec![("a.yaml", NAMESPACE.to_owned()), ("b.yaml", format!("---\n{NAMESPACE}"))]);
        let [problem] = loaded.problems.as_slice() else { panic!("{:?}", loaded.problems) };
        assert_eq!((problem.file.as_ref(), problem.line), ("b.yaml", 2));
        assert!(problem.message.contains("a.yaml:1"), "{problem}");
        assert_eq!(loaded.catalog.namespaces.len(), 1, "the first stays");
    }

    #[test]
    fn a_mounted_config_map_is_read_once() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("..2026_01_01");
        fs::create_dir(&data).unwrap();
        fs::write(data.join("a.yaml"), NAMESPACE).unwrap();
        std::os::unix::fs::symlink("..2026_01_01", dir.path().join("..data")).unwrap();
        std::os::unix::fs::symlink("..data/a.yaml", dir.path().join("a.yaml")).unwrap();
        std::os::unix::fs::symlink(".", dir.path().join("circle")).unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("broken.yaml")).unwrap();
        let loaded = load_dir(dir.path());
        assert_eq!(loaded.catalog.namespaces.len(), 1);
        let files: Vec<&str> = loaded.problems.iter().map(|problem| problem.file.as_ref()).collect();
        assert_eq!(files, ["broken.yaml"]);
    }

    #[test]
    fn folders_are_read_in_the_order_of_paths() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("z.yml"), NAMESPACE.replace("app", "z")).unwrap();
        fs::write(dir.path().join("sub/b.yaml"), NAMESPACE.replace("app", "b")).unwrap();
        fs::write(dir.path().join("a.json"), "[]").unwrap();
        fs::write(dir.path().join("notes.txt"), "not: [read").unwrap();
        let loaded = load_dir(dir.path());
        let sources: Vec<String> =
            loaded.catalog.namespaces.values().map(|object| object.meta.source.to_string()).collect();
        assert_eq!(sources, ["sub/b.yaml:1", "z.yml:1"]);
        assert_eq!(loaded.problems.len(), 1, "{:?}", loaded.problems);
        let missing = load_dir(&dir.path().join("missing"));
        assert!(missing.problems.iter().any(Problem::is_error));
        fs::write(dir.path().join("a.json"), [0xff, 0xfe]).unwrap();
        assert!(load_dir(dir.path()).problems.iter().any(|problem| problem.message.contains("UTF-8")));
    }
}
