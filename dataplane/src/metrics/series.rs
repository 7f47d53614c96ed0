//! The worker's tables of series: find or make the cells of a label set, within a bound.

use std::cell::RefCell;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;

use crossbeam_channel::Sender;
use foldhash::{HashMap, HashMapExt};
use model::Workload;

use super::cells::{DnsCells, DnsSeries, OnDemandCells, RequestCells, TcpCells, TcpSeries, add};
use super::labels::{DnsLabels, Labels, Named, OnDemandLabels, Reporter};
use super::request::{RequestCounts, RequestKey, RequestLabels};
use super::shadow::{ShadowCells, ShadowLabels};

/// Series of each kind that a worker keeps. Beyond it, counts go to one series with unknown ends.
pub const SERIES_MAX: usize = 4_096;
/// New series that wait for the control thread to learn of them.
pub(super) const ANNOUNCEMENTS_MAX: usize = 1_024;
/// Series of requests that are found by the places of the objects they name, without reading these.
const RECENT_MAX: usize = 512;

/// Tells the control thread of a new series.
#[derive(Debug)]
pub(super) enum Announcement {
    Tcp(Arc<TcpCells>),
    Request(Arc<RequestCells>),
    Dns(Arc<DnsCells>),
    OnDemand(Arc<OnDemandCells>),
    Shadow(Arc<ShadowCells>),
}

/// The series of one kind.
#[derive(Debug)]
struct Table<K, C> {
    all: RefCell<HashMap<K, Arc<C>>>,
    /// Those that no sweep has looked at yet. Each is in `all`, which bounds them.
    new: RefCell<Vec<K>>,
}

/// A series of requests, and the labels with which it was found last.
type Found = (RequestLabels, Arc<RequestCells>);

/// The series of requests that were counted last, each in the slot that its hash names: what a worker's requests have
/// in common from one to the next is found without touching a reference count or a text.
#[derive(Debug)]
struct Recent {
    slots: RefCell<Box<[Option<Found>]>>,
    hasher: foldhash::fast::FixedState,
}

/// The series of one worker.
#[derive(Debug)]
pub(super) struct SeriesTable {
    tcp: Table<Labels, TcpCells>,
    requests: Table<RequestLabels, RequestCells>,
    recent: Recent,
    dns: Table<DnsLabels, DnsCells>,
    on_demand: Table<OnDemandLabels, OnDemandCells>,
    shadow: Table<ShadowLabels, ShadowCells>,
    tcp_overflow: [Arc<TcpCells>; Reporter::ALL.len()],
    request_overflow: [Arc<RequestCells>; Reporter::ALL.len()],
    dns_overflow: Arc<DnsCells>,
    on_demand_overflow: Arc<OnDemandCells>,
    shadow_overflow: Arc<ShadowCells>,
    announce: Sender<Announcement>,
}

// === impl Table ===

impl<K: Hash + Eq + Clone + Named, C> Table<K, C> {
    fn new() -> Self {
        Self { all: RefCell::new(HashMap::new()), new: RefCell::default() }
    }

    /// The cells of `key`, made and announced if they are new; `None` where there is no room for them.
    fn cells(
        &self,
        key: &K,
        announce: &Sender<Announcement>,
        make: impl FnOnce(&K) -> (Arc<C>, Announcement),
    ) -> Option<Arc<C>> {
        let mut table = self.all.borrow_mut();
        if let Some(cells) = table.get(key) {
            return Some(Arc::clone(cells));
        }
        if table.len() >= SERIES_MAX {
            return None;
        }
        let (cells, announcement) = make(key);
        // Announced first: a series that the control thread cannot learn of must not be written to.
        announce.try_send(announcement).ok()?;
        table.insert(key.clone(), Arc::clone(&cells));
        self.new.borrow_mut().push(key.clone());
        Some(cells)
    }

    fn sweep(&self, known: &dyn Fn(&Workload) -> bool) {
        self.new.take();
        self.all.borrow_mut().retain(|key, _| key.all_known(known));
    }

    /// Whether any went.
    fn sweep_new(&self, known: &dyn Fn(&Workload) -> bool) -> bool {
        let new = self.new.take();
        let mut any = false;
        for key in new.iter().filter(|key| !key.all_known(known)) {
            any |= self.all.borrow_mut().remove(key).is_some();
        }
        any
    }
}

// === impl Recent ===

impl Recent {
    fn new() -> Self {
        let slots = std::iter::repeat_with(|| None).take(RECENT_MAX).collect();
        Self { slots: RefCell::new(slots), hasher: foldhash::fast::FixedState::default() }
    }

    fn slot(&self, key: &RequestKey<'_>) -> usize {
        let mut hasher = self.hasher.build_hasher();
        key.hash_places(&mut hasher);
        usize::try_from(hasher.finish() % RECENT_MAX as u64).unwrap_or(0)
    }

    fn count(&self, key: &RequestKey<'_>, counts: &RequestCounts) -> bool {
        let slots = self.slots.borrow();
        match slots.get(self.slot(key)) {
            Some(Some((labels, cells))) if key.is_of(labels) => {
                cells.count(counts);
                true
            }
            _ => false,
        }
    }

    fn keep(&self, key: &RequestKey<'_>, labels: RequestLabels, cells: Arc<RequestCells>) {
        if let Some(slot) = self.slots.borrow_mut().get_mut(self.slot(key)) {
            *slot = Some((labels, cells));
        }
    }

