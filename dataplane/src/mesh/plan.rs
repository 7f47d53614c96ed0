//! A plan: what to ask of a running mesh, what to change meanwhile, and what must come of it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use serde::Deserialize;

/// Largest transfer of a plan.
const TRANSFER_BYTES_MAX: u64 = 16 << 30;
/// Most connections of a load.
const CONNECTIONS_MAX: u32 = 1_000;

/// Why a plan cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error("the plan {path} cannot be read: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the plan {path} is not valid: {reason}")]
    Invalid { path: PathBuf, reason: String },
}

/// The steps, in order.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    pub steps: Vec<Step>,
}

/// One property that the mesh must show. Fails with the first action that fails.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    pub title: String,
    pub actions: Vec<Action>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    Request(RequestAction),
    Edit(Edit),
    /// Reads `bytes` bytes from the pod and compares their checksum.
    Download(Transfer),
    /// Sends `bytes` bytes and compares the checksum that the pod saw.
    Upload(Transfer),
    Load(Load),
}

/// One request on a connection of its own.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RequestAction {
    pub from: PodRef,
    pub to: Target,
    #[serde(default = "get")]
    pub method: String,
    pub path: String,
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    pub expect: Expectation,
    /// Asked again until the expectation holds, at most so long since the last edit. 0: it must hold at once.
    #[serde(default)]
    pub within_ms: u64,
}

/// What must come of a request. What is not named may be anything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Expectation {
    pub status: Option<u16>,
    /// Name of the pod that answers.
    pub pod: Option<String>,
    /// No answer comes: the connection is refused or cut.
    #[serde(default)]
    pub refused: bool,
    /// Carried by mTLS with an identity on both sides, or not.
    pub mutual_tls: Option<bool>,
    /// `namespace/name` of the route that was taken.
    pub route: Option<String>,
    /// The pod sees the client pod's own address.
    pub source_address: Option<bool>,
}

/// A change of one file of the working copy: `replace`, which must occur exactly once, becomes `with`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Edit {
    /// Relative to the folder.
    pub file: PathBuf,
    pub replace: String,
    pub with: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Transfer {
    pub from: PodRef,
    pub to: Target,
    /// What comes before `/bytes/N` or `/checksum`.
    #[serde(default)]
    pub prefix: String,
    pub bytes: u64,
}

/// Many small requests, each answer checked byte by byte.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Load {
    pub from: PodRef,
    pub to: Target,
    #[serde(default)]
    pub prefix: String,
    pub requests: u64,
    #[serde(default = "one")]
    pub connections: u32,
    /// Size of each answer.
    pub bytes: u64,
}

/// `NAMESPACE/NAME` of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct PodRef {
    pub namespace: String,
    pub name: String,
}

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Target {
    /// `NAME.NAMESPACE[.svc...]:PORT`: the virtual address of a Service.
    Service { name: String, namespace: String, port: u16 },
    /// `pod/NAMESPACE/NAME:PORT`: the pod itself.
    Pod { pod: PodRef, port: u16 },
    /// `IP:PORT`.
    Address { ip: IpAddr, port: u16 },
}

fn get() -> String {
    "GET".to_owned()
}

const fn one() -> u32 {
    1
}

// === impl Plan ===

impl Plan {
    pub fn read(path: &Path) -> Result<Self, PlanError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| PlanError::Read { path: path.to_owned(), source })?;
        Self::parse(&text).map_err(|reason| PlanError::Invalid { path: path.to_owned(), reason })
    }

    pub fn parse(text: &str) -> Result<Self, String> {
        let plan: Self = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        if plan.steps.is_empty() {
            return Err("it has no steps".to_owned());
        }
        for step in &plan.steps {
            step.check().map_err(|reason| format!("step {:?}: {reason}", step.title))?;
        }
        Ok(plan)
    }
}

impl Step {
    fn check(&self) -> Result<(), String> {
        if self.actions.is_empty() {
            return Err("it has no actions".to_owned());
        }
        self.actions.iter().try_for_each(|action| match action {
            Action::Request(request) => request.check(),
            Action::Edit(edit) => edit.check(),
            Action::Download(transfer) | Action::Upload(transfer) => transfer.check(),
            Action::Load(load) => load.check(),
        })
    }
}

impl RequestAction {
    fn check(&self) -> Result<(), String> {
        let expect = &self.expect;
        if *expect == Expectation::default() {
            return Err(format!("the request to {} expects nothing", self.path));
        }
        if expect.refused
            && (expect.status.is_some() || expect.pod.is_some() || expect.source_address.is_some())
        {
            return Err(format!("the request to {} cannot be both refused and answered", self.path));
        }
        if !self.path.starts_with('/') {
            return Err(format!("path {:?} does not begin with /", self.path));
        }
        Ok(())
    }
}

impl Edit {
    fn check(&self) -> Result<(), String> {
        // The plan may change the working copy only.
        if self.file.as_os_str().is_empty()
            || !self.file.components().all(|c| matches!(c, Component::Normal(_)))
        {
            return Err(format!("file {} must be a plain path inside the folder", self.file.display()));
        }
        if self.replace.is_empty() {
            return Err("`replace` is empty".to_owned());
        }
        Ok(())
    }

    /// The text after the change.
    pub fn apply(&self, text: &str) -> Result<String, String> {
        match text.matches(&self.replace).count() {
            1 => Ok(text.replacen(&self.replace, &self.with, 1)),
            count => Err(format!(
                "{:?} occurs {count} times in {}, must occur once",
                self.replace,
                self.file.display()
            )),
        }
    }
}

