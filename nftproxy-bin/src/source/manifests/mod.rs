//! A file or a folder of Kubernetes manifests as a live source of objects, in place of an API
//! server.
//!
//! ```text
//!  watch ──touched paths──▶ Source::rescan ──▶ Update: changes, problems
//!                             │ walk    which files are there
//!                             │ parse   one file to objects (defaults; mirror: Endpoints to slices)
//!                             └ merge   all files to one set, compared with what was given last
//! ```
//!
//! What is broken or out of reach never takes objects away: a file that cannot be read or parsed
//! keeps its last good contents, and a folder that cannot be listed, the root included, keeps the
//! files it last had. Only what is seen to be gone is deleted. Nothing here knows what the objects
//! are for. Entry points: [`Source::open`] and [`watch()`].

mod defaults;
mod mirror;
mod parse;
mod walk;
mod watch;

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::hash::Hasher;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::api::wire::Recorded;
use parse::{Contents, Entry, Fault, Id, Item, parse};
use walk::{Found, Stamp, walk};
pub(crate) use watch::{Watcher, watch};

/// An object as an API server would hand it out: it has a name, and a namespace if its kind has.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Object {
    Service(Box<Service>),
    EndpointSlice(Box<EndpointSlice>),
    Node(Box<Node>),
    ServiceCidr(Box<ServiceCIDR>),
}

impl Object {
    pub(crate) fn key(&self) -> ObjectKey {
        let kind = match self {
            Self::Service(_) => ObjectKind::Service,
            Self::EndpointSlice(_) => ObjectKind::EndpointSlice,
            Self::Node(_) => ObjectKind::Node,
            Self::ServiceCidr(_) => ObjectKind::ServiceCidr,
        };
        let meta = self.metadata();
        ObjectKey {
            kind,
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        }
    }

    fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::Service(object) => &object.metadata,
            Self::EndpointSlice(object) => &object.metadata,
            Self::Node(object) => &object.metadata,
            Self::ServiceCidr(object) => &object.metadata,
        }
    }
}

/// The kind of an [`Object`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ObjectKind {
    Service,
    EndpointSlice,
    Node,
    ServiceCidr,
}

/// Identifies an object; the namespace is empty for kinds that have none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ObjectKey {
    pub(crate) kind: ObjectKind,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// One step from the last set of objects to the present one.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Change {
    Apply(Object),
    Delete(ObjectKey),
}

/// Something that is wrong with a manifest, or with a folder of them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Problem {
    pub(crate) file: PathBuf,
    pub(crate) line: Option<usize>,
    pub(crate) message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, "{line}:")?;
        }
        write!(f, " {}", self.message)
    }
}

/// What a look at the manifests brought.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Update {
    /// At most one change for each object, ordered by key.
    pub(crate) changes: Vec<Change>,
    /// What has gone wrong since the last look; what is still wrong is not repeated.
    pub(crate) problems: Vec<Problem>,
    /// Files and folders that had a problem and are good again, or gone.
    pub(crate) recovered: Vec<PathBuf>,
}

/// A file or a folder of manifests, with what it last held.
#[derive(Debug)]
pub(crate) struct Source {
    root: PathBuf,
    /// In the order in which they are merged: by name, folder by folder.
    files: BTreeMap<PathBuf, File>,
    unlisted: BTreeMap<PathBuf, String>,
    conflicts: BTreeSet<Problem>,
    given: BTreeMap<ObjectKey, Arc<Object>>,
}

#[derive(Debug, Default)]
struct File {
    stamp: Option<Stamp>,
    /// Of the bytes last read, nothing while they cannot be.
    digest: Option<u64>,
    last_good: Contents,
    /// Whether there is anything in that.
    has_been_good: bool,
    problem: Option<Problem>,
}

impl Source {
    /// Fails if there is nothing at `root`. Reads no manifest yet.
    pub(crate) fn open(root: &Path) -> Result<Self> {
        fs::metadata(root)
            .with_context(|| format!("looking for manifests at {}", root.display()))?;
        Ok(Self {
            root: root.to_owned(),
            files: BTreeMap::new(),
            unlisted: BTreeMap::new(),
            conflicts: BTreeSet::new(),
            given: BTreeMap::new(),
        })
    }

    /// Reads everything. The first time, every object is a change.
    pub(crate) fn load(&mut self) -> Update {
        self.rescan(&[])
    }

