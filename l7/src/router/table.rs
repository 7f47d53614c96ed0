//! Matches by path: exact paths and prefixes by hash, regular expressions in a list. Matches whose order is that of a list
//! come first and are tried one by one.

use std::cmp::Reverse;

use super::candidates::{Candidate, Candidates};
use super::condition::{Conditions, Names};
use super::pattern::Pattern;
use super::text_map::TextMap;
use super::{Asked, MatchId, RouteFault};
use crate::ir::{HttpMatch, PathMatch, RouteOrder};

#[derive(Debug, Default)]
pub(super) struct PathTable {
    /// In their own order.
    listed: Vec<PathCandidate>,
    exact: TextMap<Candidates>,
    /// Regular expressions and prefixes that end anywhere.
    patterns: Vec<PathCandidate>,
    /// By prefix without its final slash: the root is the empty text.
    prefixes: TextMap<Candidates>,
    /// The most slashes that a stored prefix has: no longer part of a path need be looked up.
    prefix_depth_max: usize,
    /// By gRPC method: they rank below every prefix but the root.
    methods: TextMap<Candidates>,
}

#[derive(Debug)]
struct PathCandidate {
    path: PathTest,
    candidate: Candidate,
}

/// A path compared alone.
#[derive(Debug)]
enum PathTest {
    Exact(Box<[u8]>),
    /// Without its final slash.
    Elements(Box<[u8]>),
    Text(Box<[u8]>),
    GrpcMethod(Box<[u8]>),
    Pattern(Pattern),
}

impl PathTable {
    pub(super) fn add(
        &mut self,
        order: RouteOrder,
        id: MatchId,
        entry: &HttpMatch,
        names: &mut Names,
    ) -> Result<(), RouteFault> {
        let candidate = Candidate::new(Conditions::compile(entry, names)?, id);
        match &entry.path {
            PathMatch::Exact(path) | PathMatch::Prefix(path) | PathMatch::TextPrefix(path)
                if !path.starts_with('/') =>
            {
                return Err(RouteFault::Path(path.clone()));
            }
            path if order == RouteOrder::Listed => {
                self.listed.push(PathCandidate { path: PathTest::compile(path)?, candidate });
            }
            PathMatch::Exact(path) => {
                self.exact.update(path.as_bytes(), |own| own.push(candidate));
            }
            PathMatch::Prefix(path) => {
                let prefix = path.strip_suffix('/').unwrap_or(path).as_bytes();
                self.prefix_depth_max = self.prefix_depth_max.max(depth(prefix));
                self.prefixes.update(prefix, |own| own.push(candidate));
            }
            PathMatch::GrpcMethod(method) => {
                self.methods.update(method.as_bytes(), |own| own.push(candidate));
            }
            path @ (PathMatch::Regex(_) | PathMatch::TextPrefix(_)) => {
                self.patterns.push(PathCandidate { path: PathTest::compile(path)?, candidate });
            }
        }
        Ok(())
    }

    pub(super) fn sort(&mut self) {
        let tables = [&mut self.exact, &mut self.prefixes, &mut self.methods];
        tables.into_iter().flat_map(TextMap::values_mut).for_each(Candidates::sort);
        self.patterns.sort_by_key(|entry| (Reverse(entry.path.text_bytes()), entry.candidate.rank()));
    }

    pub(super) fn find(&self, asked: &Asked<'_>) -> Option<MatchId> {
        let path = asked.head.path.as_bytes();
        if let Some(entry) = self.listed.iter().find(|entry| entry.holds(path, asked)) {
            return Some(entry.candidate.id());
        }
        if let Some(id) = self.exact.get(path).and_then(|candidates| candidates.find(asked)) {
            return Some(id);
        }
        if let Some(entry) = self.patterns.iter().find(|entry| entry.holds(path, asked)) {
            return Some(entry.candidate.id());
        }
        self.find_prefix(path, asked)
            .or_else(|| self.find_method(path, asked))
            .or_else(|| self.prefixes.get(&[][..]).and_then(|candidates| candidates.find(asked)))
    }

    /// Looks the path up, then what is left of it before its last slash, and so on to its first element.
    fn find_prefix(&self, path: &[u8], asked: &Asked<'_>) -> Option<MatchId> {
        if self.prefix_depth_max == 0 {
            return None;
        }
        let mut rest = path;
        let mut depth_left = depth(path);
        while depth_left > 0 {
            if depth_left <= self.prefix_depth_max
                && let Some(id) = self.prefixes.get(rest).and_then(|candidates| candidates.find(asked))
            {
                return Some(id);
            }
            rest = rest.get(..memchr::memrchr(b'/', rest)?)?;
            depth_left -= 1;
        }
        None
    }

    fn find_method(&self, path: &[u8], asked: &Asked<'_>) -> Option<MatchId> {
        if self.methods.is_empty() {
            return None;
        }
        self.methods.get(grpc_method(path)?)?.find(asked)
    }
}

impl PathCandidate {
    fn holds(&self, path: &[u8], asked: &Asked<'_>) -> bool {
        self.candidate.holds(asked) && self.path.holds(path)
    }
}

impl PathTest {
    fn compile(path: &PathMatch) -> Result<Self, RouteFault> {
        Ok(match path {
            PathMatch::Exact(path) => Self::Exact(path.as_bytes().into()),
            PathMatch::Prefix(path) => {
                Self::Elements(path.strip_suffix('/').unwrap_or(path).as_bytes().into())
            }
            PathMatch::TextPrefix(path) => Self::Text(path.as_bytes().into()),
            PathMatch::GrpcMethod(method) => Self::GrpcMethod(method.as_bytes().into()),
            PathMatch::Regex(text) => Self::Pattern(Pattern::compile(text)?),
        })
    }

    fn holds(&self, path: &[u8]) -> bool {
        match self {
            Self::Exact(own) => **own == *path,
            Self::Elements(own) => {
                path.strip_prefix(&**own).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
            }
            Self::Text(own) => path.starts_with(own),
            Self::GrpcMethod(own) => grpc_method(path) == Some(&**own),
            Self::Pattern(pattern) => pattern.is_match(path),
        }
    }

    /// Length as written.
    fn text_bytes(&self) -> usize {
        match self {
            Self::Exact(own) | Self::Elements(own) | Self::Text(own) | Self::GrpcMethod(own) => own.len(),
            Self::Pattern(pattern) => pattern.text_bytes(),
        }
    }
}

fn grpc_method(path: &[u8]) -> Option<&[u8]> {
    let path = path.strip_prefix(b"/")?;
    let (service, method) = path.split_at_checked(memchr::memchr(b'/', path)?)?;
    // With a third element, what follows is no method that anybody can have named.
    method.get(1..).filter(|_| !service.is_empty())
}

fn depth(path: &[u8]) -> usize {
    memchr::memchr_iter(b'/', path).count()
}
