//! Messages of HTTP/1.1 as they stand on the wire, and a client that speaks bytes.

#![allow(dead_code, unreachable_pub)] // each test program uses a part
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // the support of tests only

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;

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
pub fn read_head(reader: &mut impl BufRead) -> io::Result<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("ends after {head:?}")));
        }
    }
    Ok(head)
}

/// The value of a field, in lower case.
pub fn field(head: &str, name: &str) -> Option<String> {
    head.lines().find_map(|line| {
        let (field, value) = line.split_once(':')?;
        field.eq_ignore_ascii_case(name).then(|| value.trim().to_ascii_lowercase())
    })
}

/// The body, or `None` if only the end of the connection ends it.
pub fn body_of(reader: &mut impl BufRead, head: &str) -> io::Result<Option<Vec<u8>>> {
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
