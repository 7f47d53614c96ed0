use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::ir::{HashOn, HashTable, Header};

#[test]
fn hashes_are_those_of_the_specification() {
    for (text, hash) in [
        ("", 0xef46_db37_51d8_e999),
        ("a", 0xd24e_c4f1_a98c_6e5b),
        ("abc", 0x44bc_2cf5_ad77_0999),
        ("Nobody inspects the spammish repetition", 0xfbce_a83c_8a37_8bf1),
    ] {
        assert_eq!(xxh64(text.as_bytes(), 0), hash, "{text}");
    }
}

fn members(weights: &[u32]) -> Vec<Member> {
    let weights = weights.iter().enumerate();
    weights.map(|(index, weight)| Member { name: format!("pod-{index}").into(), weight: *weight }).collect()
}

const KINDS: [HashTable; 2] = [HashTable::Ring(1024), HashTable::Maglev(65_537)];

/// Which member each of many hashes belongs to, by name.
fn owners(table: &Table, is_open: impl Fn(&str) -> bool) -> Vec<Arc<str>> {
    let name = |index: usize| Arc::clone(&table.members()[index].name);
    let hashes = (0_u64..20_000).map(|n| xxh64(&n.to_le_bytes(), 7));
    hashes.map(|hash| name(table.find(hash, |index| is_open(&name(index))).unwrap())).collect()
}

fn counts(owners: &[Arc<str>]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for owner in owners {
        *counts.entry(&**owner).or_default() += 1;
    }
    counts
}

#[test]
fn shares_follow_weights() {
    for kind in KINDS {
        let owners = owners(&Table::new(kind, members(&[1, 1, 2])), |_| true);
        for (name, count) in counts(&owners) {
            let wanted = if name == "pod-2" { 10_000 } else { 5_000 };
            assert!(count.abs_diff(wanted) < wanted / 4, "{kind:?} {name}: {count}");
        }
    }
    // The circle has as many places as the lightest needs.
    assert_eq!(Table::new(HashTable::Ring(1024), members(&[1, 1])).len(), 1024);
    assert!(Table::new(HashTable::Ring(4), members(&[1, 100])).len() >= 101);
    assert_eq!(Table::new(HashTable::Maglev(13), members(&[1, 1])).len(), 13);
}

#[test]
fn only_the_share_of_a_leaving_member_moves() {
    for kind in KINDS {
        let all = members(&[1; 10]);
        let before = owners(&Table::new(kind, all.clone()), |_| true);
        // Left out for a while: nobody else's hashes move.
        let skipped = owners(&Table::new(kind, all.clone()), |name| name != "pod-3");
        for (before, after) in before.iter().zip(&skipped) {
            assert!(&**before == "pod-3" || before == after, "{kind:?}: {before} went to {after}");
            assert_ne!(&**after, "pod-3");
        }
        assert!(counts(&skipped).len() == 9);
        // Gone: a Maglev table moves a few more (section 3.4 of its paper), a ring as many as its size rounds to.
        let mut rest = all;
        rest.remove(3);
        let gone = owners(&Table::new(kind, rest), |_| true);
        let moved =
            before.iter().zip(&gone).filter(|(before, after)| &***before != "pod-3" && before != after);
        let moved = moved.count();
        assert!(moved < 20_000 / 10, "{kind:?}: {moved} of 20000 moved without need");
    }
}

#[test]
fn whoever_is_open_is_found_and_always_the_same() {
    for kind in KINDS {
        let table = Table::new(kind, members(&[1; 50]));
        let two = owners(&table, |name| ["pod-7", "pod-41"].contains(&name));
        assert_eq!(two, owners(&table, |name| ["pod-7", "pod-41"].contains(&name)));
        for (name, count) in counts(&two) {
            assert!((6_000..14_000).contains(&count), "{kind:?} {name}: {count}");
        }
        assert_eq!(table.find(1, |_| false), None);
        let empty = Table::new(kind, Vec::new());
        assert!(empty.is_empty() && empty.find(1, |_| true).is_none());
    }
}

#[test]
fn a_table_is_bounded_whatever_is_asked_for() {
    let most = usize::try_from(PLACES_MAX).unwrap();
    assert!(Table::new(HashTable::Ring(u32::MAX), members(&[1, u32::MAX])).len() <= most + 2);
    assert_eq!(Table::new(HashTable::Maglev(u32::MAX), members(&[1])).len(), most);
    assert_eq!(Table::new(HashTable::Maglev(1), members(&[1])).len(), 1);
    assert_eq!(Table::new(HashTable::Maglev(0), members(&[1])).find(9, |_| true), Some(0));
}

