//! Ways to a server that requests take: connections that carry one at a time, and links that many share.

use std::io;
use std::rc::Rc;

use model::AppProtocol;

use super::reader::Reader;
use super::{Protocol, Reply, Wire};
use crate::access_log::cause::CloseCause;
use crate::link::{Link, Transport};
use crate::session::dial::UpstreamFacts;
use crate::session::load::LoadGuard;
use crate::session::traffic::{Cluster, Ticket};
use crate::worker::Worker;

/// An upstream for one request.
#[derive(Debug)]
pub(in crate::session) struct Upstream {
    pub(super) way: Way,
    /// Whom it reaches, where the director has more than one.
    pub(super) facts: Option<Rc<UpstreamFacts>>,
    /// Counts at the endpoint where endpoints are chosen by load.
    _load: Option<LoadGuard>,
    /// Of a service whose connections are bounded.
    pub(super) ticket: Option<Rc<Ticket>>,
}

#[derive(Debug)]
pub(super) enum Way {
    Http1(Http1Way),
    /// Other requests may run on it.
    Http2(Rc<Link>),
}

/// A connection that carries one request at a time.
#[derive(Debug)]
pub(super) struct Http1Way {
    pub(super) wire: Wire,
    pub(super) reader: Reader,
    /// A request is on its way. Dropped meanwhile, the upstream must see a reset and not an end.
    pub(super) busy: bool,
}

impl Upstream {
    /// One that speaks HTTP/1.1.
    pub(in crate::session) fn new(
        wire: Wire,
        facts: Option<Box<UpstreamFacts>>,
        load: Option<LoadGuard>,
    ) -> Self {
        let way = Way::Http1(Http1Way { wire, reader: Reader::default(), busy: false });
        Self { way, facts: facts.map(Rc::from), _load: load, ticket: None }
    }

    /// One that speaks HTTP/2, with prior knowledge.
    pub(in crate::session) fn http2(
        worker: &Worker,
        wire: Wire,
        facts: Option<Box<UpstreamFacts>>,
        load: Option<LoadGuard>,
    ) -> Result<Self, Reply> {
        let link = transport(wire).and_then(|transport| Link::clear_client(worker, transport));
        let link = link.map_err(|error| {
            tracing::debug!(%error, "an upstream broke before it was used");
            Reply::text(503, "upstream connect error", CloseCause::ConnectFailed)
        })?;
        Ok(Self { way: Way::Http2(link), facts: facts.map(Rc::from), _load: load, ticket: None })
    }

    /// The same, counting for a cluster.
    pub(super) fn ticketed(self, ticket: Option<Rc<Ticket>>) -> Self {
        Self { ticket, ..self }
    }

    /// One on a link that others use, too.
    pub(super) fn shared(
        link: Rc<Link>,
        facts: Rc<UpstreamFacts>,
        load: Option<LoadGuard>,
        ticket: Option<Rc<Ticket>>,
    ) -> Self {
        Self { way: Way::Http2(link), facts: Some(facts), _load: load, ticket }
    }

    pub(in crate::session) fn protocol(&self) -> Protocol {
        match self.way {
            Way::Http1(_) => Protocol::Http1,
            Way::Http2(_) => Protocol::Http2,
        }
    }

    /// Whether it may be used for another request: nothing has arrived on a connection, neither bytes nor an end; a link
    /// takes streams.
    pub(in crate::session) fn is_quiet(&self) -> bool {
        match &self.way {
            Way::Http1(way) => way.wire.is_quiet(),
            Way::Http2(link) => link.open_capacity() > 0,
        }
    }

    /// Whether it counts for this cluster, or for none as it should.
    pub(super) fn is_of(&self, cluster: Option<&Rc<Cluster>>) -> bool {
        is_of(self.ticket.as_ref(), cluster)
    }

    /// Whom it reaches, as it was told to [`Upstream::new`].
    pub(in crate::session) fn facts(&self) -> Option<&UpstreamFacts> {
        self.facts.as_deref()
    }
}

pub(super) fn is_of(ticket: Option<&Rc<Ticket>>, cluster: Option<&Rc<Cluster>>) -> bool {
    match (ticket, cluster) {
        (Some(ticket), Some(cluster)) => Rc::ptr_eq(ticket.cluster(), cluster),
        (None, None) => true,
        _ => false,
    }
}

impl Drop for Http1Way {
    fn drop(&mut self) {
        if self.busy {
            self.wire.reset();
        }
    }
}

/// What a link runs on.
pub(super) fn transport(wire: Wire) -> io::Result<Transport> {
    match wire {
        Wire::Socket(socket) => {
            let remote = socket.peer_address()?;
            Ok(Transport::Socket(socket, remote))
        }
        Wire::Tunnel(stream) => Ok(Transport::Stream(stream)),
        Wire::Tls(stream) => {
            let addresses = stream.addresses()?;
            Ok(Transport::Bytes(Box::new(stream), addresses))
        }
    }
}

/// What is spoken to a backend whose port is declared so, for a client that speaks `downstream`: Istio's choice.
pub(in crate::session) fn protocol_to(declared: Option<AppProtocol>, downstream: Protocol) -> Protocol {
    match declared {
        Some(AppProtocol::Http2 | AppProtocol::Grpc) => Protocol::Http2,
        Some(AppProtocol::Http11) => Protocol::Http1,
        Some(AppProtocol::Unknown | AppProtocol::Tcp | AppProtocol::Tls) | None => downstream,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_declared_port_is_spoken_to_as_it_says_and_others_as_their_clients_speak() {
        for downstream in [Protocol::Http1, Protocol::Http2] {
            for (declared, spoken) in [
                (Some(AppProtocol::Grpc), Protocol::Http2),
                (Some(AppProtocol::Http2), Protocol::Http2),
                (Some(AppProtocol::Http11), Protocol::Http1),
                (Some(AppProtocol::Unknown), downstream),
                (None, downstream),
            ] {
                assert_eq!(protocol_to(declared, downstream), spoken, "{declared:?} {downstream:?}");
            }
        }
    }
}
