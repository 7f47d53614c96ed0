//! The proxy's own ports: admin on localhost, metrics and readiness on all addresses.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;

use tokio::task::JoinHandle;

use crate::admin::{AdminSite, Binding, MetricsSite, ReadinessSite, Site, serve};
use crate::config::{Config, localhost};
use crate::control::NodeProxy;
use crate::net::wildcard;

/// Why a page cannot be served.
#[derive(Debug, thiserror::Error)]
#[error(
    "{at} cannot be listened on for {what}: {source}; is another proxy running in this network namespace?"
)]
pub struct PageError {
    what: &'static str,
    at: SocketAddr,
    source: io::Error,
}

/// Serves until it is dropped.
#[derive(Debug)]
pub(super) struct Pages(Vec<JoinHandle<()>>);

impl Drop for Pages {
    fn drop(&mut self) {
        for page in &self.0 {
            page.abort();
        }
    }
}

/// Opens all of them.
pub(super) async fn open(config: &Config, node: &NodeProxy) -> Result<Pages, PageError> {
    let mut pages = Pages(Vec::new());
    let admin = Rc::new(AdminSite::new(Rc::new(node.inspect())));
    for at in localhost(config.ports.admin, config.ipv6) {
        let opened = page(&mut pages, "the admin page", at, Rc::clone(&admin)).await;
        // Containers often have an IPv6 kernel without ::1.
        if let Err(error) = opened
            && (at.ip() == IpAddr::V4(Ipv4Addr::LOCALHOST)
                || error.source.kind() != io::ErrorKind::AddrNotAvailable)
        {
            return Err(error);
        }
    }
    let metrics = Rc::new(MetricsSite::new(node.metrics()));
    page(&mut pages, "metrics", wildcard(config.ports.metrics, config.ipv6), metrics).await?;
    let readiness = Rc::new(ReadinessSite::new(node.readiness()));
    page(&mut pages, "readiness", wildcard(config.ports.readiness, config.ipv6), readiness).await?;
    Ok(pages)
}

async fn page<S: Site>(
    pages: &mut Pages,
    what: &'static str,
    at: SocketAddr,
    site: Rc<S>,
) -> Result<(), PageError> {
    let (_, task) = serve(&Binding::Tcp(at), site).await.map_err(|source| PageError { what, at, source })?;
    pages.0.push(task);
    Ok(())
}

/// Whether this kernel has IPv6 at all.
pub(super) fn has_ipv6() -> bool {
    std::net::UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok()
}
