//! What it costs to look for flows.
//!
//! Whatever the kernel is asked for, it goes through all buckets of its table and all entries; what
//! it hands over costs several times as much as what it passes by.

use std::fs;

/// What it costs to pass an empty bucket by. Only the ratios matter; `make bench` has what they were
/// taken from: 16 ns, 180 ns and 1.1 µs on the machine of docs/PERFORMANCE.md.
const BUCKET: u64 = 1;
/// What it costs to pass an entry by.
const ENTRY: u64 = 12;
/// What it costs beyond that to have an entry handed over, and to read it.
const HANDED_OVER: u64 = 70;
/// What the kernel makes its table of, on a machine with more than 4 GiB.
const USUAL_BUCKETS: u64 = 262_144;

/// How large connection tracking is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    buckets: u64,
    entries: u64,
}

impl Size {
    /// With so many entries in this network namespace. The buckets are those of all.
    pub(super) fn new(entries: u32) -> Self {
        let path = "/proc/sys/net/netfilter/nf_conntrack_buckets";
        let buckets = fs::read_to_string(path).ok();
        let buckets = buckets.and_then(|text| text.trim().parse().ok());
        Self {
            buckets: buckets.unwrap_or(USUAL_BUCKETS),
            entries: entries.into(),
        }
    }

    /// Whether to have all UDP entries handed over once, rather than to ask for so many
    /// destinations one by one. How many entries are of UDP is not known; it is taken as all.
    pub(super) fn is_one_walk_cheaper(self, n_destinations: usize) -> bool {
        let Self { buckets, entries } = self;
        let walk = buckets * BUCKET + entries * ENTRY;
        let saved = walk.saturating_mul((n_destinations as u64).saturating_sub(1));
        entries * HANDED_OVER < saved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_walk_pays_early_with_few_entries_and_late_with_many() {
        let first_that_pays = |entries| {
            let buckets = USUAL_BUCKETS;
            let size = Size { buckets, entries };
            (1..100).find(|n| size.is_one_walk_cheaper(*n))
        };
        assert_eq!(first_that_pays(0), Some(2));
        assert_eq!(first_that_pays(5_000), Some(3));
        assert_eq!(first_that_pays(100_000), Some(6));
        assert_eq!(first_that_pays(500_000), Some(7));
        let size = Size {
            buckets: u64::from(u32::MAX),
            entries: u64::from(u32::MAX),
        };
        assert!(size.is_one_walk_cheaper(usize::MAX), "nothing overflows");
    }
}
