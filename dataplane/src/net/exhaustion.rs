//! Running out of descriptors or kernel memory: survived by resting, for others give some back.

use std::cell::Cell;
use std::io;
use std::time::Duration;

use rustix::io::Errno;

/// How long one rests before the next attempt.
pub const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

thread_local! {
    /// Rests of the calling thread that nobody has counted yet.
    static RESTS: Cell<u64> = const { Cell::new(0) };
}

/// Whether the error says that the process or the machine is out of something, rather than that this call is wrong.
pub(super) fn is_exhausted(error: &io::Error) -> bool {
    Errno::from_io_error(error)
        .is_some_and(|errno| matches!(errno, Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM))
}

/// Rests, and has it counted.
pub(super) async fn rest() {
    RESTS.set(RESTS.get() + 1);
    monoio::time::sleep(EXHAUSTED_PAUSE).await;
}

/// How often the calling worker has rested since the last call.
pub fn take_exhaustions() -> u64 {
    RESTS.take()
}
