//! The sites over real sockets.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::*;

#[derive(Default)]
struct Shown {
    quit: Cell<bool>,
    drained: Cell<Option<Duration>>,
}

impl Inspect for Shown {
    async fn config_dump(&self) -> Value {
        json!({ "workloads": [] })
    }

    async fn workers(&self) -> Value {
        json!([{ "worker": 0 }])
    }

    async fn connections(&self) -> Value {
        json!([])
    }

    fn limits(&self) -> Value {
        json!([{ "limit": "connections" }])
    }

    fn drain(&self, grace: Duration) {
        self.drained.set(Some(grace));
    }

    fn quit(&self) {
        self.quit.set(true);
    }
}

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, line: &str) -> String {
    let request = format!("{line} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

fn get(path: &str) -> Ask {
    Ask { method: http::Method::GET, path: path.to_owned(), query: Vec::new(), accept: String::new() }
}

async fn ask(site: &impl Site, method: &str, target: &str) -> Page {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let ask = Ask {
        method: method.parse().unwrap(),
        path: path.to_owned(),
        query: page::parse_query(query),
        accept: String::new(),
    };
    site.answer(ask).await
}

#[test]
fn pages_come_over_tcp_and_over_a_private_socket_file() {
    run(async {
        let site = Rc::new(AdminSite::new(Rc::new(Shown::default())));
        let local = "127.0.0.1:0".parse().unwrap();
        let (address, _task) = serve(&Binding::Tcp(local), Rc::clone(&site)).await.unwrap();
        let stream = tokio::net::TcpStream::connect(address.unwrap()).await.unwrap();
        let answer = exchange(stream, "GET /config_dump").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("content-type: application/json"), "{answer}");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let (_, task) = serve(&Binding::Unix(path.clone()), site).await.unwrap();
        let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&path).unwrap());
        assert_eq!(mode & 0o777, 0o600);
        let stream = tokio::net::UnixStream::connect(&path).await.unwrap();
        assert!(exchange(stream, "GET /workers").await.contains("\"worker\": 0"));
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        // A child that another test starts at this moment holds the listener until it becomes its program.
        while tokio::net::UnixStream::connect(&path).await.is_ok() {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn large_pages_are_packed_for_those_who_take_that() {
    run(async {
        let (_workers, metrics) = crate::metrics::metrics(1);
        let site = Rc::new(MetricsSite::new(Rc::new(metrics)));
        let local = "127.0.0.1:0".parse().unwrap();
        let (address, _task) = serve(&Binding::Tcp(local), site).await.unwrap();
        let request = |method: &str, encoding: &str| {
            format!(
                "{method} /metrics HTTP/1.1\r\nHost: a\r\nAccept-Encoding: {encoding}\r\nConnection: close\r\n\r\n"
            )
        };
        let mut answers = Vec::new();
        for request in [request("GET", "gzip"), request("GET", "identity"), request("HEAD", "identity")] {
            let mut stream = tokio::net::TcpStream::connect(address.unwrap()).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.unwrap();
            let end = answer.windows(4).position(|it| it == b"\r\n\r\n").unwrap() + 4;
            let body = answer.split_off(end);
            answers.push((String::from_utf8(answer).unwrap(), body));
        }
        let [(packed_head, packed), (_, plain), (head, empty)] = answers.try_into().unwrap();
        assert!(packed_head.contains("content-encoding: gzip\r\n"), "{packed_head}");
        let mut unpacked = String::new();
        std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&*packed), &mut unpacked).unwrap();
        let lines = |text: &str| {
            text.lines().filter(|line| line.starts_with('#')).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(lines(&unpacked), lines(std::str::from_utf8(&plain).unwrap()));
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("content-length: "), "{head}");
        assert!(empty.is_empty());
    });
}

#[test]
fn what_changes_something_needs_post() {
    run(async {
        let shown = Rc::new(Shown::default());
        let site = AdminSite::new(Rc::clone(&shown));
        assert_eq!(ask(&site, "GET", "/quitquitquit").await.status, StatusCode::METHOD_NOT_ALLOWED);
        assert!(!shown.quit.get());
        assert_eq!(ask(&site, "POST", "/quitquitquit").await.as_text(), "shutdown now\n");
        assert!(shown.quit.get());
        assert_eq!(ask(&site, "GET", "/drain?seconds=3").await.status, StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(ask(&site, "POST", "/drain?seconds=soon").await.status, StatusCode::BAD_REQUEST);
        assert_eq!(shown.drained.get(), None);
        assert_eq!(ask(&site, "POST", "/drain?seconds=3").await.status, StatusCode::OK);
        assert_eq!(shown.drained.get(), Some(Duration::from_secs(3)));
        assert_eq!(ask(&site, "GET", "/").await.status, StatusCode::OK);
        assert_eq!(ask(&site, "GET", "/nothing").await.status, StatusCode::NOT_FOUND);
    });
}

/// Uses CPU time until told to stop; in a profile it is found by this name.
#[inline(never)]
fn spin_until_profiled(stop: &AtomicBool) -> u64 {
    let mut sum = 0u64;
    while !stop.load(Ordering::Relaxed) {
        sum = std::hint::black_box(sum.wrapping_mul(31).wrapping_add(7));
    }
    sum
}

#[test]
fn a_profile_shows_what_other_threads_do_and_one_is_taken_at_a_time() {
    run(async {
        let site = Rc::new(AdminSite::new(Rc::new(Shown::default())));
        for query in ["seconds=0", "seconds=301", "frequency=1001", "frequency=x"] {
            let page = ask(&*site, "GET", &format!("/debug/pprof/profile?{query}")).await;
            assert_eq!(page.status, StatusCode::BAD_REQUEST, "{query}");
        }
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let told = std::sync::Arc::clone(&stop);
        let busy =
            std::thread::Builder::new().name("busy-one".into()).spawn(move || spin_until_profiled(&told));
        let taking = Rc::clone(&site);
        let first = tokio::task::spawn_local(async move {
            ask(&*taking, "GET", "/debug/pprof/profile?seconds=1&frequency=1000").await
        });
        tokio::task::yield_now().await;
        let second = ask(&*site, "GET", "/debug/pprof/profile?seconds=1").await;
        assert_eq!(second.status, StatusCode::CONFLICT);
        let profile = first.await.unwrap();
        stop.store(true, Ordering::Relaxed);
        busy.unwrap().join().unwrap();
        assert_eq!(profile.status, StatusCode::OK, "{}", profile.as_text());
        let contains = |text: &str| profile.body.windows(text.len()).any(|it| it == text.as_bytes());
        assert!(contains("spin_until_profiled") && contains("busy-one"));
        let heap = ask(&*site, "GET", "/debug/pprof/heap").await;
        assert_eq!(heap.status, StatusCode::NOT_IMPLEMENTED);
        assert!(heap.as_text().contains("/memory"));
        assert!(ask(&*site, "GET", "/memory").await.as_text().contains("residentBytes"));
    });
}

#[test]
fn the_log_filter_is_shown_changed_and_reset() {
    run(async {
        logging::install("info", |_| Ok(()));
        let site = AdminSite::new(Rc::new(Shown::default()));
        assert_eq!(ask(&site, "GET", "/logging").await.as_text(), "current log level is info\n");
        assert_eq!(ask(&site, "GET", "/logging?level=debug").await.status, StatusCode::METHOD_NOT_ALLOWED);
        let changed = ask(&site, "POST", "/logging?level=dataplane%3Adebug,info").await;
        assert_eq!(changed.as_text(), "current log level is info,dataplane=debug\n");
        assert_eq!(ask(&site, "POST", "/logging?level=verbose").await.status, StatusCode::BAD_REQUEST);
        assert_eq!(ask(&site, "POST", "/logging?reset").await.as_text(), "current log level is info\n");
    });
}

#[test]
fn readiness_names_what_is_pending() {
    run(async {
        let readiness = Readiness::default();
        let site = ReadinessSite::new(readiness.clone());
        let state = readiness.pending("state manager");
        let proxies =
            [readiness.pending("workload proxy manager"), readiness.pending("workload proxy manager")];
        let page = ask(&site, "GET", "/healthz/ready").await;
        assert_eq!(page.status, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(page.as_text(), "not ready, pending: state manager, workload proxy manager\n");
        drop(state);
        let [first, second] = proxies;
        drop(first);
        assert!(!readiness.is_ready());
        drop(second);
        let page = ask(&site, "GET", "/healthz/ready").await;
        assert_eq!((page.status, page.as_text()), (StatusCode::OK, "ready\n"));
        readiness.with_reservation(Some("with yesterday's state".to_owned()));
        let page = ask(&site, "GET", "/healthz/ready").await;
        assert_eq!((page.status, page.as_text()), (StatusCode::OK, "ready, with yesterday's state\n"));
    });
}

#[test]
fn metrics_have_both_of_their_paths() {
    run(async {
        let (_workers, metrics) = crate::metrics::metrics(1);
        let site = MetricsSite::new(Rc::new(metrics));
        for path in ["/metrics", "/stats/prometheus"] {
            let page = ask(&site, "GET", path).await;
            assert_eq!(page.content_type, "text/plain;charset=utf-8;version=0.0.4");
            assert!(page.as_text().contains("# TYPE process_open_fds gauge\n"), "{}", page.as_text());
            let asked = Ask { accept: "application/openmetrics-text;q=0.5".to_owned(), ..get(path) };
            let page = site.answer(asked).await;
            assert_eq!(page.content_type, "application/openmetrics-text;charset=utf-8;version=1.0.0");
            assert!(page.as_text().ends_with("# EOF\n"));
        }
        assert_eq!(ask(&site, "GET", "/").await.status, StatusCode::NOT_FOUND);
    });
}

#[test]
fn fuzz_queries_are_decoded_without_failing() {
    bolero::check!().with_type::<String>().for_each(|text| {
        for (name, value) in page::parse_query(text) {
            assert!(!name.contains('&') || text.contains("%26"));
            assert!(value.len() <= 3 * text.len());
        }
    });
    assert_eq!(page::parse_query("a=%zz&b=1%2"), [("a".into(), "%zz".into()), ("b".into(), "1%2".into())]);
}
