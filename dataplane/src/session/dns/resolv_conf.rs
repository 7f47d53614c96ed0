//! The node's `/etc/resolv.conf`: which servers know what the mesh does not.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Longest file that is read.
pub const RESOLV_CONF_BYTES_MAX: u64 = 64 * 1024;
/// Servers that are asked, as many as the C library takes.
const SERVERS_MAX: usize = 3;
/// Search domains that are kept.
const SEARCH_MAX: usize = 16;
/// Port of a name server.
const PORT: u16 = 53;
/// How long one server may take where the file says nothing. Shorter than the patience of clients (5 s), so that a
/// second server can still answer.
const TIMEOUT: Duration = Duration::from_secs(2);
const TIMEOUT_SECONDS_MAX: u64 = 10;
/// How often each server is asked where the file says nothing.
const ATTEMPTS: u32 = 2;
const ATTEMPTS_MAX: u32 = 5;

/// What is used of the file (resolv.conf(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvConf {
    /// In the order of the file.
    pub servers: Vec<SocketAddr>,
    /// Lower case, without final dots.
    pub search: Vec<String>,
    /// For one server's answer.
    pub timeout: Duration,
    /// Rounds through all servers.
    pub attempts: u32,
    /// The first server asked is a random one.
    pub rotate: bool,
}

impl Default for ResolvConf {
    fn default() -> Self {
        Self { servers: Vec::new(), search: Vec::new(), timeout: TIMEOUT, attempts: ATTEMPTS, rotate: false }
    }
}

impl ResolvConf {
    /// Reads the text. As the C library does, it passes over what it does not understand.
    pub fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        for line in text.lines() {
            // A comment begins at the start of the line; values hold none.
            if line.starts_with(['#', ';']) {
                continue;
            }
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") => conf.servers.extend(words.next().and_then(server)),
                // The last of these lines counts.
                Some("search" | "domain") => conf.search = words.filter_map(search_domain).collect(),
                Some("options") => words.for_each(|option| conf.set(option)),
                _ => {}
            }
        }
        conf.servers.truncate(SERVERS_MAX);
        conf.search.truncate(SEARCH_MAX);
        conf
    }

    fn set(&mut self, option: &str) {
        match option.split_once(':') {
            Some(("timeout", seconds)) => {
                if let Ok(seconds) = seconds.parse::<u64>() {
                    self.timeout = Duration::from_secs(seconds.clamp(1, TIMEOUT_SECONDS_MAX));
                }
            }
            Some(("attempts", count)) => {
                if let Ok(count) = count.parse::<u32>() {
                    self.attempts = count.clamp(1, ATTEMPTS_MAX);
                }
            }
            None if option == "rotate" => self.rotate = true,
            _ => {}
        }
    }

    /// Whom to ask, in order.
    pub(super) fn turns(&self, random: u64) -> impl Iterator<Item = SocketAddr> + '_ {
        let count = self.servers.len();
        let wanted = if self.rotate { random } else { 0 };
        let first = usize::try_from(wanted % (count.max(1) as u64)).unwrap_or_default();
        let turns = count.saturating_mul(usize::try_from(self.attempts).unwrap_or(1));
        self.servers.iter().cycle().skip(first).take(turns).copied()
    }
}

/// An address with a zone (`fe80::1%eth0`) means something in the node's network only, so it is passed over.
fn server(word: &str) -> Option<SocketAddr> {
    word.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, PORT))
}

fn search_domain(word: &str) -> Option<String> {
    let domain = word.trim_end_matches('.').to_ascii_lowercase();
    (!domain.is_empty()).then_some(domain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_search_domains_and_options_are_read() {
        let conf = ResolvConf::parse(
            "# made by hand\n\
             ; also a comment\n\
             domain old.example\n\
             nameserver 10.96.0.10\n\
             nameserver\t2001:db8::53 # the rest is no address\n\
             nameserver fe80::1%eth0\n\
             nameserver nonsense\n\
             search App.Example. example\n\
             options ndots:5 timeout:3 attempts:1 rotate\n\
             sortlist 130.155.160.0\n",
        );
        assert_eq!(conf.servers, ["10.96.0.10:53".parse().unwrap(), "[2001:db8::53]:53".parse().unwrap()]);
        assert_eq!(conf.search, ["app.example", "example"]);
        assert_eq!((conf.timeout, conf.attempts, conf.rotate), (Duration::from_secs(3), 1, true));
        assert_eq!(ResolvConf::parse(""), ResolvConf::default());
    }

    #[test]
    fn numbers_are_kept_within_bounds() {
        let conf = ResolvConf::parse("options timeout:0 attempts:99\noptions timeout:x\n");
        assert_eq!((conf.timeout, conf.attempts), (Duration::from_secs(1), ATTEMPTS_MAX));
        let many = "nameserver 10.0.0.1\n".repeat(9);
        assert_eq!(ResolvConf::parse(&many).servers.len(), SERVERS_MAX);
    }

    #[test]
    fn every_server_has_its_turn_in_each_round() {
        let mut conf = ResolvConf::parse("nameserver 10.0.0.1\nnameserver 10.0.0.2\n");
        let turns = |conf: &ResolvConf, random| -> Vec<String> {
            conf.turns(random).map(|server| server.ip().to_string()).collect()
        };
        assert_eq!(turns(&conf, 1), ["10.0.0.1", "10.0.0.2", "10.0.0.1", "10.0.0.2"]);
        conf.rotate = true;
        assert_eq!(turns(&conf, 1), ["10.0.0.2", "10.0.0.1", "10.0.0.2", "10.0.0.1"]);
        assert!(turns(&ResolvConf::default(), 1).is_empty());
    }

    #[test]
    fn fuzz_any_text_is_read_within_bounds() {
        bolero::check!().with_type::<String>().for_each(|text| {
            let conf = ResolvConf::parse(text);
            assert!(conf.servers.len() <= SERVERS_MAX && conf.search.len() <= SEARCH_MAX);
            assert!((1..=ATTEMPTS_MAX).contains(&conf.attempts));
            assert!((1..=TIMEOUT_SECONDS_MAX).contains(&conf.timeout.as_secs()));
            assert_eq!(conf.turns(7).count(), conf.servers.len() * conf.attempts as usize);
        });
    }
}
