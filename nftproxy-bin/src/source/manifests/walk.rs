//! Which files of a folder are manifests, and which folders that depends on.
//!
//! Reads names and metadata only, never contents. Entry point: [`walk()`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What was found at and below one path.
#[derive(Debug, Default)]
pub(super) struct Walk {
    /// In the order of their paths.
    pub(super) files: Vec<Found>,
    /// The folders looked into, links resolved.
    pub(super) folders: BTreeSet<PathBuf>,
    /// Paths about which nothing is known, and why; they may hold files all the same.
    pub(super) unlisted: BTreeMap<PathBuf, String>,
}

/// One manifest file.
#[derive(Debug)]
pub(super) struct Found {
    /// The path that leads to it from the root.
    pub(super) path: PathBuf,
    /// The same with links resolved, where inotify sees it change.
    pub(super) real: PathBuf,
    /// Nothing for a link to nowhere.
    pub(super) stamp: Option<Stamp>,
}

/// Tells two states of a file apart without reading it, unless they lie within one tick of the file
/// system's clock.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Stamp {
    device_and_inode: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device_and_inode: (metadata.dev(), metadata.ino()),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Finds `root` itself if it is a file, or else all manifests below it, links followed.
///
/// Hidden entries are left out: they are editors' temporary files, or the versions behind the links
/// of a ConfigMap volume.
pub(super) fn walk(root: &Path) -> Walk {
    let mut walk = Walk::default();
    match fs::metadata(root) {
        Ok(metadata) if metadata.is_dir() => walk.folder(root, &mut Vec::new()),
        Ok(metadata) => walk.file(root.to_owned(), Some(&metadata)),
        Err(error) => walk.not_listed(root, &error),
    }
    walk
}

impl Walk {
    fn folder(&mut self, folder: &Path, above: &mut Vec<PathBuf>) {
        let real = match fs::canonicalize(folder) {
            Ok(real) if above.contains(&real) => {
                let looped = "links back to a folder above it".to_owned();
                self.unlisted.insert(folder.to_owned(), looped);
                return;
            }
            Ok(real) => real,
            Err(error) => return self.not_listed(folder, &error),
        };
        self.folders.insert(real.clone());
        above.push(real);
        match entries(folder) {
            Ok(entries) => entries
                .into_iter()
                .for_each(|entry| self.entry(entry, above)),
            Err(error) => self.not_listed(folder, &error),
        }
        above.pop();
    }

    fn entry(&mut self, path: PathBuf, above: &mut Vec<PathBuf>) {
        if is_hidden(&path) {
            return;
        }
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => self.folder(&path, above),
            // Opening a fifo would block.
            Ok(metadata) if metadata.is_file() && is_manifest(&path) => {
                self.file(path, Some(&metadata));
            }
            Ok(_) => {}
            // Reading it will tell why it cannot be read.
            Err(_) if is_manifest(&path) && path.is_symlink() => self.file(path, None),
            // It has just been removed, or is a link to nowhere of no interest.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => self.not_listed(&path, &error),
        }
    }

    fn file(&mut self, path: PathBuf, metadata: Option<&Metadata>) {
        let real = fs::canonicalize(&path).unwrap_or_else(|_| path.clone());
        self.files.push(Found {
            path,
            real,
            stamp: metadata.map(Stamp::of),
        });
    }

    fn not_listed(&mut self, path: &Path, error: &io::Error) {
        self.unlisted.insert(path.to_owned(), error.to_string());
    }
}

/// Sorted, so that problems are told in the same order each time.
fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder)?.map(|entry| Ok(entry?.path()));
    let mut paths = entries.collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

fn is_hidden(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

fn is_manifest(path: &Path) -> bool {
    path.extension().is_some_and(|extension| {
        ["yaml", "yml", "json"]
            .iter()
            .any(|known| extension == *known)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn found(root: &Path) -> Vec<String> {
        let files = walk(root).files.into_iter();
        files
            .map(|found| found.path.strip_prefix(root).unwrap().display().to_string())
            .collect()
    }

    #[test]
    fn only_visible_manifests_count() {
        let folder = tempfile::tempdir().unwrap();
        for name in [
            "a.yaml",
            "b.yml",
            "c.json",
            "d.txt",
            ".e.yaml",
            "f.yaml~",
            "noextension",
        ] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        fs::create_dir_all(folder.path().join("sub.yaml/.git")).unwrap();
        fs::write(folder.path().join("sub.yaml/g.yaml"), "").unwrap();
        fs::write(folder.path().join("sub.yaml/.git/h.yaml"), "").unwrap();
        let _socket = UnixListener::bind(folder.path().join("socket.yaml")).unwrap();
        assert_eq!(
            found(folder.path()),
            ["a.yaml", "b.yml", "c.json", "sub.yaml/g.yaml"]
        );
    }

    #[test]
    fn links_are_followed_but_not_in_circles() {
        let folder = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        fs::write(elsewhere.path().join("real"), "").unwrap();
        fs::write(elsewhere.path().join("x.yaml"), "").unwrap();
        symlink(elsewhere.path().join("real"), folder.path().join("a.yaml")).unwrap();
        symlink(elsewhere.path(), folder.path().join("sub")).unwrap();
        symlink(folder.path(), folder.path().join("loop")).unwrap();
        symlink("nowhere", folder.path().join("z.yaml")).unwrap();
        assert_eq!(found(folder.path()), ["a.yaml", "sub/x.yaml", "z.yaml"]);
        let walk = walk(folder.path());
        assert_eq!(
            walk.unlisted.keys().collect::<Vec<_>>(),
            [&folder.path().join("loop")]
        );
        let nowhere = walk
            .files
            .iter()
            .find(|found| found.stamp.is_none())
            .unwrap();
        assert!(nowhere.path.ends_with("z.yaml"));
    }
}
