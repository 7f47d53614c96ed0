//! Full handshakes: tunnels that are opened, answered once and closed, and what their cryptography alone costs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::try_join_all;
use hdrhistogram::Histogram;
use rustix::time::{ClockId, clock_gettime};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, ServerConnection};
use std::cell::RefCell;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::http::client::{LATENCY_MAX_NS, Outcome, PATIENCE, Span};
use crate::Failure;
use crate::certificates::Certificates;
use crate::statistics::Spread;
use crate::tls::{Files, client_config, server_config};

const LOOPS: usize = 16;
/// RFC 9113 section 3.4, and an empty SETTINGS frame.
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
const FRAME_HEAD_BYTES: usize = 9;
const SETTINGS: u8 = 4;
/// Names are SPIFFE URIs; this one is compared with nothing.
pub(super) const NAME: &str = "server.perf";

/// A door where tunnels are taken, and the certificates of both sides.
#[derive(Debug, Clone)]
pub(super) struct Tunnel {
    pub(super) address: SocketAddr,
    pub(super) client: Files,
    server: Files,
}

impl Tunnel {
    pub(super) fn new(address: SocketAddr, certificates: &Certificates) -> Self {
        Self { address, client: certificates.files("client"), server: certificates.files("server") }
    }
}

/// Closed loops for `duration`, after some warming: connect, full handshake, the first frame of either side, close.
pub(super) fn load(tunnel: &Tunnel, duration: Duration, begin: impl FnOnce()) -> Result<Outcome, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let connector = TlsConnector::from(Arc::new(client_config(&tunnel.client)?));
    let latencies = Histogram::<u64>::new_with_bounds(1, LATENCY_MAX_NS, 3)?;
    let counted = RefCell::new((Span::new(duration, begin), latencies));
    let repeat = || async {
        loop {
            let from = Instant::now();
            open(tunnel.address, &connector).await?;
            let now = Instant::now();
            let (span, latencies) = &mut *counted.borrow_mut();
            let elapsed = u64::try_from(now.duration_since(from).as_nanos()).unwrap_or(LATENCY_MAX_NS);
            latencies.saturating_record(elapsed.min(LATENCY_MAX_NS));
            if span.begins(now) {
                latencies.reset();
            }
            if !span.is_open(now) {
                return Ok::<_, Failure>(());
            }
        }
    };
    runtime.block_on(async {
        let work = try_join_all((0..LOOPS).map(|_| repeat()));
        tokio::time::timeout(duration + PATIENCE, work).await.map_err(|_| "a handshake does not end")?
    })?;
    let (span, latencies) = counted.into_inner();
    Ok(Outcome { requests: latencies.len(), body_bytes: 0, elapsed: span.start.elapsed(), latencies })
}

async fn open(address: SocketAddr, connector: &TlsConnector) -> Result<(), Failure> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut tls = connector.connect(ServerName::try_from(NAME)?, stream).await?;
    tls.write_all(PREFACE).await?;
    let mut frame = [0; FRAME_HEAD_BYTES];
    tls.read_exact(&mut frame).await?;
    if frame[3] != SETTINGS {
        return Err("a tunnel does not begin with SETTINGS".into());
    }
    // The other side may have closed first.
    let _ = tls.shutdown().await;
    Ok(())
}

// === The bound ===

/// Microseconds of CPU of the server's side of a handshake of rustls and aws-lc in memory: no socket, no other protocol.
pub(super) fn bound(tunnel: &Tunnel) -> Result<f64, Failure> {
    const HANDSHAKES: usize = 200;
    let client = Arc::new(client_config(&tunnel.client)?);
    let mut server = server_config(&tunnel.server)?;
    server.send_tls13_tickets = 0;
    let server = Arc::new(server);
    let one = |_| {
        Ok::<_, Failure>(
            in_memory(client.clone(), ServerConnection::new(server.clone())?)?.as_secs_f64() * 1e6,
        )
    };
    let costs = (0..HANDSHAKES).map(one).collect::<Result<Vec<_>, _>>()?;
    Ok(Spread::of(&costs).ok_or("no handshake was done")?.median)
}

fn cpu_now() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

fn in_memory(config: Arc<ClientConfig>, mut server: ServerConnection) -> Result<Duration, Failure> {
    let mut client = ClientConnection::new(config, ServerName::try_from(NAME)?)?;
    let mut spent = Duration::ZERO;
    while client.is_handshaking() || server.is_handshaking() {
        let mut wire = Vec::new();
        client.write_tls(&mut wire)?;
        let from = cpu_now();
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            server.read_tls(&mut rest)?;
            server.process_new_packets()?;
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire)?;
        }
        spent += cpu_now().saturating_sub(from);
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest)?;
            client.process_new_packets()?;
        }
    }
    Ok(spent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handshake_in_memory_takes_its_time() {
        let certificates = Certificates::generate().unwrap();
        let tunnel = Tunnel::new(SocketAddr::from(([127, 0, 0, 1], 1)), &certificates);
        assert!(bound(&tunnel).unwrap() > 0.0);
    }
}
