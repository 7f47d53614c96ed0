//! A small HTTP/1.1 server whose paths choose what it does, and a client that speaks bytes.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::Sender;

use super::{Bed, PATIENCE, checksum, pattern};

/// A response as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Response {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The text without the line of the request's id, which is another one each time.
    pub fn text_without_id(&self) -> String {
        self.text().split_inclusive("\r\n").filter(|line| !line.starts_with("x-request-id: ")).collect()
    }

    pub fn closes(&self) -> bool {
        self.head.to_ascii_lowercase().contains("connection: close")
    }
}

/// One connection of a client.
pub struct Client {
    pub reader: BufReader<TcpStream>,
}

impl Client {
    pub fn new(socket: TcpStream) -> Self {
        Self { reader: BufReader::new(socket) }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.reader.get_mut().write_all(bytes.as_ref())
    }

    pub fn get(&mut self, path: &str) -> Response {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: web\r\n\r\n")).unwrap();
        self.response().unwrap()
    }

    pub fn response(&mut self) -> io::Result<Response> {
        let head = read_head(&mut self.reader)?;
        let status = head.get(9..12).and_then(|digits| digits.parse().ok());
        let status: u16 = status.ok_or_else(|| io::Error::other(format!("no response: {head:?}")))?;
        let body = if status < 200 || status == 204 { Vec::new() } else { self.body(&head)? };
        Ok(Response { status, head, body })
    }

    fn body(&mut self, head: &str) -> io::Result<Vec<u8>> {
        if let Some(body) = body_of(&mut self.reader, head)? {
            return Ok(body);
        }
        self.rest()
    }

    /// What comes until the end of the connection.
    pub fn rest(&mut self) -> io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        self.reader.read_to_end(&mut rest)?;
        Ok(rest)
    }
}

/// The head with its final empty line; an error at the end of the stream.
fn read_head(reader: &mut impl BufRead) -> io::Result<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("ends after {head:?}")));
        }
    }
    Ok(head)
}

/// The value of a field, in lower case.
fn field(head: &str, name: &str) -> Option<String> {
    head.lines().find_map(|line| {
        let (field, value) = line.split_once(':')?;
        field.eq_ignore_ascii_case(name).then(|| value.trim().to_ascii_lowercase())
    })
}

/// The body, or `None` if only the end of the connection ends it.
fn body_of(reader: &mut impl BufRead, head: &str) -> io::Result<Option<Vec<u8>>> {
    if let Some(length) = field(head, "content-length") {
        let mut body = vec![0; length.parse().unwrap()];
        reader.read_exact(&mut body)?;
        return Ok(Some(body));
    }
    if field(head, "transfer-encoding").is_none() {
        return Ok(None);
    }
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let size = usize::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
        let mut chunk = vec![0; size + 2];
        reader.read_exact(&mut chunk)?;
        if size == 0 {
            return Ok(Some(body));
        }
        body.extend_from_slice(&chunk[..size]);
    }
}

impl Bed {
    pub fn client(&self, pod: &str, to: SocketAddr) -> Client {
        Client::new(self.connect(pod, to).unwrap())
    }

    /// An HTTP server in a pod. The end of the path chooses: see [`answer`]. Each request line, and the end of each
    /// connection as `end`, is told.
    pub fn serve_http(&self, pod: &str, port: u16, tell: Sender<String>) -> SocketAddr {
        let name = pod.to_owned();
        self.serve(pod, port, move |socket, peer| {
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut reader = BufReader::new(socket);
            // The test may have ended, and nobody may listen.
            while let Ok(true) = answer(&name, peer, &mut reader, &tell) {}
            let _ = tell.send(String::from("end"));
        })
    }
}

/// Serves one request; whether another may follow.
fn answer(
    name: &str,
    peer: SocketAddr,
    reader: &mut BufReader<TcpStream>,
    tell: &Sender<String>,
) -> io::Result<bool> {
    let head = read_head(reader)?;
    let line = head.lines().next().unwrap_or_default().to_owned();
    let _ = tell.send(line.clone());
    let mut words = line.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default().to_owned());
    let last = path.rsplit('/').next().unwrap_or_default();
    match last {
        // Never answers: waits for the end of the connection.
        "hold" => drop(reader.read(&mut [0])?),
        "413" => {
            let reply = b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig";
            reader.get_mut().write_all(reply)?;
        }
        "until-close" => {
            reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\n\r\nall of it")?;
        }
        "chunks" => {
            reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
            for piece in pattern(3_000_001).chunks(70_001) {
                write!(reader.get_mut(), "{:x}\r\n", piece.len())?;
                reader.get_mut().write_all(piece)?;
                reader.get_mut().write_all(b"\r\n")?;
            }
            reader.get_mut().write_all(b"0\r\n\r\n")?;
            return Ok(true);
        }
        "bulk-until-close" => {
            reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
            reader.get_mut().write_all(&pattern(4_000_001))?;
        }
        // Breaks off where the end could have been.
        "torn" => {
            reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\n\r\nthe first part")?;
            // Only when the first part has been read on the other side.
            reader.read_exact(&mut [0])?;
            socket2::SockRef::from(reader.get_ref()).set_linger(Some(std::time::Duration::ZERO))?;
        }
        "switch" => {
            let reply = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
            reader.get_mut().write_all(reply)?;
            let mut all = Vec::new();
            reader.read_to_end(&mut all)?;
            reader.get_mut().write_all(&all)?;
        }
        _ => {
            if field(&head, "expect").is_some() {
                reader.get_mut().write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            }
            let body = body_of(reader, &head)?.unwrap_or_default();
            let upgrade = field(&head, "upgrade").unwrap_or_default();
            let text = format!("{name} {method} {path} {} {} {upgrade}", peer.ip(), checksum(&body));
            let length = text.len();
            let text = if method == "HEAD" { "" } else { &*text };
            write!(reader.get_mut(), "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{text}")?;
            return Ok(true);
        }
    }
    Ok(false)
}
