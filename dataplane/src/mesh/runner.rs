//! Carries out a plan in a running mesh: asks, changes, compares.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use http::Method;
use tokio::sync::watch;
use tokio::time::sleep;

use super::client::{Answer, ClientError, PodConnection};
use super::observer::Observer;
use super::pattern::Pattern;
use super::plan::{Action, Edit, Expectation, Load, Plan, PodRef, RequestAction, Target, Transfer};
use super::report::{Row, Verdict, time};
use super::workload::{Checksum, Echo};
use super::world::{Directory, PodPlace};
use crate::access_log::{Direction, Record};

/// Longest wait for what the proxies note of a request.
const RECORDS_PATIENCE: Duration = Duration::from_secs(1);
/// Nothing more is expected when nothing came for so long.
const RECORDS_QUIET: Duration = Duration::from_millis(120);
const POLL: Duration = Duration::from_millis(5);
/// Rest between two attempts of a request that is to hold soon.
const RETRY: Duration = Duration::from_millis(20);
/// Seed of uploads; downloads have their length as the seed.
const UPLOAD_SEED: u64 = 7;

/// Carries out one plan.
#[derive(Debug)]
pub struct Runner {
    directory: watch::Receiver<Arc<Directory>>,
    observer: Observer,
    /// The folder that edits change.
    folder: PathBuf,
    edited: Option<Instant>,
    rows: RefCell<Vec<Row>>,
}

/// What came of one request.
struct Attempt {
    answer: Result<Answer, ClientError>,
    local: Option<SocketAddr>,
    began: Instant,
    took: Duration,
}

/// The client pod and the address it dials.
struct Way {
    from: PodPlace,
    to: SocketAddr,
    host: String,
}

impl Runner {
    pub fn new(directory: watch::Receiver<Arc<Directory>>, observer: Observer, folder: PathBuf) -> Self {
        Self { directory, observer, folder, edited: None, rows: RefCell::default() }
    }

    /// Carries out every step, whatever the others came to, and tells each verdict at once.
    pub async fn run(&mut self, plan: &Plan, mut tell: impl FnMut(&Verdict, &[Row])) -> bool {
        let mut all_held = true;
        for step in &plan.steps {
            let mut details = Vec::new();
            let mut failure = None;
            for action in &step.actions {
                match self.act(action).await {
                    Ok(detail) => details.extend(detail),
                    Err(reason) => {
                        failure = Some(reason);
                        break;
                    }
                }
            }
            all_held &= failure.is_none();
            let ok = failure.is_none();
            let detail = failure.unwrap_or_else(|| details.join("; "));
            let rows = self.rows.take();
            tell(&Verdict { step: step.title.clone(), ok, detail }, &rows);
        }
        all_held
    }

    async fn act(&mut self, action: &Action) -> Result<Option<String>, String> {
        match action {
            Action::Request(request) => self.request(request).await,
            Action::Edit(edit) => self.edit(edit).map(|()| None),
            Action::Download(transfer) => self.download(transfer).await.map(Some),
            Action::Upload(transfer) => self.upload(transfer).await.map(Some),
            Action::Load(load) => self.load(load).await.map(Some),
        }
    }

    // --- Requests ---

    async fn request(&self, action: &RequestAction) -> Result<Option<String>, String> {
        let within = Duration::from_millis(action.within_ms);
        let deadline = self.edited.unwrap_or_else(Instant::now) + within;
        loop {
            let (attempt, way) = self.attempt(action).await?;
            let answered = attempt.began + attempt.took;
            let held = check_answer(&action.expect, &attempt, &way);
            let late = answered > deadline;
            if held.is_err() && !late && !within.is_zero() {
                sleep(RETRY).await;
                continue;
            }
            let described =
                format!("{} {} from {} to {}", action.method, action.path, action.from, action.to);
            let row = self.row(action, &attempt, &way).await;
            let held = held.and_then(|()| check_row(&action.expect, &row));
            self.rows.borrow_mut().push(row);
            held.map_err(|reason| format!("{described}: {reason}"))?;
            if within.is_zero() {
                return Ok(None);
            }
            let since = answered.saturating_duration_since(self.edited.unwrap_or(attempt.began));
            if late {
                return Err(format!(
                    "{described}: held only after {}, not within {}",
                    time(since),
                    time(within)
                ));
            }
            return Ok(Some(format!("in force after {}", time(since))));
        }
    }

