//! Following what the control thread publishes: a task that takes each new value from the worker's mailbox.

use std::os::fd::AsFd;
use std::sync::Arc;

use xds::publish::Mailbox;

use super::{BoxError, Worker};
use crate::net::Descriptor;

impl Worker {
    /// Calls `take` with each new value of `mailbox`, on this worker, for as long as the worker lives.
    ///
    /// Values that the worker was too slow to see are skipped; the newest always arrives. `take` should keep the
    /// value in a cell that the data path reads, and let go of the one before: the control thread frees it.
    pub fn follow<T: 'static>(
        &self,
        mailbox: Mailbox<T>,
        take: impl Fn(Arc<T>) + 'static,
    ) -> Result<(), BoxError> {
        // The runtime waits on a duplicate, for the mailbox keeps its own and alone may read from it.
        let bell = Descriptor::new(mailbox.as_fd().try_clone_to_owned()?)?;
        self.spawn(async move {
            loop {
                while let Some(value) = mailbox.take() {
                    take(value);
                }
                if let Err(error) = bell.readable().await {
                    tracing::error!(%error, "the worker no longer follows what is published");
                    return;
                }
            }
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;
    use std::sync::{Arc, Mutex};

    use xds::publish::Publisher;

    use crate::net::testing::on_each_driver;
    use crate::worker::Signal;

    #[test]
    fn the_newest_value_arrives_and_the_old_one_is_given_back() {
        let publisher = Arc::new(Mutex::new(Publisher::new()));
        on_each_driver(move |worker| {
            let publisher = publisher.clone();
            async move {
                let mailbox = publisher.lock().unwrap().subscribe().unwrap();
                let (seen, arrived) = (Rc::new(Cell::new(0)), Rc::new(Signal::default()));
                let (into, ring) = (seen.clone(), arrived.clone());
                let keep = move |value: Arc<u32>| {
                    into.set(*value);
                    ring.raise();
                };
                worker.follow(mailbox, keep).unwrap();
                for round in 1..=3 {
                    let (publisher, value) = (publisher.clone(), Arc::new(round));
                    std::thread::spawn(move || publisher.lock().unwrap().publish(value)).join().unwrap();
                    while seen.get() != round {
                        arrived.wait().await;
                    }
                }
                assert_eq!(publisher.lock().unwrap().reclaim(), 0);
            }
        });
    }
}
