//! The shell of [`tunnel::pool`]: streams over shared links, dialled when needed.
//!
//! One pool belongs to one workload on one worker. The decisions are the core's; here are the links, the tasks that
//! dial, and those who wait. What the core must know about links (ended, GOAWAY, other limits) is found out when a
//! link is used and by a sweep every [`crate::worker::TICK`], so links need no way to call back.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use model::Identity;
use tunnel::h2::{ErrorCode, Headers, OpenError};
use tunnel::pool::{Acquired, Pool as Core, PoolConfig};
use tunnel::tls::CloseCause;

use super::client::{DialError, DialOptions, RequestError};
use super::connection::Link;
use super::stream::{StreamEnd, TunnelStream};
use crate::worker::{Signal, Tick, Worker};

/// Attempts of one request to find a link that still takes streams. Each failure means that a link went away just then.
const ATTEMPTS_MAX: u32 = 3;

/// What two requests must share to share a link.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    own: Identity,
    expected: Arc<[Identity]>,
    source: Option<IpAddr>,
    to: SocketAddr,
    workload: Option<Arc<str>>,
}

impl Key {
    fn of(options: &DialOptions) -> Self {
        Self {
            own: options.context.identity().clone(),
            expected: options.expected.clone(),
            source: options.connect.source.map(|source| source.ip()),
            to: options.to,
            workload: options.workload.clone(),
        }
    }
}

/// Why a pool gave no stream.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PoolError {
    #[error(transparent)]
    Dial(#[from] Rc<DialError>),
    #[error(transparent)]
    Request(#[from] Rc<RequestError>),
    #[error("too many requests wait for a tunnel to {0}")]
    TooManyWaiting(SocketAddr),
    #[error("{0} allows no streams on its tunnels")]
    NoStreams(SocketAddr),
}

impl PoolError {
    /// The label of the closed set, where a tunnel ended or did not come about.
    pub fn close_cause(&self) -> Option<CloseCause> {
        match self {
            Self::Dial(error) => error.close_cause(),
            Self::Request(error) => match &**error {
                RequestError::Ended(StreamEnd::Link(end)) => Some(end.cause),
                _ => None,
            },
            Self::TooManyWaiting(_) | Self::NoStreams(_) => None,
        }
    }

    /// The status with which the peer refused, if it answered.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Request(error) => match &**error {
                RequestError::Refused { status, .. } => Some(*status),
                _ => None,
            },
            _ => None,
        }
    }
}

type LinkId = u64;
type WaiterId = u64;

/// The outbound links of one workload on one worker. Cloning shares it.
#[derive(Clone)]
pub struct Pool {
    inner: Rc<Inner>,
}

struct Inner {
    worker: Worker,
    core: RefCell<Core<Key, LinkId, WaiterId>>,
    links: RefCell<HashMap<LinkId, Pooled, foldhash::fast::RandomState>>,
    waiters: RefCell<HashMap<WaiterId, Rc<Waiter>, foldhash::fast::RandomState>>,
    /// Links that nothing uses or will use.
    unused: RefCell<Vec<LinkId>>,
    next_id: Cell<u64>,
    draining: Cell<bool>,
    dialled: Cell<u64>,
}

struct Pooled {
    link: Rc<Link>,
    /// The limit that the core was told last.
    streams_max: u32,
}

#[derive(Default)]
struct Waiter {
    answer: RefCell<Option<Result<Permit, PoolError>>>,
    answered: Signal,
}

/// The right to one stream of a link, which the core has counted. Dropping it gives it back.
pub(super) struct Permit {
    inner: Rc<Inner>,
    id: LinkId,
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.inner.core.borrow_mut().stream_ended(self.id) {
            // The link may be in the middle of a read: the sweep closes it.
            self.inner.unused.borrow_mut().push(self.id);
        }
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Permit({})", self.id)
    }
}

impl Pool {
    pub fn new(worker: &Worker, config: PoolConfig) -> Self {
        let inner = Rc::new(Inner {
            worker: worker.clone(),
            core: RefCell::new(Core::new(config)),
            links: RefCell::default(),
            waiters: RefCell::default(),
            unused: RefCell::default(),
            next_id: Cell::new(0),
            draining: Cell::new(false),
            dialled: Cell::new(0),
        });
        let sweeping = Rc::downgrade(&inner);
        worker.tick_list().add(sweeping);
        Self { inner }
    }

    /// Asks the next hop for a stream with `headers` and waits for its answer: 200, or an error that holds the status.
    ///
    /// A link is shared with requests of the same own identity, expected identities, source address and next hop. A
    /// request that met a link's end before anything was processed is tried again on another.
    pub async fn open(
        &self,
        options: &DialOptions,
        headers: &Headers,
    ) -> Result<(TunnelStream, Headers), PoolError> {
        let key = Key::of(options);
        let mut attempts = 0;
        loop {
            attempts += 1;
            let permit = self.acquire(&key, options).await?;
            let id = permit.id;
            let link = self.inner.links.borrow().get(&id).map(|pooled| pooled.link.clone());
            let result = match link {
                Some(link) => link.request(headers).await,
                None => Err(RequestError::Open(OpenError::GoingAway)),
            };
            let error = match result {
                Ok((mut stream, answer)) => {
                    stream.permit = Some(permit);
                    return Ok((stream, answer));
                }
                Err(error) => error,
            };
            let unprocessed = matches!(
                error,
                RequestError::Open(OpenError::GoingAway | OpenError::TooManyStreams | OpenError::Exhausted)
                    | RequestError::Ended(StreamEnd::Reset(ErrorCode::REFUSED_STREAM))
            );
            if !unprocessed || attempts >= ATTEMPTS_MAX {
                return Err(PoolError::Request(Rc::new(error)));
            }
            drop(permit);
            self.inner.core.borrow_mut().drained(id);
        }
    }

