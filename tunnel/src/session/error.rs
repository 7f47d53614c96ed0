//! Why a session ended.

use crate::h2::{ConnectionError, ErrorCode};
use crate::tls::{CloseCause, TlsError};

/// The connection is over; its output still holds what the peer is to be told.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SessionError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Http(#[from] ConnectionError),
    #[error("the connection has ended before")]
    Over,
}

impl SessionError {
    pub fn close_cause(&self) -> CloseCause {
        match self {
            Self::Tls(error) => error.close_cause(),
            Self::Http(ConnectionError::KeepAliveTimeout) => CloseCause::PingTimeout,
            Self::Http(ConnectionError::Violation { code: ErrorCode::ENHANCE_YOUR_CALM, .. }) => {
                CloseCause::Http2Abuse
            }
            Self::Http(ConnectionError::Violation { .. }) => CloseCause::Http2Protocol,
            Self::Http(ConnectionError::Late { .. }) => CloseCause::Http2Timeout,
            Self::Over => CloseCause::LocalClose,
        }
    }
}