impl Transfer {
    fn check(&self) -> Result<(), String> {
        if self.bytes > TRANSFER_BYTES_MAX {
            return Err(format!("{} bytes are more than {TRANSFER_BYTES_MAX}", self.bytes));
        }
        Ok(())
    }
}

impl Load {
    fn check(&self) -> Result<(), String> {
        if self.requests == 0 || self.connections == 0 || self.connections > CONNECTIONS_MAX {
            return Err(format!("a load needs requests, and 1 to {CONNECTIONS_MAX} connections"));
        }
        if self.bytes > TRANSFER_BYTES_MAX {
            return Err(format!("{} bytes are more than {TRANSFER_BYTES_MAX}", self.bytes));
        }
        Ok(())
    }
}

// === impl PodRef, Target ===

impl TryFrom<String> for PodRef {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for PodRef {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(format!("{text:?} is not a pod: write NAMESPACE/NAME")),
        }
    }
}

impl fmt::Display for PodRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl TryFrom<String> for Target {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} is not a target: write SERVICE.NAMESPACE:PORT, pod/NAMESPACE/NAME:PORT or IP:PORT"
            )
        };
        if let Ok(address) = text.parse::<std::net::SocketAddr>() {
            return Ok(Self::Address { ip: address.ip(), port: address.port() });
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().map_err(|_| wrong())?;
        if let Some(pod) = host.strip_prefix("pod/") {
            return Ok(Self::Pod { pod: pod.parse()?, port });
        }
        let mut labels = host.split('.');
        match (labels.next(), labels.next()) {
            (Some(name), Some(namespace)) if !name.is_empty() && !namespace.is_empty() => {
                Ok(Self::Service { name: name.to_owned(), namespace: namespace.to_owned(), port })
            }
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service { name, namespace, port } => write!(f, "{name}.{namespace}:{port}"),
            Self::Pod { pod, port } => write!(f, "pod/{pod}:{port}"),
            Self::Address { ip, port } => write!(f, "{}", std::net::SocketAddr::new(*ip, *port)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: &str = r"
steps:
- title: routes
  actions:
  - request:
      from: hello/client
      to: hello-world.hello:5000
      path: /v1/hello
      expect: { status: 200, pod: hello-world-v1, mutualTls: true }
  - edit: { file: 40-policies.yaml, replace: a, with: b }
  - request:
      from: outside/stranger
      to: pod/hello/web:8080
      method: POST
      path: /
      headers: { x-a: b }
      expect: { refused: true }
      withinMs: 1000
- title: load
  actions:
  - download: { from: hello/client, to: '10.0.0.1:80', bytes: 10 }
  - load: { from: hello/client, to: '[fd00::1]:80', prefix: /v1, requests: 10, bytes: 5 }
";

    #[test]
    fn a_plan_is_read() {
        let plan = Plan::parse(PLAN).unwrap();
        assert_eq!(plan.steps.len(), 2);
        let Action::Request(request) = &plan.steps[0].actions[0] else { panic!("a request") };
        assert_eq!(request.method, "GET");
        assert_eq!(request.to.to_string(), "hello-world.hello:5000");
        assert_eq!(request.expect.mutual_tls, Some(true));
        let Action::Request(request) = &plan.steps[0].actions[2] else { panic!("a request") };
        assert_eq!((request.within_ms, request.to.to_string().as_str()), (1000, "pod/hello/web:8080"));
        let Action::Load(load) = &plan.steps[1].actions[1] else { panic!("a load") };
        assert_eq!((load.connections, load.to.to_string().as_str()), (1, "[fd00::1]:80"));
    }

    #[test]
    fn a_wrong_plan_is_refused_with_its_reason() {
        let refusal = |from: &str, to: &str| {
            let text = PLAN.replacen(from, to, 1);
            assert_ne!(text, PLAN);
            Plan::parse(&text).unwrap_err()
        };
        assert!(refusal("file: 40-policies.yaml", "file: ../x.yaml").contains("inside the folder"));
        assert!(refusal("file: 40-policies.yaml", "file: /etc/x.yaml").contains("inside the folder"));
        assert!(refusal("hello/client", "client").contains("NAMESPACE/NAME"));
        assert!(refusal("hello-world.hello:5000", "hello-world:5000").contains("SERVICE.NAMESPACE:PORT"));
        assert!(
            refusal("hello-world.hello:5000", "hello-world.hello:99999").contains("SERVICE.NAMESPACE:PORT")
        );
        assert!(
            refusal("{ refused: true }", "{ refused: true, status: 200 }")
                .contains("both refused and answered")
        );
        assert!(refusal("{ refused: true }", "{}").contains("expects nothing"));
        assert!(refusal("path: /v1/hello", "path: v1").contains("begin with /"));
        assert!(refusal("requests: 10", "requests: 0").contains("needs requests"));
        assert!(refusal("withinMs", "within").contains("within"));
        assert!(Plan::parse("steps: []").unwrap_err().contains("no steps"));
    }

    #[test]
    fn an_edit_changes_exactly_one_place() {
        let edit = Edit { file: "a.yaml".into(), replace: "x".into(), with: "y".into() };
        assert_eq!(edit.apply("a x b").unwrap(), "a y b");
        assert!(edit.apply("a b").unwrap_err().contains("0 times"));
        assert!(edit.apply("x x").unwrap_err().contains("2 times"));
    }
}
