//! One place that holds at most one `Arc`, exchanged atomically between two threads.

// The only way to exchange an `Arc` in one atomic step is through its raw pointer.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

/// An atomic pointer: the real one, or the one of the model checker.
pub trait Exchange<T> {
    fn null() -> Self;

    /// Swaps with acquire and release ordering: release publishes what is written in the value, acquire makes it
    /// visible to whoever takes it.
    fn swap(&self, incoming: *mut T) -> *mut T;
}

impl<T> Exchange<T> for AtomicPtr<T> {
    fn null() -> Self {
        Self::new(ptr::null_mut())
    }

    fn swap(&self, incoming: *mut T) -> *mut T {
        self.swap(incoming, Ordering::AcqRel)
    }
}

/// Invariant: the pointer is null, or came from `Arc::into_raw` and carries that one reference.
pub(super) struct Slot<T, P: Exchange<T>> {
    pointer: P,
    /// The slot owns an `Arc<T>`, so it is `Send` and `Sync` exactly as that is.
    owned: PhantomData<Arc<T>>,
}

impl<T, P: Exchange<T>> Slot<T, P> {
    pub(super) fn empty() -> Self {
        Self { pointer: P::null(), owned: PhantomData }
    }

    /// Puts a value in and returns the one that nobody took.
    pub(super) fn put(&self, value: Arc<T>) -> Option<Arc<T>> {
        self.exchange(Arc::into_raw(value).cast_mut())
    }

    pub(super) fn take(&self) -> Option<Arc<T>> {
        self.exchange(ptr::null_mut())
    }

    fn exchange(&self, incoming: *mut T) -> Option<Arc<T>> {
        let outgoing = self.pointer.swap(incoming);
        if outgoing.is_null() {
            return None;
        }
        // SAFETY: by the invariant of `Slot` the pointer came from `Arc::into_raw`, and the swap gave its
        // reference to this call alone.
        Some(unsafe { Arc::from_raw(outgoing) })
    }
}

impl<T, P: Exchange<T>> Drop for Slot<T, P> {
    fn drop(&mut self) {
        drop(self.take());
    }
}
