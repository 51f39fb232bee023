//! What the proxy sets on its host: sizes and timeouts of connection tracking, and its own place in
//! the order of who is killed when memory runs out. Nothing else is touched.
//!
//! Each value is read first, and written only if it differs. Entry points: [`set_conntrack`] and
//! [`set_oom_score_adj`].

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::{debug, info, warn};

use crate::config::ConntrackSettings;

/// What so many cores ask for is no more than this; a larger `min` counts all the same.
const MAX_BY_CORES: u64 = 1024 * 1024;
/// Entries per bucket of the hash table.
const ENTRIES_PER_BUCKET: u64 = 4;

/// A value that cannot be set.
#[derive(Debug, thiserror::Error)]
#[error("could not set conntrack parameters: {} to {value}", .path.display())]
pub(crate) struct Unset {
    path: PathBuf,
    value: u64,
    source: io::Error,
}

impl Unset {
    /// Whether it is this container that may not write, and the value may be right for others.
    fn is_read_only(&self) -> bool {
        matches!(
            self.source.kind(),
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied
        )
    }
}

/// Sets connection tracking up. Where `/proc` may not be written, that is said and left to somebody
/// who may, unless `is_strict`.
///
/// # Errors
///
/// If a value is refused for another reason, or, if `is_strict`, for any.
pub(crate) fn set_conntrack(settings: &ConntrackSettings, is_strict: bool) -> Result<(), Unset> {
    Host::default().set_conntrack(settings, is_strict)
}

/// Sets this process's score. Lowering it takes a capability, and doing without is no harm.
pub(crate) fn set_oom_score_adj(score: i32) {
    let path = "/proc/self/oom_score_adj";
    if fs::read_to_string(path).is_ok_and(|text| text.trim() == score.to_string()) {
        return;
    }
    if let Err(error) = fs::write(path, score.to_string()) {
        debug!(%error, score, "Failed to set OOMScoreAdj");
    }
}

/// Where the kernel's files are.
struct Host {
    sysctls: PathBuf,
    hash_size: PathBuf,
    online: PathBuf,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            sysctls: "/proc/sys/net/netfilter".into(),
            hash_size: "/sys/module/nf_conntrack/parameters/hashsize".into(),
            online: "/sys/devices/system/cpu/online".into(),
        }
    }
}

impl Host {
    fn set_conntrack(&self, settings: &ConntrackSettings, is_strict: bool) -> Result<(), Unset> {
        let judge = |result: Result<(), Unset>| match result {
            Err(unset) if unset.is_read_only() && !is_strict => {
                let error = &unset.source;
                warn!(%error, "{unset}: left to whoever may; see the init container in deploy/");
                Ok(false)
            }
            result => result.map(|()| true),
        };
        if let Some(max) = self.max(settings) {
            let path = self.sysctls.join("nf_conntrack_max");
            let is_set = judge(set(&path, max, || {
                info!(nfConntrackMax = max, "Setting nf_conntrack_max");
            }))?;
            let buckets = max / ENTRIES_PER_BUCKET;
            if is_set && read(&self.hash_size).is_none_or(|size| size < buckets) {
                judge(set(&self.hash_size, buckets, || {
                    info!(hashsize = buckets, "Setting conntrack hashsize");
                }))?;
            }
        }
        let seconds = |timeout: Option<Duration>| timeout.map(|timeout| timeout.as_secs());
        for (name, value) in [
            (
                "tcp_timeout_established",
                seconds(settings.tcp_established_timeout),
            ),
            (
                "tcp_timeout_close_wait",
                seconds(settings.tcp_close_wait_timeout),
            ),
            ("udp_timeout", seconds(settings.udp_timeout)),
            ("udp_timeout_stream", seconds(settings.udp_stream_timeout)),
            ("tcp_be_liberal", settings.tcp_be_liberal.then_some(1)),
        ] {
            let Some(value) = value else { continue };
            let name = format!("nf_conntrack_{name}");
            judge(set(&self.sysctls.join(&name), value, || {
                let entry = format!("net/netfilter/{name}");
                info!(entry, value, "Set sysctl");
            }))?;
        }
        Ok(())
    }

    /// How many connections the table is to hold; `None` leaves it as it is.
    fn max(&self, settings: &ConntrackSettings) -> Option<u64> {
        if settings.max_per_core == 0 {
            return None;
        }
        let by_cores = u64::from(settings.max_per_core) * self.n_cores();
        Some(by_cores.min(MAX_BY_CORES).max(settings.min.into()))
    }

    /// The machine's cores, whatever share of them this container may use.
    fn n_cores(&self) -> u64 {
        let online = fs::read_to_string(&self.online).unwrap_or_default();
        let ranges = online.trim().split(',').filter_map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
            last.checked_sub(first).map(|more| more + 1)
        });
        ranges.sum::<u64>().max(1)
    }
}

