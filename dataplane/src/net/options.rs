//! Options that all sockets of a kind share.

use std::fmt;
use std::io;
use std::str::FromStr;
use std::time::Duration;

use socket2::{SockRef, Socket, TcpKeepalive};

/// Longest name of a congestion control that the kernel takes (`TCP_CA_NAME_MAX`, the final NUL not counted).
const CONGESTION_NAME_BYTES_MAX: usize = 15;

const KEEPALIVE_TIME: Duration = Duration::from_mins(3);
const KEEPALIVE_INTERVAL: Duration = Duration::from_mins(3);
const KEEPALIVE_PROBES: u32 = 9;

/// Keep-alive of connections between an application and its proxy: first probe after 180 s, then each 180 s, nine
/// unanswered probes end it.
pub const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(KEEPALIVE_TIME)
    .with_interval(KEEPALIVE_INTERVAL)
    .with_retries(KEEPALIVE_PROBES);

/// Name of a TCP congestion control, set per socket.
///
/// On hops inside one machine a pacing control such as bbr costs up to half of all CPU of a bulk flow and gains
/// nothing there, so in-node sockets are given reno or cubic while the host's default stays for the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Congestion(String);

/// Why a text is no name of a congestion control.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no name of a congestion control; /proc/sys/net/ipv4/tcp_available_congestion_control lists those of \
     this kernel"
)]
pub struct CongestionError(String);

impl FromStr for Congestion {
    type Err = CongestionError;

    fn from_str(text: &str) -> Result<Self, CongestionError> {
        let fits = (1..=CONGESTION_NAME_BYTES_MAX).contains(&text.len());
        if fits && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-') {
            Ok(Self(text.to_owned()))
        } else {
            Err(CongestionError(text.to_owned()))
        }
    }
}

impl fmt::Display for Congestion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Congestion {
    /// The one that sockets of this network namespace get by default.
    pub fn of_host() -> Option<Self> {
        std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").ok()?.trim().parse().ok()
    }

    /// Proves on a socket of its own that the kernel has this control and lets this process use it.
    pub fn check(&self) -> io::Result<()> {
        let probe = Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, Some(socket2::Protocol::TCP))?;
        self.set(&SockRef::from(&probe))
    }

    fn set(&self, socket: &SockRef<'_>) -> io::Result<()> {
        socket.set_tcp_congestion(self.0.as_bytes())
    }
}

/// What is set on every socket of a kind, accepted or connected.
#[derive(Debug, Clone, Default)]
pub struct SocketOptions {
    /// `SO_MARK`, by which capture rules tell the proxy's own packets. Needs CAP_NET_ADMIN.
    pub mark: Option<u32>,
    /// `TCP_CONGESTION`; `None` leaves the host's.
    pub congestion: Option<Congestion>,
    /// Keep-alive, usually [`KEEPALIVE`].
    pub keepalive: Option<TcpKeepalive>,
    /// `TCP_USER_TIMEOUT`: a connection whose data is not acknowledged for so long is over.
    pub user_timeout: Option<Duration>,
}

impl SocketOptions {
    /// Sets them, and `TCP_NODELAY`: what is worth delaying is gathered before it is sent.
    pub fn apply(&self, socket: &SockRef<'_>) -> io::Result<()> {
        socket.set_tcp_nodelay(true)?;
        if let Some(keepalive) = &self.keepalive {
            socket.set_tcp_keepalive(keepalive)?;
        }
        if self.user_timeout.is_some() {
            socket.set_tcp_user_timeout(self.user_timeout)?;
        }
        self.apply_before_connect(socket)
    }

    /// Those that must be in force for the first packet already.
    pub(super) fn apply_before_connect(&self, socket: &SockRef<'_>) -> io::Result<()> {
        if let Some(mark) = self.mark {
            socket.set_mark(mark)?;
        }
        if let Some(congestion) = &self.congestion {
            congestion.set(socket)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_congestion_controls_are_checked() {
        for good in ["reno", "cubic", "bbr", "dctcp", "a_b-c1"] {
            assert_eq!(good.parse::<Congestion>().unwrap().to_string(), good);
        }
        for bad in ["", "reno cubic", "sixteen_letters_", "a/b", "x\0"] {
            assert!(bad.parse::<Congestion>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn reno_is_always_there_and_a_made_up_one_is_not() {
        Congestion::from_str("reno").unwrap().check().unwrap();
        assert!(Congestion::from_str("no_such_thing").unwrap().check().is_err());
    }
}