    async fn attempt(&self, action: &RequestAction) -> Result<(Attempt, Way), String> {
        let way = self.way(&action.from, &action.to)?;
        let method: Method =
            action.method.parse().map_err(|_| format!("{:?} is no method", action.method))?;
        let headers: Vec<_> = action.headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        self.observer.clear();
        let began = Instant::now();
        let (answer, local) = match PodConnection::open(&way.from.network, way.to, &way.host).await {
            Ok(mut connection) => {
                let local = connection.local();
                (connection.request(method, &action.path, &headers).await, Some(local))
            }
            Err(error) => (Err(error), None),
        };
        Ok((Attempt { answer, local, began, took: began.elapsed() }, way))
    }

    /// Joins what the client saw with what the proxies noted.
    async fn row(&self, action: &RequestAction, attempt: &Attempt, way: &Way) -> Row {
        let mut row = Row {
            from: action.from.to_string(),
            to: action.to.to_string(),
            method: action.method.clone(),
            path: action.path.clone(),
            status: attempt.answer.as_ref().ok().map(|answer| answer.status.as_u16()),
            duration_us: u64::try_from(attempt.took.as_micros()).unwrap_or(u64::MAX),
            ..Row::default()
        };
        if let Some(echo) = attempt.answer.as_ref().ok().and_then(read_echo) {
            row.pod = Some(format!("{}/{}", echo.label.namespace, echo.label.pod));
        }
        for record in self.records_of(way).await {
            row.add(&record);
        }
        row
    }

    /// What the proxies noted of the client pod's request: first the client's proxy, then the server's.
    async fn records_of(&self, way: &Way) -> Vec<Record> {
        let concerns = |record: &Record| {
            record.source.address.is_some_and(|address| way.from.ips.contains(&address.ip().to_canonical()))
        };
        let seen =
            |records: &[Record], direction| records.iter().any(|r| r.direction == direction && concerns(r));
        let began = Instant::now();
        let (mut count, mut last) = (self.observer.len(), began);
        loop {
            let records = self.observer.records();
            if records.len() != count {
                (count, last) = (records.len(), Instant::now());
            }
            let outbound = !way.from.enrolled || seen(&records, Direction::Outbound);
            let complete = outbound && seen(&records, Direction::Inbound);
            let quiet = outbound && last.elapsed() >= RECORDS_QUIET;
            if complete || quiet || began.elapsed() >= RECORDS_PATIENCE {
                let mut records: Vec<_> = records.into_iter().filter(concerns).collect();
                records.sort_by_key(|record| record.direction == Direction::Inbound);
                return records;
            }
            sleep(POLL).await;
        }
    }

    fn way(&self, from: &PodRef, to: &Target) -> Result<Way, String> {
        let directory = self.directory.borrow().clone();
        let place = |pod: &PodRef| {
            directory.pod(&pod.namespace, &pod.name).cloned().ok_or_else(|| format!("no pod {pod} runs"))
        };
        let client = place(from)?;
        let pick = |ips: &[std::net::IpAddr]| {
            // The client's own family first.
            let own = client.ips.first().map(std::net::IpAddr::is_ipv4);
            ips.iter().find(|ip| Some(ip.is_ipv4()) == own).or_else(|| ips.first()).copied()
        };
        let (ip, port, host) = match to {
            Target::Address { ip, port } => (Some(*ip), *port, SocketAddr::new(*ip, *port).to_string()),
            Target::Pod { pod, port } => (pick(&place(pod)?.ips), *port, pod.name.clone()),
            Target::Service { name, namespace, port } => {
                let mut services = directory.view.services.values();
                let service = services.find(|it| *it.name == **name && *it.namespace == **namespace);
                let service = service.ok_or_else(|| format!("no Service {name}.{namespace} exists"))?;
                (pick(&service.ips), *port, format!("{}:{port}", service.hostname))
            }
        };
        let ip = ip.ok_or_else(|| format!("{to} has no address"))?;
        Ok(Way { from: client, to: SocketAddr::new(ip, port), host })
    }

    // --- Changes ---

