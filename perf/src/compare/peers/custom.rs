//! Proxies that the person who runs the comparison brings, from a file:
//!
//! ```yaml
//! - name: my-proxy                # as `--peer` takes it
//!   layer: l7                     # or l4
//!   network: loopback             # or namespaces
//!   environment: { LEVEL: warn }
//!   commands:                     # in the order in which a request meets them
//!   - [/opt/my-proxy, --listen, "{outbound_listen}", --to, "{inbound_dial}", --cert, "{client_cert}"]
//!   - [/opt/my-proxy, --listen, "{inbound_listen}", --to, "{backend}"]
//! - name: ztunnel                 # takes ztunnel's environment: gets a control plane, a node agent and two nodes
//!   node_proxy: /opt/ztunnel
//! ```
//!
//! Placeholders: `outbound_listen`, `inbound_listen`, `inbound_dial`, `tunnel_listen`, `tunnel_dial`, `backend` (as the
//! last of two sees it), `backend_afar` (as one hop sees it), and `root`, `client_cert`, `client_key`, `server_cert`,
//! `server_key`, which are files. A single command is one hop.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::super::result::{Kind, Layer, Network};
use super::super::site::Site;
use super::{NodeMesh, Nodes, Refusal, Spec, Starter, WITH_ACCESS_LOG};
use crate::Failure;
use crate::certificates::Certificates;

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::compare) struct Custom {
    name: String,
    #[serde(default = "l4")]
    layer: Layer,
    #[serde(default = "loopback")]
    network: Network,
    #[serde(default)]
    environment: BTreeMap<String, String>,
    #[serde(default)]
    commands: Vec<Vec<String>>,
    #[serde(default)]
    node_proxy: Option<PathBuf>,
}

fn l4() -> Layer {
    Layer::L4
}

fn loopback() -> Network {
    Network::Loopback
}

/// A command with its placeholders filled in.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Command {
    pub(super) program: String,
    pub(super) arguments: Vec<String>,
    /// Where it listens, to know when it is ready.
    pub(super) listen: SocketAddr,
}

/// The topologies of a file.
pub(in crate::compare) fn read(path: &Path) -> Result<Vec<Spec>, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let peers: Vec<Custom> =
        serde_saphyr::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    peers.into_iter().map(spec).collect()
}

fn spec(custom: Custom) -> Result<Spec, Failure> {
    let count = custom.commands.len();
    let name = custom.name.clone();
    let (starter, count, network) = match &custom.node_proxy {
        Some(program) if count == 0 => {
            let (mesh, log, program) = (NodeMesh::L4, WITH_ACCESS_LOG, Some(program.clone()));
            (Starter::Nodes(Nodes { mesh, driver: "", workers: 1, log, program }), 2, Network::Namespaces)
        }
        None if (1..=2).contains(&count) => (Starter::Custom(custom.clone()), count, custom.network),
        _ => return Err(format!("peer {name}: give one or two commands, or node_proxy alone").into()),
    };
    let sides = ["client", "server"];
    Ok(Spec {
        name,
        label: "brought by --peer-file",
        kind: Kind::Custom,
        network,
        layer: custom.layer,
        processes: sides.iter().take(count).map(|side| (*side).to_owned()).collect(),
        description: "As its file says.",
        refusal: Refusal::Nothing,
        starter,
    })
}

impl Custom {
    pub(super) fn is_redirected_inbound(&self) -> bool {
        self.commands.iter().flatten().any(|word| word.contains("{inbound_listen}"))
    }

    pub(super) fn environment(&self) -> Vec<(OsString, OsString)> {
        self.environment.iter().map(|(name, value)| (name.into(), value.into())).collect()
    }

    pub(super) fn commands(&self, site: &Site, certificates: &Certificates) -> Result<Vec<Command>, Failure> {
        let file = |path: PathBuf| path.display().to_string();
        let words = [
            ("outbound_listen", site.outbound().listen.to_string()),
            ("inbound_listen", site.inbound().listen.to_string()),
            ("inbound_dial", site.inbound().dial.to_string()),
            ("tunnel_listen", site.tunnel().listen.to_string()),
            ("tunnel_dial", site.tunnel().dial.to_string()),
            ("backend", site.backend().dial.to_string()),
            ("backend_afar", site.backend_afar().to_string()),
            ("root", file(certificates.root())),
            ("client_cert", file(certificates.certificate("client"))),
            ("client_key", file(certificates.key("client"))),
            ("server_cert", file(certificates.certificate("server"))),
            ("server_key", file(certificates.key("server"))),
        ];
        let each = self.commands.iter().enumerate().map(|(index, command)| {
            let listen = match index {
                0 => site.outbound().listen,
                _ if command.iter().any(|word| word.contains("{tunnel_listen}")) => site.tunnel().listen,
                _ => site.inbound().listen,
            };
            let mut filled = command.iter().map(|word| fill(word, &words));
            let program =
                filled.next().ok_or_else(|| format!("peer {}: a command is empty", self.name))??;
            Ok(Command { program, arguments: filled.collect::<Result<_, _>>()?, listen })
        });
        each.collect()
    }
}

/// Puts values in the place of `{name}`; a name that nobody knows is an error.
fn fill(word: &str, values: &[(&str, String)]) -> Result<String, Failure> {
    let mut text = String::new();
    let mut rest = word;
    while let Some((before, after)) = rest.split_once('{') {
        let Some((name, after)) = after.split_once('}') else {
            return Err(format!("{word:?} has a brace that does not close").into());
        };
        let value = values.iter().find(|(known, _)| *known == name);
        let (_, value) = value.ok_or_else(|| {
            let known: Vec<_> = values.iter().map(|(name, _)| *name).collect();
            format!("{word:?}: there is no {{{name}}}; there are {}", known.join(", "))
        })?;
        text.push_str(before);
        text.push_str(value);
        rest = after;
    }
    text.push_str(rest);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_filled_and_unknown_ones_are_named() {
        let values = [("a", "1.2.3.4:5".to_owned())];
        assert_eq!(fill("--to={a}/x", &values).unwrap(), "--to=1.2.3.4:5/x");
        assert!(fill("{b}", &values).unwrap_err().to_string().contains("there is no {b}"));
        assert!(fill("{a", &values).is_err());
    }

    #[test]
    fn a_file_names_commands_or_a_node_proxy() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("peers.yaml");
        let text = "- name: mine\n  layer: l7\n  commands:\n  - [/bin/x, '{outbound_listen}']\n- name: ztunnel\n  node_proxy: /bin/z\n";
        std::fs::write(&path, text).unwrap();
        let specs = read(&path).unwrap();
        assert_eq!((specs[0].layer, specs[0].processes.len()), (Layer::L7, 1));
        assert_eq!((specs[1].network, specs[1].processes.len()), (Network::Namespaces, 2));
        std::fs::write(&path, "- name: none\n").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("peer none"));
        std::fs::write(&path, "- name: x\n  comands: []\n").unwrap();
        assert!(read(&path).is_err());
    }
}
