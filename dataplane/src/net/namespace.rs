//! Sockets inside a pod's network namespace.
//!
//! A socket belongs for life to the namespace in which it was made, wherever it is used. So the calling thread
//! enters the pod's namespace, makes the socket, and goes back, all within [`NetworkNamespace::within`]. Only the
//! calling thread moves: setns(2) with `CLONE_NEWNET` works on a thread, not on the process.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Why a network namespace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    #[error("the network namespace {path} cannot be opened: {source}")]
    Open { path: String, source: io::Error },
    #[error("the network namespace cannot be entered (CAP_SYS_ADMIN is needed): {0}")]
    Enter(#[source] io::Error),
}

/// A network namespace kept alive by this handle. Cloning shares it.
#[derive(Debug, Clone)]
pub struct NetworkNamespace {
    descriptor: Arc<OwnedFd>,
    /// It is where the threads of this process are anyway.
    is_home: bool,
}

impl NetworkNamespace {
    /// Opens the namespace at a path such as `/run/netns/NAME` or `/proc/PID/ns/net`.
    pub fn open(path: &Path) -> Result<Self, NamespaceError> {
        let file = File::open(path)
            .map_err(|source| NamespaceError::Open { path: path.display().to_string(), source })?;
        Ok(Self::from_descriptor(file.into()))
    }

    /// Takes over a descriptor of a namespace, as a node agent passes it.
    pub fn from_descriptor(descriptor: OwnedFd) -> Self {
        Self { descriptor: Arc::new(descriptor), is_home: false }
    }

    /// The namespace that all threads of this process live in: nothing need be entered, so no right is needed.
    pub fn home() -> Result<Self, NamespaceError> {
        Ok(Self { is_home: true, ..Self::current()? })
    }

    /// The namespace of the calling thread.
    pub fn current() -> Result<Self, NamespaceError> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// Whether both handles stand for one namespace. One that cannot be looked at is nobody's.
    pub fn is_same(&self, other: &Self) -> bool {
        if Arc::ptr_eq(&self.descriptor, &other.descriptor) {
            return true;
        }
        let inode =
            |namespace: &Self| rustix::fs::fstat(namespace).ok().map(|stat| (stat.st_dev, stat.st_ino));
        inode(self).is_some_and(|this| inode(other) == Some(this))
    }

    /// Runs `make` on the calling thread inside this namespace. `make` must only create things, for the whole
    /// thread is away from home meanwhile.
    ///
    /// # Panics
    /// If the thread cannot go back to where it came from: everything it would do from then on would happen in the
    /// wrong pod's network.
    #[allow(clippy::expect_used)]
    pub fn within<R>(&self, make: impl FnOnce() -> R) -> Result<R, NamespaceError> {
        if self.is_home {
            return Ok(make());
        }
        let home = HOME.take().map_or_else(Self::current, Ok)?;
        let entered = enter(self.as_fd()).map_err(NamespaceError::Enter);
        let result = entered.map(|()| {
            let result = make();
            enter(home.as_fd()).expect("a thread in a foreign network namespace must not go on");
            result
        });
        HOME.set(Some(home));
        result
    }
}

thread_local! {
    /// Where the thread is, once it has been away; empty while it is. To open it each time costs more than to leave and
    /// to come back.
    static HOME: Cell<Option<NetworkNamespace>> = const { Cell::new(None) };
}

impl AsFd for NetworkNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

fn enter(namespace: BorrowedFd<'_>) -> io::Result<()> {
    Ok(move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_is_no_namespace_is_named_in_the_error() {
        let error = NetworkNamespace::open(Path::new("/nowhere/net")).unwrap_err();
        assert!(error.to_string().contains("/nowhere/net"));
        let file = NetworkNamespace::open(Path::new("/proc/self/status")).unwrap();
        assert!(matches!(file.within(|| ()), Err(NamespaceError::Enter(_))));
    }

    #[test]
    fn the_thread_comes_back_home() {
        let home = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let here = NetworkNamespace::current().unwrap();
        // Without CAP_SYS_ADMIN even the own namespace cannot be entered; the thread stays home either way.
        for _ in 0..2 {
            drop(here.within(|| here.within(|| ())));
            assert_eq!(std::fs::read_link("/proc/thread-self/ns/net").unwrap(), home);
        }
    }
}
