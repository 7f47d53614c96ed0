use super::*;
use crate::proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE};

fn cache(directory: &Path) -> Cache {
    Cache::new(directory, "control node-a".into()).unwrap()
}

fn write(cache: &mut Cache) {
    let outcome = cache.job().run();
    cache.written(outcome.is_ok(), Duration::ZERO, Instant::now());
    outcome.unwrap();
}

fn held(cache: &Cache) -> Vec<(String, String)> {
    let loaded = cache.load().unwrap().unwrap();
    loaded.resources.into_iter().map(|it| (it.name, String::from_utf8(it.body).unwrap())).collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(name, body)| ((*name).to_owned(), (*body).to_owned())).collect()
}

#[test]
fn changes_are_merged_into_what_was_written_before() {
    let directory = tempfile::tempdir().unwrap();
    let now = Instant::now();
    let mut one = cache(directory.path());
    assert!(one.load().unwrap().is_none());
    for name in ["b", "d", "f"] {
        one.put(ADDRESS_TYPE, name, "1", b"old", now);
    }
    one.put(AUTHORIZATION_TYPE, "n/p", "", b"policy", now);
    write(&mut one);
    one.put(ADDRESS_TYPE, "a", "2", b"new", now);
    one.put(ADDRESS_TYPE, "d", "2", b"new", now);
    one.remove(ADDRESS_TYPE, "f", now);
    one.remove(ADDRESS_TYPE, "never there", now);
    one.put("type.test/Unknown", "x", "", b"", now);
    write(&mut one);
    let expected = pairs(&[("a", "new"), ("b", "old"), ("d", "new"), ("n/p", "policy")]);
    assert_eq!(held(&one), expected);
    // Another process goes on from there.
    let mut two = cache(directory.path());
    two.load().unwrap();
    two.build_upon();
    two.remove(ADDRESS_TYPE, "a", now);
    write(&mut two);
    assert_eq!(held(&two), expected[1..]);
}

#[test]
fn what_was_not_put_in_force_is_no_base() {
    let directory = tempfile::tempdir().unwrap();
    let mut one = cache(directory.path());
    one.put(ADDRESS_TYPE, "old", "1", b"", Instant::now());
    write(&mut one);
    let mut two = cache(directory.path());
    two.put(ADDRESS_TYPE, "new", "1", b"", Instant::now());
    write(&mut two);
    assert_eq!(held(&two), pairs(&[("new", "")]));
}

#[test]
fn a_file_that_is_damaged_or_of_another_is_refused_with_its_path() {
    let directory = tempfile::tempdir().unwrap();
    let mut one = cache(directory.path());
    one.put(ADDRESS_TYPE, "a", "1", b"body", Instant::now());
    write(&mut one);
    let other = Cache::new(directory.path(), "control node-b".into()).unwrap();
    let error = other.load().unwrap_err();
    assert!(matches!(error, CacheError::Scope { .. }), "{error}");
    let path = directory.path().join(FILE);
    let mut bytes = fs::read(&path).unwrap();
    bytes[40] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let error = one.load().unwrap_err();
    assert!(matches!(error, CacheError::Format { error: FormatError::Digest, .. }));
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
}

#[test]
fn only_its_owner_may_read_it() {
    let directory = tempfile::tempdir().unwrap();
    let mut one = cache(&directory.path().join("state"));
    one.put(ADDRESS_TYPE, "a", "1", b"", Instant::now());
    write(&mut one);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&directory.path().join("state")), 0o700);
    assert_eq!(mode(&directory.path().join("state").join(FILE)), 0o600);
}

#[test]
fn writes_wait_for_more_and_rest_by_what_they_took() {
    let directory = tempfile::tempdir().unwrap();
    let start = Instant::now();
    let mut one = cache(directory.path());
    assert_eq!(one.due(), None);
    one.put(ADDRESS_TYPE, "a", "1", b"", start);
    one.put(ADDRESS_TYPE, "b", "1", b"", start + Duration::from_millis(900));
    assert_eq!(one.due(), Some(start + DEBOUNCE));
    let job = one.job();
    one.put(ADDRESS_TYPE, "c", "1", b"", start);
    assert_eq!(one.due(), None, "one write at a time");
    job.run().unwrap();
    drop(job);
    one.written(true, Duration::from_secs(1), start);
    assert_eq!(one.due(), Some(start + Duration::from_secs(20)));
}

#[test]
fn what_could_not_be_written_is_written_later_unless_it_changed() {
    let directory = tempfile::tempdir().unwrap();
    let start = Instant::now();
    let mut one = cache(directory.path());
    one.put(ADDRESS_TYPE, "a", "1", b"old", start);
    one.put(ADDRESS_TYPE, "b", "1", b"old", start);
    // A directory in the file's place.
    fs::create_dir(directory.path().join(FILE)).unwrap();
    let job = one.job();
    one.put(ADDRESS_TYPE, "a", "2", b"new", start);
    assert!(matches!(job.run(), Err(CacheError::File { .. })));
    drop(job);
    one.written(false, Duration::ZERO, start);
    assert_eq!(one.due(), Some(start + RETRY));
    fs::remove_dir(directory.path().join(FILE)).unwrap();
    write(&mut one);
    assert_eq!(held(&one), pairs(&[("a", "new"), ("b", "old")]));
}
