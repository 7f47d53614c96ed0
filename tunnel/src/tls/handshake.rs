//! Drives a rustls handshake one record at a time, up to the point where our own record layer takes over.
//!
//! Exactly the records of the handshake go into rustls. Application data that arrives behind the last one in the
//! same read stays outside, so that the extracted sequence numbers are those of the next record.

use std::sync::Arc;

use model::identity::Identity;
use rustls::client::ClientConnectionData;
use rustls::client::UnbufferedClientConnection;
use rustls::kernel::KernelConnection;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};
use rustls::{ConnectionTrafficSecrets, ExtractedSecrets};

use super::context::{ALPN, ClientContext, ServerContext};
use super::record::Form;
use super::verifier::{proven, verify_error};
use super::{AlertCode, CipherSuite, TlsError, TlsVersion, VerifiedIdentity};

/// All bytes that a peer may send before the handshake ends: two certificate chains' worth at 64 KiB a message.
const HANDSHAKE_BYTES_MAX: usize = 160 * 1024;
/// Turns of the state machine for one record; a flight has at most a handful of messages.
const HANDSHAKE_TURNS_MAX: usize = 64;

/// A finished handshake: who the peer is, and the secrets for the records.
#[derive(Debug)]
pub struct Established {
    pub peer: VerifiedIdentity,
    pub cipher: CipherSuite,
    pub(crate) secrets: TrafficSecrets,
    pub(crate) schedule: KeySchedule,
}

/// Secrets and first sequence numbers of both directions. Never printed.
pub(crate) struct TrafficSecrets(pub(crate) ExtractedSecrets);

impl std::fmt::Debug for TrafficSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TrafficSecrets(..)")
    }
}

/// The part of rustls that stays: it derives the next secrets when keys are updated.
pub(crate) enum KeySchedule {
    /// TLS 1.2: the keys are for the life of the connection, and nothing stays.
    Fixed,
    Client(KernelConnection<ClientConnectionData>),
    Server(KernelConnection<ServerConnectionData>),
}

impl KeySchedule {
    pub(crate) fn next_send(&mut self) -> Result<ConnectionTrafficSecrets, TlsError> {
        let next = match self {
            Self::Fixed => return Err(TlsError::KeyExhausted),
            Self::Client(kernel) => kernel.update_tx_secret(),
            Self::Server(kernel) => kernel.update_tx_secret(),
        };
        next.map(|(_, secrets)| secrets).map_err(|e| TlsError::Internal(e.to_string()))
    }

    pub(crate) fn next_receive(&mut self) -> Result<ConnectionTrafficSecrets, TlsError> {
        let next = match self {
            Self::Fixed => return Err(TlsError::KeyExhausted),
            Self::Client(kernel) => kernel.update_rx_secret(),
            Self::Server(kernel) => kernel.update_rx_secret(),
        };
        next.map(|(_, secrets)| secrets).map_err(|e| TlsError::Internal(e.to_string()))
    }

    /// The form of the records between the two sides.
    pub(crate) const fn form(&self) -> Form {
        match self {
            Self::Fixed => Form::Tls12,
            Self::Client(_) | Self::Server(_) => Form::Tls13,
        }
    }

    /// Only a server sends session tickets (RFC 8446 section 4.6.1).
    pub(crate) const fn peer_may_send_tickets(&self) -> bool {
        matches!(self, Self::Client(_))
    }
}

impl std::fmt::Debug for KeySchedule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Fixed => "KeySchedule(fixed)",
            Self::Client(_) => "KeySchedule(client)",
            Self::Server(_) => "KeySchedule(server)",
        })
    }
}

/// What one record brought.
#[derive(Debug)]
pub enum Progress {
    NeedMore,
    Established(Box<Established>),
}

/// A handshake under way, in either role.
pub struct Handshake {
    connection: Connection,
    /// Handshake bytes that rustls has not given up yet: parts of a message that spans records.
    input: Vec<u8>,
    received: usize,
}

enum Connection {
    Client(Box<UnbufferedClientConnection>),
    Server(Box<UnbufferedServerConnection>),
    /// Finished or failed.
    Over,
}

/// Where a connection stands after a turn.
enum Turn {
    Blocked,
    Finished,
}

