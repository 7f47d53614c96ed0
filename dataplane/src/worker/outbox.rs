//! Queues from workers to other threads: bounded, and with memory for what waits alone.
//!
//! A channel that is made with a bound makes all its room at once, and touches every page of it: megabytes of a process
//! that has nothing to say. This one is made without and counts instead. Workers that send at the same moment may each
//! get one more in.

use std::fmt;

use crossbeam_channel::{Receiver, Sender, TrySendError, unbounded};

/// The workers' end. Cloned once for each worker.
pub struct Outbox<T> {
    sender: Sender<T>,
    waiting_max: usize,
}

/// A queue in which `waiting_max` may wait, or as many more as there are other senders.
pub fn outbox<T>(waiting_max: usize) -> (Outbox<T>, Receiver<T>) {
    let (sender, receiver) = unbounded();
    (Outbox { sender, waiting_max }, receiver)
}

impl<T> Outbox<T> {
    /// Sends if there is room and somebody listens. Never waits.
    pub fn try_send(&self, value: T) -> Result<(), TrySendError<T>> {
        if self.sender.len() >= self.waiting_max {
            return Err(TrySendError::Full(value));
        }
        self.sender.try_send(value)
    }
}

impl<T> Clone for Outbox<T> {
    fn clone(&self) -> Self {
        Self { sender: self.sender.clone(), waiting_max: self.waiting_max }
    }
}

impl<T> fmt::Debug for Outbox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbox").field("waiting_max", &self.waiting_max).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_bounded_and_room_comes_back() {
        let (outbox, inbox) = outbox(2);
        let other = outbox.clone();
        assert_eq!(outbox.try_send(1), Ok(()));
        assert_eq!(other.try_send(2), Ok(()));
        assert_eq!(outbox.try_send(3), Err(TrySendError::Full(3)));
        assert_eq!(inbox.try_recv(), Ok(1));
        assert_eq!(other.try_send(4), Ok(()));
        assert_eq!(inbox.try_iter().collect::<Vec<_>>(), [2, 4]);
        drop(inbox);
        assert_eq!(outbox.try_send(5), Err(TrySendError::Disconnected(5)));
    }
}
