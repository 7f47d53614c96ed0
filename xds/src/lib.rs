//! The control plane protocol: from bytes of delta xDS to the snapshot that the workers read.
//!
//! The way of a resource: [`transport`] receives it, [`delta`] acknowledges it, [`decode`] reads it, [`store`] keeps it,
//! and the [`snapshot`] made of it is handed to the workers by [`publish`]. [`ca`] keeps the certificates, [`replay`] feeds
//! captured streams through the same parts,
//! [`cache`] keeps the last state on disk, [`local`] reads state that was written by hand. The other side of the wire is [`control`], fed by [`kube`]; [`envoy`] reads what istiod tells a waypoint; [`ext_authz`] is the
//! language of external authorizers; `issuer` fetches the keys of those who issue tokens; [`proto`] holds
//! the messages that both speak.

pub mod ca;
pub mod cache;
pub mod control;
pub mod decode;
pub mod delta;
pub mod envoy;
pub mod ext_authz;
mod issuer;
pub mod kube;
pub mod local;
pub mod proto;
pub mod publish;
pub mod replay;
pub mod snapshot;
pub mod store;
pub mod transport;
