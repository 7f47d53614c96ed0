//! What a hostile peer may do to a server, each with the bar it must be stopped at. Time does not pass during a flood,
//! so a flood slower than the forgiven rate is out of scope here; the budget's own tests cover the rate.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic)] // test code outside of test functions

use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tunnel::h2::{Config, Connection, ConnectionError, ErrorCode, Event, Headers, StreamId};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// GET http://a/ without touching the dynamic table.
const GET: &[u8] = b"\x82\x86\x84\x01\x01a";
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend_from_slice(&[kind, flags]);
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

fn headers(flags: u8, stream: u32, block: &[u8]) -> Vec<u8> {
    frame(1, flags, stream, block)
}

fn reset(stream: u32) -> Vec<u8> {
    frame(3, 0, stream, &8_u32.to_be_bytes())
}

/// How the application above the server behaves.
#[derive(Clone, Copy, PartialEq)]
enum Application {
    /// Answers at once.
    Prompt,
    /// Never answers.
    Silent,
}

struct Target {
    connection: Connection,
    application: Application,
    now: Instant,
    out: Vec<u8>,
    /// Requests that reached the application.
    requests: usize,
    resets: usize,
}

impl Target {
    fn new(application: Application) -> Self {
        Self::with(application, Config::hbone_server())
    }

    fn with(application: Application, config: Config) -> Self {
        let mut target = Self::unopened(application, config);
        assert_eq!(target.feed(PREFACE), Ok(()));
        assert_eq!(target.feed(&frame(4, 0, 0, &[])), Ok(()));
        assert_eq!(target.feed(&frame(4, 1, 0, &[])), Ok(()));
        target.out.clear();
        target
    }

    /// One whose client has sent nothing yet.
    fn unopened(application: Application, config: Config) -> Self {
        let now = Instant::now();
        let connection = Connection::new(config, now, &mut Vec::new());
        Self { connection, application, now, out: Vec::new(), requests: 0, resets: 0 }
    }

    fn feed(&mut self, bytes: &[u8]) -> Result<(), ConnectionError> {
        let mut input = bytes;
        while let Some(event) = self.connection.next_event(&mut input, self.now, &mut self.out)? {
            match event {
                Event::Headers { stream, .. } => {
                    self.requests += 1;
                    if self.application == Application::Prompt {
                        let response = Headers::response(200).unwrap();
                        self.connection.respond(stream, &response, true, &mut self.out).unwrap();
                    }
                }
                Event::Data { stream, bytes, .. } => {
                    self.connection.release(stream, bytes.len(), &mut self.out);
                }
                Event::Reset { .. } => self.resets += 1,
                _ => {}
            }
        }
        Ok(())
    }

    /// Feeds up to `count` chunks; gives how many it took until the connection was closed for being abusive.
    fn flood(&mut self, count: u32, mut chunk: impl FnMut(u32) -> Vec<u8>) -> Option<u32> {
        (0..count).find(|&number| match self.feed(&chunk(number)) {
            Ok(()) => false,
            Err(error) => {
                assert_eq!(error.code(), ErrorCode::ENHANCE_YOUR_CALM, "{error}");
                // The last frame is GOAWAY with that code.
                let goaway = &self.out[self.out.len() - 17..];
                assert_eq!((goaway[3], &goaway[13..17]), (7, [0, 0, 0, 0xb].as_slice()));
                true
            }
        })
    }

    /// Frames of a type that the server has written.
    fn written(&self, kind: u8) -> usize {
        let mut rest = self.out.as_slice();
        let mut count = 0;
        while let Some((header, tail)) = rest.split_first_chunk::<9>() {
            count += usize::from(header[3] == kind);
            rest = &tail[u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize..];
        }
        count
    }
}

fn stream(number: u32) -> u32 {
    number * 2 + 1
}

