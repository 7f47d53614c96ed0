//! The last state on disk, for a start while the control plane is away.
//!
//! Resources are kept as they came, by type and name, with their versions: what is loaded goes through the same decoder as
//! what is received, and the first request tells the server what is held, so that it sends only what changed and what is
//! gone. Certificates and keys are never in it.
//!
//! Invariants:
//! - Only a complete state is written: one in which each type has been accepted once. A state without its policies
//!   would let through what they deny.
//! - A file is replaced as a whole, by renaming; a file that is damaged, of another format, of another control plane or
//!   node, or that holds a resource that cannot be decoded, is refused as a whole.
//! - Memory holds only what changed since the last write.

mod format;
mod keeper;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

pub use format::FormatError;
use format::{Encoder, Head, Record, TYPES};
pub(crate) use keeper::Keeper;

/// The file's name in the state directory.
pub const FILE: &str = "state";
/// Largest file that is written or read.
pub const FILE_BYTES_MAX: usize = 1 << 30;
/// From the first change to the write, so that one write takes many.
const DEBOUNCE: Duration = Duration::from_secs(1);
/// A write is followed by a rest of so many times what it took.
const REST_FACTOR: u32 = 20;
/// After a write that failed.
const RETRY: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    #[error("{path}: {error}")]
    File { path: PathBuf, error: io::Error },
    #[error("{path}: {error}; nothing of it is used")]
    Format { path: PathBuf, error: FormatError },
    #[error(
        "{path} is the state of {found:?}, not of {expected:?}; give each node proxy a directory of its own"
    )]
    Scope { path: PathBuf, found: String, expected: String },
    #[error("{path}: {name}: {reason}; nothing of the file is used")]
    Resource { path: PathBuf, name: String, reason: String },
    #[error("{path}: a state of {bytes} bytes is larger than {FILE_BYTES_MAX} and is not kept")]
    Size { path: PathBuf, bytes: usize },
}

/// A resource as a file held it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) type_url: &'static str,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) body: Vec<u8>,
}

/// What a file held.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) written: SystemTime,
    pub(crate) resources: Vec<Kept>,
}

/// A version and a body.
type Content = (Box<str>, Box<[u8]>);
/// What changed, by type and name; `None` for what is gone.
type Changes = BTreeMap<(u8, Box<str>), Option<Content>>;

/// Keeps the file up to date with what it is told.
#[derive(Debug)]
pub(crate) struct Cache {
    path: PathBuf,
    scope: String,
    /// Whether the file holds what came before the changes.
    has_base: bool,
    changes: Changes,
    /// Of the first change that is not being written.
    changed_at: Option<Instant>,
    not_before: Option<Instant>,
    writing: Option<Arc<Changes>>,
}

/// One write, to be run where blocking is allowed.
pub(crate) struct Job {
    path: PathBuf,
    scope: String,
    has_base: bool,
    changes: Arc<Changes>,
}

// === impl Cache ===

