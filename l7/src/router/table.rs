//! Matches by path: exact paths and prefixes by hash, regular expressions in a list.

use std::cmp::Reverse;
use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::candidates::{Candidate, Candidates};
use super::condition::Conditions;
use super::pattern::Pattern;
use super::{MatchId, RouteFault};
use crate::ir::{HttpMatch, PathMatch, RequestHead};

#[derive(Debug, Default)]
pub(super) struct PathTable {
    exact: HashMap<Box<[u8]>, Candidates, RandomState>,
    patterns: Vec<PatternCandidate>,
    /// By prefix without its final slash: the root is the empty text.
    prefixes: HashMap<Box<[u8]>, Candidates, RandomState>,
    /// The most slashes that a stored prefix has: no longer part of a path need be looked up.
    prefix_depth_max: usize,
    /// By gRPC method: they rank below every prefix but the root.
    methods: HashMap<Box<[u8]>, Candidates, RandomState>,
}

#[derive(Debug)]
struct PatternCandidate {
    pattern: Pattern,
    candidate: Candidate,
}

impl PathTable {
    pub(super) fn add(&mut self, id: MatchId, entry: &HttpMatch) -> Result<(), RouteFault> {
        let candidate = Candidate::new(Conditions::compile(entry)?, id);
        match &entry.path {
            PathMatch::Exact(path) | PathMatch::Prefix(path) if !path.starts_with('/') => {
                return Err(RouteFault::Path(path.clone()));
            }
            PathMatch::Exact(path) => {
                self.exact.entry(path.as_bytes().into()).or_default().push(candidate);
            }
            PathMatch::Prefix(path) => {
                let prefix = path.strip_suffix('/').unwrap_or(path).as_bytes();
                self.prefix_depth_max = self.prefix_depth_max.max(depth(prefix));
                self.prefixes.entry(prefix.into()).or_default().push(candidate);
            }
            PathMatch::GrpcMethod(method) => {
                self.methods.entry(method.as_bytes().into()).or_default().push(candidate);
            }
            PathMatch::Regex(text) => {
                self.patterns.push(PatternCandidate { pattern: Pattern::compile(text)?, candidate });
            }
        }
        Ok(())
    }

    pub(super) fn sort(&mut self) {
        let tables = [&mut self.exact, &mut self.prefixes, &mut self.methods];
        tables.into_iter().flat_map(HashMap::values_mut).for_each(Candidates::sort);
        self.patterns.sort_by_key(|entry| (Reverse(entry.pattern.text_bytes()), entry.candidate.rank()));
    }

    pub(super) fn find(&self, head: &RequestHead<'_>) -> Option<MatchId> {
        let path = head.path.as_bytes();
        if let Some(id) = self.exact.get(path).and_then(|candidates| candidates.find(head)) {
            return Some(id);
        }
        let by_pattern =
            self.patterns.iter().find(|entry| entry.candidate.holds(head) && entry.pattern.is_match(path));
        if let Some(entry) = by_pattern {
            return Some(entry.candidate.id());
        }
        self.find_prefix(path, head)
            .or_else(|| self.find_method(path, head))
            .or_else(|| self.prefixes.get(&[][..]).and_then(|candidates| candidates.find(head)))
    }

    /// Looks the path up, then what is left of it before its last slash, and so on to its first element.
    fn find_prefix(&self, path: &[u8], head: &RequestHead<'_>) -> Option<MatchId> {
        if self.prefix_depth_max == 0 {
            return None;
        }
        let mut rest = path;
        let mut depth_left = depth(path);
        while depth_left > 0 {
            if depth_left <= self.prefix_depth_max
                && let Some(id) = self.prefixes.get(rest).and_then(|candidates| candidates.find(head))
            {
                return Some(id);
            }
            rest = rest.get(..memchr::memrchr(b'/', rest)?)?;
            depth_left -= 1;
        }
        None
    }

    fn find_method(&self, path: &[u8], head: &RequestHead<'_>) -> Option<MatchId> {
        if self.methods.is_empty() {
            return None;
        }
        let path = path.strip_prefix(b"/")?;
        let (service, method) = path.split_at_checked(memchr::memchr(b'/', path)?)?;
        // With a third element, what follows is no method that anybody can have named.
        let method = method.get(1..).filter(|_| !service.is_empty())?;
        self.methods.get(method)?.find(head)
    }
}

fn depth(path: &[u8]) -> usize {
    memchr::memchr_iter(b'/', path).count()
}
