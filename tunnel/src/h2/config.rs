//! What one end of a connection offers and tolerates: SETTINGS values, keepalive, and a bound for everything that a
//! peer can make us hold or do.

use std::time::Duration;

/// Largest flow-control window (RFC 9113 section 6.9.1).
pub(super) const WINDOW_MAX: u32 = (1 << 31) - 1;
/// Flow-control window of streams and of the connection before SETTINGS say otherwise (RFC 9113 section 6.9.2).
pub(super) const WINDOW_DEFAULT: u32 = 65_535;
/// Smallest and initial SETTINGS_MAX_FRAME_SIZE (RFC 9113 section 6.5.2).
pub(super) const FRAME_SIZE_MIN: u32 = 16_384;
/// Largest SETTINGS_MAX_FRAME_SIZE (RFC 9113 section 6.5.2).
pub(super) const FRAME_SIZE_MAX: u32 = (1 << 24) - 1;
/// Initial SETTINGS_HEADER_TABLE_SIZE (RFC 9113 section 6.5.2).
pub(super) const HEADER_TABLE_SIZE_DEFAULT: u32 = 4_096;

/// Which end of the connection we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Opens streams.
    Client,
    /// Answers them.
    Server,
}

/// PING keepalive: a PING after `interval` of quiet since the last answer; no answer within `timeout` closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeepAlive {
    /// From the start, or from the last PING's answer, to the next PING.
    pub interval: Duration,
    /// From a PING to giving up.
    pub timeout: Duration,
}

/// Bounds on what a peer can make this end do. Each closes the connection with ENHANCE_YOUR_CALM or resets the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// CONTINUATION frames of one header block.
    pub continuation_frames_max: u32,
    /// Encoded bytes of one header block, over all its frames.
    pub header_block_bytes_max: u32,
    /// Fields of one header block, cookie crumbs counted one by one. More resets the stream.
    pub header_fields_max: u32,
    /// Header blocks of all open streams together, each counted as its list is. A request beyond is refused unread, a
    /// response or trailers beyond reset their stream. At least one list fits.
    pub held_heads_bytes_max: u32,
    /// Streams in a burst that the peer resets early (rapid reset) or provokes us to reset (MadeYouReset), together; one
    /// whose header block was large counts for several.
    pub resets_burst: u32,
    /// How many of those are forgiven a second.
    pub resets_per_second: u32,
    /// Cost of frames without payload in a burst: PING, WINDOW_UPDATE, PRIORITY, unknown frames 1; empty DATA 2;
    /// SETTINGS 10. Payload in either direction earns credit, since honest peers answer it with such frames.
    pub overhead_burst: u32,
    /// How much of that cost is forgiven a second.
    pub overhead_per_second: u32,
    /// Streams reset by us whose late frames are still told apart from a protocol error.
    pub reset_streams_remembered: u32,
    /// A stream that waits longer than this (up to twice) for send window is reset. `None` keeps it waiting, as TCP
    /// does with a zero window; tunnels need that.
    pub stalled_stream_timeout: Option<Duration>,
    /// What a peer has begun must be whole by then, however often it sends a part of it: from the start of the connection
    /// to its preface, its SETTINGS and its acknowledgement of ours; from the header of a frame, DATA aside, to the
    /// frame's last octet, or that of the last CONTINUATION. Later closes the connection.
    pub completion_timeout: Duration,
}

impl Limits {
    /// The defaults for any connection.
    pub const DEFAULT: Self = Self {
        continuation_frames_max: 8,
        header_block_bytes_max: 64 * 1024,
        header_fields_max: 128,
        held_heads_bytes_max: 1 << 20,
        resets_burst: 500,
        resets_per_second: 50,
        overhead_burst: 1_000,
        overhead_per_second: 200,
        reset_streams_remembered: 64,
        stalled_stream_timeout: None,
        completion_timeout: Duration::from_secs(10),
    };
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// One end's configuration. Immutable once the connection exists; values out of the protocol's range are clamped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Which end we are.
    pub role: Role,
    /// SETTINGS_INITIAL_WINDOW_SIZE: receive window of each stream.
    pub initial_stream_window: u32,
    /// Receive window of the connection; raised to 65,535 if less, because it cannot be lowered on the wire.
    pub connection_window: u32,
    /// SETTINGS_MAX_FRAME_SIZE: largest frame we take.
    pub max_frame_size: u32,
    /// SETTINGS_MAX_HEADER_LIST_SIZE: name + value + 32 for each field (RFC 9113 section 6.5.2). More resets the stream.
    pub max_header_list_size: u32,
    /// SETTINGS_MAX_CONCURRENT_STREAMS: streams the peer may have open (server), or we open at most (client).
    pub max_concurrent_streams: u32,
    /// SETTINGS_HEADER_TABLE_SIZE: the dynamic table of our HPACK decoder, and the most our encoder will use.
    pub header_table_size: u32,
    /// Accept extended CONNECT (RFC 8441), server role only.
    pub enable_connect_protocol: bool,
    /// Check content-length against DATA (RFC 9113 section 8.1.1) on anything but CONNECT.
    pub check_content_length: bool,
    /// PING keepalive.
    pub keep_alive: Option<KeepAlive>,
    /// Bounds on abuse.
    pub limits: Limits,
}

