//! Notices that manifests may have changed.
//!
//! It says where something happened, never what: contents are the business of
//! [`Source`](super::Source). Entry point: [`watch()`].

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use notify::event::{AccessKind, AccessMode};
use notify::{ErrorKind, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc as tick;

use super::walk::walk;

/// Changes come in bursts: a tick waits until nothing more has happened for this long,
const QUIET: Duration = Duration::from_millis(10);
/// but no longer than this.
const BURST: Duration = Duration::from_millis(500);
/// How often to look when nothing happens: network file systems, mounts and renames high up in the
/// path raise no event.
const PATROL: Duration = Duration::from_secs(60);
/// How often to look, and to try again, while the system has no watches left to give.
const RETRY: Duration = Duration::from_secs(1);
/// After so many links in one path the kernel gives up, too (`MAXSYMLINKS`).
const MAX_LINKS: usize = 40;

/// A watch on a folder or file of manifests; ends when dropped.
#[derive(Debug)]
pub(crate) struct Watcher {
    ticks: tick::Receiver<Vec<PathBuf>>,
    signals: mpsc::Sender<Signal>,
}

impl Watcher {
    /// Waits for the next change, and returns what [`Source::rescan`](super::Source::rescan) wants:
    /// the paths touched, or none if anything may have changed. Cancel safe.
    pub(crate) async fn changed(&mut self) -> Option<Vec<PathBuf>> {
        self.ticks.recv().await
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // It fails only if the thread is gone already.
        let _ = self.signals.send(Signal::Stop);
    }
}

/// Starts to watch `root`, which need not exist yet.
///
/// To miss nothing, call this before the first load. Where the system has no watches to give, it
/// looks every second instead.
pub(crate) fn watch(root: &Path) -> Result<Watcher> {
    let root = std::path::absolute(root)
        .with_context(|| format!("making {} an absolute path", root.display()))?;
    let (signals, inbox) = mpsc::channel();
    let (sender, ticks) = tick::channel(1);
    let patroller = Patroller {
        root,
        signals: signals.clone(),
        inbox,
        ticks: sender,
    };
    let armed = patroller.arm(true);
    thread::Builder::new()
        .name("manifest-watch".to_owned())
        .spawn(move || patroller.run(armed))
        .context("starting the thread that watches manifests")?;
    Ok(Watcher { ticks, signals })
}

enum Signal {
    Event(notify::Result<notify::Event>),
    Stop,
}

/// The thread behind a [`Watcher`].
struct Patroller {
    root: PathBuf,
    signals: mpsc::Sender<Signal>,
    inbox: mpsc::Receiver<Signal>,
    ticks: tick::Sender<Vec<PathBuf>>,
}

impl Patroller {
    fn run(self, mut armed: Option<Armed>) {
        while let Some(touched) = self.next_burst(armed.as_ref().map(|armed| &armed.scope)) {
            // inotify watches stick to inodes while manifests are found by name. It is simpler to
            // start over than to follow which name has come to mean which inode. The new watches
            // stand before the old ones go and before the tick, so no change falls in between.
            armed = self.arm(armed.is_some());
            if self.ticks.blocking_send(touched).is_err() {
                return;
            }
        }
    }

    fn arm(&self, warn: bool) -> Option<Armed> {
        let armed = Armed::new(&self.root, &self.signals);
        if let (Err(error), true) = (&armed, warn) {
            let root = self.root.display();
            tracing::warn!(%root, %error, "cannot watch the manifests, looking every second instead");
        }
        armed.ok()
    }

    /// Collects the paths of one burst of events, none if anything may have changed. `None` is the
    /// order to stop.
    fn next_burst(&self, scope: Option<&Scope>) -> Option<Vec<PathBuf>> {
        let mut touched = BTreeSet::new();
        let mut is_anything = false;
        let mut latest = None;
        let mut until = Instant::now() + if scope.is_some() { PATROL } else { RETRY };
        // Past the end of the burst it stops, even with more events waiting.
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            match self.inbox.recv_timeout(left) {
                Ok(Signal::Event(Ok(event))) if !event.need_rescan() => {
                    let is_relevant = |path: &PathBuf| scope.is_some_and(|s| s.contains(path));
                    if !is_change(event.kind) || !event.paths.iter().any(is_relevant) {
                        continue;
                    }
                    touched.extend(event.paths);
                }
                // Events were lost.
                Ok(Signal::Event(_)) => is_anything = true,
                Ok(Signal::Stop) | Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => break,
            }
            let now = Instant::now();
            until = (now + QUIET).min(*latest.get_or_insert(now + BURST));
        }
        if is_anything {
            touched.clear();
        }
        Some(touched.into_iter().collect())
    }
}

/// Reading a file or folder, as a rescan does, is an event too.
fn is_change(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}

/// A set of watches in place.
struct Armed {
    scope: Scope,
    /// Holds the watches until it is dropped.
    _watcher: RecommendedWatcher,
}

