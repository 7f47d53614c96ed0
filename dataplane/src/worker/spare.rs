//! Output buffers that nobody uses just now: a tunnel takes one when it starts to write and gives it back when all is
//! sent, so that idle tunnels hold none and busy ones do not allocate.

use std::cell::{Cell, RefCell};

/// Buffers kept at most.
const BUFFERS_KEPT_MAX: usize = 128;
/// Bytes kept at most over all buffers.
const BYTES_KEPT_MAX: usize = 4 * 1024 * 1024;

/// The spare buffers of one worker.
#[derive(Debug, Default)]
pub struct SpareBuffers {
    buffers: RefCell<Vec<Vec<u8>>>,
    bytes: Cell<usize>,
}

impl SpareBuffers {
    /// A buffer, empty and perhaps without an allocation.
    pub fn take(&self) -> Vec<u8> {
        let buffer = self.buffers.borrow_mut().pop().unwrap_or_default();
        self.bytes.set(self.bytes.get() - buffer.capacity());
        buffer
    }

    /// Bytes that are kept.
    pub fn bytes(&self) -> usize {
        self.bytes.get()
    }

    /// Keeps `buffer` for later, if it is worth it.
    pub fn give_back(&self, mut buffer: Vec<u8>) {
        let bytes = self.bytes.get() + buffer.capacity();
        let mut buffers = self.buffers.borrow_mut();
        if buffer.capacity() > 0 && bytes <= BYTES_KEPT_MAX && buffers.len() < BUFFERS_KEPT_MAX {
            buffer.clear();
            self.bytes.set(bytes);
            buffers.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_bounded() {
        let spare = SpareBuffers::default();
        for _ in 0..3 {
            spare.give_back(Vec::with_capacity(BYTES_KEPT_MAX / 2));
        }
        assert_eq!(spare.bytes.get(), BYTES_KEPT_MAX);
        assert!(spare.take().capacity() > 0);
        assert!(spare.take().capacity() > 0);
        assert_eq!(spare.take().capacity(), 0);
        assert_eq!(spare.bytes.get(), 0);
    }
}
