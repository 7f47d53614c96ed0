//! Tunnels that clients have opened to a worker: how many each address has, and how many have not proved themselves yet.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::IpAddr;

use crate::metrics::Limit;

#[derive(Debug, Default)]
pub(super) struct Arrivals {
    of_client: RefCell<HashMap<IpAddr, usize, foldhash::fast::RandomState>>,
    handshakes: Cell<usize>,
}

impl Arrivals {
    /// Takes a tunnel in, in its handshake; the bound that forbids it otherwise.
    pub(super) fn enter(
        &self,
        client: IpAddr,
        of_client_max: usize,
        handshakes_max: usize,
    ) -> Result<(), Limit> {
        if self.handshakes.get() >= handshakes_max {
            return Err(Limit::Handshakes);
        }
        let mut of_client = self.of_client.borrow_mut();
        let tunnels = of_client.get(&client).copied().unwrap_or(0);
        if tunnels >= of_client_max {
            return Err(Limit::TunnelsOfClient);
        }
        of_client.insert(client, tunnels + 1);
        self.handshakes.set(self.handshakes.get() + 1);
        Ok(())
    }

    /// The handshake of a tunnel is over.
    pub(super) fn settle(&self) {
        self.handshakes.set(self.handshakes.get().saturating_sub(1));
    }

    /// A tunnel whose handshake is over has ended.
    pub(super) fn leave(&self, client: IpAddr) {
        let mut of_client = self.of_client.borrow_mut();
        if let Some(tunnels) = of_client.get_mut(&client) {
            *tunnels -= 1;
            if *tunnels == 0 {
                of_client.remove(&client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_bounds_hold_and_what_leaves_makes_room() {
        let arrivals = Arrivals::default();
        let ip = |number: u8| IpAddr::from([10, 0, 0, number]);
        let enter = |number: u8| arrivals.enter(ip(number), 2, 3);
        assert_eq!([enter(1), enter(1), enter(1)], [Ok(()), Ok(()), Err(Limit::TunnelsOfClient)]);
        assert_eq!([enter(2), enter(3)], [Ok(()), Err(Limit::Handshakes)]);
        arrivals.settle();
        assert_eq!(enter(3), Ok(()));
        arrivals.settle();
        arrivals.leave(ip(1));
        assert_eq!(enter(1), Ok(()));
        for gone in [1, 1, 2, 3] {
            arrivals.leave(ip(gone));
        }
        assert!(arrivals.of_client.borrow().is_empty());
    }
}