    fn edit(&mut self, edit: &Edit) -> Result<(), String> {
        let path = self.folder.join(&edit.file);
        let text =
            std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", edit.file.display()))?;
        let text = edit.apply(&text)?;
        // Renamed into place, so that the watcher never reads half a file; hidden names are passed over.
        let name = edit.file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let temporary = path.with_file_name(format!(".{name}.new"));
        std::fs::write(&temporary, text)
            .and_then(|()| std::fs::rename(&temporary, &path))
            .map_err(|error| format!("{}: {error}", edit.file.display()))?;
        self.edited = Some(Instant::now());
        Ok(())
    }

    // --- Bytes ---

    async fn download(&self, transfer: &Transfer) -> Result<String, String> {
        let way = self.way(&transfer.from, &transfer.to)?;
        let path = format!("{}/bytes/{}", transfer.prefix, transfer.bytes);
        self.observer.clear();
        let began = Instant::now();
        let received = async {
            let mut connection = PodConnection::open(&way.from.network, way.to, &way.host).await?;
            connection.download(&path).await
        };
        let received = received.await.map_err(|error| format!("GET {path}: {error}"))?;
        let took = began.elapsed();
        self.transfer_row(transfer, ("GET", &path), received.status.as_u16(), took, &way).await;
        if !received.status.is_success() {
            return Err(format!("GET {path}: status {}", received.status));
        }
        let expected = blocking_checksum(Pattern::new(transfer.bytes, transfer.bytes)).await?;
        if received.bytes != transfer.bytes || received.sha256 != expected {
            let got = received.bytes;
            return Err(format!(
                "GET {path}: {got} bytes came, checksum {} instead of {expected}",
                received.sha256
            ));
        }
        Ok(format!("{} received, checksum right, {}", size(transfer.bytes), rate(transfer.bytes, took)))
    }

    async fn upload(&self, transfer: &Transfer) -> Result<String, String> {
        let way = self.way(&transfer.from, &transfer.to)?;
        let path = format!("{}/checksum", transfer.prefix);
        let pattern = Pattern::new(UPLOAD_SEED, transfer.bytes);
        self.observer.clear();
        let began = Instant::now();
        let answer = async {
            let mut connection = PodConnection::open(&way.from.network, way.to, &way.host).await?;
            connection.upload(&path, pattern.clone()).await
        };
        let answer = answer.await.map_err(|error| format!("POST {path}: {error}"))?;
        let took = began.elapsed();
        self.transfer_row(transfer, ("POST", &path), answer.status.as_u16(), took, &way).await;
        let checksum: Checksum = serde_json::from_slice(&answer.body)
            .map_err(|_| format!("POST {path}: status {}, no checksum", answer.status))?;
        let expected = blocking_checksum(pattern).await?;
        if checksum.bytes != transfer.bytes || checksum.sha256 != expected {
            let got = checksum.bytes;
            return Err(format!(
                "POST {path}: {got} bytes came, checksum {} instead of {expected}",
                checksum.sha256
            ));
        }
        Ok(format!("{} sent, checksum right, {}", size(transfer.bytes), rate(transfer.bytes, took)))
    }

    async fn transfer_row(
        &self,
        transfer: &Transfer,
        (method, path): (&str, &str),
        status: u16,
        took: Duration,
        way: &Way,
    ) {
        let mut row = Row {
            from: transfer.from.to_string(),
            to: transfer.to.to_string(),
            method: method.to_owned(),
            path: path.to_owned(),
            status: Some(status),
            duration_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            ..Row::default()
        };
        for record in self.records_of(way).await {
            row.add(&record);
        }
        self.rows.borrow_mut().push(row);
    }

