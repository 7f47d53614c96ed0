//! The page and the table of a run with everything in it, the page also in a browser.

use std::path::PathBuf;
use std::process::Command;

use super::*;
use crate::compare::result::Kind;
use crate::report::markdown::markdown;

/// One topology of each kind, one defeat and one by a proxy that does less, one missing peer, a failed check; names that would break a page.
const RUN: &str = include_str!("run.json");

fn report() -> Report {
    Report::parse(RUN.as_bytes()).unwrap()
}

#[test]
fn the_page_tells_what_was_lost_and_what_failed() {
    let page = page(&report()).unwrap();
    for text in [
        "haproxy-sidecar-h2 beats corelane-l7</span> at requests: ours over its cpu us per request 1.05/1.10/1.20, latency p99 us 1.30/1.40/1.50",
        "1 more by proxies that do less",
        "SELF-CHECK FAILED",
        "Not run: envoy-waypoint",
        "1 targets reached, 1 missed, 1 not measured",
        "custom &lt;peer&gt; &amp; co",
    ] {
        assert!(page.contains(text), "{text} is missing");
    }
    assert!(!page.contains("<peer>"), "names are text, not markup");
    for outside in ["<script", "http://", "https://", "url(", "<img", "<link"] {
        // The SVG namespace is a name, not an address that is fetched.
        let page = page.replace("http://www.w3.org/2000/svg", "");
        assert!(!page.contains(outside), "{outside}");
    }
}

#[test]
fn the_table_has_medians_and_says_where_others_win() {
    let table = markdown(&report());
    assert!(table.contains("| corelane-l7 | 21.0 |"), "{table}");
    assert!(table.contains("**missed**"), "{table}");
    let (as_much, less) = table.split_once("proxies that do less").unwrap();
    assert!(as_much.contains("| requests | haproxy-sidecar-h2 | corelane-l7 |"), "{table}");
    assert!(less.contains("| requests | custom <peer> & co | corelane-l7 |"), "{table}");
    assert!(!table.contains("envoy-waypoint"), "{table}");
}

#[test]
fn kinds_have_colours_of_their_own() {
    let kinds = [Kind::Floor, Kind::Ours, Kind::Peer, Kind::Custom];
    let colours: std::collections::BTreeSet<_> = kinds.into_iter().map(css).collect();
    assert_eq!(colours.len(), 4);
}

/// Where this test's program was built: `target/debug/deps/..`.
fn build_directory() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    program.ancestors().nth(3).unwrap().to_owned()
}

/// What a person sees. The picture stays in the build directory.
#[test]
fn a_browser_shows_the_page() {
    let directory = build_directory().join("tmp/report");
    std::fs::create_dir_all(&directory).unwrap();
    let file = directory.join("page.html");
    let page = page(&report()).unwrap();
    std::fs::write(&file, &page).unwrap();
    let picture = directory.join("page.png");
    drop(std::fs::remove_file(&picture));
    let browse = |argument: &str| {
        let output = Command::new("chromium-headless-shell")
            .args(["--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1100,2400"])
            .arg(format!("--user-data-dir={}", directory.join("profile").display()))
            .args([argument, &format!("file://{}", file.display())])
            .output()
            .expect("chromium-headless-shell is installed; scripts/setup-tests brings it");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    browse(&format!("--screenshot={}", picture.display()));
    let bytes = std::fs::metadata(&picture).unwrap().len();
    println!("{} ({bytes} bytes)", picture.display());
    assert!(bytes > 30_000, "a page with plots is no small picture");
    // What the browser has made of it: every plot is there, nothing was repaired away.
    let dom = browse("--dump-dom");
    let plots = |text: &str| text.matches("<svg").count();
    assert!(plots(&page) >= 4 && plots(&dom) == plots(&page), "{} of {}", plots(&dom), plots(&page));
    assert!(dom.contains("id=\"targets\"") && dom.trim_end().ends_with("</html>"));
}