    fn clear(&self) {
        self.slots.borrow_mut().fill_with(|| None);
    }
}

// === impl SeriesTable ===

impl SeriesTable {
    pub(super) fn new(announce: Sender<Announcement>) -> Self {
        Self {
            tcp: Table::new(),
            requests: Table::new(),
            recent: Recent::new(),
            dns: Table::new(),
            on_demand: Table::new(),
            shadow: Table::new(),
            tcp_overflow: Reporter::ALL.map(|it| Arc::new(TcpCells::new(Labels::overflow(it)))),
            request_overflow: Reporter::ALL
                .map(|it| Arc::new(RequestCells::new(RequestLabels::overflow(it)))),
            dns_overflow: Arc::new(DnsCells::new(DnsLabels::overflow())),
            on_demand_overflow: Arc::new(OnDemandCells::new(OnDemandLabels::overflow())),
            shadow_overflow: Arc::new(ShadowCells::new(ShadowLabels::overflow())),
            announce,
        }
    }

    /// The cells that stand in for series beyond the bound, for the control thread to read.
    pub(super) fn overflow(&self) -> impl Iterator<Item = Announcement> {
        let tcp = self.tcp_overflow.clone().into_iter().map(Announcement::Tcp);
        let requests = self.request_overflow.clone().into_iter().map(Announcement::Request);
        let dns = Announcement::Dns(Arc::clone(&self.dns_overflow));
        let on_demand = Announcement::OnDemand(Arc::clone(&self.on_demand_overflow));
        let shadow = Announcement::Shadow(Arc::clone(&self.shadow_overflow));
        tcp.chain(requests).chain([dns, on_demand, shadow])
    }

    /// The series of these labels; `false` says that the bound was reached and the overflow series stands in.
    pub(super) fn tcp(&self, labels: &Labels) -> (TcpSeries, bool) {
        let own = self.tcp.cells(labels, &self.announce, |labels| {
            let cells = Arc::new(TcpCells::new(labels.clone()));
            (Arc::clone(&cells), Announcement::Tcp(cells))
        });
        let found = own.is_some();
        (TcpSeries::new(own.unwrap_or_else(|| stand_in(&self.tcp_overflow, labels.reporter))), found)
    }

    /// Counts a request; whether in a series of its own.
    pub(super) fn count_request(&self, key: &RequestKey<'_>, counts: &RequestCounts) -> bool {
        if self.recent.count(key, counts) {
            return true;
        }
        let labels = key.to_labels();
        let own = self.requests.cells(&labels, &self.announce, |labels| {
            let cells = Arc::new(RequestCells::new(labels.clone()));
            (Arc::clone(&cells), Announcement::Request(cells))
        });
        let Some(cells) = own else {
            stand_in(&self.request_overflow, key.reporter).count(counts);
            return false;
        };
        cells.count(counts);
        self.recent.keep(key, labels, cells);
        true
    }

    /// Likewise for DNS queries.
    pub(super) fn dns(&self, labels: &DnsLabels) -> (DnsSeries, bool) {
        let own = self.dns.cells(labels, &self.announce, |labels| {
            let cells = Arc::new(DnsCells::new(labels.clone()));
            (Arc::clone(&cells), Announcement::Dns(cells))
        });
        let found = own.is_some();
        (DnsSeries::new(own.unwrap_or_else(|| Arc::clone(&self.dns_overflow))), found)
    }

    /// Counts a connection whose next hop was resolved by name; whether in a series of its own.
    pub(super) fn count_on_demand(&self, labels: &OnDemandLabels) -> bool {
        let own = self.on_demand.cells(labels, &self.announce, |labels| {
            let cells = Arc::new(OnDemandCells::new(labels.clone()));
            (Arc::clone(&cells), Announcement::OnDemand(cells))
        });
        add(&own.as_ref().unwrap_or(&self.on_demand_overflow).count, 1);
        own.is_some()
    }

    /// Counts what a policy says that decides nothing; whether in a series of its own.
    pub(super) fn count_shadow(&self, labels: &ShadowLabels) -> bool {
        let own = self.shadow.cells(labels, &self.announce, |labels| {
            let cells = Arc::new(ShadowCells::new(labels.clone()));
            (Arc::clone(&cells), Announcement::Shadow(cells))
        });
        add(&own.as_ref().unwrap_or(&self.shadow_overflow).count, 1);
        own.is_some()
    }

    /// Forgets the series that name a workload which is not `known` any more. Connections that still hold one keep
    /// writing to it; it goes away with the last of them.
    pub(super) fn sweep(&self, known: &dyn Fn(&Workload) -> bool) {
        self.tcp.sweep(known);
        self.requests.sweep(known);
        self.recent.clear();
        self.dns.sweep(known);
        self.on_demand.sweep(known);
    }

    /// The same, but looks only at series made since the last sweep: a connection may end after its workload went.
    pub(super) fn sweep_new(&self, known: &dyn Fn(&Workload) -> bool) {
        self.tcp.sweep_new(known);
        if self.requests.sweep_new(known) {
            self.recent.clear();
        }
        self.dns.sweep_new(known);
        self.on_demand.sweep_new(known);
    }
}

fn stand_in<C>(
    [source, destination, waypoint]: &[Arc<C>; Reporter::ALL.len()],
    reporter: Reporter,
) -> Arc<C> {
    Arc::clone(match reporter {
        Reporter::Source => source,
        Reporter::Destination => destination,
        Reporter::Waypoint => waypoint,
    })
}
