//! What stays resident: a process that is ready lets go of what only its start has needed.
//!
//! Reading the configuration, building contexts and the first state touch code that is not run again, and leave free
//! pages in the allocator. The code's pages are the program file's, read-only and never written to, so letting go of them
//! loses nothing: what is still needed is mapped again when it is touched, without reading the file, which is cached.

#![allow(unsafe_code)] // madvise(2) may drop data, so no safe binding of it exists

use std::ops::Range;

/// Lets go of what is not in use: free pages of the allocator, and all pages of program files. To be called once, by the
/// thread that has done the start's work; costs some hundred page faults.
pub(crate) fn let_go_of_the_start() {
    // SAFETY: no argument is a pointer; it frees only what nobody has allocated.
    unsafe { libmimalloc_sys::mi_collect(true) };
    // Without the list all stays as it is.
    let Ok(mappings) = std::fs::read_to_string("/proc/self/smaps") else { return };
    for range in unwritten(&mappings) {
        // SAFETY: the range is a private mapping of a file that may not be written to, of which the kernel has just said
        // that no page differs from the file. So each page that is dropped comes back with the same content. Nobody
        // makes such a mapping writable: the loader, the only one who does, is done.
        let dropped = unsafe {
            let start = std::ptr::with_exposed_provenance_mut(range.start);
            libc::madvise(start, range.len(), libc::MADV_DONTNEED)
        };
        if dropped != 0 {
            tracing::debug!(error = %std::io::Error::last_os_error(), "pages of a file stay resident");
        }
    }
}

/// The mappings of files, in the words of `/proc/self/smaps`, that are read-only and have no page of the process's own.
fn unwritten(mappings: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut current = None;
    for line in mappings.lines() {
        if let Some(beginning) = Beginning::read(line) {
            current = beginning.is_of_file_and_read_only().then_some(beginning.range);
        } else if line.strip_prefix("Anonymous:").is_some_and(|size| size.trim() == "0 kB") {
            found.extend(current.take());
        }
    }
    found
}

/// The first line of a mapping.
struct Beginning<'a> {
    range: Range<usize>,
    permissions: &'a str,
    inode: &'a str,
}

impl<'a> Beginning<'a> {
    /// `None` for any other line.
    fn read(line: &'a str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let address = |text| usize::from_str_radix(text, 16).ok();
        let range = address(start)?..address(end)?;
        let permissions = words.next()?;
        // Offset and device come before it.
        let inode = words.nth(2)?;
        Some(Self { range, permissions, inode })
    }

    fn is_of_file_and_read_only(&self) -> bool {
        let is_read_only = matches!(self.permissions, "r--p" | "r-xp");
        is_read_only && self.inode != "0"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPPINGS: &str = "\
1000-3000 r-xp 00001000 fd:00 77                         /opt/corelane
Rss:                   8 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
3000-4000 r--p 00003000 fd:00 77                         /opt/corelane
Anonymous:             4 kB
4000-5000 rw-p 00004000 fd:00 77                         /opt/corelane
Anonymous:             0 kB
5000-6000 r--p 00000000 00:00 0                          [vvar]
Anonymous:             0 kB
6000-7000 r--s 00000000 fd:00 78                         /opt/data
Anonymous:             0 kB
7000-9000 r--p 00000000 fd:00 79                         /lib/with a space
Anonymous:             0 kB
";

    #[test]
    fn only_unwritten_pages_of_files_are_let_go() {
        assert_eq!(unwritten(MAPPINGS), [0x1000..0x3000, 0x7000..0x9000]);
        assert!(unwritten("no map at all\n").is_empty());
    }

    #[test]
    fn a_process_goes_on_after_it_has_let_go() {
        static TEXT: &str = "stays as it is";
        let_go_of_the_start();
        let squares: Vec<u64> = (0..1000).map(|number| number * number).collect();
        assert_eq!(squares.iter().sum::<u64>(), 332_833_500);
        assert_eq!(TEXT.len(), 14);
    }
}
