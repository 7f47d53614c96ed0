//! The worker's table of series: finds or makes the cells of a label set, within a bound.

use std::cell::RefCell;
use std::sync::Arc;

use crossbeam_channel::Sender;
use foldhash::{HashMap, HashMapExt};
use model::Workload;

use super::cells::{HttpCells, HttpSeries, TcpCells, TcpSeries};
use super::labels::{Labels, Reporter};

/// Series of each kind that a worker keeps. Beyond it, counts go to one series with unknown ends.
pub(super) const SERIES_MAX: usize = 4_096;
/// New series that wait for the control thread to learn of them.
pub(super) const ANNOUNCEMENTS_MAX: usize = 1_024;

/// Tells the control thread of a new series.
#[derive(Debug)]
pub(super) enum Announcement {
    Tcp(Arc<TcpCells>),
    Http(Arc<HttpCells>),
}

/// The series of one worker.
#[derive(Debug)]
pub(super) struct SeriesTable {
    tcp: RefCell<HashMap<Labels, Arc<TcpCells>>>,
    http: RefCell<HashMap<(Labels, u16), Arc<HttpCells>>>,
    tcp_overflow: [Arc<TcpCells>; 2],
    http_overflow: [Arc<HttpCells>; 2],
    announce: Sender<Announcement>,
}

impl SeriesTable {
    pub(super) fn new(announce: Sender<Announcement>) -> Self {
        let reporters = [Reporter::Source, Reporter::Destination];
        Self {
            tcp: RefCell::new(HashMap::new()),
            http: RefCell::new(HashMap::new()),
            tcp_overflow: reporters.map(|r| Arc::new(TcpCells::new(Labels::overflow(r)))),
            http_overflow: reporters.map(|r| Arc::new(HttpCells::new(Labels::overflow(r), 0))),
            announce,
        }
    }

    /// The cells that stand in for series beyond the bound, for the control thread to read.
    pub(super) fn overflow(&self) -> impl Iterator<Item = Announcement> {
        let tcp = self.tcp_overflow.clone().into_iter().map(Announcement::Tcp);
        tcp.chain(self.http_overflow.clone().into_iter().map(Announcement::Http))
    }

    /// The series of these labels; `None` says that the bound was reached and the overflow series stands in.
    pub(super) fn tcp(&self, labels: &Labels) -> (TcpSeries, bool) {
        let mut table = self.tcp.borrow_mut();
        if let Some(cells) = table.get(labels) {
            return (TcpSeries::new(Arc::clone(cells)), true);
        }
        let cells = Arc::new(TcpCells::new(labels.clone()));
        // Announced first: a series that the control thread cannot learn of must not be written to.
        if table.len() >= SERIES_MAX || self.announce.try_send(Announcement::Tcp(Arc::clone(&cells))).is_err()
        {
            let [source, destination] = &self.tcp_overflow;
            let stand_in = if labels.reporter == Reporter::Source { source } else { destination };
            return (TcpSeries::new(Arc::clone(stand_in)), false);
        }
        table.insert(labels.clone(), Arc::clone(&cells));
        (TcpSeries::new(cells), true)
    }

    /// Likewise for requests that got this status.
    pub(super) fn http(&self, labels: &Labels, status: u16) -> (HttpSeries, bool) {
        let mut table = self.http.borrow_mut();
        let key = (labels.clone(), status);
        if let Some(cells) = table.get(&key) {
            return (HttpSeries::new(Arc::clone(cells)), true);
        }
        let cells = Arc::new(HttpCells::new(labels.clone(), status));
        if table.len() >= SERIES_MAX
            || self.announce.try_send(Announcement::Http(Arc::clone(&cells))).is_err()
        {
            let [source, destination] = &self.http_overflow;
            let stand_in = if labels.reporter == Reporter::Source { source } else { destination };
            return (HttpSeries::new(Arc::clone(stand_in)), false);
        }
        table.insert(key, Arc::clone(&cells));
        (HttpSeries::new(cells), true)
    }

    /// Forgets the series that name a workload which is not `known` any more. Connections that still hold one keep
    /// writing to it; it goes away with the last of them.
    pub(super) fn sweep(&self, known: &impl Fn(&Workload) -> bool) {
        self.tcp.borrow_mut().retain(|labels, _| labels.all_workloads(known));
        self.http.borrow_mut().retain(|(labels, _), _| labels.all_workloads(known));
    }
}
