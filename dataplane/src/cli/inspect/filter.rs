//! Which entries are wanted.

use clap::{Args, ValueEnum};
use serde_json::Value;

use super::text;

#[derive(Debug, Default, Args)]
pub(super) struct Filter {
    /// Only of this namespace.
    #[arg(long, short, value_name = "NAME")]
    pub(super) namespace: Option<String>,

    /// Only of this node.
    #[arg(long, value_name = "NAME")]
    pub(super) node: Option<String>,

    /// Only of this workload: NAME or NAMESPACE/NAME.
    #[arg(long, value_name = "NAME")]
    pub(super) workload: Option<String>,

    /// Only with this address.
    #[arg(long, value_name = "IP")]
    pub(super) address: Option<String>,

    /// Only connections of this direction.
    #[arg(long, value_enum)]
    pub(super) direction: Option<Way>,

    /// Show addresses of connections rather than names.
    #[arg(long)]
    pub(super) raw: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Way {
    Inbound,
    Outbound,
}

impl Filter {
    /// Whether an entry with `name` and `namespace` is wanted by these.
    pub(super) fn takes_named(&self, entry: &Value) -> bool {
        let (name, namespace) = (text(entry, "name"), text(entry, "namespace"));
        let by_namespace = same(self.namespace.as_deref(), namespace);
        by_namespace
            && self.workload.as_deref().is_none_or(|wanted| match wanted.split_once('/') {
                Some((of, wanted)) => of.eq_ignore_ascii_case(namespace) && wanted.eq_ignore_ascii_case(name),
                None => wanted.eq_ignore_ascii_case(name),
            })
    }

    /// Whether an entry on `node` is wanted.
    pub(super) fn takes_node(&self, node: &str) -> bool {
        same(self.node.as_deref(), node)
    }

    /// Whether an entry with these addresses is wanted.
    pub(super) fn takes_address<'a>(&self, mut addresses: impl Iterator<Item = &'a str>) -> bool {
        self.address.as_deref().is_none_or(|wanted| addresses.any(|it| it.eq_ignore_ascii_case(wanted)))
    }

    pub(super) fn takes_direction(&self, direction: Way) -> bool {
        self.direction.is_none_or(|wanted| wanted == direction)
    }
}

fn same(wanted: Option<&str>, found: &str) -> bool {
    wanted.is_none_or(|wanted| wanted.eq_ignore_ascii_case(found))
}
