//! Any bytes as a query.

use hickory_proto::op::Message;

use super::message::{Answer, Header, Query, Unusable};
use crate::metrics::DnsProtocol as Protocol;

#[test]
fn fuzz_any_bytes_get_a_fitting_reply_or_none() {
    let answer = Answer {
        alias: Some(1),
        addresses: (0..200_u8).map(|last| std::net::IpAddr::from([10, 0, 0, last])).collect(),
    };
    bolero::check!().for_each(|bytes: &[u8]| {
        for protocol in [Protocol::Udp, Protocol::Tcp] {
            let id = Header::of(bytes).map(Header::id);
            match Query::read(bytes, protocol) {
                Ok(query) => {
                    for reply in
                        [query.answer(&answer), query.relay(vec![0; 70_000]), query.relay(bytes.to_vec())]
                    {
                        assert_eq!(Header::of(&reply).map(Header::id), id);
                        assert!(reply.len() <= 65_535);
                    }
                    let reply = query.answer(&answer);
                    let message = Message::from_vec(&reply).unwrap();
                    let limit = match protocol {
                        Protocol::Udp => message.edns.as_ref().map_or(512, |_| 4_096),
                        Protocol::Tcp => 65_535,
                    };
                    assert!(reply.len() <= limit, "{} bytes", reply.len());
                    assert_eq!(message.queries.len(), 1);
                }
                Err(Unusable::Refused(reply)) => {
                    assert!(Header::of(&reply).is_some_and(Header::is_response));
                    assert_eq!(Header::of(&reply).map(Header::id), id);
                }
                Err(Unusable::Ignored) => {
                    assert!(bytes.len() < 12 || bytes.len() > 4_096 || bytes[2] & 0x80 != 0);
                }
            }
        }
    });
}
