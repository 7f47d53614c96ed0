//! An HTTP/1.1 application that takes nothing for granted: every octet that it gets must belong to a message that no
//! reader could read in another way.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// How long anything may take. Only a failure waits this long.
const PATIENCE: Duration = Duration::from_secs(20);

/// A whole request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Method and target.
    pub line: String,
    pub body: String,
}

/// What has arrived.
#[derive(Debug, Default)]
pub struct Seen {
    pub requests: Vec<Request>,
    /// Octets that another reader could take for something else.
    pub complaints: Vec<String>,
    connections: usize,
    ended: usize,
}

#[derive(Clone, Default)]
pub struct Recorder {
    seen: Arc<Mutex<Seen>>,
    /// By the last element of the path: what is answered, after which the connection ends.
    answers: Arc<HashMap<&'static str, &'static str>>,
}

impl Recorder {
    pub fn answering(answers: impl Iterator<Item = (&'static str, &'static str)>) -> Self {
        Self { answers: Arc::new(answers.collect()), ..Self::default() }
    }

    /// Serves each connection that it is called with.
    pub fn server(&self) -> impl Fn(TcpStream, SocketAddr) + Clone + Send + 'static {
        let own = self.clone();
        move |socket, _| {
            own.seen().connections += 1;
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            // A reset is how a request that is not whole is taken back.
            let _ = own.converse(socket);
            own.seen().ended += 1;
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }

    /// What has arrived, when every connection has ended.
    pub fn finished(&self) -> Seen {
        let deadline = Instant::now() + PATIENCE;
        let mut quiet_since = Instant::now();
        let mut connections = 0;
        while quiet_since.elapsed() < Duration::from_millis(200) {
            let seen = self.seen();
            if seen.connections != seen.ended || seen.connections != connections {
                connections = seen.connections;
                quiet_since = Instant::now();
            }
            drop(seen);
            assert!(Instant::now() < deadline, "connections of the application stay open");
            std::thread::yield_now();
        }
        std::mem::take(&mut *self.seen())
    }

    fn converse(&self, mut socket: TcpStream) -> io::Result<()> {
        let mut bytes = Vec::new();
        loop {
            let (request, used) = loop {
                match read_one(&bytes) {
                    Ok(Some(found)) => break found,
                    Ok(None) => {}
                    Err(complaint) => {
                        let text = String::from_utf8_lossy(&bytes);
                        self.seen().complaints.push(format!("{complaint}: {text:?}"));
                        return Ok(());
                    }
                }
                let mut piece = [0; 4096];
                let count = socket.read(&mut piece)?;
                if count == 0 {
                    return Ok(());
                }
                bytes.extend_from_slice(&piece[..count]);
            };
            bytes.drain(..used);
            let last = request.line.rsplit('/').next().unwrap_or_default().to_owned();
            self.seen().requests.push(request);
            if let Some(answer) = self.answers.get(last.as_str()) {
                return socket.write_all(answer.as_bytes());
            }
            socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
        }
    }
}

/// The first message and its length; `None` if it is not whole yet.
fn read_one(bytes: &[u8]) -> Result<Option<(Request, usize)>, String> {
    let Some(end) = bytes.windows(4).position(|it| it == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&bytes[..end]).map_err(|_| String::from("a head that is no text"))?;
    let mut lines = head.split("\r\n");
    let line = lines.next().unwrap().strip_suffix(" HTTP/1.1").ok_or("not HTTP/1.1")?;
    if line.split(' ').count() != 2
        || head.replace("\r\n", "").contains(|c: char| c.is_ascii_control() && c != '\t')
    {
        return Err(String::from("a head with more than it shows"));
    }
    let mut fields: HashMap<String, Vec<&str>> = HashMap::new();
    for field in lines {
        let (name, value) = field.split_once(':').ok_or("a line without a colon")?;
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        {
            return Err(format!("the name {name:?}"));
        }
        fields.entry(name.to_ascii_lowercase()).or_default().push(value.trim());
    }
    if fields.get("host").is_none_or(|hosts| hosts.len() != 1) {
        return Err(String::from("not one host"));
    }
    let rest = &bytes[end + 4..];
    let (body, length) =
        match (fields.get("content-length").map(Vec::as_slice), fields.get("transfer-encoding")) {
            (None, None) => (Vec::new(), 0),
            (Some([length]), None) if length.bytes().all(|byte| byte.is_ascii_digit()) => {
                let length: usize = length.parse().map_err(|_| "a length that is none")?;
                if rest.len() < length {
                    return Ok(None);
                }
                (rest[..length].to_vec(), length)
            }
            (None, Some(codings)) if codings.as_slice() == ["chunked"] => match chunks(rest)? {
                Some(found) => found,
                None => return Ok(None),
            },
            (length, coding) => return Err(format!("the framing {length:?} {coding:?}")),
        };
    let request = Request { line: line.to_owned(), body: String::from_utf8_lossy(&body).into_owned() };
    Ok(Some((request, end + 4 + length)))
}

/// Content and length of a chunked body.
fn chunks(bytes: &[u8]) -> Result<Option<(Vec<u8>, usize)>, String> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let Some(end) = bytes[at..].windows(2).position(|it| it == b"\r\n") else { return Ok(None) };
        let line = std::str::from_utf8(&bytes[at..at + end]).map_err(|_| "a chunk that is no text")?;
        let digits = line.split(';').next().unwrap_or_default();
        if digits.is_empty()
            || !digits.bytes().all(|byte| byte.is_ascii_hexdigit())
            || line.contains(['\r', '\n'])
        {
            return Err(format!("the chunk {line:?}"));
        }
        let size = usize::from_str_radix(digits, 16).map_err(|_| "a chunk beyond measure")?;
        at += end + 2;
        if size == 0 {
            // Trailers end with an empty line.
            return Ok(trailers_end(&bytes[at..]).map(|length| (body, at + length)));
        }
        let Some(chunk) = bytes.get(at..at + size + 2) else { return Ok(None) };
        if !chunk.ends_with(b"\r\n") {
            return Err(String::from("a chunk without its end"));
        }
        body.extend_from_slice(&chunk[..size]);
        at += size + 2;
    }
}

fn trailers_end(bytes: &[u8]) -> Option<usize> {
    if bytes.starts_with(b"\r\n") {
        return Some(2);
    }
    bytes.windows(4).position(|it| it == b"\r\n\r\n").map(|at| at + 4)
}