    /// Reads the files that were touched or look changed, or all if `touched` is empty, and returns
    /// what is different now.
    pub(crate) fn rescan(&mut self, touched: &[PathBuf]) -> Update {
        let touched: BTreeSet<&Path> = touched.iter().map(PathBuf::as_path).collect();
        let mut update = Update::default();
        let walk = walk(&self.root);

        let mut gone = std::mem::take(&mut self.files);
        for found in walk.files {
            let known = gone.remove(&found.path);
            let looks_same = known.as_ref().is_some_and(|file| file.stamp == found.stamp);
            let is_touched = touched.is_empty()
                || touched.contains(found.path.as_path())
                || touched.contains(found.real.as_path());
            let mut file = known.unwrap_or_default();
            if is_touched || !looks_same {
                file.refresh(&found, &mut update);
            }
            self.files.insert(found.path, file);
        }
        for (path, file) in gone {
            if walk
                .unlisted
                .keys()
                .any(|unlisted| path.starts_with(unlisted))
            {
                self.files.insert(path, file);
            } else if file.problem.is_some() {
                update.recovered.push(path);
            }
        }

        self.report_unlisted(walk.unlisted, &mut update);
        self.merge(&mut update);
        update
    }

    /// Whether each file could be read once, and each folder can be listed: without that, nobody knows
    /// what is missing.
    pub(crate) fn is_complete(&self) -> bool {
        self.unlisted.is_empty() && self.files.values().all(|file| file.has_been_good)
    }

    /// How many objects there are of kinds that a service proxy has no use for.
    pub(crate) fn n_ignored(&self) -> usize {
        self.files
            .values()
            .map(|file| file.last_good.n_ignored)
            .sum()
    }

    fn report_unlisted(&mut self, unlisted: BTreeMap<PathBuf, String>, update: &mut Update) {
        for (path, why) in &unlisted {
            if self.unlisted.get(path) != Some(why) {
                update.problems.push(Problem {
                    file: path.clone(),
                    line: None,
                    message: format!("cannot be listed: {why}"),
                });
            }
        }
        let listed = self
            .unlisted
            .keys()
            .filter(|path| !unlisted.contains_key(*path));
        update.recovered.extend(listed.cloned());
        self.unlisted = unlisted;
    }

    fn merge(&mut self, update: &mut Update) {
        let (winners, conflicts) = winners(&self.files);
        let present = objects(&winners);
        update
            .problems
            .extend(conflicts.difference(&self.conflicts).cloned());
        self.conflicts = conflicts;

        let keys: BTreeSet<_> = self.given.keys().chain(present.keys()).collect();
        for key in keys {
            match (self.given.get(key), present.get(key)) {
                (_, None) => update.changes.push(Change::Delete(key.clone())),
                (Some(old), Some(new)) if Arc::ptr_eq(old, new) || old == new => {}
                (_, Some(new)) => update.changes.push(Change::Apply(Object::clone(new))),
            }
        }
        self.given = present;
    }
}

impl File {
    fn refresh(&mut self, found: &Found, update: &mut Update) {
        self.stamp = found.stamp;
        let bytes = fs::read(&found.path);
        let digest = bytes.as_ref().ok().map(|bytes| digest(bytes));
        if digest.is_some() && digest == self.digest {
            return;
        }
        self.digest = digest;
        match contents(bytes) {
            Ok(contents) => {
                self.last_good = contents;
                self.has_been_good = true;
                if self.problem.take().is_some() {
                    update.recovered.push(found.path.clone());
                }
            }
            Err((line, message)) => {
                let problem = Problem {
                    file: found.path.clone(),
                    line,
                    message,
                };
                // Who edits a broken file wants to hear of it each time; one that cannot be read is
                // tried at every full rescan and has nothing new to say.
                if digest.is_some() || self.problem.as_ref() != Some(&problem) {
                    update.problems.push(problem.clone());
                }
                self.problem = Some(problem);
            }
        }
    }
}

fn contents(bytes: io::Result<Vec<u8>>) -> Result<Contents, (Option<usize>, String)> {
    let bytes = bytes.map_err(|error| (None, format!("cannot be read: {error}")))?;
    if Recorded::is_recorded(&bytes) {
        let recorded = Recorded::read(&bytes).map_err(|error| (None, error.to_string()))?;
        return Ok(Contents::of(recorded_objects(recorded)));
    }
    let text = std::str::from_utf8(&bytes).map_err(|error| {
        let before = &bytes[..error.valid_up_to()];
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        (Some(line), "is not UTF-8 text".to_owned())
    })?;
    parse(text).map_err(|Fault { line, message }| (Some(line), message))
}

