//! A name server of the test's own, and ways to ask from inside a pod.

#![allow(dead_code, unreachable_pub)] // each test program uses a part

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::thread;

use dataplane::net::{NetworkNamespace, canonical};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::PATIENCE;

/// A query as it reached the server.
#[derive(Debug, Clone)]
pub struct Asked {
    pub name: String,
    pub kind: RecordType,
    pub tcp: bool,
    pub from: IpAddr,
    pub id: u16,
}

/// What the server does with a query.
pub enum Reply {
    Records(Vec<RData>),
    Code(ResponseCode),
    /// Nothing.
    Silence,
    /// Another question's answer first, then nothing: it must not be believed.
    Forged,
}

/// A server on UDP and TCP port 53 of a namespace.
#[derive(Debug, Clone, Default)]
pub struct NameServer {
    asked: Arc<Mutex<Vec<Asked>>>,
}

type Answer = Arc<dyn Fn(&Asked) -> Reply + Send + Sync>;

impl NameServer {
    pub fn start(
        network: &NetworkNamespace,
        answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let server = Self::default();
        let answer: Answer = Arc::new(answer);
        let udp = network.within(|| UdpSocket::bind("[::]:53")).unwrap().unwrap();
        let tcp = network.within(|| TcpListener::bind("[::]:53")).unwrap().unwrap();
        let (by_udp, answer_udp) = (server.clone(), answer.clone());
        thread::spawn(move || {
            let mut buffer = vec![0; 65_535];
            while let Ok((count, from)) = udp.recv_from(&mut buffer) {
                if let Some(reply) = by_udp.reply(&buffer[..count], from, false, &answer_udp) {
                    udp.send_to(&reply, from).unwrap();
                }
            }
        });
        let by_tcp = server.clone();
        thread::spawn(move || {
            for socket in tcp.incoming() {
                let (mut socket, server, answer) = (socket.unwrap(), by_tcp.clone(), answer.clone());
                thread::spawn(move || {
                    let from = socket.peer_addr().unwrap();
                    while let Some(query) = read_framed(&mut socket) {
                        match server.reply(&query, from, true, &answer) {
                            Some(reply) => write_framed(&mut socket, &reply),
                            None => return,
                        }
                    }
                });
            }
        });
        server
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    fn reply(&self, bytes: &[u8], from: SocketAddr, tcp: bool, answer: &Answer) -> Option<Vec<u8>> {
        let query = Message::from_vec(bytes).unwrap();
        let question = query.queries[0].clone();
        let asked = Asked {
            name: question.name().to_string(),
            kind: question.query_type(),
            tcp,
            from: canonical(from).ip(),
            id: query.metadata.id,
        };
        self.asked.lock().unwrap().push(asked.clone());
        let mut reply = Message::response(query.metadata.id, OpCode::Query);
        reply.metadata.recursion_desired = query.metadata.recursion_desired;
        reply.metadata.recursion_available = true;
        reply.add_query(question.clone());
        match answer(&asked) {
            Reply::Silence => return None,
            Reply::Code(code) => reply.metadata.response_code = code,
            Reply::Forged => reply.metadata.id = query.metadata.id.wrapping_add(1),
            Reply::Records(all) => {
                let record = |data| Record::from_rdata(question.name().clone(), 60, data);
                reply.add_answers(all.into_iter().map(record));
            }
        }
        let limit = query.edns.as_ref().map_or(512, Edns::max_payload);
        let whole = reply.to_vec().unwrap();
        if tcp || whole.len() <= usize::from(limit) {
            return Some(whole);
        }
        reply.metadata.truncation = true;
        reply.answers.clear();
        Some(reply.to_vec().unwrap())
    }
}

/// A question as a client puts it.
pub fn question(name: &str, kind: RecordType, id: u16) -> Message {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

/// The addresses of an answer.
pub fn addresses(answer: &Message) -> Vec<String> {
    answer.answers.iter().filter_map(|record| record.data.ip_addr()).map(|ip| ip.to_string()).collect()
}

/// Asks over UDP from a socket that takes the reply from the asked address only.
pub fn ask_udp(from: &NetworkNamespace, server: SocketAddr, query: &Message) -> Message {
    let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = from.within(|| UdpSocket::bind(any)).unwrap().unwrap();
    socket.connect(server).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.send(&query.to_vec().unwrap()).unwrap();
    let mut buffer = vec![0; 65_535];
    let count = socket.recv(&mut buffer).unwrap();
    Message::from_vec(&buffer[..count]).unwrap()
}

/// Asks over TCP, all queries in one piece, and reads as many answers.
pub fn ask_tcp(mut socket: &TcpStream, queries: &[Message]) -> Vec<Message> {
    let mut all = Vec::new();
    for query in queries {
        let bytes = query.to_vec().unwrap();
        all.extend_from_slice(&u16::try_from(bytes.len()).unwrap().to_be_bytes());
        all.extend_from_slice(&bytes);
    }
    socket.write_all(&all).unwrap();
    queries.iter().map(|_| Message::from_vec(&read_framed(&mut socket).unwrap()).unwrap()).collect()
}

fn read_framed(socket: &mut impl Read) -> Option<Vec<u8>> {
    let mut length = [0; 2];
    socket.read_exact(&mut length).ok()?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    socket.read_exact(&mut message).ok()?;
    Some(message)
}

fn write_framed(socket: &mut impl Write, message: &[u8]) {
    let length = u16::try_from(message.len()).unwrap().to_be_bytes();
    // The client may have gone.
    let _ = socket.write_all(&[&length[..], message].concat());
}

/// Has the C library resolve a name in a pod that has this `/etc/resolv.conf`: `getent DATABASE NAME`.
pub fn getent(pod: &NetworkNamespace, resolv_conf: &str, database: &str, name: &str) -> Output {
    let file = std::env::temp_dir().join(format!("corelane-resolv-{}.conf", std::process::id()));
    std::fs::write(&file, resolv_conf).unwrap();
    let mut command = Command::new("unshare");
    command.args([
        "--mount",
        "sh",
        "-c",
        "mount --bind \"$1\" /etc/resolv.conf && exec getent \"$2\" \"$3\"",
        "sh",
    ]);
    command.arg(&file).args([database, name]).process_group(0);
    // The child is made in the namespace of the calling thread.
    let output = pod.within(|| command.output()).unwrap().unwrap();
    std::fs::remove_file(&file).unwrap();
    output
}

/// The distinct addresses that [`getent`] printed.
pub fn resolved(output: &Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stdout);
    let mut all: Vec<_> = text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect();
    all.sort();
    all.dedup();
    all
}
