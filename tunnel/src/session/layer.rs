//! What lies between the HTTP/2 engine and the wire: TLS records, or nothing.

use crate::h2::FrameSink;
use crate::tls::record::{Output, RecordBuilder, Records};
use crate::tls::{AlertCode, CipherSuite, TlsError, VerifiedIdentity};

/// The layer of an open connection.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "it lies in the box of its connection, and nearly all have TLS"
)]
pub(super) enum Layer {
    Tls(Tls),
    /// HTTP/2 in the clear, with prior knowledge (RFC 9113 section 3.3).
    Clear,
}

#[derive(Debug)]
pub(super) struct Tls {
    pub(super) records: Records,
    pub(super) peer: VerifiedIdentity,
    pub(super) cipher: CipherSuite,
    /// The peer has sent close_notify.
    pub(super) peer_closed: bool,
}

/// Where the engine writes its frames.
pub(super) enum Sink<'a> {
    Sealed(RecordBuilder<'a>),
    Clear(&'a mut Output),
}

impl Layer {
    pub(super) fn tls(&self) -> Option<&Tls> {
        match self {
            Self::Tls(tls) => Some(tls),
            Self::Clear => None,
        }
    }

    #[inline]
    pub(super) fn sink<'a>(&'a mut self, output: &'a mut Output) -> Result<Sink<'a>, TlsError> {
        match self {
            Self::Tls(tls) => tls.records.builder(output).map(Sink::Sealed),
            Self::Clear => Ok(Sink::Clear(output)),
        }
    }

    /// Everything written so far may be sent afterwards.
    pub(super) fn seal(&mut self, output: &mut Output) -> Result<(), TlsError> {
        match self {
            Self::Tls(tls) => tls.records.seal(output),
            Self::Clear => Ok(()),
        }
    }

    /// Says why the connection ends, where the layer has words for it.
    pub(super) fn alert(&mut self, output: &mut Output, alert: AlertCode) -> Result<(), TlsError> {
        match self {
            Self::Tls(tls) => tls.records.alert(output, alert),
            Self::Clear => Ok(()),
        }
    }
}

impl FrameSink for Sink<'_> {
    #[inline]
    fn put(&mut self, bytes: &[u8]) {
        match self {
            Self::Sealed(records) => records.put(bytes),
            Self::Clear(output) => output.clear_bytes().extend_from_slice(bytes),
        }
    }

    #[inline]
    fn put_data(&mut self, header: &[u8; 9], payload: &[u8]) {
        match self {
            Self::Sealed(records) => {
                records.reserve(header.len() + payload.len());
                records.put(header);
                records.put(payload);
            }
            Self::Clear(output) => {
                let bytes = output.clear_bytes();
                bytes.reserve(header.len() + payload.len());
                bytes.extend_from_slice(header);
                bytes.extend_from_slice(payload);
            }
        }
    }
}
