//! Ring hash (ketama): each member stands at places of a circle, in proportion to its weight; a hash belongs to the next
//! place. A member that leaves takes only its own places with it.

use std::fmt::Write as _;

use super::table::{Member, PLACES_MAX};
use super::xxh64;

/// The places in their order, at least `least` of them: as many more as the lightest member needs for a whole one.
pub(super) fn places(members: &[Member], least: u32) -> Vec<(u64, u32)> {
    let sum: f64 = members.iter().map(|member| f64::from(member.weight)).sum();
    let Some(lightest) = members.iter().map(|member| member.weight).min().filter(|lightest| *lightest > 0)
    else {
        return Vec::new();
    };
    let share = f64::from(lightest) / sum;
    let scale = ((share * f64::from(least)).ceil() / share).min(f64::from(PLACES_MAX));
    let mut ring = Vec::new();
    let (mut made, mut wanted) = (0.0, 0.0);
    let mut text = String::new();
    for (index, member) in (0_u32..).zip(members) {
        wanted += scale * f64::from(member.weight) / sum;
        let mut own = 0_u32;
        while made < wanted {
            text.clear();
            let _ = write!(text, "{}_{own}", member.name);
            ring.push((xxh64(text.as_bytes(), 0), index));
            own += 1;
            made += 1.0;
        }
    }
    ring.sort_unstable();
    ring
}