fn read(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Writes a value that is not there already; `say` comes before.
fn set(path: &Path, value: u64, say: impl FnOnce()) -> Result<(), Unset> {
    if read(path) == Some(value) {
        return Ok(());
    }
    say();
    // Opened for writing alone: a file that does not exist is not to be made.
    let opened = fs::OpenOptions::new().write(true).open(path);
    let written = opened.and_then(|mut file| {
        use std::io::Write;
        file.write_all(value.to_string().as_bytes())
    });
    written.map_err(|source| Unset {
        path: path.to_owned(),
        value,
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixture {
        host: Host,
        _folder: tempfile::TempDir,
    }

    fn fixture(files: &[(&str, &str)]) -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let host = Host {
            sysctls: folder.path().to_owned(),
            hash_size: folder.path().join("hashsize"),
            online: folder.path().join("online"),
        };
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        Fixture {
            host,
            _folder: folder,
        }
    }

    impl Fixture {
        fn get(&self, name: &str) -> String {
            fs::read_to_string(self.host.sysctls.join(name)).unwrap()
        }
    }

    fn settings() -> ConntrackSettings {
        ConntrackSettings {
            max_per_core: 0,
            min: 0,
            tcp_established_timeout: None,
            tcp_close_wait_timeout: None,
            udp_timeout: None,
            udp_stream_timeout: None,
            tcp_be_liberal: false,
        }
    }

    /// O-79, O-80: so many per core of the machine, no less than `min`, which beats the cap (D).
    #[test]
    fn the_table_follows_the_cores() {
        for (online, max_per_core, min, expected) in [
            ("0-7\n", 32768, 131_072, Some(262_144)),
            ("0", 32768, 131_072, Some(131_072)),
            ("0-1,4,6-7", 100_000, 0, Some(500_000)),
            ("0-127", 32768, 131_072, Some(1_048_576)),
            ("0-127", 32768, 2_000_000, Some(2_000_000)),
            ("nonsense", 32768, 0, Some(32768)),
            ("0-7", 0, 131_072, None),
        ] {
            let fixture = fixture(&[("online", online)]);
            let settings = ConntrackSettings {
                max_per_core,
                min,
                ..settings()
            };
            assert_eq!(fixture.host.max(&settings), expected, "{online:?}");
        }
    }

    /// O-79: buckets only grow.
    #[test]
    fn buckets_follow_the_table() {
        for (before, after) in [("1024", "32768"), ("65536", "65536")] {
            let fixture = fixture(&[
                ("online", "0-3"),
                ("nf_conntrack_max", "1"),
                ("hashsize", before),
            ]);
            let settings = ConntrackSettings {
                max_per_core: 32768,
                ..settings()
            };
            fixture.host.set_conntrack(&settings, true).unwrap();
            assert_eq!(fixture.get("nf_conntrack_max"), "131072");
            assert_eq!(fixture.get("hashsize"), after);
        }
    }

    /// O-51, O-52, O-53: what is not asked for stays as it is.
    #[test]
    fn timeouts_are_whole_seconds_and_the_rest_stays() {
        let names = [
            "nf_conntrack_tcp_timeout_established",
            "nf_conntrack_tcp_timeout_close_wait",
            "nf_conntrack_udp_timeout",
            "nf_conntrack_udp_timeout_stream",
            "nf_conntrack_tcp_be_liberal",
        ];
        let fixture = fixture(&names.map(|name| (name, "7")));
        fixture.host.set_conntrack(&settings(), true).unwrap();
        assert!(names.iter().all(|name| fixture.get(name) == "7"));
        let settings = ConntrackSettings {
            tcp_established_timeout: Some(Duration::from_millis(3_600_900)),
            udp_stream_timeout: Some(Duration::from_secs(90)),
            tcp_be_liberal: true,
            ..settings()
        };
        fixture.host.set_conntrack(&settings, true).unwrap();
        assert_eq!(
            names.map(|name| fixture.get(name)),
            ["3600", "7", "7", "90", "1"]
        );
    }

    /// O-82: what is set already is not written, and a value that cannot be is named.
    #[test]
    fn a_value_that_is_there_is_not_written() {
        let settings = ConntrackSettings {
            udp_timeout: Some(Duration::from_secs(60)),
            ..settings()
        };
        let fixture = fixture(&[("nf_conntrack_udp_timeout", "60\n")]);
        fixture.host.set_conntrack(&settings, true).unwrap();
        assert_eq!(fixture.get("nf_conntrack_udp_timeout"), "60\n");
        fs::remove_file(fixture.host.sysctls.join("nf_conntrack_udp_timeout")).unwrap();
        let unset = fixture.host.set_conntrack(&settings, false).unwrap_err();
        let message = unset.to_string();
        assert!(
            message.starts_with("could not set conntrack parameters: "),
            "{message}"
        );
        assert!(
            message.ends_with("nf_conntrack_udp_timeout to 60"),
            "{message}"
        );
    }

    /// O-82: an unprivileged container goes on; the one whose task it is does not.
    #[test]
    fn a_read_only_file_is_somebody_elses_task() {
        let unset = |kind: io::ErrorKind| Unset {
            path: "/proc/sys/a".into(),
            value: 1,
            source: kind.into(),
        };
        assert!(unset(io::ErrorKind::ReadOnlyFilesystem).is_read_only());
        assert!(unset(io::ErrorKind::PermissionDenied).is_read_only());
        assert!(!unset(io::ErrorKind::InvalidInput).is_read_only());
    }
}