#[test]
fn rapid_reset_is_stopped_within_1000_whatever_the_application_does() {
    for application in [Application::Silent, Application::Prompt] {
        let mut target = Target::new(application);
        let attack = |number| {
            let request = headers(END_STREAM | END_HEADERS, stream(number), GET);
            [request, reset(stream(number))].concat()
        };
        let taken = target.flood(100_000, attack).expect("closed");
        assert!(taken <= 1_000, "{taken}");
        assert!(target.requests <= 1_001);
        assert!(target.connection.stream_count() <= 1);
    }
}

#[test]
fn provoked_resets_count_as_rapid_resets() {
    // Each of these makes the server itself reset the stream (MadeYouReset).
    type Provocation = (&'static str, fn(u32) -> Vec<u8>);
    let provocations: [Provocation; 5] = [
        ("zero WINDOW_UPDATE", |id| frame(8, 0, id, &[0; 4])),
        ("window overflow", |id| frame(8, 0, id, &0x7fff_ffff_u32.to_be_bytes())),
        ("self-dependency", |id| frame(2, 0, id, &[&id.to_be_bytes()[..], &[0]].concat())),
        ("DATA after the end", |id| frame(0, 0, id, b"x")),
        ("HEADERS after the end", |id| headers(END_STREAM | END_HEADERS, id, b"")),
    ];
    for (name, provoke) in provocations {
        let mut target = Target::new(Application::Silent);
        let attack = |number| {
            let id = stream(number);
            [headers(END_STREAM | END_HEADERS, id, GET), provoke(id)].concat()
        };
        let taken = target.flood(10_000, attack).unwrap_or_else(|| panic!("{name}: not stopped"));
        assert!(taken <= 1_000, "{name}: {taken}");
    }
}

#[test]
fn malformed_and_refused_requests_count_as_resets() {
    let mut target = Target::new(Application::Silent);
    let taken = target.flood(10_000, |number| headers(END_STREAM | END_HEADERS, stream(number), b"\x82"));
    assert!(taken.expect("closed") <= 1_000);
    assert_eq!(target.requests, 0);

    let mut target = Target::new(Application::Silent);
    let taken = target.flood(10_000, |number| headers(END_HEADERS, stream(number), GET)).expect("closed");
    assert!(taken <= 1_000);
    assert_eq!((target.requests, target.connection.stream_count()), (200, 200), "the stream limit holds");
}

#[test]
fn continuation_flood_is_stopped_by_frames_and_by_bytes() {
    let mut target = Target::new(Application::Silent);
    assert_eq!(target.feed(&headers(END_STREAM, 1, GET)), Ok(()));
    let octets = [0_u8, 1, b'a', 127].iter().copied().chain([b'b'; 127]).collect::<Vec<_>>();
    assert_eq!(target.flood(10_000, |_| frame(9, 0, 1, &octets)), Some(8));

    let mut target = Target::new(Application::Silent);
    assert_eq!(target.feed(&headers(END_STREAM, 1, GET)), Ok(()));
    let taken = target.flood(10_000, |_| frame(9, 0, 1, &[0; 16_384])).expect("closed");
    assert!(taken * 16_384 <= 64 * 1_024, "{taken}");
}

#[test]
fn one_large_headers_frame_is_refused_before_it_is_collected() {
    let mut target = Target::new(Application::Silent);
    let announced = frame(1, END_HEADERS, 1, &vec![0; 64 * 1_024 + 1]);
    assert_eq!(target.feed(&announced[..9]).unwrap_err().code(), ErrorCode::ENHANCE_YOUR_CALM);
}

#[test]
fn empty_continuations_are_stopped_within_128() {
    let mut target = Target::new(Application::Silent);
    assert_eq!(target.feed(&headers(END_STREAM, 1, GET)), Ok(()));
    assert!(target.flood(10_000, |_| frame(9, 0, 1, &[])).expect("closed") <= 128);
}

#[test]
fn floods_of_frames_without_payload_are_stopped() {
    let settings = frame(4, 0, 0, &[0, 4, 0, 0, 0xff, 0xff]);
    let plain: [(&str, Vec<u8>, u32); 6] = [
        ("SETTINGS", settings, 100),
        ("SETTINGS acknowledged", frame(4, 1, 0, &[]), 100),
        ("PING", frame(6, 0, 0, b"12345678"), 1_000),
        ("PRIORITY", frame(2, 0, 3, &[0; 5]), 1_000),
        ("WINDOW_UPDATE", frame(8, 0, 0, &1_u32.to_be_bytes()), 1_000),
        ("unknown", frame(0x50, 0, 0, b"zz"), 1_000),
    ];
    for (name, bytes, bar) in plain {
        let mut target = Target::new(Application::Silent);
        let taken = target.flood(20_000, |_| bytes.clone()).unwrap_or_else(|| panic!("{name}: not stopped"));
        assert!(taken <= bar, "{name}: {taken}");
        assert!(target.written(4) + target.written(6) <= 1_000, "{name}: answers are bounded");
    }
}

#[test]
fn empty_data_is_stopped_within_1000_padded_or_not() {
    for (flags, payload) in [(0, b"".as_slice()), (8, b"\0"), (8, b"\x03\0\0\0")] {
        let mut target = Target::new(Application::Silent);
        assert_eq!(target.feed(&headers(END_HEADERS, 1, GET)), Ok(()));
        let taken = target.flood(20_000, |_| frame(0, flags, 1, payload)).expect("closed");
        assert!(taken <= 1_000, "{taken}");
    }
}

#[test]
fn window_updates_in_proportion_to_data_sent_are_welcome() {
    let mut target = Target::new(Application::Silent);
    assert_eq!(target.feed(&headers(END_HEADERS, 1, GET)), Ok(()));
    let response = Headers::response(200).unwrap();
    target.connection.respond(StreamId(1), &response, false, &mut target.out).unwrap();
    for _ in 0..20_000 {
        let mut out = Vec::new();
        assert_eq!(target.connection.send_data(StreamId(1), &[1; 100], false, &mut out), Ok(100));
        let both = [0, 1].map(|id| frame(8, 0, id, &100_u32.to_be_bytes())).concat();
        assert_eq!(target.feed(&both), Ok(()));
    }
}

/// Heads with 14 references to a field of 4,001 octets that are held at the same time, beside some small ones: 1 MiB.
const LARGE_THAT_FIT: usize = ((1 << 20) - 20_000) / (14 * 4_033 + 166);

/// A block that stores a large field, then blocks that refer to it again and again.
fn bomb_blocks(references: usize) -> (Vec<u8>, Vec<u8>) {
    let mut store = GET.to_vec();
    store.extend_from_slice(b"\x40\x01x\x7f\xa1\x1e"); // literal with indexing, value of 4,000 octets
    store.extend_from_slice(&[b'A'; 4_000]);
    let mut refer = GET.to_vec();
    refer.extend(std::iter::repeat_n(0xbe, references));
    (store, refer)
}

#[test]
fn lists_that_are_too_large_are_reset_request_by_request() {
    let mut target = Target::new(Application::Silent);
    let (store, refer) = bomb_blocks(40);
    assert_eq!(target.feed(&headers(END_STREAM | END_HEADERS, 1, &store)), Ok(()));
    assert_eq!(target.requests, 1);
    for number in 1..=50 {
        assert_eq!(target.feed(&headers(END_STREAM | END_HEADERS, stream(number), &refer)), Ok(()));
    }
    assert_eq!((target.requests, target.written(3), target.connection.stream_count()), (1, 50, 1));
}

#[test]
fn a_list_out_of_all_proportion_ends_the_connection() {
    for flags in [END_STREAM | END_HEADERS, END_HEADERS] {
        let mut target = Target::new(Application::Silent);
        let (store, refer) = bomb_blocks(4_000);
        assert_eq!(target.feed(&headers(flags, 1, &store)), Ok(()));
        assert_eq!(target.flood(50, |number| headers(flags, stream(number + 1), &refer)), Some(0));
        assert_eq!(target.requests, 1);
    }
}

#[test]
fn heads_that_are_held_leave_less_room_for_others_until_they_are_answered() {
    let mut target = Target::new(Application::Silent);
    let (store, refer) = bomb_blocks(14);
    assert_eq!(target.feed(&headers(END_STREAM | END_HEADERS, 1, &store)), Ok(()));
    for number in 1..100 {
        assert_eq!(target.feed(&headers(END_STREAM | END_HEADERS, stream(number), &refer)), Ok(()));
    }
    let fit = LARGE_THAT_FIT + 1;
    assert_eq!((target.requests, target.written(3)), (fit, 100 - fit));
    let refused = frame(3, 0, stream(99), &7_u32.to_be_bytes());
    assert!(target.out.ends_with(&refused), "as if it had never come");
    for number in 1..10 {
        let response = Headers::response(200).unwrap();
        target.connection.respond(StreamId(stream(number)), &response, true, &mut target.out).unwrap();
    }
    for number in 100..110 {
        assert_eq!(target.feed(&headers(END_STREAM | END_HEADERS, stream(number), &refer)), Ok(()));
    }
    assert_eq!(target.requests, fit + 9, "as many as were answered");
}

#[test]
fn a_reset_of_a_large_head_counts_for_several() {
    let mut target = Target::new(Application::Silent);
    let (store, refer) = bomb_blocks(14);
    assert_eq!(target.feed(&[headers(END_STREAM | END_HEADERS, 1, &store), reset(1)].concat()), Ok(()));
    let attack = |number| {
        let id = stream(number + 1);
        [headers(END_STREAM | END_HEADERS, id, &refer), reset(id)].concat()
    };
    // 56 KB are six times 8 KiB and some.
    let taken = target.flood(1_000, attack).expect("closed");
    assert!((65..=75).contains(&taken), "{taken}");
}

#[test]
fn trailers_and_interim_responses_that_are_held_are_bounded_as_well() {
    let (_, refer) = bomb_blocks(14);
    let refer = &refer[GET.len()..];
    let mut target = Target::new(Application::Silent);
    assert_eq!(target.feed(&headers(END_HEADERS, 1, &bomb_blocks(0).0)), Ok(()));
    for number in 1..100 {
        let both = [
            headers(END_HEADERS, stream(number), GET),
            headers(END_STREAM | END_HEADERS, stream(number), refer),
        ];
        assert_eq!(target.feed(&both.concat()), Ok(()));
    }
    assert_eq!(target.connection.stream_count(), LARGE_THAT_FIT + 1);

    let now = Instant::now();
    let mut out = Vec::new();
    let mut client = Connection::new(Config::proxy_client(), now, &mut out);
    let request = Headers::request("GET", "http", "a", "/").unwrap();
    let mut bytes = frame(4, 0, 0, &[]);
    let hints = |fields: &[u8]| [b"\x08\x03103".as_slice(), fields].concat();
    let stored = [b"\x40\x01x\x7f\xa1\x1e".as_slice(), &[b'A'; 4_000]].concat();
    for number in 0..20 {
        let id = client.open(&request, true, &mut out).unwrap();
        if number == 0 {
            bytes.extend(headers(END_HEADERS, id.0, &hints(&stored)));
        }
        for _ in 0..4 {
            bytes.extend(headers(END_HEADERS, id.0, &hints(refer)));
        }
    }
    let (mut input, mut held) = (bytes.as_slice(), BTreeMap::new());
    while let Some(event) = client.next_event(&mut input, now, &mut out).unwrap() {
        match event {
            Event::Headers { stream, .. } => *held.entry(stream).or_insert(0) += 1,
            Event::Reset { stream, .. } => drop(held.remove(&stream)),
            _ => {}
        }
        assert!(held.values().sum::<usize>() <= LARGE_THAT_FIT + 2);
    }
    assert!((3..20).contains(&client.stream_count()), "others were reset");
}

#[test]
fn too_many_fields_are_reset_cookie_crumbs_included() {
    let mut target = Target::new(Application::Silent);
    let crumbs = |count: usize| [GET.to_vec(), b"\x0f\x11\x03a=b".repeat(count)].concat();
    assert_eq!(target.feed(&headers(END_STREAM | END_HEADERS, 1, &crumbs(124))), Ok(()));
    assert_eq!((target.requests, target.written(3)), (1, 0));
    assert_eq!(target.feed(&headers(END_STREAM | END_HEADERS, 3, &crumbs(125))), Ok(()));
    assert_eq!((target.requests, target.written(3)), (1, 1));
}

#[test]
fn large_header_list_is_reset_or_closed() {
    let mut target = Target::new(Application::Silent);
    let field = [b"\x00\x05x-abc\x64".to_vec(), vec![b'y'; 100]].concat();
    let block = [GET.to_vec(), field.repeat(500)].concat();
    assert!(block.len() < 64 * 1_024);
    assert_eq!(target.feed(&headers(END_STREAM | END_HEADERS, 1, &block)), Ok(()));
    assert_eq!((target.requests, target.written(3)), (0, 1), "above the list size, below the block's limit");
    let block = [GET.to_vec(), field.repeat(2_000)].concat();
    let error = target.feed(&headers(END_STREAM | END_HEADERS, 3, &block)).unwrap_err();
    assert_eq!(error.code(), ErrorCode::ENHANCE_YOUR_CALM);
}

#[test]
fn table_size_updates_cannot_storm() {
    let mut target = Target::new(Application::Silent);
    let block = [b"\x20\x3f\xe1\x1f".repeat(100), GET.to_vec()].concat();
    let error = target.feed(&headers(END_STREAM | END_HEADERS, 1, &block)).unwrap_err();
    assert_eq!(error.code(), ErrorCode::COMPRESSION_ERROR);
}

#[test]
fn header_block_split_at_every_octet_is_the_same_request() {
    for at in 0..=GET.len() {
        let mut target = Target::new(Application::Prompt);
        let (first, second) = GET.split_at(at);
        let bytes = [headers(END_STREAM, 1, first), frame(9, END_HEADERS, 1, second)].concat();
        for octet in bytes {
            assert_eq!(target.feed(&[octet]), Ok(()));
        }
        assert_eq!(target.requests, 1);
    }
}

#[test]
fn a_second_head_behind_the_end_of_a_request_is_one_on_a_closed_stream() {
    let mut target = Target::new(Application::Silent);
    assert_eq!(target.feed(&headers(END_STREAM | END_HEADERS, 1, GET)), Ok(()));
    // Not malformed trailers.
    assert_eq!(target.feed(&headers(END_STREAM | END_HEADERS, 1, GET)), Ok(()));
    assert_eq!(target.out, frame(3, 0, 1, &5_u32.to_be_bytes()));
    assert_eq!(target.requests, 1);
}

#[test]
fn late_frames_of_streams_we_reset_are_ignored_within_reason() {
    let mut target = Target::new(Application::Silent);
    assert_eq!(target.feed(&headers(END_HEADERS, 1, GET)), Ok(()));
    target.connection.reset(StreamId(1), ErrorCode::CANCEL, &mut target.out);
    target.out.clear();
    let trailers = headers(END_STREAM | END_HEADERS, 1, b"\x00\x01a\x01b");
    let late = [frame(0, 0, 1, &[0; 1_000]), trailers, frame(8, 0, 1, &[0, 0, 0, 1])].concat();
    assert_eq!(target.feed(&late), Ok(()));
    assert!(target.out.is_empty(), "nothing is written for them");
    assert!(target.flood(10_000, |_| frame(0, 0, 1, b"late")).expect("closed") <= 1_000);
}

#[test]
fn stalled_streams_are_reset_within_60_seconds() {
    let mut target = Target::with(Application::Silent, Config::http_server());
    // The peer grants no stream window at all.
    assert_eq!(target.feed(&frame(4, 0, 0, &[0, 4, 0, 0, 0, 0])), Ok(()));
    for number in 0..100 {
        assert_eq!(target.feed(&headers(END_STREAM | END_HEADERS, stream(number), GET)), Ok(()));
        let id = StreamId(stream(number));
        target.connection.respond(id, &Headers::response(200).unwrap(), false, &mut target.out).unwrap();
        assert_eq!(target.connection.send_data(id, b"body", true, &mut target.out), Ok(0));
    }
    let start = target.now;
    while target.now <= start + Duration::from_mins(1) && target.connection.stream_count() > 0 {
        target.now = target.connection.next_deadline().expect("a scan is due");
        target.connection.on_timer(target.now, &mut target.out).unwrap();
        target.feed(&[]).unwrap();
    }
    assert!(target.now <= start + Duration::from_mins(1));
    assert_eq!((target.connection.stream_count(), target.resets), (0, 100));
}

/// What a slow peer sends each second.
type Pieces = Box<dyn FnMut(u32) -> Vec<u8>>;

fn silence() -> Pieces {
    Box::new(|_| Vec::new())
}

/// Sends `first`, then a piece each second while timers run. When the connection was given up, and with what code.
fn given_up(target: &mut Target, first: &[u8], mut piece: Pieces) -> Option<(Duration, ErrorCode)> {
    let start = target.now;
    target.feed(first).expect("a beginning is no fault");
    for second in 1..=25 {
        target.now = start + Duration::from_secs(second.into());
        if target.connection.next_deadline().is_some_and(|due| due <= target.now)
            && let Err(error) = target.connection.on_timer(target.now, &mut target.out)
        {
            assert!(matches!(error, ConnectionError::Late { .. }), "{error}");
            assert_eq!((target.written(7), target.connection.next_deadline()), (1, None));
            return Some((target.now - start, error.code()));
        }
        target.feed(&piece(second)).expect("a slow piece is no fault");
    }
    None
}

const TEN_SECONDS: Duration = Duration::from_secs(10);

#[test]
fn what_never_becomes_whole_is_given_up_after_10_seconds_however_it_trickles() {
    let begun = headers(END_STREAM, 1, GET);
    let large = headers(END_STREAM | END_HEADERS, 1, &[0; 1_000]);
    let cases: [(&str, Vec<u8>, Pieces); 6] = [
        ("CONTINUATION withheld", begun.clone(), silence()),
        (
            "CONTINUATION now and then",
            begun.clone(),
            Box::new(|second| if second % 4 == 0 { frame(9, 0, 1, b"\x00\x01x\x01y") } else { Vec::new() }),
        ),
        ("an octet of HEADERS a second", large[..9].to_vec(), Box::new(|_| vec![0])),
        (
            "an octet of CONTINUATION a second",
            [&begun[..], &frame(9, END_HEADERS, 1, &[0; 100])[..9]].concat(),
            Box::new(|_| vec![0]),
        ),
        ("half of SETTINGS", frame(4, 0, 0, &[0; 6])[..12].to_vec(), silence()),
        ("half of a PING", frame(6, 0, 0, &[0; 8])[..12].to_vec(), silence()),
    ];
    for (name, first, piece) in cases {
        let mut target = Target::with(Application::Silent, Config::proxy_server());
        // Long after the start.
        target.now += Duration::from_mins(5);
        let end = given_up(&mut target, &first, piece);
        assert_eq!(end, Some((TEN_SECONDS, ErrorCode::ENHANCE_YOUR_CALM)), "{name}");
        assert_eq!(target.requests, 0, "{name}");
    }
}

#[test]
fn what_becomes_whole_in_time_leaves_no_deadline_behind() {
    let mut target = Target::with(Application::Silent, Config::proxy_server());
    let idle = target.connection.next_deadline();
    for number in 0..10 {
        let block = headers(END_STREAM, stream(number), GET);
        let rest = frame(9, END_HEADERS, stream(number), b"\x00\x01x\x01y");
        for piece in [&block[..12], &block[12..], &rest[..4], &rest[4..12], &rest[12..]] {
            target.feed(piece).unwrap();
            target.now += Duration::from_secs(2);
            target.connection.on_timer(target.now, &mut target.out).unwrap();
        }
    }
    assert_eq!((target.requests, target.written(7), idle), (10, 0, None));
    // A body may take as long as it likes, one octet a minute.
    target.feed(&[headers(END_HEADERS, 101, GET), frame(0, 0, 101, &[0; 9])[..9].to_vec()].concat()).unwrap();
    for _ in 0..9 {
        target.now += Duration::from_mins(1);
        target.connection.on_timer(target.now, &mut target.out).unwrap();
        target.feed(b"x").unwrap();
    }
    assert_eq!(target.written(7), 0);
}

#[test]
fn a_start_that_is_not_ended_is_given_up_after_10_seconds() {
    let mut preface = PREFACE.iter();
    let settings = [PREFACE, &frame(4, 0, 0, &[])].concat();
    let cases: [(&str, Vec<u8>, Pieces); 4] = [
        ("silence", Vec::new(), silence()),
        // The whole of it would take 24 s.
        ("an octet of the preface a second", Vec::new(), Box::new(move |_| vec![*preface.next().unwrap()])),
        ("a preface without SETTINGS", PREFACE.to_vec(), silence()),
        ("SETTINGS never acknowledged", settings, Box::new(|_| frame(6, 0, 0, b"12345678"))),
    ];
    for (name, first, piece) in cases {
        let mut target = Target::unopened(Application::Silent, Config::hbone_server());
        let end = given_up(&mut target, &first, piece);
        assert_eq!(end, Some((TEN_SECONDS, ErrorCode::SETTINGS_TIMEOUT)), "{name}");
    }
}

#[test]
fn unanswered_keepalive_closes() {
    let mut target = Target::new(Application::Silent);
    let start = target.now;
    let first = target.connection.next_deadline().unwrap();
    assert_eq!(first - start, Duration::from_secs(10));
    assert_eq!(target.connection.on_timer(first, &mut target.out), Ok(()));
    assert_eq!(target.written(6), 1);
    // Answered: the next is due ten seconds after the answer.
    let payload: [u8; 8] = target.out[9..17].try_into().unwrap();
    target.now = first + Duration::from_secs(3);
    assert_eq!(target.feed(&frame(6, 1, 0, &payload)), Ok(()));
    let second = target.connection.next_deadline().unwrap();
    assert_eq!(second - first, Duration::from_secs(13));
    // Not answered.
    assert_eq!(target.connection.on_timer(second, &mut target.out), Ok(()));
    let last = target.connection.next_deadline().unwrap();
    assert_eq!(last - second, Duration::from_secs(20));
    assert_eq!(target.connection.on_timer(last, &mut target.out), Err(ConnectionError::KeepAliveTimeout));
    assert_eq!(target.written(7), 1);
}

#[test]
fn client_stands_floods_of_informational_responses_and_unasked_pushes() {
    let now = Instant::now();
    let mut out = Vec::new();
    let mut client = Connection::new(Config::http_client(), now, &mut out);
    let request = Headers::request("GET", "http", "a", "/").unwrap();
    let id = client.open(&request, true, &mut out).unwrap();
    let mut feed = |bytes: &[u8]| {
        let mut input = bytes;
        loop {
            match client.next_event(&mut input, now, &mut out) {
                Ok(Some(_)) => {}
                Ok(None) => return Ok(()),
                Err(error) => return Err(error.code()),
            }
        }
    };
    assert_eq!(feed(&frame(4, 0, 0, &[])), Ok(()));
    let early_hints = headers(END_HEADERS, id.0, b"\x08\x03103");
    let taken =
        (0..10_000).find(|_| feed(&early_hints) == Err(ErrorCode::ENHANCE_YOUR_CALM)).expect("closed");
    assert!(taken <= 1_000);

    let mut out = Vec::new();
    let mut client = Connection::new(Config::http_client(), now, &mut out);
    let bytes = [frame(4, 0, 0, &[]), frame(5, END_HEADERS, 1, &[0, 0, 0, 2])].concat();
    let mut input = bytes.as_slice();
    assert_eq!(client.next_event(&mut input, now, &mut out), Ok(Some(Event::SettingsChanged)));
    let error = client.next_event(&mut input, now, &mut out).unwrap_err();
    assert_eq!(error.code(), ErrorCode::PROTOCOL_ERROR);
}
