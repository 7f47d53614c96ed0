//! The pure cores at work, one step at a time: what criterion takes by the clock and `perf instructions` by count.

mod http1;
mod http2;
mod policy;
mod records;
mod router;
mod snapshot;

use std::hint::black_box;

/// Does the work once more. What is wrong with it panics.
pub type Step = Box<dyn FnMut()>;

/// One kind of work.
pub struct Work {
    pub name: &'static str,
    /// Payload bytes of one step, where that is what counts.
    pub bytes: Option<u64>,
    /// Counted in instructions: it is neither the processor's cryptography nor a table too large for a simulated one.
    pub is_counted: bool,
    prepare: fn() -> Step,
}

impl Work {
    /// Builds what the steps need.
    pub fn prepare(&self) -> Step {
        (self.prepare)()
    }
}

impl std::fmt::Debug for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Work").field(&self.name).finish()
    }
}

const fn counted(name: &'static str, prepare: fn() -> Step) -> Work {
    Work { name, bytes: None, is_counted: true, prepare }
}

const fn timed(name: &'static str, prepare: fn() -> Step) -> Work {
    Work { name, bytes: None, is_counted: false, prepare }
}

const fn sealed(name: &'static str, bytes: u64, prepare: fn() -> Step) -> Work {
    Work { name, bytes: Some(bytes), is_counted: false, prepare }
}

/// All of them.
pub const WORKS: &[Work] = &[
    counted("router/last of 10", || router::last(10)),
    counted("router/last of 1000", || router::last(1_000)),
    timed("router/last of 10000", || router::last(10_000)),
    timed("router/each of 10 in turn", || router::scattered(10)),
    timed("router/each of 1000 in turn", || router::scattered(1_000)),
    timed("router/each of 10000 in turn", || router::scattered(10_000)),
    counted("policy/last template of 1", || policy::last(1)),
    counted("policy/last template of 100", || policy::last(100)),
    counted("policy/last template of 100 of one client", || policy::last_of_client(100)),
    timed("policy/last template of 1000", || policy::last(1_000)),
    counted("path/clean", || policy::path("/v1/users/7/orders")),
    counted("path/dotted", || policy::path("/v1/./users/%37/../8")),
    counted("http1/head forwarded", http1::forwarded),
    counted("http2/CONNECT and its answer", http2::connect),
    counted("http2/64 B of payload", || http2::payload(64)),
    counted("http2/16 KiB of payload", || http2::payload(16 * 1024)),
    timed("tls/handshake, both ends", records::handshake),
    sealed("tls/64 B framed, sealed, opened", 64, || records::sealed(64)),
    sealed("tls/1 KiB framed, sealed, opened", 1024, || records::sealed(1024)),
    sealed("tls/16 KiB framed, sealed, opened", 16 * 1024, || records::sealed(16 * 1024)),
    sealed("tls/256 KiB framed, sealed, opened", 256 * 1024, || records::sealed(256 * 1024)),
    counted("snapshot/resolve among 1000", || snapshot::resolve(1_000)),
    timed("snapshot/resolve among 100000", || snapshot::resolve(100_000)),
    counted("snapshot/one delta among 1000", || snapshot::delta(1_000)),
    timed("snapshot/one delta among 100000", || snapshot::delta(100_000)),
];
