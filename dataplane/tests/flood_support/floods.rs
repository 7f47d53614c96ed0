//! What a hostile client sends, and what must come of it.

use std::sync::Arc;

use super::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, HEADERS, PING, PRIORITY, Peer,
    RST_STREAM, SETTINGS, WINDOW_UPDATE, block, frame, stream,
};

/// What must come of a flood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The connection is closed with ENHANCE_YOUR_CALM.
    Calm,
    /// Its streams are refused, and the connection answers still; or it is closed with ENHANCE_YOUR_CALM.
    Borne,
    /// It is closed, with whatever code.
    Closed,
}

type Chunks = Box<dyn Iterator<Item = Vec<u8>>>;

pub struct Flood {
    pub name: &'static str,
    pub end: End,
    chunks: Chunks,
}

impl Flood {
    fn new(name: &'static str, end: End, chunks: impl Iterator<Item = Vec<u8>> + 'static) -> Self {
        Self { name, end, chunks: Box::new(chunks) }
    }

    /// Runs on a fresh connection; the most memory that was `held` meanwhile, or what is wrong.
    pub fn run(self, mut peer: Peer, held: impl Fn() -> usize) -> Result<usize, String> {
        let mut peak = 0;
        let mut sent = 0;
        for chunk in self.chunks {
            let goes_on = peer.send(&chunk);
            peak = peak.max(held());
            if !goes_on {
                break;
            }
            sent += 1;
        }
        let closed = |code: Option<u32>| match code {
            Some(ENHANCE_YOUR_CALM) => Ok(()),
            other => Err(format!("{}: closed with {other:?} after {sent} chunks", self.name)),
        };
        match self.end {
            End::Closed => {
                peer.until(|_| false);
                Ok(())
            }
            End::Calm => closed(peer.closed_with()),
            End::Borne if peer.answers() => Ok(()),
            End::Borne => closed(peer.closed_with()),
        }?;
        if !peer.ended && self.end != End::Borne {
            return Err(format!("{}: the connection goes on", self.name));
        }
        Ok(peak.max(held()))
    }
}

/// Each kind of flood; `head` is a request that is taken.
pub fn floods(head: &[u8]) -> Vec<Flood> {
    let head = Arc::<[u8]>::from(head);
    let open = |flags: u8| {
        let head = head.clone();
        move |number: u32| frame(HEADERS, flags, stream(number), &head)
    };
    let (asked, begun) = (open(END_HEADERS | END_STREAM), open(END_HEADERS));
    let (asked_too, begun_too, unended) = (asked.clone(), begun.clone(), open(0));
    let repeat = |bytes: Vec<u8>, count: usize| std::iter::repeat_n(bytes, count);
    let field = block(&[("x-flood", "of many octets that say nothing at all, again and again")]);
    let mut floods = vec![
        Flood::new(
            "rapid reset",
            End::Calm,
            (0..100_000)
                .map(move |it| [begun(it), frame(RST_STREAM, 0, stream(it), &8_u32.to_be_bytes())].concat()),
        ),
        Flood::new(
            "provoked resets",
            End::Calm,
            (0..10_000).map(move |it| [begun_too(it), frame(WINDOW_UPDATE, 0, stream(it), &[0; 4])].concat()),
        ),
        Flood::new(
            "continuation",
            End::Calm,
            std::iter::once(unended(0)).chain(repeat(frame(CONTINUATION, 0, stream(0), &field), 10_000)),
        ),
        Flood::new(
            "empty continuation",
            End::Calm,
            std::iter::once(unended(0)).chain(repeat(frame(CONTINUATION, 0, stream(0), &[]), 10_000)),
        ),
        Flood::new(
            "settings",
            End::Calm,
            repeat(frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff]).repeat(50), 200),
        ),
        Flood::new("ping", End::Calm, repeat(frame(PING, 0, 0, b"12345678").repeat(100), 200)),
        Flood::new("priority", End::Calm, repeat(frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 10]).repeat(100), 200)),
        Flood::new(
            "window updates",
            End::Calm,
            repeat(frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes()).repeat(100), 200),
        ),
        Flood::new("unknown frames", End::Calm, repeat(frame(0x50, 0, 0, b"zz").repeat(100), 200)),
        Flood::new(
            "empty data",
            End::Calm,
            std::iter::once(open(END_HEADERS)(0))
                .chain(repeat(frame(DATA, 0, stream(0), &[]).repeat(100), 200)),
        ),
        Flood::new(
            "data of one octet",
            End::Borne,
            std::iter::once(open(END_HEADERS)(0))
                .chain(repeat(frame(DATA, 0, stream(0), b"x").repeat(100), 200)),
        ),
    ];
    floods.extend(head_floods(&head));
    floods.push(Flood::new(
        "more streams than are allowed",
        End::Borne,
        (0..1_000).map(move |it| if it == 0 { asked(it) } else { asked_too(it) }),
    ));
    floods
}

/// As many requests as `streams`, whose heads are as large as a list may be, though they say so in few octets.
pub fn large_requests(head: &[u8], streams: u32) -> Vec<u8> {
    let store = [head, b"\x40\x01x\x7f\xa1\x1e", &[b'A'; 4_000]].concat();
    let refer = [head, &[0xbe; 14]].concat();
    let request = |number: u32, block: &[u8]| frame(HEADERS, END_HEADERS | END_STREAM, stream(number), block);
    (0..streams).flat_map(|number| request(number, if number == 0 { &store } else { &refer })).collect()
}

/// Heads that are larger than they look, or than anybody needs.
fn head_floods(head: &Arc<[u8]>) -> Vec<Flood> {
    // A field of 4,000 octets is stored, and named by one octet from then on.
    let mut store = head.to_vec();
    store.extend(b"\x40\x01x\x7f\xa1\x1e");
    store.extend([b'A'; 4_000]);
    let refer = |count: usize| [&head[..], &vec![0xbe; count]].concat();
    let large = block(&[("x-large", &"y".repeat(100))]);
    let crumbs = [&head[..], &b"\x0f\x11\x03a=b".repeat(2_000)].concat();
    let request = |number: u32, block: &[u8]| frame(HEADERS, END_HEADERS, stream(number), block);
    let stored = request(0, &store);
    let bomb = |count: usize, streams: u32| {
        let (stored, refer) = (stored.clone(), refer(count));
        std::iter::once(stored).chain((1..streams).map(move |it| request(it, &refer)))
    };
    // No window for what is answered, so every stream waits.
    let no_window = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    vec![
        Flood::new("references", End::Borne, bomb(4_000, 50)),
        // As many as fit into a list, on as many streams as are allowed.
        Flood::new(
            "references that are held",
            End::Borne,
            std::iter::once(no_window.clone()).chain(bomb(14, 100)),
        ),
        Flood::new(
            "three megabytes of references",
            End::Borne,
            std::iter::once(no_window).chain(bomb(16_000, 190)),
        ),
        Flood::new("crumbs of cookies", End::Borne, (0..100).map(move |it| request(it, &crumbs))),
        Flood::new("large lists", End::Borne, {
            let list = [&head[..], &large.repeat(140)].concat();
            (0..100).map(move |it| request(it, &list))
        }),
        Flood::new("sizes of the table", End::Closed, {
            let storm = [&b"\x20\x3f\xe1\x1f".repeat(1_000)[..], head].concat();
            (0..100).map(move |it| request(it, &storm))
        }),
    ]
}