impl Armed {
    fn new(root: &Path, signals: &mpsc::Sender<Signal>) -> notify::Result<Self> {
        let signals = signals.clone();
        let mut watcher = notify::recommended_watcher(move |event| {
            // It fails only if nobody is interested any more.
            let _ = signals.send(Signal::Event(event));
        })?;
        let mut settled = BTreeSet::new();
        // A folder may have got another one before it was watched itself, so look until all that is
        // there is watched.
        loop {
            let scope = Scope::of(root);
            let missing: BTreeSet<_> = scope
                .to_watch()
                .filter(|folder| !settled.contains(*folder))
                .collect();
            if missing.is_empty() {
                return Ok(Self {
                    scope,
                    _watcher: watcher,
                });
            }
            for folder in missing {
                match watcher.watch(folder, RecursiveMode::NonRecursive) {
                    Err(error) if matches!(error.kind, ErrorKind::MaxFilesWatch) => {
                        return Err(error);
                    }
                    // It has just gone. The next look will not find it, or find a new one.
                    Err(_) if !folder.exists() => {}
                    // A folder that may not be read cannot be watched either. When that changes,
                    // its parent tells.
                    Ok(()) | Err(_) => {
                        settled.insert(folder.to_owned());
                    }
                }
            }
        }
    }
}

/// Where events count. All paths are free of links, as inotify knows a folder under one name only.
#[derive(Debug, Default)]
struct Scope {
    /// Folders of which every entry counts.
    folders: BTreeSet<PathBuf>,
    /// Single entries of other folders.
    entries: BTreeSet<PathBuf>,
}

impl Scope {
    fn of(root: &Path) -> Self {
        let walk = walk(root);
        let mut scope = Self {
            folders: walk.folders,
            entries: BTreeSet::new(),
        };
        scope.add_entry(root);
        scope.add_links(root);
        for file in walk.files {
            if file.path.is_symlink() {
                scope.add_links(&file.path);
            }
            scope.entries.insert(file.real);
        }
        scope
    }

    /// Counts every link that has to be followed on the way to `path`.
    fn add_links(&mut self, path: &Path) {
        let mut path = path.to_owned();
        for _ in 0..MAX_LINKS {
            let link = path
                .ancestors()
                .filter(|ancestor| ancestor.is_symlink())
                .last();
            let Some((link, parent)) = link.and_then(|link| Some((link, link.parent()?))) else {
                return;
            };
            self.add_entry(link);
            let (Ok(target), Ok(rest)) = (fs::read_link(link), path.strip_prefix(link)) else {
                return;
            };
            let mut followed = parent.join(target);
            followed.extend(rest);
            path = followed;
        }
    }

    /// Counts an entry by its parent or, while that is missing, the ancestor that would have to
    /// appear first.
    fn add_entry(&mut self, path: &Path) {
        for entry in path.ancestors() {
            let parent = entry
                .parent()
                .and_then(|parent| fs::canonicalize(parent).ok());
            if let (Some(parent), Some(name)) = (parent, entry.file_name()) {
                self.entries.insert(parent.join(name));
                return;
            }
        }
    }

    fn to_watch(&self) -> impl Iterator<Item = &Path> {
        let parents = self.entries.iter().filter_map(|entry| entry.parent());
        self.folders.iter().map(PathBuf::as_path).chain(parents)
    }

    fn contains(&self, path: &Path) -> bool {
        let folder = path.parent();
        self.folders.contains(path)
            || self.entries.contains(path)
            || folder.is_some_and(|folder| self.folders.contains(folder))
    }
}

#[cfg(test)]
mod tests {
    use notify::Event;
    use notify::event::{CreateKind, Flag};

    use super::*;

    fn patroller(root: &Path) -> Patroller {
        let (signals, inbox) = mpsc::channel();
        let (ticks, _) = tick::channel(1);
        Patroller {
            root: root.to_owned(),
            signals,
            inbox,
            ticks,
        }
    }

    fn created(path: &str) -> Signal {
        let event = Event::new(EventKind::Create(CreateKind::File));
        Signal::Event(Ok(event.add_path(PathBuf::from(path))))
    }

    #[test]
    fn lost_events_mean_that_anything_may_have_changed() {
        let scope = Scope {
            folders: BTreeSet::from(["/m".into()]),
            ..Scope::default()
        };
        let patroller = patroller(Path::new("/m"));
        let send = |signal| patroller.signals.send(signal).unwrap();

        send(created("/m/a.yaml"));
        send(created("/other/b.yaml"));
        assert_eq!(
            patroller.next_burst(Some(&scope)),
            Some(vec!["/m/a.yaml".into()])
        );

        send(created("/m/a.yaml"));
        send(Signal::Event(Ok(
            Event::new(EventKind::Other).set_flag(Flag::Rescan)
        )));
        assert_eq!(patroller.next_burst(Some(&scope)), Some(vec![]));

        send(Signal::Event(Err(notify::Error::generic("a failed read"))));
        assert_eq!(patroller.next_burst(Some(&scope)), Some(vec![]));

        send(Signal::Stop);
        assert_eq!(patroller.next_burst(Some(&scope)), None);
    }

    #[test]
    fn without_watches_it_looks_every_second() {
        let started = Instant::now();
        assert_eq!(patroller(Path::new("/m")).next_burst(None), Some(vec![]));
        assert!(started.elapsed() >= RETRY);
    }

    #[test]
    fn a_missing_root_is_awaited_where_it_would_appear() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap();
        let scope = Scope::of(&folder.path().join("a/b/c"));
        assert_eq!(scope.to_watch().collect::<Vec<_>>(), [real.as_path()]);
        assert!(scope.contains(&real.join("a")));
        assert!(!scope.contains(&real.join("b")));
    }
}
