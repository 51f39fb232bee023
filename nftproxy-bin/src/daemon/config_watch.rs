//! Notices that the configuration file has changed, which is read at start only.
//!
//! As with kube-proxy, a file that is written to or moved away ends the process, so that whoever
//! edits it in place sees the change in force. A file that is replaced by another, as the kubelet
//! replaces those of ConfigMaps, is said once and no more: it would restart all nodes at once.
//! Entry point: [`watch`].

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use notify::event::ModifyKind;
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc::{Receiver, channel};
use tokio::time::sleep;
use tracing::warn;

/// How often it is looked whether another file is in its place.
const LOOK: Duration = Duration::from_secs(10);

/// Watches as long as it is kept.
pub(crate) struct ConfigWatch {
    _watcher: RecommendedWatcher,
    changed: Receiver<()>,
}

impl ConfigWatch {
    /// Returns when the file that was read has been written to or moved away.
    pub(crate) async fn changed(&mut self) {
        if self.changed.recv().await.is_none() {
            std::future::pending().await
        }
    }
}

/// Starts watching a file, on the current runtime.
pub(crate) fn watch(path: &Path) -> anyhow::Result<ConfigWatch> {
    let (sender, changed) = channel(1);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
        if event.is_ok_and(|event| is_update(event.kind)) {
            // One is as good as many.
            let _ = sender.try_send(());
        }
    })
    .context("watching the configuration file")?;
    // The file itself, where the path is a symlink.
    let file = fs::canonicalize(path).with_context(|| format!("resolving {}", path.display()))?;
    watcher
        .watch(&file, RecursiveMode::NonRecursive)
        .with_context(|| format!("watching {}", file.display()))?;
    tokio::spawn(look(path.to_owned(), file));
    Ok(ConfigWatch {
        _watcher: watcher,
        changed,
    })
}

fn is_update(kind: EventKind) -> bool {
    matches!(
        kind,
        EventKind::Modify(ModifyKind::Data(_) | ModifyKind::Name(_))
    )
}

/// Waits until the path leads to other content, and says so.
async fn look(path: PathBuf, file: PathBuf) {
    let read = fs::read(&file).unwrap_or_default();
    loop {
        sleep(LOOK).await;
        if fs::read(&path).is_ok_and(|content| content != read) {
            let file = path.display();
            warn!(%file, "configuration changed on disk; restart required");
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::symlink;

    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_secs(5);
    const A_WHILE: Duration = Duration::from_millis(300);

    /// O-11: a write and a move are changes; a symlink that leads elsewhere is none, nor is what
    /// happens to the file that it led to.
    #[tokio::test]
    async fn only_the_file_that_was_read_counts() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("old"), "a").unwrap();
        fs::write(at("new"), "b").unwrap();
        symlink(at("old"), at("config")).unwrap();

        let mut watch = super::watch(&at("config")).unwrap();
        symlink(at("new"), at("swap")).unwrap();
        fs::rename(at("swap"), at("config")).unwrap();
        fs::write(at("new"), "c").unwrap();
        fs::remove_file(at("old")).unwrap();
        assert!(timeout(A_WHILE, watch.changed()).await.is_err());

        let mut watch = super::watch(&at("config")).unwrap();
        let mut file = fs::OpenOptions::new()
            .append(true)
            .open(at("config"))
            .unwrap();
        file.write_all(b"d").unwrap();
        assert!(timeout(SOON, watch.changed()).await.is_ok());

        let mut watch = super::watch(&at("config")).unwrap();
        fs::rename(at("new"), at("away")).unwrap();
        assert!(timeout(SOON, watch.changed()).await.is_ok());
    }
}