impl Cache {
    /// For the state of `scope`, the control plane and the node, in a directory that is made if it is not there.
    pub(crate) fn new(directory: &Path, scope: String) -> Result<Self, CacheError> {
        let failed = |error| CacheError::File { path: directory.to_owned(), error };
        fs::create_dir_all(directory).map_err(failed)?;
        // Who may read the state learns who is in the mesh; who may write it decides what is let through.
        fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).map_err(failed)?;
        Ok(Self {
            path: directory.join(FILE),
            scope,
            has_base: false,
            changes: Changes::new(),
            changed_at: None,
            not_before: None,
            writing: None,
        })
    }

    /// What the file holds; `None` if there is none. What is told of later is added to it only after
    /// [`Cache::build_upon`].
    pub(crate) fn load(&self) -> Result<Option<Loaded>, CacheError> {
        let Some(bytes) = read(&self.path)? else { return Ok(None) };
        let path = || self.path.clone();
        let (head, records) =
            format::decode(&bytes).map_err(|error| CacheError::Format { path: path(), error })?;
        if head.scope != self.scope {
            let (found, expected) = (head.scope, self.scope.clone());
            return Err(CacheError::Scope { path: path(), found, expected });
        }
        let kept = |record: Record<'_>| Kept {
            type_url: record.type_url(),
            name: record.name.to_owned(),
            version: record.version.to_owned(),
            body: record.body.to_vec(),
        };
        Ok(Some(Loaded { written: head.written, resources: records.into_iter().map(kept).collect() }))
    }

    /// A resource of the file that cannot be used, and so the file.
    pub(crate) fn refusal(&self, name: &str, reason: String) -> CacheError {
        CacheError::Resource { path: self.path.clone(), name: name.to_owned(), reason }
    }

    /// What was loaded is in force: later writes are changes of it.
    pub(crate) fn build_upon(&mut self) {
        self.has_base = true;
    }

    pub(crate) fn put(&mut self, type_url: &str, name: &str, version: &str, body: &[u8], now: Instant) {
        self.change(type_url, name, Some((version.into(), body.into())), now);
    }

    pub(crate) fn remove(&mut self, type_url: &str, name: &str, now: Instant) {
        self.change(type_url, name, None, now);
    }

    fn change(&mut self, type_url: &str, name: &str, content: Option<Content>, now: Instant) {
        let Some(kind) = TYPES.iter().position(|it| *it == type_url) else { return };
        // There are a handful of types.
        self.changes.insert((u8::try_from(kind).unwrap_or(u8::MAX), name.into()), content);
        self.changed_at.get_or_insert(now);
    }

    /// When [`Cache::job`] has something to do; `None` while nothing changed or a write is under way.
    pub(crate) fn due(&self) -> Option<Instant> {
        let due = self.changed_at.filter(|_| self.writing.is_none())? + DEBOUNCE;
        Some(self.not_before.map_or(due, |not_before| due.max(not_before)))
    }

    /// Takes the changes to be written. The caller must have seen that the state is complete, and tells the outcome with
    /// [`Cache::written`].
    pub(crate) fn job(&mut self) -> Job {
        let changes = Arc::new(std::mem::take(&mut self.changes));
        self.changed_at = None;
        self.writing = Some(Arc::clone(&changes));
        Job { path: self.path.clone(), scope: self.scope.clone(), has_base: self.has_base, changes }
    }

    /// A write that took `took` has ended at `now`. What could not be written is kept for the next one.
    pub(crate) fn written(&mut self, done: bool, took: Duration, now: Instant) {
        let Some(changes) = self.writing.take() else { return };
        if done {
            self.has_base = true;
            self.not_before = Some(now + took * REST_FACTOR);
            return;
        }
        self.not_before = Some(now + RETRY);
        let changes = Arc::try_unwrap(changes).unwrap_or_else(|shared| (*shared).clone());
        for (key, content) in changes {
            self.changes.entry(key).or_insert(content);
        }
        self.changed_at.get_or_insert(now);
    }
}

// === impl Job ===

impl Job {
    /// Writes base and changes to a new file and puts it in the place of the old one.
    pub(crate) fn run(&self) -> Result<(), CacheError> {
        let base = if self.has_base { read(&self.path)? } else { None };
        let bytes = self.merged(base.as_deref())?;
        let temporary = self.path.with_extension("new");
        let write = || {
            let mut options = fs::OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(&bytes)?;
            // Else the new name might outlive a crash that its content does not.
            file.sync_all()?;
            fs::rename(&temporary, &self.path)
        };
        write().map_err(|error| CacheError::File { path: self.path.clone(), error })
    }

    fn merged(&self, base: Option<&[u8]>) -> Result<Vec<u8>, CacheError> {
        let failed = |error| CacheError::Format { path: self.path.clone(), error };
        let records = match base {
            Some(bytes) => format::decode(bytes).map_err(failed)?.1,
            None => Vec::new(),
        };
        let head = Head { written: SystemTime::now(), scope: self.scope.clone() };
        let mut encoder = Encoder::new(&head).map_err(failed)?;
        let mut changes = self.changes.iter().peekable();
        for record in records {
            while let Some(change) = changes.next_if(|((kind, name), _)| (*kind, &**name) < record.key()) {
                add(&mut encoder, change).map_err(failed)?;
            }
            match changes.next_if(|((kind, name), _)| (*kind, &**name) == record.key()) {
                Some(change) => add(&mut encoder, change).map_err(failed)?,
                None => encoder.record(record).map_err(failed)?,
            }
        }
        for change in changes {
            add(&mut encoder, change).map_err(failed)?;
        }
        if encoder.len() > FILE_BYTES_MAX {
            return Err(CacheError::Size { path: self.path.clone(), bytes: encoder.len() });
        }
        Ok(encoder.finish())
    }
}

fn add(
    encoder: &mut Encoder,
    ((kind, name), content): (&(u8, Box<str>), &Option<Content>),
) -> Result<(), FormatError> {
    match content {
        Some((version, body)) => encoder.record(Record { kind: *kind, name, version, body }),
        None => Ok(()),
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, CacheError> {
    let failed = |error| CacheError::File { path: path.to_owned(), error };
    let bytes = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
        Ok(metadata) => usize::try_from(metadata.len()).unwrap_or(usize::MAX),
    };
    if bytes > FILE_BYTES_MAX {
        return Err(CacheError::Size { path: path.to_owned(), bytes });
    }
    fs::read(path).map(Some).map_err(failed)
}