impl Handshake {
    /// Starts as a client; the ClientHello is appended to `output`.
    pub fn client(
        context: &ClientContext,
        expected: &Arc<[Identity]>,
        output: &mut Vec<u8>,
    ) -> Result<Self, TlsError> {
        let connection = Connection::Client(Box::new(context.connection(expected)?));
        let mut handshake = Self { connection, input: Vec::new(), received: 0 };
        handshake.advance(output)?;
        Ok(handshake)
    }

    pub fn server(context: &ServerContext) -> Result<Self, TlsError> {
        let connection = Connection::Server(Box::new(context.connection()?));
        Ok(Self { connection, input: Vec::new(), received: 0 })
    }

    /// Takes one whole record, header included. What must go to the peer, alerts on failure included, is
    /// appended to `output`.
    pub fn feed(&mut self, record: &[u8], output: &mut Vec<u8>) -> Result<Progress, TlsError> {
        self.received = self.received.saturating_add(record.len());
        if self.received > HANDSHAKE_BYTES_MAX {
            self.connection = Connection::Over;
            return Err(TlsError::protocol("the handshake is too long", AlertCode::RECORD_OVERFLOW));
        }
        self.input.extend_from_slice(record);
        match self.advance(output)? {
            Turn::Blocked => Ok(Progress::NeedMore),
            Turn::Finished => self.finish().map(|e| Progress::Established(Box::new(e))),
        }
    }

    fn advance(&mut self, output: &mut Vec<u8>) -> Result<Turn, TlsError> {
        let input = &mut self.input;
        let turn = match &mut self.connection {
            Connection::Client(client) => advance(input, output, |bytes, output| {
                let (discard, step) = step_of(client.process_tls_records(bytes), output);
                (discard, step, client.wants_write())
            }),
            Connection::Server(server) => advance(input, output, |bytes, output| {
                let (discard, step) = step_of(server.process_tls_records(bytes), output);
                (discard, step, server.wants_write())
            }),
            Connection::Over => return Err(TlsError::Internal("the handshake is over".to_owned())),
        };
        if turn.is_err() {
            self.connection = Connection::Over;
        }
        turn
    }

    /// Takes the secrets out of a connection that is ready for application data.
    fn finish(&mut self) -> Result<Established, TlsError> {
        let internal = |e: rustls::Error| TlsError::Internal(e.to_string());
        if !self.input.is_empty() {
            return Err(TlsError::protocol(
                "bytes behind the end of the handshake in its last record",
                AlertCode::UNEXPECTED_MESSAGE,
            ));
        }
        match std::mem::replace(&mut self.connection, Connection::Over) {
            Connection::Client(client) => {
                let (peer, cipher) = facts(&client)?;
                let (secrets, kernel) = client.dangerous_into_kernel_connection().map_err(internal)?;
                let schedule = match cipher.version() {
                    TlsVersion::Tls13 => KeySchedule::Client(kernel),
                    TlsVersion::Tls12 => KeySchedule::Fixed,
                };
                Ok(Established { peer, cipher, secrets: TrafficSecrets(secrets), schedule })
            }
            Connection::Server(server) => {
                let (peer, cipher) = facts(&server)?;
                let (secrets, kernel) = server.dangerous_into_kernel_connection().map_err(internal)?;
                let schedule = match cipher.version() {
                    TlsVersion::Tls13 => KeySchedule::Server(kernel),
                    TlsVersion::Tls12 => KeySchedule::Fixed,
                };
                Ok(Established { peer, cipher, secrets: TrafficSecrets(secrets), schedule })
            }
            Connection::Over => Err(TlsError::Internal("the handshake is over".to_owned())),
        }
    }
}

impl std::fmt::Debug for Handshake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handshake").field("received", &self.received).finish_non_exhaustive()
    }
}

/// One answer of rustls, freed from its borrows.
enum Step {
    Continue,
    Blocked,
    Finished,
    Failed(rustls::Error),
}

