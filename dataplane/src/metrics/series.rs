//! The worker's tables of series: find or make the cells of a label set, within a bound.

use std::cell::RefCell;
use std::hash::Hash;
use std::sync::Arc;

use crossbeam_channel::Sender;
use foldhash::{HashMap, HashMapExt};
use model::Workload;

use super::cells::{DnsCells, DnsSeries, HttpCells, HttpSeries, OnDemandCells, TcpCells, TcpSeries, add};
use super::labels::{DnsLabels, Labels, Named, OnDemandLabels, Reporter};

/// Series of each kind that a worker keeps. Beyond it, counts go to one series with unknown ends.
pub const SERIES_MAX: usize = 4_096;
/// New series that wait for the control thread to learn of them.
pub(super) const ANNOUNCEMENTS_MAX: usize = 1_024;

/// Tells the control thread of a new series.
#[derive(Debug)]
pub(super) enum Announcement {
    Tcp(Arc<TcpCells>),
    Http(Arc<HttpCells>),
    Dns(Arc<DnsCells>),
    OnDemand(Arc<OnDemandCells>),
}

/// The series of one kind.
#[derive(Debug)]
struct Table<K, C> {
    all: RefCell<HashMap<K, Arc<C>>>,
    /// Those that no sweep has looked at yet. Each is in `all`, which bounds them.
    new: RefCell<Vec<K>>,
}

/// The series of one worker.
#[derive(Debug)]
pub(super) struct SeriesTable {
    tcp: Table<Labels, TcpCells>,
    http: Table<(Labels, u16), HttpCells>,
    dns: Table<DnsLabels, DnsCells>,
    on_demand: Table<OnDemandLabels, OnDemandCells>,
    tcp_overflow: [Arc<TcpCells>; 2],
    http_overflow: [Arc<HttpCells>; 2],
    dns_overflow: Arc<DnsCells>,
    on_demand_overflow: Arc<OnDemandCells>,
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

    fn sweep_new(&self, known: &dyn Fn(&Workload) -> bool) {
        for key in self.new.take().iter().filter(|key| !key.all_known(known)) {
            self.all.borrow_mut().remove(key);
        }
    }
}

// === impl SeriesTable ===

impl SeriesTable {
    pub(super) fn new(announce: Sender<Announcement>) -> Self {
        let reporters = [Reporter::Source, Reporter::Destination];
        Self {
            tcp: Table::new(),
            http: Table::new(),
            dns: Table::new(),
            on_demand: Table::new(),
            tcp_overflow: reporters.map(|r| Arc::new(TcpCells::new(Labels::overflow(r)))),
            http_overflow: reporters.map(|r| Arc::new(HttpCells::new(Labels::overflow(r), 0))),
            dns_overflow: Arc::new(DnsCells::new(DnsLabels::overflow())),
            on_demand_overflow: Arc::new(OnDemandCells::new(OnDemandLabels::overflow())),
            announce,
        }
    }

    /// The cells that stand in for series beyond the bound, for the control thread to read.
    pub(super) fn overflow(&self) -> impl Iterator<Item = Announcement> {
        let tcp = self.tcp_overflow.clone().into_iter().map(Announcement::Tcp);
        let http = self.http_overflow.clone().into_iter().map(Announcement::Http);
        let dns = Announcement::Dns(Arc::clone(&self.dns_overflow));
        let on_demand = Announcement::OnDemand(Arc::clone(&self.on_demand_overflow));
        tcp.chain(http).chain([dns, on_demand])
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

    /// Likewise for requests that got this status.
    pub(super) fn http(&self, labels: &Labels, status: u16) -> (HttpSeries, bool) {
        let own = self.http.cells(&(labels.clone(), status), &self.announce, |(labels, status)| {
            let cells = Arc::new(HttpCells::new(labels.clone(), *status));
            (Arc::clone(&cells), Announcement::Http(cells))
        });
        let found = own.is_some();
        (HttpSeries::new(own.unwrap_or_else(|| stand_in(&self.http_overflow, labels.reporter))), found)
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

    /// Forgets the series that name a workload which is not `known` any more. Connections that still hold one keep
    /// writing to it; it goes away with the last of them.
    pub(super) fn sweep(&self, known: &dyn Fn(&Workload) -> bool) {
        self.tcp.sweep(known);
        self.http.sweep(known);
        self.dns.sweep(known);
        self.on_demand.sweep(known);
    }

    /// The same, but looks only at series made since the last sweep: a connection may end after its workload went.
    pub(super) fn sweep_new(&self, known: &dyn Fn(&Workload) -> bool) {
        self.tcp.sweep_new(known);
        self.http.sweep_new(known);
        self.dns.sweep_new(known);
        self.on_demand.sweep_new(known);
    }
}

fn stand_in<C>([source, destination]: &[Arc<C>; 2], reporter: Reporter) -> Arc<C> {
    Arc::clone(if reporter == Reporter::Source { source } else { destination })
}