    /// Links that were dialled since the last call.
    pub fn take_dialled(&self) -> u64 {
        self.inner.dialled.take()
    }

    /// Links known, ending ones included.
    pub fn link_count(&self) -> usize {
        self.inner.links.borrow().len()
    }

    /// Takes no new streams on any link, and ends each with its last stream.
    pub fn drain(&self) {
        self.inner.draining.set(true);
        let links: Vec<_> = self.inner.links.borrow().values().map(|pooled| pooled.link.clone()).collect();
        for link in links {
            link.drain();
        }
    }

    async fn acquire(&self, key: &Key, options: &DialOptions) -> Result<Permit, PoolError> {
        let id = self.inner.next_id();
        let acquired = self.inner.core.borrow_mut().acquire(key, id, Instant::now());
        match acquired {
            Acquired::Use(link) => return Ok(Permit { inner: self.inner.clone(), id: link }),
            Acquired::Refused => return Err(PoolError::TooManyWaiting(key.to)),
            Acquired::Open => {
                let dialling = self.inner.clone();
                let (key, options) = (key.clone(), options.clone());
                self.inner.worker.spawn(async move { dialling.dial(&key, &options).await });
            }
            Acquired::Wait => {}
        }
        let waiting = Waiting { inner: &self.inner, key, id };
        let waiter = Rc::new(Waiter::default());
        self.inner.waiters.borrow_mut().insert(id, waiter.clone());
        loop {
            waiter.answered.wait().await;
            if let Some(answer) = waiter.answer.borrow_mut().take() {
                drop(waiting);
                return answer;
            }
        }
    }
}

/// Takes a waiter out when it was answered or has lost interest.
struct Waiting<'a> {
    inner: &'a Rc<Inner>,
    key: &'a Key,
    id: WaiterId,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.inner.core.borrow_mut().cancel(self.key, &self.id);
        // A permit inside goes back to the core, which must not be borrowed then.
        let waiter = self.inner.waiters.borrow_mut().remove(&self.id);
        drop(waiter);
    }
}

impl Inner {
    fn next_id(&self) -> u64 {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        id
    }

    /// Dials for the key until nobody waits any more. Runs as a task of its own: one who loses interest must not take
    /// the link away from the others.
    async fn dial(self: Rc<Self>, key: &Key, options: &DialOptions) {
        loop {
            let link = match Link::dial(&self.worker, options).await {
                Ok(link) => link,
                Err(error) => {
                    let error = PoolError::Dial(Rc::new(error));
                    let failed = self.core.borrow_mut().open_failed(key);
                    return failed.into_iter().for_each(|waiter| self.answer(waiter, Err(error.clone())));
                }
            };
            if self.draining.get() {
                // Dialled for somebody who was there before.
                link.drain();
            }
            self.dialled.set(self.dialled.get() + 1);
            let id = self.next_id();
            let streams_max = streams_max(&link);
            self.links.borrow_mut().insert(id, Pooled { link, streams_max });
            let opened = self.core.borrow_mut().opened(key, id, streams_max, Instant::now());
            for waiter in opened.granted {
                self.answer(waiter, Ok(Permit { inner: self.clone(), id }));
            }
            for waiter in opened.failed {
                self.answer(waiter, Err(PoolError::NoStreams(key.to)));
            }
            if !opened.open_another {
                return;
            }
        }
    }

    fn answer(&self, waiter: WaiterId, answer: Result<Permit, PoolError>) {
        let waiter = self.waiters.borrow().get(&waiter).cloned();
        // Without a waiter the permit goes back as it is dropped.
        if let Some(waiter) = waiter {
            *waiter.answer.borrow_mut() = Some(answer);
            waiter.answered.raise();
        }
    }

    /// Tells the core what became of links.
    fn sweep(&self, now: Instant) {
        let mut close = std::mem::take(&mut *self.unused.borrow_mut());
        {
            let mut core = self.core.borrow_mut();
            close.extend(core.on_timer(now));
            self.links.borrow_mut().retain(|id, pooled| {
                if pooled.link.end().is_some() {
                    core.closed(*id);
                    return false;
                }
                if !pooled.link.takes_streams() {
                    if core.drained(*id) {
                        close.push(*id);
                    }
                    return true;
                }
                let streams_max = streams_max(&pooled.link);
                if streams_max != pooled.streams_max {
                    pooled.streams_max = streams_max;
                    core.peer_streams_changed(*id, streams_max);
                }
                true
            });
        }
        let links: Vec<_> =
            close.iter().filter_map(|id| Some(self.links.borrow().get(id)?.link.clone())).collect();
        for link in links {
            link.drain();
        }
    }
}

/// How many streams the peer allows at once.
fn streams_max(link: &Link) -> u32 {
    let total = link.open_capacity().saturating_add(link.stream_count());
    u32::try_from(total).unwrap_or(u32::MAX)
}

impl Tick for Inner {
    fn tick(self: Rc<Self>, now: Instant) {
        self.sweep(now);
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("links", &self.inner.links.borrow().len())
            .field("waiters", &self.inner.waiters.borrow().len())
            .finish_non_exhaustive()
    }
}
