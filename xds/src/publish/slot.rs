//! One place that holds at most one `Arc`, exchanged atomically between two threads.

// The only way to exchange an `Arc` in one atomic step is through its raw pointer.
#![allow(unsafe_code)]

#[cfg(not(loom))]
use std::sync::atomic::{AtomicPtr, Ordering};

#[cfg(loom)]
use loom::sync::atomic::{AtomicPtr, Ordering};

use std::marker::PhantomData;
use std::ptr;
use std::sync::Arc;

/// Invariant: the pointer is null, or came from `Arc::into_raw` and carries that one reference.
pub(super) struct Slot<T> {
    pointer: AtomicPtr<T>,
    /// The slot owns an `Arc<T>`, so it is `Send` and `Sync` exactly as that is.
    owned: PhantomData<Arc<T>>,
}

impl<T> Slot<T> {
    pub(super) fn empty() -> Self {
        Self { pointer: AtomicPtr::new(ptr::null_mut()), owned: PhantomData }
    }

    /// Puts a value in and returns the one that nobody took.
    pub(super) fn put(&self, value: Arc<T>) -> Option<Arc<T>> {
        self.exchange(Arc::into_raw(value).cast_mut())
    }

    pub(super) fn take(&self) -> Option<Arc<T>> {
        self.exchange(ptr::null_mut())
    }

    fn exchange(&self, incoming: *mut T) -> Option<Arc<T>> {
        // Release publishes what is written in the value; Acquire makes it visible to whoever takes it.
        let outgoing = self.pointer.swap(incoming, Ordering::AcqRel);
        if outgoing.is_null() {
            return None;
        }
        // SAFETY: by the invariant of `Slot` the pointer came from `Arc::into_raw`, and the swap gave its
        // reference to this call alone.
        Some(unsafe { Arc::from_raw(outgoing) })
    }
}

impl<T> Drop for Slot<T> {
    fn drop(&mut self) {
        drop(self.take());
    }
}
