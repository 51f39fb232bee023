//! A folder that changes, and what the source and the watcher make of it.

use std::os::unix::fs::symlink;
use std::time::Duration;

use tempfile::TempDir;

use super::*;

/// A folder of manifests with its source.
struct Lab {
    folder: TempDir,
    source: Source,
}

impl Lab {
    fn new(files: &[(&str, String)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let source = Source::open(folder.path()).unwrap();
        Self { folder, source }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<str>) {
        fs::write(self.path(name), text.as_ref()).unwrap();
    }

    /// A rescan in which nothing is known to be touched, so that only stamps tell.
    fn rescan(&mut self) -> Update {
        self.source.rescan(&[PathBuf::from("/elsewhere")])
    }
}

fn service(name: &str, port: u16) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: {port}}}]}}\n"
    )
}

fn endpoints(name: &str, address: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Endpoints\nmetadata: {{name: {name}}}\n\
        subsets: [{{addresses: [{{ip: {address}}}], ports: [{{port: 80}}]}}]\n"
    )
}

fn slice(name: &str, service: &str, manager: &str) -> String {
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\nendpoints: []\n\
        metadata: {{name: {name}, labels: {{kubernetes.io/service-name: {service}, \
        endpointslice.kubernetes.io/managed-by: {manager}}}}}\n"
    )
}

/// Changes in short: `+web:80`, `+slice`, `-web`.
fn changes(update: &Update) -> Vec<String> {
    let in_short = |change: &Change| match change {
        Change::Apply(Object::Service(service)) => {
            let port = service.spec.as_ref().unwrap().ports.as_ref().unwrap()[0].port;
            format!("+{}:{port}", service.metadata.name.as_deref().unwrap())
        }
        Change::Apply(object) => format!("+{}", object.key().name),
        Change::Delete(key) => format!("-{}", key.name),
    };
    update.changes.iter().map(in_short).collect()
}

fn problems(update: &Update) -> Vec<String> {
    update.problems.iter().map(Problem::to_string).collect()
}

#[test]
fn the_first_load_gives_everything_and_the_next_nothing() {
    let mut lab = Lab::new(&[("b.yaml", service("b", 1)), ("a.yaml", service("a", 2))]);
    lab.write("c.yaml", "apiVersion: v1\nkind: Pod\n");
    assert_eq!(changes(&lab.source.load()), ["+a:2", "+b:1"]);
    assert_eq!(lab.source.n_ignored(), 1);
    assert_eq!(lab.source.load(), Update::default());
    assert_eq!(lab.rescan(), Update::default());
}

/// What is left out would change what is served.
#[test]
fn other_versions_of_what_is_read_are_no_others_objects() {
    let slice =
        "apiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice\nmetadata: {name: a-1}\n";
    let list = "apiVersion: v1\nkind: List\nitems: [{apiVersion: v2, kind: Service, metadata: {name: a}}]\n";
    let nested =
        "apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: ServiceList, items: []}]\n";
    let foreign = "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: a}\n";
    let mut lab = Lab::new(&[
        ("a.yaml", slice.into()),
        ("b.yaml", list.into()),
        ("c.yaml", foreign.into()),
        ("d.yaml", nested.into()),
    ]);
    let told = problems(&lab.source.load()).join("\n");
    for problem in [
        "EndpointSlice a-1: apiVersion discovery.k8s.io/v1beta1 is not one that can be read",
        "Service a: apiVersion v2 is not one that can be read",
        "a ServiceList inside a list cannot be read",
    ] {
        assert!(told.contains(problem), "{told}");
    }
    assert!(!told.contains("c.yaml"), "{told}");
}

#[test]
fn only_differences_are_given() {
    let mut lab = Lab::new(&[("a.yaml", service("a", 1) + &service("b", 1))]);
    lab.source.load();
    lab.write("a.yaml", service("b", 22) + &service("c", 1));
    assert_eq!(changes(&lab.rescan()), ["-a", "+b:22", "+c:1"]);
    fs::remove_file(lab.path("a.yaml")).unwrap();
    assert_eq!(changes(&lab.rescan()), ["-b", "-c"]);
}