/// The objects of a file with these bytes, for fuzzing only.
#[cfg(fuzzing)]
pub(crate) fn objects_in(bytes: &[u8]) -> Vec<Arc<Object>> {
    let contents = contents(Ok(bytes.to_vec())).unwrap_or_default();
    let items = contents.entries.into_iter().map(|entry| entry.item);
    items
        .flat_map(|item| match item {
            parse::Item::Object(object) => vec![object],
            parse::Item::Endpoints(objects) => objects,
        })
        .collect()
}

fn recorded_objects(recorded: Recorded) -> Vec<Object> {
    fn boxed<K>(objects: Vec<K>, of: fn(Box<K>) -> Object) -> Vec<Object> {
        objects
            .into_iter()
            .map(|object| of(Box::new(object)))
            .collect()
    }
    match recorded {
        Recorded::Services(objects) => boxed(objects, Object::Service),
        Recorded::Slices(objects) => boxed(objects, Object::EndpointSlice),
        Recorded::Nodes(objects) => boxed(objects, Object::Node),
        Recorded::ServiceCidrs(objects) => boxed(objects, Object::ServiceCidr),
        Recorded::Others => Vec::new(),
    }
}

fn digest(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// The entry that counts for each object, and where it stands.
type Winners<'a> = BTreeMap<&'a Id, (&'a Path, &'a Entry)>;

/// Of several entries for one object the last counts, in the order of file names and lines.
fn winners(files: &BTreeMap<PathBuf, File>) -> (Winners<'_>, BTreeSet<Problem>) {
    let mut winners = Winners::new();
    let mut conflicts = BTreeSet::new();
    for (path, file) in files {
        for entry in &file.last_good.entries {
            let Some((loser_path, loser)) = winners.insert(&entry.id, (path, entry)) else {
                continue;
            };
            conflicts.insert(Problem {
                file: loser_path.to_owned(),
                line: Some(loser.line),
                message: format!(
                    "{} is overridden by {}:{}",
                    entry.id,
                    path.display(),
                    entry.line
                ),
            });
        }
    }
    (winners, conflicts)
}

/// The objects that the winning entries stand for, with Endpoints mirrored as a cluster would.
fn objects(winners: &Winners<'_>) -> BTreeMap<ObjectKey, Arc<Object>> {
    let mut objects = BTreeMap::new();
    for (_, entry) in winners.values() {
        if let Item::Object(object) = &entry.item
            && !mirrors_any_of(object, winners)
        {
            objects.insert(object.key(), Arc::clone(object));
        }
    }
    for (id, (_, entry)) in winners {
        if let Item::Endpoints(slices) = &entry.item
            && winners
                .get(&id.its_service())
                .is_some_and(|(_, entry)| lacks_selector(entry))
        {
            for slice in slices {
                objects
                    .entry(slice.key())
                    .or_insert_with(|| Arc::clone(slice));
            }
        }
    }
    objects
}

/// Whether a cluster made this slice from an Endpoints that is here too, as in the output of
/// `kubectl get`: then the Endpoints is the one that people edit.
fn mirrors_any_of(object: &Object, winners: &Winners<'_>) -> bool {
    let Object::EndpointSlice(slice) = object else {
        return false;
    };
    let label = |name| slice.metadata.labels.as_ref()?.get(name);
    label(mirror::MANAGED_BY).is_some_and(|manager| manager == mirror::CONTROLLER)
        && label(mirror::SERVICE_NAME).is_some_and(|service| {
            let namespace = slice.metadata.namespace.as_deref();
            winners.contains_key(&Id::endpoints(namespace, service))
        })
}

/// Endpoints of a Service with a selector belong to another controller, which writes slices itself.
fn lacks_selector(entry: &Entry) -> bool {
    let Item::Object(object) = &entry.item else {
        return false;
    };
    let Object::Service(service) = object.as_ref() else {
        return false;
    };
    let selector = service
        .spec
        .as_ref()
        .and_then(|spec| spec.selector.as_ref());
    selector.is_none_or(BTreeMap::is_empty)
}

#[cfg(test)]
mod tests;