#[test]
fn turns_go_round_evenly_by_weight() {
    for seed in [0, 1, 77, u64::MAX] {
        let mut turns = Turns::begin(seed);
        let weights = [2, 1, 0, 4];
        let mut counts = [0; 4];
        let mut last_heavy = 0;
        for turn in 0..7 * 30 {
            let weight = |index: usize| weights.get(index).copied().filter(|weight| *weight > 0);
            let next = turns.next(4, 4, weight).unwrap();
            counts[next] += 1;
            if next == 3 {
                assert!(turn - last_heavy <= 4, "its turns are spread");
                last_heavy = turn;
            }
        }
        assert_eq!(counts, [60, 30, 0, 120], "seed {seed}");
        assert_eq!(turns.next(4, 4, |_| None), None);
        assert_eq!(turns.next(0, 4, |_| Some(1)), None);
        // Fewer than before.
        assert_eq!(turns.next(1, 4, |_| Some(4)), Some(0));
    }
}

fn source<'a>(headers: &'a [Header<'a>], query: Option<&'a str>) -> HashSource<'a> {
    HashSource { headers, query, client: "::ffff:10.0.0.1".parse().unwrap() }
}

fn line<'a>(name: &'a str, value: &'a str) -> Header<'a> {
    Header { name, value: value.as_bytes() }
}

#[test]
fn requests_are_hashed_by_what_they_have() {
    let header = [HashOn::Header("x-user".into())];
    let of = |headers: &[Header<'_>]| hash_key(&header, source(headers, None), 1);
    assert_eq!(of(&[line("X-User", "ann")]).hash, Some(xxh64(b"ann", 0)));
    assert_eq!(of(&[]), HashKey::default());
    let (ab, ba) = ([line("x-user", "a"), line("x-user", "b")], [line("x-user", "b"), line("x-user", "a")]);
    assert_eq!(of(&ab), of(&ba));
    assert_ne!(of(&ab).hash, of(&ab[..1]).hash);

    let query = [HashOn::QueryParameter("u".into())];
    let of = |query_text| hash_key(&query, source(&[], query_text), 1).hash;
    assert_eq!(of(Some("a=1&u=7&u=8")), Some(xxh64(b"7", 0)));
    assert_eq!((of(Some("uu=7")), of(None)), (None, None));

    let ip = hash_key(&[HashOn::SourceIp], source(&[], None), 1).hash;
    assert_eq!(ip, Some(xxh64(b"10.0.0.1", 0)), "an address is hashed alike in both of its forms");
    let both = [HashOn::SourceIp, HashOn::Header("x-user".into())];
    assert_eq!(hash_key(&both, source(&[], None), 1).hash, ip, "what is missing is passed over");
    assert_ne!(hash_key(&both, source(&[line("x-user", "a")], None), 1).hash, ip);
}

#[test]
fn a_cookie_is_made_where_there_is_none() {
    let on = |lifetime_s| [HashOn::Cookie { name: "user".into(), path: "/p".into(), lifetime_s }];
    let without = hash_key(&on(None), source(&[], None), 0xab);
    assert_eq!(without, HashKey::default());
    let made = hash_key(&on(Some(60)), source(&[line("cookie", "a=b; users=1")], None), 0xab);
    let cookie = made.cookie.unwrap();
    assert_eq!(&*cookie.name, "set-cookie");
    assert_eq!(&*cookie.value, "user=\"00000000000000ab\"; Max-Age=60; Path=/p; HttpOnly");
    let session = hash_key(&on(Some(0)), source(&[], None), 0xab).cookie.unwrap();
    assert_eq!(&*session.value, "user=\"00000000000000ab\"; Path=/p; HttpOnly");
    // What comes back is hashed as what was sent, quoted or not.
    for sent in ["user=\"00000000000000ab\"", "a=b; user=00000000000000ab;c=d"] {
        let back = hash_key(&on(Some(60)), source(&[line("Cookie", sent)], None), 1);
        assert_eq!((back.hash, back.cookie), (made.hash, None), "{sent}");
    }
}
