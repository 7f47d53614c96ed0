//! How long to wait before the next connection.

use std::time::Duration;

/// Where the wait starts; the first failure doubles it.
pub const BACKOFF_FIRST: Duration = Duration::from_millis(10);
/// The longest wait.
pub const BACKOFF_MAX: Duration = Duration::from_secs(15);

/// How a connection or a stream ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// No connection came about.
    ConnectFailed,
    /// The server ended the stream in good order.
    Clean,
    /// The stream ended with this gRPC status.
    Status { code: tonic::Code, message: String },
}

impl End {
    /// Whether the server ended the stream in a way that is no fault of either side.
    pub fn is_routine(&self) -> bool {
        matches!(self, Self::Status { code, message } if is_routine(*code, message))
    }
}

pub(super) struct Backoff {
    current: Duration,
}

impl Backoff {
    pub(super) fn new() -> Self {
        Self { current: BACKOFF_FIRST }
    }

    /// Something was received: the server is there.
    pub(super) fn succeeded(&mut self) {
        self.current = BACKOFF_FIRST;
    }

    /// The wait after an end. `answered`: something was received on that stream.
    pub(super) fn after(&mut self, end: &End, answered: bool) -> Duration {
        match end {
            // A server that only ever closes streams must not be dialled in a tight loop.
            End::Clean if answered => {
                self.current = BACKOFF_FIRST;
                Duration::ZERO
            }
            End::Status { .. } if end.is_routine() => std::mem::replace(&mut self.current, BACKOFF_FIRST),
            End::Clean | End::ConnectFailed | End::Status { .. } => {
                self.current = (self.current * 2).min(BACKOFF_MAX);
                self.current
            }
        }
    }
}

/// Servers that restart, rebalance or limit the age of connections end streams in these ways.
fn is_routine(code: tonic::Code, message: &str) -> bool {
    match code {
        tonic::Code::Unknown | tonic::Code::Cancelled | tonic::Code::DeadlineExceeded => true,
        tonic::Code::Unavailable => {
            message.contains("transport is closing") || message.contains("received prior goaway")
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: tonic::Code, message: &str) -> End {
        End::Status { code, message: message.to_owned() }
    }

    #[test]
    fn failures_double_the_wait_up_to_the_cap() {
        let mut backoff = Backoff::new();
        let waits: Vec<_> = (0..12).map(|_| backoff.after(&End::ConnectFailed, false).as_millis()).collect();
        assert_eq!(waits, [20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10_240, 15_000, 15_000]);
        let refused = status(tonic::Code::PermissionDenied, "no");
        assert_eq!(backoff.after(&refused, false), BACKOFF_MAX);
    }

    #[test]
    fn a_routine_end_waits_the_current_value_and_starts_over() {
        for end in [
            status(tonic::Code::Unknown, ""),
            status(tonic::Code::Cancelled, ""),
            status(tonic::Code::DeadlineExceeded, ""),
            status(tonic::Code::Unavailable, "the transport is closing"),
            status(tonic::Code::Unavailable, "received prior goaway: 1"),
        ] {
            let mut backoff = Backoff::new();
            backoff.after(&End::ConnectFailed, false);
            backoff.after(&End::ConnectFailed, false);
            assert_eq!(backoff.after(&end, true), Duration::from_millis(40), "{end:?}");
            assert_eq!(backoff.after(&end, true), BACKOFF_FIRST, "{end:?}");
        }
    }

    #[test]
    fn another_unavailable_doubles_the_wait() {
        let mut backoff = Backoff::new();
        assert_eq!(backoff.after(&status(tonic::Code::Unavailable, "busy"), true), Duration::from_millis(20));
    }

    #[test]
    fn a_clean_end_reconnects_at_once_unless_the_server_never_says_anything() {
        let mut backoff = Backoff::new();
        assert_eq!(backoff.after(&End::Clean, true), Duration::ZERO);
        assert_eq!(backoff.after(&End::Clean, false), Duration::from_millis(20));
        assert_eq!(backoff.after(&End::Clean, false), Duration::from_millis(40));
        assert_eq!(backoff.after(&End::Clean, true), Duration::ZERO);
        assert_eq!(backoff.after(&End::Clean, false), Duration::from_millis(20));
    }
}
