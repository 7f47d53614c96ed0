//! The request that is asked about, written to the wire and read back by the code that serves.

use std::borrow::Cow;

use l7::filter::Chain;
use l7::http1::{Http1Error, Request, Rewritten, empty_headers, parse_request, write_rewritten_request};
use l7::ir::RequestHead;
use l7::path::{Target, normalize};

use super::report::Shown;
use super::{ExplainError, Question};
use crate::session::NORMALIZATION;

/// A request that has been found to be one.
pub(super) struct Asked {
    wire: Vec<u8>,
}

impl Asked {
    pub(super) fn new(question: &Question) -> Result<Self, ExplainError> {
        let mut lines = vec![format!("{} {} HTTP/1.1", question.method, question.path)];
        let mut authority = None;
        for written in &question.headers {
            let malformed = || ExplainError::Header(written.clone());
            let (name, value) = written.split_once(':').ok_or_else(malformed)?;
            let (name, value) = (name.trim(), value.trim());
            if name.is_empty() || value.contains(['\r', '\n', '\0']) {
                return Err(malformed());
            }
            if name.eq_ignore_ascii_case("host") {
                authority = Some(value);
            } else {
                lines.push(format!("{name}: {value}"));
            }
        }
        let authority = authority.unwrap_or_else(|| question.to.trim_start_matches("pod/"));
        lines.insert(1, format!("host: {}", authority.replace('/', ".")));
        Self::of_wire((lines.join("\r\n") + "\r\n\r\n").into_bytes())
    }

    fn of_wire(wire: Vec<u8>) -> Result<Self, ExplainError> {
        let asked = Self { wire };
        asked.read(|_, _| ()).map_err(ExplainError::Request)?;
        Ok(asked)
    }

    fn read<T>(&self, take: impl FnOnce(&Request<'_, '_>, &Target<'_>) -> T) -> Result<T, Http1Error> {
        let mut storage = empty_headers();
        let request = parse_request(&self.wire, &mut storage)?;
        let target = normalize(request.target, NORMALIZATION).map_err(|_| Http1Error::Target)?;
        Ok(take(&request, &target))
    }

    /// Shows the request as matchers see it.
    pub(super) fn view<T>(&self, take: impl FnOnce(&RequestHead<'_>) -> T) -> Result<T, ExplainError> {
        self.read(|request, target| take(&head(request, target))).map_err(ExplainError::Request)
    }

    /// What filters make of it on its way.
    pub(super) fn filtered(&self, chain: &Chain) -> Result<Self, ExplainError> {
        let wire = self.read(|request, target| {
            let path = chain.path(&target.path);
            let target = match target.query {
                Some(query) => Cow::Owned(format!("{path}?{query}")),
                None => path,
            };
            let fields = chain.request_fields(request.headers);
            let authority = chain.authority(request.authority);
            let mut wire = Vec::new();
            let rewritten = Rewritten { authority, target: &target, fields: fields.iter() };
            write_rewritten_request(&mut wire, request, rewritten);
            wire
        });
        Self::of_wire(wire.map_err(ExplainError::Request)?)
    }

    pub(super) fn shown(&self) -> Result<Shown, ExplainError> {
        self.view(|request| {
            let lossy = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
            let headers = request.headers.iter().filter(|it| !it.name.eq_ignore_ascii_case("host"));
            Shown {
                method: request.method.to_owned(),
                authority: request.authority.to_owned(),
                path: request.path.to_owned(),
                query: request.query.map(str::to_owned),
                headers: headers.map(|it| (it.name.to_owned(), lossy(it.value))).collect(),
            }
        })
    }
}

fn head<'a>(request: &'a Request<'a, 'a>, target: &'a Target<'a>) -> RequestHead<'a> {
    RequestHead {
        method: request.method,
        authority: request.authority,
        path: &target.path,
        query: target.query,
        headers: request.headers,
        token: None,
    }
}