/// ztunnel's keepalive: first PING after 10 s, then 10 s after each answer; 20 s without one closes.
const HBONE_KEEP_ALIVE: KeepAlive =
    KeepAlive { interval: Duration::from_secs(10), timeout: Duration::from_secs(20) };

/// Streams of one connection of a proxy.
const PROXY_STREAMS_MAX: u32 = 100;

impl Config {
    /// The client end of an HBONE tunnel.
    pub const fn hbone_client() -> Self {
        Self {
            role: Role::Client,
            initial_stream_window: 4 << 20,
            connection_window: 16 << 20,
            max_frame_size: 1 << 20,
            max_header_list_size: 16 << 10,
            max_concurrent_streams: u32::MAX,
            header_table_size: HEADER_TABLE_SIZE_DEFAULT,
            enable_connect_protocol: false,
            check_content_length: true,
            keep_alive: Some(HBONE_KEEP_ALIVE),
            limits: Limits::DEFAULT,
        }
    }

    /// The server end of an HBONE tunnel.
    pub const fn hbone_server() -> Self {
        Self {
            role: Role::Server,
            max_header_list_size: 64 << 10,
            max_concurrent_streams: 200,
            ..Self::hbone_client()
        }
    }

    /// A client of plain HTTP/2.
    pub const fn http_client() -> Self {
        Self {
            role: Role::Client,
            initial_stream_window: 256 << 10,
            connection_window: 1 << 20,
            max_frame_size: FRAME_SIZE_MIN,
            max_header_list_size: 64 << 10,
            max_concurrent_streams: u32::MAX,
            header_table_size: HEADER_TABLE_SIZE_DEFAULT,
            enable_connect_protocol: false,
            check_content_length: true,
            keep_alive: None,
            limits: Limits { stalled_stream_timeout: Some(Duration::from_secs(30)), ..Limits::DEFAULT },
        }
    }

    /// A server of plain HTTP/2.
    pub const fn http_server() -> Self {
        Self { role: Role::Server, max_concurrent_streams: 200, ..Self::http_client() }
    }

    /// A proxy towards servers in the clear. The connection's window holds those of all streams, so that streams whose
    /// payload nobody takes cannot hold up others.
    pub const fn proxy_client() -> Self {
        Self {
            connection_window: PROXY_STREAMS_MAX * (256 << 10),
            max_concurrent_streams: PROXY_STREAMS_MAX,
            ..Self::http_client()
        }
    }

    /// A proxy towards clients in the clear.
    pub const fn proxy_server() -> Self {
        Self { role: Role::Server, enable_connect_protocol: true, ..Self::proxy_client() }
    }

    /// The same configuration with every value inside the protocol's range.
    pub(super) fn clamped(mut self) -> Self {
        self.initial_stream_window = self.initial_stream_window.min(WINDOW_MAX);
        self.connection_window = self.connection_window.clamp(WINDOW_DEFAULT, WINDOW_MAX);
        self.max_frame_size = self.max_frame_size.clamp(FRAME_SIZE_MIN, FRAME_SIZE_MAX);
        self.limits.header_block_bytes_max = self.limits.header_block_bytes_max.clamp(256, 1 << 24);
        self.limits.held_heads_bytes_max = self.limits.held_heads_bytes_max.max(self.max_header_list_size);
        self.limits.overhead_burst = self.limits.overhead_burst.max(64);
        self.limits.resets_burst = self.limits.resets_burst.max(1);
        self
    }
}
