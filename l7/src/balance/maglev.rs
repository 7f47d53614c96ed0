//! Maglev hashing: members take places of a table in turn, each in an order of its own.
//! <https://research.google/pubs/maglev-a-fast-and-reliable-software-network-load-balancer/>, section 3.4.

use super::table::Member;
use super::xxh64;

const FREE: u32 = u32::MAX;

struct Candidate {
    offset: u64,
    skip: u64,
    weight: u64,
    next: u64,
    /// The next turn is taken when the count of rounds has come so far.
    due: u64,
}

/// The table: `size`, a prime number, of members, each of which has places in proportion to its weight.
pub(super) fn places(members: &[Member], size: u32) -> Vec<u32> {
    let modulus = u64::from(size);
    let heaviest = members.iter().map(|member| u64::from(member.weight)).max().unwrap_or_default();
    if heaviest == 0 || size < 2 {
        return if heaviest == 0 { Vec::new() } else { vec![0; size as usize] };
    }
    let candidate = |member: &Member| Candidate {
        offset: xxh64(member.name.as_bytes(), 0) % modulus,
        skip: xxh64(member.name.as_bytes(), 1) % (modulus - 1) + 1,
        // So that even one of no weight to speak of has its turn in time.
        weight: u64::from(member.weight).max(heaviest / 256),
        next: 0,
        due: 0,
    };
    let mut candidates: Vec<Candidate> = members.iter().map(candidate).collect();
    let mut table = vec![FREE; size as usize];
    let mut free = table.len();
    for round in 1_u64.. {
        for (index, candidate) in (0_u32..).zip(&mut candidates) {
            if round * candidate.weight < candidate.due {
                continue;
            }
            candidate.due += heaviest;
            // The order of a member goes through all places, for their number is prime: a free one is found.
            for _ in 0..size {
                let place = (candidate.offset + candidate.next * candidate.skip) % modulus;
                candidate.next += 1;
                let place = usize::try_from(place).ok().and_then(|place| table.get_mut(place));
                if let Some(place) = place.filter(|place| **place == FREE) {
                    *place = index;
                    free -= 1;
                    break;
                }
            }
            if free == 0 {
                return table;
            }
        }
    }
    table
}