#[test]
fn a_touched_file_is_read_even_if_its_stamp_is_unchanged() {
    let mut lab = Lab::new(&[("a.yaml", service("a", 1)), ("b.yaml", service("b", 1))]);
    lab.source.load();
    // As if both had been written within one tick of the file system's clock.
    for name in ["a.yaml", "b.yaml"] {
        let text = fs::read_to_string(lab.path(name)).unwrap();
        lab.write(name, text.replace("port: 1", "port: 2"));
        let metadata = walk(&lab.path(name)).files[0].stamp;
        lab.source
            .files
            .get_mut(&lab.folder.path().join(name))
            .unwrap()
            .stamp = metadata;
    }
    assert_eq!(lab.rescan(), Update::default());
    let touched = lab.path("b.yaml");
    assert_eq!(changes(&lab.source.rescan(&[touched])), ["+b:2"]);
    assert_eq!(changes(&lab.source.rescan(&[])), ["+a:2"]);
}

#[test]
fn a_broken_file_keeps_its_objects_until_it_is_good_again() {
    let mut lab = Lab::new(&[("a.yaml", service("a", 1)), ("b.yaml", service("b", 1))]);
    lab.source.load();
    let broken = service("a", 2) + &service("c", 1).replace("port: 1", "port: x");
    lab.write("a.yaml", &broken);
    lab.write("b.yaml", service("b", 2));
    let update = lab.rescan();
    assert_eq!(changes(&update), ["+b:2"]);
    let path = lab.path("a.yaml");
    let why = "Service default/c: spec.ports[0].port: invalid type: string \"x\", expected i32";
    assert_eq!(problems(&update), [format!("{}:10: {why}", path.display())]);
    assert_eq!(
        lab.source.load(),
        Update::default(),
        "a problem is told once"
    );

    lab.write("a.yaml", broken + "# still broken\n");
    assert_eq!(problems(&lab.rescan()).len(), 1, "once for each change");

    lab.write("a.yaml", service("a", 3));
    let update = lab.rescan();
    assert_eq!(changes(&update), ["+a:3"]);
    assert_eq!(
        (update.problems, update.recovered),
        (vec![], vec![path.clone()])
    );

    lab.write("a.yaml", "}");
    lab.rescan();
    fs::remove_file(&path).unwrap();
    let update = lab.rescan();
    assert_eq!(
        (changes(&update), update.recovered),
        (vec!["-a".to_owned()], vec![path])
    );
}

#[test]
fn what_cannot_be_read_is_told_once() {
    let mut lab = Lab::new(&[("a.yaml", service("a", 1))]);
    lab.source.load();
    fs::write(lab.path("a.yaml"), b"a: 1\n\xff").unwrap();
    symlink("nowhere", lab.path("b.yaml")).unwrap();
    let update = lab.rescan();
    assert_eq!(update.changes, []);
    assert_eq!(
        problems(&update),
        [
            format!("{}:2: is not UTF-8 text", lab.path("a.yaml").display()),
            format!(
                "{}: cannot be read: No such file or directory (os error 2)",
                lab.path("b.yaml").display()
            ),
        ]
    );
    assert_eq!(lab.source.load(), Update::default());
    fs::write(lab.path("nowhere"), service("b", 1)).unwrap();
    let update = lab.rescan();
    assert_eq!(
        (changes(&update), update.recovered),
        (vec!["+b:1".to_owned()], vec![lab.path("b.yaml")])
    );
}

#[test]
fn the_last_file_wins_and_the_other_comes_back() {
    let mut lab = Lab::new(&[("b.yaml", service("web", 2)), ("a.yaml", service("web", 1))]);
    let update = lab.source.load();
    assert_eq!(changes(&update), ["+web:2"]);
    let (a, b) = (lab.path("a.yaml"), lab.path("b.yaml"));
    let overridden = format!(
        "{}:2: Service default/web is overridden by {}:2",
        a.display(),
        b.display()
    );
    assert_eq!(problems(&update), [overridden]);

    lab.write("a.yaml", service("web", 10));
    assert_eq!(
        lab.rescan(),
        Update::default(),
        "the loser may change unheard"
    );
    fs::remove_file(&b).unwrap();
    assert_eq!(changes(&lab.rescan()), ["+web:10"]);

    lab.write("a.yaml", service("web", 10) + &service("web", 11));
    let update = lab.rescan();
    assert_eq!(changes(&update), ["+web:11"]);
    assert_eq!(update.problems.len(), 1, "also within one file");
}

