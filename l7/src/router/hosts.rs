//! Routes by hostname: the exact one, then wildcards from the longest, then routes for any host.

use std::collections::HashMap;
use std::sync::Arc;

use arrayvec::ArrayVec;
use foldhash::fast::RandomState;

use super::condition::Names;
use super::table::PathTable;
use super::{Asked, MatchId, RouteFault};
use crate::ir::{HttpMatch, RouteOrder};

/// Longest host that named routes can take (RFC 1035 section 2.3.4).
const HOST_BYTES_MAX: usize = 255;

type Host = ArrayVec<u8, HOST_BYTES_MAX>;

#[derive(Debug, Default)]
pub(super) struct Hosts {
    any: PathTable,
    exact: HashMap<Box<[u8]>, PathTable, RandomState>,
    /// By what follows the star, the dot included.
    wildcards: HashMap<Box<[u8]>, PathTable, RandomState>,
}

impl Hosts {
    pub(super) fn add(
        &mut self,
        hostnames: &[Arc<str>],
        order: RouteOrder,
        id: MatchId,
        entry: &HttpMatch,
        names: &mut Names,
    ) -> Result<(), RouteFault> {
        if hostnames.is_empty() {
            return self.any.add(order, id, entry, names);
        }
        for hostname in hostnames {
            let hostname = hostname.to_ascii_lowercase();
            let table = match hostname.strip_prefix('*') {
                Some("") => &mut self.any,
                Some(suffix) => self.wildcards.entry(suffix.as_bytes().into()).or_default(),
                None => self.exact.entry(hostname.into_bytes().into()).or_default(),
            };
            table.add(order, id, entry, names)?;
        }
        Ok(())
    }

    /// Brings every table into the order of rank; to be called once, after the last [`Self::add`].
    pub(super) fn sort(&mut self) {
        self.any.sort();
        self.exact.values_mut().for_each(PathTable::sort);
        self.wildcards.values_mut().for_each(PathTable::sort);
    }

    pub(super) fn find(&self, asked: &Asked<'_>) -> Option<MatchId> {
        if self.exact.is_empty() && self.wildcards.is_empty() {
            return self.any.find(asked);
        }
        self.find_named(asked).or_else(|| self.any.find(asked))
    }

    fn find_named(&self, asked: &Asked<'_>) -> Option<MatchId> {
        let host = host_of(asked.head.authority)?;
        if let Some(id) = self.exact.get(host.as_slice()).and_then(|table| table.find(asked)) {
            return Some(id);
        }
        // From the first dot on, the suffixes get shorter; a star stands for one label at least.
        memchr::memchr_iter(b'.', &host).filter(|dot| *dot > 0).find_map(|dot| {
            let suffix = host.get(dot..)?;
            self.wildcards.get(suffix).and_then(|table| table.find(asked))
        })
    }
}

/// The host of an authority in lower case, without port and without the dot of a fully qualified name. `None` if it
/// is too long to be a name.
fn host_of(authority: &str) -> Option<Host> {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    let mut lower = Host::try_from(host.as_bytes()).ok()?;
    lower.make_ascii_lowercase();
    Some(lower)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_loses_port_case_and_final_dot() {
        for (authority, expected) in [
            ("Echo.Example:8080", "echo.example"),
            ("echo.", "echo"),
            ("echo.:80", "echo"),
            ("[fd00::1]:80", "[fd00::1]"),
            ("[fd00::1]", "[fd00::1]"),
            ("", ""),
        ] {
            assert_eq!(host_of(authority).unwrap().as_slice(), expected.as_bytes(), "{authority}");
        }
        assert_eq!(host_of(&"a".repeat(256)), None);
    }
}
