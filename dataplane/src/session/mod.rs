//! The work of a node proxy: connections of its pods, captured, decided, carried.

mod state;

pub use state::{LocalPod, NodeState, PodEvent, TlsContexts};
