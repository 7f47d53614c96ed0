//! The memory of this process, as the kernel counts it.

use std::fs;

use serde_json::{Map, Value};

/// Lines of `/proc/self/status` (proc(5)) with what they are called here, in bytes.
const LINES: [(&str, &str); 7] = [
    ("VmRSS:", "residentBytes"),
    ("VmHWM:", "residentPeakBytes"),
    ("RssAnon:", "privateBytes"),
    ("RssFile:", "mappedFileBytes"),
    ("VmSwap:", "swappedBytes"),
    ("VmLck:", "lockedBytes"),
    ("VmPTE:", "pageTableBytes"),
];

/// Why there is no profile of the heap.
pub(super) const NO_HEAP_PROFILE: &str = "the allocator (mimalloc) keeps no stacks, so there is no profile of the heap.\n\
    /memory shows what the kernel counts.\n";

/// The memory now; what the kernel does not tell is left out.
pub(super) fn memory() -> Value {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    Value::Object(read(&status))
}

fn read(status: &str) -> Map<String, Value> {
    let value = |line: &str| {
        let (name, kibibytes) =
            LINES.iter().find_map(|(start, name)| Some((name, line.strip_prefix(start)?)))?;
        let kibibytes: u64 = kibibytes.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(((*name).to_owned(), kibibytes.saturating_mul(1_024).into()))
    };
    status.lines().filter_map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_lines_become_bytes() {
        let shown = read("Name:\tcorelane\nVmHWM:\t    2048 kB\nVmRSS:\t   1024 kB\nRssAnon:\t x kB\n");
        assert_eq!(
            Value::Object(shown),
            serde_json::json!({ "residentBytes": 1 << 20, "residentPeakBytes": 2 << 20 })
        );
        assert!(memory()["residentBytes"].as_u64().unwrap() > 0);
    }

    #[test]
    fn fuzz_any_text_is_read_without_failing() {
        bolero::check!().with_type::<String>().for_each(|text| assert!(read(text).len() <= LINES.len()));
    }
}
