//! Tunnels whose peer proved itself with a certificate that has been revoked since.

use std::rc::Rc;

use tunnel::tls::RevocationLists;

use super::node::Node;
use crate::access_log::cause::CloseCause;
use crate::link::CloseCause::TlsCertificateRevoked;
use crate::link::Link;
use crate::metrics::{Counter, Reporter};

impl Node {
    /// Ends the tunnels of this worker, in both roles, that `lists` no longer allow. Their connections are reset.
    pub(super) fn end_revoked(&self, lists: &RevocationLists) {
        for link in Link::all(&self.worker) {
            // It is counted and told there; the connections in the tunnel close by themselves.
            let _cause = self.check_revoked(lists, &link);
        }
    }

    /// Looks at a tunnel that a connection is about to use: its handshake may have begun under older lists.
    pub(super) fn refuse_revoked(&self, link: &Rc<Link>) -> Result<(), CloseCause> {
        let lists = &self.state().revocation;
        self.check_revoked(lists, link)?;
        if !lists.is_empty() && !link.peer().is_some_and(|peer| lists.covers(&peer.proof)) {
            self.metrics.count(Counter::crl_untracked(reporter(link)));
        }
        Ok(())
    }

    fn check_revoked(&self, lists: &RevocationLists, link: &Rc<Link>) -> Result<(), CloseCause> {
        let Some(peer) = link.peer().filter(|peer| link.end().is_none() && lists.revokes(&peer.proof)) else {
            return Ok(());
        };
        tracing::warn!(peer = %peer.identity, remote = %link.remote_address(), "a tunnel ends: the peer's certificate is revoked");
        link.close(TlsCertificateRevoked, "revoked");
        Err(self.note_revoked(reporter(link)))
    }

    /// Counts a peer that was refused, and says under which cause.
    pub(super) fn note_revoked(&self, reporter: Reporter) -> CloseCause {
        self.metrics.count(Counter::crl_rejections(reporter));
        CloseCause::CertificateRevoked
    }
}

fn reporter(link: &Link) -> Reporter {
    if link.is_server() { Reporter::Destination } else { Reporter::Source }
}