    async fn load(&self, load: &Load) -> Result<String, String> {
        let way = self.way(&load.from, &load.to)?;
        let path = format!("{}/bytes/{}", load.prefix, load.bytes);
        let expected = blocking_checksum(Pattern::new(load.bytes, load.bytes)).await?;
        let connections = u64::from(load.connections).min(load.requests);
        let began = Instant::now();
        let lanes = (0..connections).map(|lane| {
            // The first lanes take one more where the number does not divide.
            let share = load.requests / connections + u64::from(lane < load.requests % connections);
            lane_of_load(&way, &path, share, (load.bytes, &expected))
        });
        let mut done = 0;
        for lane in join_all(lanes).await {
            done += lane.map_err(|(after, reason)| {
                format!("GET {path}: request {after} of a connection: {reason}")
            })?;
        }
        let took = began.elapsed();
        if done != load.requests {
            return Err(format!("{done} of {} requests were answered", load.requests));
        }
        #[allow(clippy::cast_precision_loss)] // A rate for display.
        let per_second = done as f64 / took.as_secs_f64();
        Ok(format!(
            "{done} requests over {connections} connections, each answer of {} right, {}, {per_second:.0}/s",
            size(load.bytes),
            time(took)
        ))
    }
}

/// One connection's share of a load: how many requests were answered rightly, or at which one it failed.
async fn lane_of_load(
    way: &Way,
    path: &str,
    share: u64,
    (bytes, expected): (u64, &str),
) -> Result<u64, (u64, String)> {
    let opened = PodConnection::open(&way.from.network, way.to, &way.host).await;
    let mut connection = opened.map_err(|error| (0, error.to_string()))?;
    for number in 0..share {
        let received = connection.download(path).await.map_err(|error| (number, error.to_string()))?;
        if !received.status.is_success() {
            return Err((number, format!("status {}", received.status)));
        }
        if received.bytes != bytes || received.sha256 != expected {
            return Err((number, format!("{} bytes came, checksum {}", received.bytes, received.sha256)));
        }
    }
    Ok(share)
}

/// Hashing gigabytes would hold up the control thread.
async fn blocking_checksum(pattern: Pattern) -> Result<String, String> {
    tokio::task::spawn_blocking(move || pattern.checksum()).await.map_err(|error| error.to_string())
}

fn read_echo(answer: &Answer) -> Option<Echo> {
    serde_json::from_slice(&answer.body).ok()
}

/// Compares what the client itself could see.
fn check_answer(expect: &Expectation, attempt: &Attempt, way: &Way) -> Result<(), String> {
    let answer = match (&attempt.answer, expect.refused) {
        (Err(_), true) => return Ok(()),
        (Ok(answer), true) => return Err(format!("was answered with {} instead of refused", answer.status)),
        (Err(error), false) => return Err(error.to_string()),
        (Ok(answer), false) => answer,
    };
    if let Some(status) = expect.status
        && answer.status.as_u16() != status
    {
        return Err(format!("status {} instead of {status}", answer.status.as_u16()));
    }
    let echo = read_echo(answer);
    if let Some(pod) = &expect.pod {
        let got = echo.as_ref().map_or("no pod", |echo| &*echo.label.pod);
        if got != pod {
            return Err(format!("answered by {got} instead of {pod}"));
        }
    }
    if let Some(kept) = expect.source_address {
        let seen = echo.map(|echo| echo.remote.ip());
        if seen.is_some_and(|ip| way.from.ips.contains(&ip)) != kept {
            let local = attempt.local.map_or_else(|| "nothing".to_owned(), |local| local.ip().to_string());
            return Err(format!("the application saw {seen:?} as its peer; the client is {local}"));
        }
    }
    Ok(())
}

/// Compares what only the proxies know.
fn check_row(expect: &Expectation, row: &Row) -> Result<(), String> {
    if let Some(mutual_tls) = expect.mutual_tls
        && row.is_mutual_tls() != mutual_tls
    {
        return Err(if mutual_tls {
            "was not carried by mutual TLS with an identity on both sides".to_owned()
        } else {
            "was carried by mutual TLS".to_owned()
        });
    }
    if let Some(route) = &expect.route {
        let got = row.route.as_deref().and_then(|route| route.split(' ').next());
        if got != Some(route) {
            return Err(format!("took route {} instead of {route}", got.unwrap_or("none")));
        }
    }
    Ok(())
}

fn size(bytes: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match UNITS.iter().find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{} {name}", bytes / unit),
        None => format!("{bytes} B"),
    }
}

fn rate(bytes: u64, took: Duration) -> String {
    #[allow(clippy::cast_precision_loss)] // A rate for display.
    let megabytes = bytes as f64 / 1e6 / took.as_secs_f64();
    format!("{megabytes:.0} MB/s")
}