#[test]
fn subfolders_come_and_go() {
    let mut lab = Lab::new(&[]);
    assert_eq!(lab.source.load(), Update::default());
    fs::create_dir_all(lab.path("x/y")).unwrap();
    lab.write("x/y/a.yaml", service("a", 1));
    assert_eq!(changes(&lab.rescan()), ["+a:1"]);
    fs::rename(lab.path("x"), lab.path("z")).unwrap();
    assert_eq!(
        lab.rescan(),
        Update::default(),
        "the object is the same in its new place"
    );
    fs::remove_dir_all(lab.path("z")).unwrap();
    assert_eq!(changes(&lab.rescan()), ["-a"]);
}

#[test]
fn a_root_that_vanishes_takes_nothing_with_it() {
    for root in ["folder", "folder/a.yaml"] {
        let lab = tempfile::tempdir().unwrap();
        let folder = lab.path().join("folder");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("a.yaml"), service("a", 1)).unwrap();
        let root = lab.path().join(root);
        let mut source = Source::open(&root).unwrap();
        assert_eq!(changes(&source.load()), ["+a:1"]);

        fs::rename(&folder, lab.path().join("away")).unwrap();
        let update = source.load();
        assert_eq!(update.changes, []);
        assert!(
            problems(&update)[0].contains("cannot be listed: No such file"),
            "{update:?}"
        );
        assert_eq!(source.load(), Update::default());

        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("a.yaml"), service("a", 2)).unwrap();
        let update = source.load();
        assert_eq!(
            (changes(&update), update.recovered),
            (vec!["+a:2".to_owned()], vec![root])
        );
    }
    let error = Source::open(Path::new("/nowhere/at/all")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "looking for manifests at /nowhere/at/all"
    );
}

#[test]
fn endpoints_are_mirrored_for_services_without_a_selector_only() {
    let mut lab = Lab::new(&[("ep.yaml", endpoints("db", "192.0.2.1"))]);
    assert_eq!(changes(&lab.source.load()), [""; 0], "there is no Service");
    lab.write("svc.yaml", service("db", 80));
    assert_eq!(changes(&lab.rescan()), ["+db:80", "+db-ipv4-0"]);
    lab.write(
        "svc.yaml",
        service("db", 80).replace("spec: {", "spec: {selector: {a: b}, "),
    );
    assert_eq!(changes(&lab.rescan()), ["+db:80", "-db-ipv4-0"]);
    lab.write("svc.yaml", service("db", 80));
    lab.rescan();
    lab.write("ep.yaml", endpoints("db", "'2001:db8::1'"));
    assert_eq!(changes(&lab.rescan()), ["-db-ipv4-0", "+db-ipv6-0"]);
}

#[test]
fn a_recorded_mirror_gives_way_to_its_endpoints() {
    let controller = mirror::CONTROLLER;
    let recorded = slice("db-x7k", "db", controller) + &slice("db-own", "db", "me");
    let mut lab = Lab::new(&[("a.yaml", service("db", 80) + &recorded)]);
    assert_eq!(
        changes(&lab.source.load()),
        ["+db:80", "+db-own", "+db-x7k"]
    );
    lab.write("b.yaml", endpoints("db", "192.0.2.1"));
    assert_eq!(changes(&lab.rescan()), ["+db-ipv4-0", "-db-x7k"]);
}

/// What the controller of a real cluster made of the same Endpoints.
#[test]
fn a_mirror_equals_the_recorded_one() {
    let root = env!("CARGO_MANIFEST_DIR");
    let recorded = format!("{root}/../integration/fixtures/cluster-small/all.yaml");
    let recorded = fs::read_to_string(recorded).unwrap();
    let lab = Lab::new(&[("all.yaml", recorded)]);
    let one_slice = |mut source: Source| {
        let update = source.load();
        assert_eq!(problems(&update), [""; 0]);
        let mut slices = update
            .changes
            .into_iter()
            .filter_map(|change| match change {
                Change::Apply(Object::EndpointSlice(slice))
                    if slice
                        .metadata
                        .name
                        .as_deref()?
                        .starts_with("external-postgres-") =>
                {
                    Some(slice)
                }
                _ => None,
            });
        let slice = slices.next().unwrap();
        assert_eq!(slices.next(), None);
        slice
    };
    let theirs = one_slice(lab.source);
    fs::write(
        lab.folder.path().join("endpoints.yaml"),
        "{apiVersion: v1, kind: Endpoints, metadata: {name: external-postgres, namespace: data}, \
        subsets: [{addresses: [{ip: 192.0.2.51}, {ip: 192.0.2.50}], \
        ports: [{name: pg, port: 5432}]}]}",
    )
    .unwrap();
    let ours = one_slice(Source::open(lab.folder.path()).unwrap());
    assert_eq!(
        ours.metadata.name.as_deref(),
        Some("external-postgres-ipv4-0")
    );
    assert_eq!(ours.endpoints, theirs.endpoints);
    assert_eq!(ours.ports, theirs.ports);
    assert_eq!(ours.address_type, theirs.address_type);
    assert_eq!(ours.metadata.labels, theirs.metadata.labels);
}