/// Turns a status of rustls into a step, doing the copying that it asks for; returns the bytes to discard too.
fn step_of<Data>(status: UnbufferedStatus<'_, '_, Data>, output: &mut Vec<u8>) -> (usize, Step) {
    let step = match status.state {
        Err(error) => Step::Failed(error),
        Ok(ConnectionState::EncodeTlsData(mut data)) => {
            // The first call tells the size and writes nothing.
            let size = match data.encode(&mut []) {
                Err(EncodeError::InsufficientSize(needed)) => needed.required_size,
                _ => 0,
            };
            let start = output.len();
            output.resize(start + size, 0);
            let written = output.get_mut(start..).map_or(Ok(0), |room| data.encode(room));
            output.truncate(start + written.unwrap_or(0));
            Step::Continue
        }
        Ok(ConnectionState::TransmitTlsData(data)) => {
            data.done();
            Step::Continue
        }
        Ok(ConnectionState::BlockedHandshake) => Step::Blocked,
        Ok(ConnectionState::WriteTraffic(_)) => Step::Finished,
        Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => {
            Step::Failed(rustls::Error::AlertReceived(rustls::AlertDescription::CloseNotify))
        }
        Ok(_) => Step::Failed(rustls::Error::General("data before the end of the handshake".to_owned())),
    };
    (status.discard, step)
}

/// Runs the state machine until it waits for the peer, is done or fails. `process` also says whether more is queued
/// for the peer: after a failure exactly that, the alert, is still fetched. One call more, and rustls would look
/// at the offending input again.
fn advance(
    input: &mut Vec<u8>,
    output: &mut Vec<u8>,
    mut process: impl FnMut(&mut [u8], &mut Vec<u8>) -> (usize, Step, bool),
) -> Result<Turn, TlsError> {
    let mut failure = None;
    for _ in 0..HANDSHAKE_TURNS_MAX {
        let (discard, step, more) = process(input, output);
        input.drain(..discard.min(input.len()));
        match step {
            Step::Failed(error) => {
                failure.get_or_insert(error);
            }
            Step::Blocked if failure.is_none() => return Ok(Turn::Blocked),
            Step::Finished if failure.is_none() => {
                input.shrink_to_fit();
                return Ok(Turn::Finished);
            }
            Step::Continue | Step::Blocked | Step::Finished => {}
        }
        if let Some(error) = &failure
            && !more
        {
            return Err(tls_error(error));
        }
    }
    Err(failure
        .map_or_else(|| TlsError::Internal("the handshake does not settle".to_owned()), |e| tls_error(&e)))
}

/// What must hold of a finished handshake, and what is to be known about it.
fn facts(common: &rustls::CommonState) -> Result<(VerifiedIdentity, CipherSuite), TlsError> {
    // A server lets a client pass that offers no application protocol at all (RFC 7301 section 3.2).
    if common.alpn_protocol() != Some(ALPN) {
        return Err(TlsError::Negotiation("the peer did not choose h2 by ALPN".to_owned()));
    }
    if common.handshake_kind() == Some(rustls::HandshakeKind::Resumed) {
        return Err(TlsError::Internal("a session was resumed though resumption is off".to_owned()));
    }
    let suite = common.negotiated_cipher_suite().map(|suite| suite.suite());
    let Some(cipher) = suite.and_then(CipherSuite::of) else {
        return Err(TlsError::Negotiation(format!("cipher suite {suite:?}")));
    };
    let version = common.protocol_version();
    if version.map(u16::from) != Some(cipher.version().code_point()) {
        return Err(TlsError::Negotiation(format!("{} with the version {version:?}", cipher.name())));
    }
    let chain = common.peer_certificates().ok_or(TlsError::CertificateMissing)?;
    Ok((proven(chain)?, cipher))
}

fn tls_error(error: &rustls::Error) -> TlsError {
    use rustls::Error as E;
    match error {
        E::InvalidCertificate(reason) => TlsError::Verify(verify_error(reason)),
        E::NoCertificatesPresented => TlsError::CertificateMissing,
        E::AlertReceived(description) => {
            TlsError::AlertReceived { code: u8::from(*description), description: format!("{description:?}") }
        }
        E::PeerIncompatible(_) | E::NoApplicationProtocol => TlsError::Negotiation(error.to_string()),
        E::DecryptError => TlsError::BadRecord,
        // rustls has sent its own alert for these.
        E::InappropriateMessage { .. }
        | E::InappropriateHandshakeMessage { .. }
        | E::InvalidMessage(_)
        | E::PeerMisbehaved(_)
        | E::PeerSentOversizedRecord => TlsError::protocol(error.to_string(), AlertCode::UNEXPECTED_MESSAGE),
        other => TlsError::Internal(other.to_string()),
    }
}
