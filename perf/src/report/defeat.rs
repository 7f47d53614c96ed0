//! Where another proxy does better than ours.

use crate::compare::result::{Kind, Layer, Ratio, Report, Topology, Winner};

/// A proxy that does better than one of ours at a work, in these figures.
#[derive(Debug)]
pub(super) struct Defeat<'a> {
    pub(super) work: &'a str,
    pub(super) ours: &'a str,
    pub(super) peer: &'a str,
    /// Whether it reads requests where ours does, and has as many proxies on the way. One that does less says what the
    /// rest costs, and not who does it better.
    pub(super) does_as_much: bool,
    pub(super) ratios: Vec<&'a Ratio>,
}

/// In the order of the report.
pub(super) fn defeats(report: &Report) -> Vec<Defeat<'_>> {
    let of = |name: &str| report.topologies.iter().find(|topology| topology.name == name);
    let mut defeats: Vec<Defeat<'_>> = Vec::new();
    for ratio in report.ratios.iter().filter(|ratio| ratio.winner == Winner::Peer) {
        let (Some(ours), Some(peer)) = (of(&ratio.ours), of(&ratio.peer)) else { continue };
        if !matches!(peer.kind, Kind::Peer | Kind::Custom) {
            continue;
        }
        let (work, ours_named, peer_named) = (&*ratio.work, &*ratio.ours, &*ratio.peer);
        let is_same = |it: &&mut Defeat<'_>| (it.work, it.ours, it.peer) == (work, ours_named, peer_named);
        match defeats.iter_mut().find(is_same) {
            Some(defeat) => defeat.ratios.push(ratio),
            None => defeats.push(Defeat {
                work,
                ours: ours_named,
                peer: peer_named,
                does_as_much: does_as_much(peer, ours),
                ratios: vec![ratio],
            }),
        }
    }
    defeats
}

fn does_as_much(peer: &Topology, ours: &Topology) -> bool {
    (peer.layer == Layer::L7 || ours.layer != Layer::L7) && peer.processes.len() >= ours.processes.len()
}
