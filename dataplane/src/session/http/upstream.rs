//! Ways to a server that requests take: connections that carry one at a time, and links that many share.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use model::AppProtocol;

use super::reader::Reader;
use super::{Protocol, Reply, Wire};
use crate::access_log::cause::CloseCause;
use crate::access_log::record::Authority;
use crate::link::{Link, Transport};
use crate::session::dial::UpstreamFacts;
use crate::session::load::LoadGuard;
use crate::worker::{Latch, Worker};

/// Idle upstreams kept for the next requests of one downstream connection.
const IDLE_MAX: usize = 4;

/// An upstream for one request.
#[derive(Debug)]
pub(in crate::session) struct Upstream {
    pub(super) way: Way,
    /// Whom it reaches, where the director has more than one.
    facts: Option<Rc<UpstreamFacts>>,
    /// Counts at the endpoint where endpoints are chosen by load.
    _load: Option<LoadGuard>,
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
        Self { way, facts: facts.map(Rc::from), _load: load }
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
        Ok(Self { way: Way::Http2(link), facts: facts.map(Rc::from), _load: load })
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

    /// Whom it reaches, as it was told to [`Upstream::new`].
    pub(in crate::session) fn facts(&self) -> Option<&UpstreamFacts> {
        self.facts.as_deref()
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

/// What makes two upstreams the same one.
type Place = (Option<SocketAddr>, Option<Authority>, Option<usize>);

fn place(facts: &UpstreamFacts) -> Place {
    let tls = facts.backend_tls.as_ref().map(|tls| Arc::as_ptr(tls).addr());
    (facts.destination.address, facts.authority.clone(), tls)
}

/// The upstreams of one downstream connection: idle ones, and links, which requests share.
#[derive(Debug, Default)]
pub(in crate::session) struct Kept {
    /// Most recently used last.
    idle: RefCell<Vec<Upstream>>,
    links: RefCell<Vec<(Rc<UpstreamFacts>, Rc<Link>)>>,
    /// Links that are being dialled, and where to.
    dialling: RefCell<Vec<(Place, Rc<Latch>)>>,
}

/// A link is being dialled for as long as this is held.
#[derive(Debug)]
struct Dialling<'k> {
    kept: &'k Kept,
    latch: Rc<Latch>,
}

impl Drop for Dialling<'_> {
    fn drop(&mut self) {
        self.kept.dialling.borrow_mut().retain(|(_, latch)| !Rc::ptr_eq(latch, &self.latch));
        self.latch.open();
    }
}

impl Kept {
    /// An upstream to `wanted`: one that is there, or what `dial` opens. Requests for the same link wait for one dialler. A
    /// backend that has its own TLS may choose HTTP/1.1 where HTTP/2 is wanted.
    pub(in crate::session) async fn reach(
        &self,
        worker: &Worker,
        wanted: &UpstreamFacts,
        protocol: Protocol,
        load: Option<LoadGuard>,
        dial: impl Future<Output = Result<(Wire, UpstreamFacts), Reply>>,
    ) -> Result<Upstream, Reply> {
        let may_choose = protocol == Protocol::Http2 && wanted.backend_tls.is_some();
        if (protocol == Protocol::Http1 || may_choose)
            && let Some(idle) = self.take_idle(wanted)
        {
            return Ok(idle);
        }
        if protocol == Protocol::Http1 {
            let (wire, facts) = Box::pin(dial).await?;
            return Ok(Upstream::new(wire, Some(Box::new(facts)), load));
        }
        let place = place(wanted);
        let Some((facts, link)) = self.shared_or_dialled(&place).await else {
            let _dialling = self.begin(place);
            let (wire, facts) = Box::pin(dial).await?;
            if matches!(&wire, Wire::Tls(stream) if !stream.speaks_http2()) {
                return Ok(Upstream::new(wire, Some(Box::new(facts)), load));
            }
            let upstream = Upstream::http2(worker, wire, Some(Box::new(facts)), load)?;
            self.share(&upstream);
            return Ok(upstream);
        };
        Ok(Upstream { way: Way::Http2(link), facts: Some(facts), _load: load })
    }

    /// Takes back an upstream that can carry another request.
    pub(in crate::session) fn put_back(&self, upstream: Upstream) {
        // Links are kept from the start.
        if upstream.protocol() == Protocol::Http1 {
            let mut idle = self.idle.borrow_mut();
            if idle.len() == IDLE_MAX {
                idle.remove(0);
            }
            idle.push(upstream);
        }
    }

    /// An idle upstream to the same place that has not been closed meanwhile.
    fn take_idle(&self, wanted: &UpstreamFacts) -> Option<Upstream> {
        let wanted = place(wanted);
        let mut idle = self.idle.borrow_mut();
        loop {
            let at = idle.iter().position(|it| it.facts().is_some_and(|it| place(it) == wanted))?;
            let upstream = idle.remove(at);
            if upstream.is_quiet() {
                return Some(upstream);
            }
        }
    }

    /// A link that takes streams; waits for one that is being dialled.
    async fn shared_or_dialled(&self, place: &Place) -> Option<(Rc<UpstreamFacts>, Rc<Link>)> {
        if let Some(shared) = self.shared(place) {
            return Some(shared);
        }
        let latch =
            self.dialling.borrow().iter().find(|(to, _)| to == place).map(|(_, latch)| latch.clone())?;
        latch.wait().await;
        // Without one it failed, and each request learns for itself why.
        self.shared(place)
    }

    fn shared(&self, wanted: &Place) -> Option<(Rc<UpstreamFacts>, Rc<Link>)> {
        let mut links = self.links.borrow_mut();
        links.retain(|(_, link)| link.takes_streams());
        let found = links.iter().find(|(facts, link)| place(facts) == *wanted && link.open_capacity() > 0)?;
        Some(found.clone())
    }

    fn begin(&self, place: Place) -> Dialling<'_> {
        let latch = Rc::<Latch>::default();
        self.dialling.borrow_mut().push((place, latch.clone()));
        Dialling { kept: self, latch }
    }

    /// Makes a link known to the requests that follow. Beyond the bound the one that is used least goes.
    fn share(&self, upstream: &Upstream) {
        let (Way::Http2(link), Some(facts)) = (&upstream.way, &upstream.facts) else { return };
        let mut links = self.links.borrow_mut();
        if links.len() >= IDLE_MAX
            && let Some(at) = links.iter().position(|(_, link)| link.stream_count() == 0)
        {
            links.remove(at).1.drain();
        }
        links.push((facts.clone(), link.clone()));
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        for (_, link) in self.links.get_mut().drain(..) {
            link.drain();
        }
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
