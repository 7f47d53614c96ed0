//! The head of a response: read as its server speaks, and written anew as its client reads.

use l7::grpc;
use l7::http1::{
    BodyFraming, Http1Error, Response, Version, empty_headers, parse_response, write_response,
    write_rewritten_response,
};
use l7::http2::{passing, put_response_fields, read_response};
use tunnel::h2::Headers;

use super::body::{Broken, Fault};
use super::exchange::{Exchange, Server};
use super::reader::HeadError;
use super::side::Side;
use super::switch::Switch;
use crate::access_log::cause::CloseCause;
use crate::link::TunnelStream;

/// A response head, read and written anew.
pub(super) struct ResponseHead {
    pub(super) status: u16,
    pub(super) interim: bool,
    pub(super) framing: BodyFraming,
    /// The status of a gRPC response that ends with it, its trailers being all there is.
    pub(super) grpc: Option<u16>,
    /// The message ends with it, and says so.
    pub(super) is_last: bool,
    /// The upstream may carry another request.
    pub(super) upstream_lives: bool,
    /// The downstream was not told of an end.
    pub(super) downstream_lives: bool,
    pub(super) written: Written,
}

pub(super) enum Written {
    Http1(Vec<u8>),
    Http2(Headers),
}

impl Exchange<'_, '_> {
    /// The next head of the response.
    pub(super) async fn response_head(&self, server: &mut Server<'_>) -> Result<ResponseHead, Broken> {
        match server {
            Server::Http1 { wire, reader } => {
                let raw = match reader.head(self.worker(), wire).await {
                    Ok(Some(raw)) => raw,
                    Ok(None) | Err(HeadError::Io | HeadError::Timeout) => {
                        return Err(Broken::From(Fault::of(CloseCause::ServerReset)));
                    }
                    // What was said is no head, and will not become one.
                    Err(HeadError::Truncated) => {
                        let malformed = Some(Http1Error::Malformed);
                        return Err(Broken::From(Fault { malformed, ..Fault::of(CloseCause::ServerReset) }));
                    }
                    Err(HeadError::Http(error)) => return Err(Broken::From(Fault::malformed(error))),
                };
                let mut storage = empty_headers();
                let method = if self.plan.is_head_method { "HEAD" } else { "" };
                parse_response(&raw, method, &mut storage)
                    .and_then(|response| {
                        self.switched_or_not(&response).and_then(|()| self.written(&response))
                    })
                    .map_err(|error| Broken::From(Fault::malformed(error)))
            }
            Server::Http2 { stream, switch } => {
                let headers = stream
                    .response()
                    .await
                    .map_err(|error| Broken::From(Fault::of_stream(&error, CloseCause::ServerReset)))?;
                self.read_http2(&headers, stream, switch.as_ref())
                    .map_err(|error| Broken::From(Fault::malformed(error)))
            }
        }
    }

    /// A server of HTTP/1.1 may ignore that a switch is asked for and answer the request. A client of HTTP/2 would take
    /// its success for the agreement, and what follows for the other protocol (RFC 8441 section 5).
    fn switched_or_not(&self, response: &Response<'_, '_>) -> Result<(), Http1Error> {
        let is_success = (200..300).contains(&response.status);
        let is_mistaken = is_success && self.plan.upgrades && matches!(self.downstream, Side::Http2(_));
        if is_mistaken { Err(Http1Error::Malformed) } else { Ok(()) }
    }

    fn read_http2(
        &self,
        headers: &Headers,
        stream: &TunnelStream,
        switch: Option<&Switch>,
    ) -> Result<ResponseHead, Http1Error> {
        let status = headers.status().unwrap_or_default();
        let ended = status >= 200 && stream.is_received() && !stream.has_trailers();
        let mut storage = Vec::with_capacity(headers.field_count());
        let fields = headers.fields().map(|field| (field.name, field.value));
        let response = read_response(status, fields, self.plan.is_head_method, ended, &mut storage)?;
        if let Some(switch) = switch.filter(|_| (200..300).contains(&status)) {
            return switch.agreed(&response, |response| self.written(response));
        }
        let head = self.written(&response)?;
        let to_http2 = matches!(self.downstream, Side::Http2(_));
        Ok(ResponseHead { is_last: ended && to_http2, ..head })
    }

    fn written(&self, response: &Response<'_, '_>) -> Result<ResponseHead, Http1Error> {
        if response.status == 101 && !self.plan.upgrades {
            return Err(Http1Error::Malformed);
        }
        let lasts = response.body == BodyFraming::UntilClose;
        let old = self.plan.version == Version::Http10;
        let ends = lasts || (response.body == BodyFraming::Chunked && old);
        // Asked now, for a drain may have begun since the request.
        let draining = self.worker().drain().is_open();
        let downstream_lives = self.plan.keep_alive && !draining && !ends;
        let written = match self.downstream {
            Side::Http1(_) => Written::Http1(self.write_http1(response, downstream_lives)),
            Side::Http2(_) => Written::Http2(self.write_http2(response)?),
        };
        let has_body = !matches!(response.body, BodyFraming::None | BodyFraming::Length(0));
        let opens = response.is_interim() || response.status == 101;
        Ok(ResponseHead {
            status: response.status,
            interim: response.is_interim(),
            framing: response.body,
            grpc: if has_body { None } else { grpc::status_in(response.headers) },
            is_last: matches!(self.downstream, Side::Http2(_)) && !has_body && !opens,
            upstream_lives: response.keep_alive && !lasts,
            downstream_lives,
            written,
        })
    }

    fn write_http1(&self, response: &Response<'_, '_>, keep_alive: bool) -> Vec<u8> {
        let mut out = Vec::with_capacity(512);
        let filters = &self.plan.filtered.chain;
        if filters.edits_response() && !response.is_interim() {
            let fields = filters.response_fields(response.headers);
            let version = self.plan.version;
            write_rewritten_response(&mut out, response, version, keep_alive, fields.iter());
        } else {
            write_response(&mut out, response, self.plan.version, keep_alive, &[]);
        }
        out
    }

    fn write_http2(&self, response: &Response<'_, '_>) -> Result<Headers, Http1Error> {
        // In HTTP/2 a switch is agreed to by a success, and its key is no proof of anything (RFC 8441 section 5).
        let switches = response.status == 101;
        let status = if switches { 200 } else { response.status };
        let mut headers = Headers::response(status).map_err(|_| Http1Error::Malformed)?;
        let mut result = Ok(());
        let mut put = |name: &str, value: &[u8]| {
            let is_proof = switches && name == "sec-websocket-accept";
            if result.is_ok() && !is_proof {
                result = headers.push(name, value);
            }
        };
        let filters = &self.plan.filtered.chain;
        let response =
            if switches { &Response { status, body: BodyFraming::Chunked, ..*response } } else { response };
        if filters.edits_response() && !response.is_interim() {
            let fields = filters.response_fields(response.headers);
            put_response_fields(response, fields.iter(), &mut put);
        } else {
            put_response_fields(response, passing(response.headers), &mut put);
        }
        result.map(|()| headers).map_err(|_| Http1Error::Malformed)
    }
}
