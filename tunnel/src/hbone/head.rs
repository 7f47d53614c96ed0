//! The heads of an HBONE exchange: the CONNECT request and its answer.

use super::{Authority, Baggage, DestinationError, Forwarded, TraceParent};
use crate::h2::{HeaderError, Headers};

const BAGGAGE: &str = "baggage";
const FORWARDED: &str = "forwarded";
const TRACEPARENT: &str = "traceparent";
const FORWARDED_NETWORK: &str = "x-forwarded-network";
/// Names of networks are Kubernetes label values, which have at most 63 bytes; some room for other installations.
const NETWORK_BYTES_MAX: usize = 253;

/// A request to be sent.
#[derive(Debug, Clone)]
pub struct ConnectHead<'a> {
    pub authority: &'a Authority,
    /// Of the source workload, encoded. Empty: left out.
    pub baggage: &'a str,
    pub forwarded: Option<&'a Forwarded>,
    pub trace: Option<TraceParent>,
    /// The source's network, on the inner request across networks only. May be empty and still counts.
    pub network: Option<&'a str>,
}

impl ConnectHead<'_> {
    pub fn encode(&self) -> Result<Headers, HeaderError> {
        let mut headers = Headers::connect(self.authority.to_string())?;
        if !self.baggage.is_empty() {
            headers.push(BAGGAGE, self.baggage)?;
        }
        if let Some(forwarded) = self.forwarded {
            headers.push(FORWARDED, forwarded.to_string())?;
        }
        if let Some(trace) = self.trace {
            headers.push(TRACEPARENT, trace.to_string())?;
        }
        if let Some(network) = self.network {
            headers.push(FORWARDED_NETWORK, network)?;
        }
        Ok(headers)
    }
}

/// A received request that is a CONNECT with a usable authority.
#[derive(Debug, Clone)]
pub struct ConnectRequest<'a> {
    headers: &'a Headers,
    authority: Authority,
}

impl<'a> ConnectRequest<'a> {
    /// Refuses what is no CONNECT or names no destination; either becomes a 400.
    pub fn parse(headers: &'a Headers) -> Result<Self, DestinationError> {
        if !headers.is_connect() {
            return Err(DestinationError::NotConnect);
        }
        let authority = headers.authority().unwrap_or_default();
        let authority = Authority::parse(authority).map_err(DestinationError::Authority)?;
        Ok(Self { headers, authority })
    }

    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// What the source says about itself. It is not proved by anything: for telemetry only, never for policy.
    pub fn baggage(&self) -> Baggage {
        let values = self.headers.fields().filter(|field| field.name == BAGGAGE.as_bytes());
        Baggage::parse(values.map(|field| field.value))
    }

    pub fn forwarded(&self) -> Option<Forwarded> {
        Forwarded::parse(self.headers.get(FORWARDED)?)
    }

    pub fn trace(&self) -> Option<TraceParent> {
        TraceParent::parse(self.headers.get(TRACEPARENT)?)
    }

    /// The network that the request comes from, if it says so.
    pub fn network(&self) -> Option<&'a str> {
        let network = std::str::from_utf8(self.headers.get(FORWARDED_NETWORK)?).ok()?;
        (network.len() <= NETWORK_BYTES_MAX).then_some(network)
    }
}

/// The answer to a request that was accepted; `baggage` describes the destination workload, empty is left out.
pub fn accept(baggage: &str) -> Result<Headers, HeaderError> {
    let mut headers = Headers::response(200)?;
    if !baggage.is_empty() {
        headers.push(BAGGAGE, baggage)?;
    }
    Ok(headers)
}

/// The answer to a request that was not; the stream ends with it.
pub fn refuse(error: &DestinationError) -> Result<Headers, HeaderError> {
    Headers::response(error.status())
}

/// What the client role makes of a response's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConnectAnswer {
    /// An interim response (RFC 9110 section 15.2); the answer is still to come.
    Interim,
    /// The destination accepted; it describes itself so.
    Accepted(Baggage),
    /// The client's connection is to be dropped.
    Refused(u16),
}

impl ConnectAnswer {
    pub fn parse(headers: &Headers) -> Self {
        match headers.status() {
            Some(100..=199) => Self::Interim,
            Some(200) => {
                let values = headers.fields().filter(|field| field.name == BAGGAGE.as_bytes());
                Self::Accepted(Baggage::parse(values.map(|field| field.value)))
            }
            other => Self::Refused(other.unwrap_or(0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_client_sends_the_server_reads() {
        let authority: Authority = "[2001:db8::1]:80".parse().unwrap();
        let forwarded = Forwarded { client: "10.0.0.9:1234".parse().unwrap(), host: Some("web".into()) };
        let trace = TraceParent::unsampled(7, 9);
        let headers = ConnectHead {
            authority: &authority,
            baggage: "k8s.namespace.name=app",
            forwarded: Some(&forwarded),
            trace: Some(trace),
            network: Some(""),
        }
        .encode()
        .unwrap();
        let request = ConnectRequest::parse(&headers).unwrap();
        assert_eq!(request.authority(), &authority);
        assert_eq!(&*request.baggage().namespace, "app");
        assert_eq!(request.forwarded(), Some(forwarded));
        assert_eq!(request.trace(), Some(trace));
        assert_eq!(request.network(), Some(""));
    }

    #[test]
    fn a_request_that_is_no_connect_with_a_port_is_refused_with_400() {
        let get = Headers::request("GET", "https", "10.0.0.1:80", "/").unwrap();
        let portless = Headers::connect("10.0.0.1").unwrap();
        let mut extended = Headers::connect("10.0.0.1:80").unwrap();
        extended.set_protocol("websocket").unwrap();
        for headers in [get, portless, extended] {
            let error = ConnectRequest::parse(&headers).unwrap_err();
            assert_eq!(refuse(&error).unwrap().status(), Some(400), "{error}");
        }
    }

    #[test]
    fn only_200_is_an_acceptance() {
        let answer = |status| ConnectAnswer::parse(&Headers::response(status).unwrap());
        assert_eq!(ConnectAnswer::parse(&accept("").unwrap()), ConnectAnswer::Accepted(Baggage::default()));
        let described = ConnectAnswer::parse(&accept("cloud.region=r").unwrap());
        assert!(matches!(described, ConnectAnswer::Accepted(baggage) if &*baggage.region == "r"));
        assert_eq!(answer(103), ConnectAnswer::Interim);
        for status in [204, 301, 400, 401, 503] {
            assert_eq!(answer(status), ConnectAnswer::Refused(status));
        }
    }
}