/// Fills a version of a ConfigMap volume and switches to it, as the kubelet does.
fn publish(volume: &Path, version: &str, files: &[(&str, String)]) {
    fs::create_dir(volume.join(version)).unwrap();
    for (name, text) in files {
        fs::write(volume.join(version).join(name), text).unwrap();
    }
    symlink(version, volume.join("..data_tmp")).unwrap();
    fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
    for (name, _) in files {
        // It may be there from the last version.
        let _ = symlink(format!("..data/{name}"), volume.join(name));
    }
}

#[test]
fn a_config_map_volume_is_read_through_its_links() {
    let mut lab = Lab::new(&[]);
    publish(lab.folder.path(), "..v1", &[("a.yaml", service("a", 1))]);
    assert_eq!(changes(&lab.source.load()), ["+a:1"]);
    publish(
        lab.folder.path(),
        "..v2",
        &[("a.yaml", service("a", 2)), ("b.yaml", service("b", 1))],
    );
    assert_eq!(changes(&lab.rescan()), ["+a:2", "+b:1"]);
}

/// A source fed by a watcher.
struct Live {
    watcher: Watcher,
    source: Source,
}

impl Live {
    fn new(root: &Path) -> Self {
        let watcher = watch(root).unwrap();
        let mut source = Source::open(root).unwrap();
        source.load();
        Self { watcher, source }
    }

    /// Follows ticks until one brings changes.
    async fn next_changes(&mut self) -> Vec<String> {
        loop {
            let tick = tokio::time::timeout(Duration::from_secs(5), self.watcher.changed());
            let touched = tick.await.expect("no tick within 5 s").unwrap();
            let update = self.source.rescan(&touched);
            if !update.changes.is_empty() {
                return changes(&update);
            }
        }
    }

    async fn is_quiet(&mut self) -> bool {
        // Ticks that were on their way already may still come in.
        while let Ok(Some(touched)) =
            tokio::time::timeout(Duration::from_millis(100), self.watcher.changed()).await
        {
            self.source.rescan(&touched);
        }
        self.source.load();
        tokio::time::timeout(Duration::from_millis(200), self.watcher.changed())
            .await
            .is_err()
    }
}

#[tokio::test]
async fn writes_renames_and_removals_are_noticed() {
    let lab = Lab::new(&[("a.yaml", service("a", 1))]);
    let mut live = Live::new(lab.folder.path());
    lab.write("a.yaml", service("a", 2));
    assert_eq!(live.next_changes().await, ["+a:2"]);
    lab.write("b.yaml", service("b", 1));
    assert_eq!(live.next_changes().await, ["+b:1"]);
    lab.write(".new", service("b", 3));
    fs::rename(lab.path(".new"), lab.path("b.yaml")).unwrap();
    assert_eq!(live.next_changes().await, ["+b:3"]);
    fs::remove_file(lab.path("a.yaml")).unwrap();
    assert_eq!(live.next_changes().await, ["-a"]);
    assert!(live.is_quiet().await, "a rescan must not cause a tick");
}

#[tokio::test]
async fn new_subfolders_are_watched() {
    let lab = Lab::new(&[]);
    let mut live = Live::new(lab.folder.path());
    fs::create_dir_all(lab.path("x/y")).unwrap();
    lab.write("x/y/a.yaml", service("a", 1));
    assert_eq!(live.next_changes().await, ["+a:1"]);
    lab.write("x/y/a.yaml", service("a", 2));
    assert_eq!(live.next_changes().await, ["+a:2"]);
    fs::rename(lab.path("x/y"), lab.path("z")).unwrap();
    lab.write("z/b.yaml", service("b", 1));
    assert_eq!(live.next_changes().await, ["+b:1"]);
    fs::remove_dir_all(lab.path("z")).unwrap();
    assert_eq!(live.next_changes().await, ["-a", "-b"]);
}

#[tokio::test]
async fn config_map_switches_and_linked_files_are_noticed() {
    let lab = Lab::new(&[]);
    publish(lab.folder.path(), "..v1", &[("a.yaml", service("a", 1))]);
    let elsewhere = tempfile::tempdir().unwrap();
    fs::write(elsewhere.path().join("real"), service("b", 1)).unwrap();
    symlink(elsewhere.path().join("real"), lab.path("b.yaml")).unwrap();
    let mut live = Live::new(lab.folder.path());
    publish(lab.folder.path(), "..v2", &[("a.yaml", service("a", 2))]);
    assert_eq!(live.next_changes().await, ["+a:2"]);
    fs::write(elsewhere.path().join("real"), service("b", 2)).unwrap();
    assert_eq!(live.next_changes().await, ["+b:2"]);
    fs::write(elsewhere.path().join("other"), "").unwrap();
    assert!(
        live.is_quiet().await,
        "the other files there are none of ours"
    );
}

#[tokio::test]
async fn every_link_to_a_file_counts() {
    let volume = tempfile::tempdir().unwrap();
    publish(volume.path(), "..v1", &[("a.yaml", service("a", 1))]);
    let lab = Lab::new(&[]);
    symlink(volume.path().join("a.yaml"), lab.path("linked.yaml")).unwrap();
    let mut folder = Live::new(lab.folder.path());
    let mut file = Live::new(&volume.path().join("a.yaml"));
    publish(volume.path(), "..v2", &[("a.yaml", service("a", 2))]);
    assert_eq!(folder.next_changes().await, ["+a:2"]);
    assert_eq!(file.next_changes().await, ["+a:2"]);
}

#[tokio::test]
async fn a_single_file_may_be_replaced() {
    let lab = Lab::new(&[("a.yaml", service("a", 1))]);
    let mut live = Live::new(&lab.path("a.yaml"));
    for port in 2..4 {
        lab.write("new", service("a", port));
        fs::rename(lab.path("new"), lab.path("a.yaml")).unwrap();
        assert_eq!(live.next_changes().await, [format!("+a:{port}")]);
    }
    lab.write("other.yaml", service("b", 1));
    assert!(live.is_quiet().await, "its neighbours are none of ours");
}

#[tokio::test]
async fn the_folder_may_vanish_and_come_back() {
    let lab = Lab::new(&[]);
    let root = lab.path("deep/root");
    fs::create_dir_all(&root).unwrap();
    fs::write(root.join("a.yaml"), service("a", 1)).unwrap();
    let mut live = Live::new(&root);
    for port in 2..4 {
        fs::remove_dir_all(lab.path("deep")).unwrap();
        // Its problem is told while it is away.
        let touched = live.watcher.changed().await.unwrap();
        assert_eq!(live.source.rescan(&touched).changes, []);
        fs::create_dir_all(&root).unwrap();
        fs::write(root.join("a.yaml"), service("a", port)).unwrap();
        assert_eq!(live.next_changes().await, [format!("+a:{port}")]);
    }
}

#[tokio::test]
async fn a_link_above_the_root_may_be_switched() {
    let lab = Lab::new(&[]);
    for (version, port) in [("v1", 1), ("v2", 2)] {
        fs::create_dir_all(lab.path(version).join("manifests")).unwrap();
        lab.write(&format!("{version}/manifests/a.yaml"), service("a", port));
    }
    symlink("v1", lab.path("current")).unwrap();
    let mut live = Live::new(&lab.path("current/manifests"));
    symlink("v2", lab.path("next")).unwrap();
    fs::rename(lab.path("next"), lab.path("current")).unwrap();
    assert_eq!(live.next_changes().await, ["+a:2"]);
}

#[tokio::test]
async fn bursts_make_few_ticks() {
    let lab = Lab::new(&[("a.yaml", String::new())]);
    let mut watcher = watch(lab.folder.path()).unwrap();
    for port in 0..200 {
        lab.write("a.yaml", service("a", port));
    }
    let mut n_ticks = 0;
    while tokio::time::timeout(Duration::from_millis(300), watcher.changed())
        .await
        .is_ok()
    {
        n_ticks += 1;
    }
    assert!((1..=3).contains(&n_ticks), "{n_ticks} ticks");
}
