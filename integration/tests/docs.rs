//! What the documents show is what the program does, and the files for deployment are sound.
//!
//! `BLESS=1` rewrites the listing in `docs/RULESET.md`; nothing here needs privileges.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use integration::daemon::binary;
use nftproxy_core::compile::{Compiled, compile};
use nftproxy_core::k8s;
use nftproxy_core::model::{DetectLocal, Node, NodePortAddresses, State};
use nftproxy_core::render;
use serde_norway::Value;

/// The node and the settings that the listing is for.
const NODE_NAME: &str = "worker-1";
const NODE_IP: &str = "192.0.2.10";
const CLUSTER_CIDR: &str = "10.244.0.0/16";

fn path(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file)
}

fn read(file: &str) -> String {
    fs::read_to_string(path(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn documents(file: &str) -> Vec<Value> {
    read(file)
        .split("\n---\n")
        .map(|document| serde_norway::from_str(document).unwrap())
        .collect()
}

/// The rulesets of the scenario, compiled without the binary.
fn example() -> Compiled {
    example_on(example_node())
}

fn example_node() -> Node {
    Node {
        detect_local: DetectLocal::Cidrs(vec![CLUSTER_CIDR.parse().unwrap()]),
        node_port_addresses_v4: NodePortAddresses::Only([NODE_IP.parse().unwrap()].into()),
        ..Node::default()
    }
}

fn example_on(node: Node) -> Compiled {
    let mut state = State::default();
    let mut problems = Vec::new();
    for object in documents("docs/example.yaml") {
        match object["kind"].as_str().unwrap() {
            "Service" => {
                let object = serde_norway::from_value(object).unwrap();
                state.apply_service(k8s::service(&object, &mut problems).unwrap());
            }
            "EndpointSlice" => {
                let object = serde_norway::from_value(object).unwrap();
                let slice = k8s::endpoint_slice(&object, NODE_NAME, &mut problems);
                state.apply_slice(slice.unwrap());
            }
            "ServiceCIDR" => {
                let object = serde_norway::from_value(object).unwrap();
                state.apply_service_cidr("kubernetes", k8s::service_cidrs(&object, &mut problems));
            }
            "Node" => {}
            other => panic!("{other} has no place in the scenario"),
        }
    }
    assert_eq!(problems, []);
    compile(&state, &node)
}

/// A listing's objects by what they start with, such as `chain services`.
fn objects(listing: &str) -> BTreeMap<String, String> {
    let mut objects = BTreeMap::new();
    let mut open: Option<(String, String)> = None;
    for line in listing.lines() {
        let line = line.strip_prefix('\t').unwrap_or(line);
        if let Some(name) = line.strip_suffix(" {")
            && !name.starts_with("table")
        {
            open = Some((name.to_owned(), String::new()));
        }
        if let Some((_, text)) = &mut open {
            text.push_str(&line.replace('\t', "        "));
            text.push('\n');
        }
        if line == "}" {
            objects.extend(open.take());
        }
    }
    objects
}

/// Replaces the text of each block that opens with "```nft chain services" or the like by that of
/// the objects it names, and takes these out of `objects`.
fn filled(document: &str, objects: &mut BTreeMap<String, String>) -> String {
    let mut out = String::new();
    let mut lines = document.lines();
    while let Some(line) = lines.next() {
        out.push_str(line);
        out.push('\n');
        let Some(names) = line.strip_prefix("```nft ") else {
            continue;
        };
        let texts: Vec<_> = names
            .split(", ")
            .map(|name| {
                objects.remove(name).unwrap_or_else(|| {
                    panic!("the document shows {name}, which is not listed, or not again")
                })
            })
            .collect();
        out.push_str(&texts.join("\n"));
        out.push_str("```\n");
        assert!(lines.any(|line| line == "```"), "{line} is never closed");
    }
    out
}

#[test]
fn the_annotated_listing_is_the_one_of_the_example() {
    let mut objects = objects(&render::listing(&example().v4));
    let document = read("docs/RULESET.md");
    let current = filled(&document, &mut objects);
    assert!(
        objects.is_empty(),
        "docs/RULESET.md does not show {:?}",
        objects.keys()
    );
    if std::env::var_os("BLESS").is_some() {
        fs::write(path("docs/RULESET.md"), current).unwrap();
        return;
    }
    let difference = document
        .lines()
        .zip(current.lines())
        .find(|(document, current)| document != current);
    assert!(
        document == current,
        "docs/RULESET.md is out of date (BLESS=1 rewrites it); first difference: {difference:?}"
    );
}

fn render(arguments: &[&str]) -> Output {
    let manifests = path("docs/example.yaml");
    Command::new(binary().unwrap())
        .args([
            "render",
            "--family",
            "ipv4",
            "--hostname-override",
            NODE_NAME,
        ])
        .args(["--manifests", manifests.to_str().unwrap()])
        .args(arguments)
        .output()
        .unwrap()
}

/// The command in the document prints the ruleset that the document shows.
#[test]
fn the_binary_renders_the_example() {
    let output = render(&["--cluster-cidr", CLUSTER_CIDR]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        render::ruleset(&example().v4)
    );
}

/// The code in the README is the documentation test of the library.
#[test]
fn the_code_in_the_readme_is_tested() {
    let readme = read("README.md");
    let (_, code) = readme.split_once("```rust\n").unwrap();
    let (code, _) = code.split_once("```\n").unwrap();
    let library = read("nftproxy-core/src/lib.rs");
    let tested: String = library
        .lines()
        .filter_map(|line| line.strip_prefix("//!"))
        .map(|line| line.strip_prefix(' ').unwrap_or(line))
        .filter(|line| !line.starts_with("# "))
        .map(|line| format!("{line}\n"))
        .collect();
    assert!(
        tested.contains(code),
        "the README's example differs from the one in nftproxy-core/src/lib.rs"
    );
}

/// The file that a document links to exists.
#[test]
fn links_between_documents_lead_somewhere() {
    let mut documents = vec![
        "README.md".into(),
        "CHANGELOG.md".into(),
        "deploy/README.md".into(),
    ];
    for entry in fs::read_dir(path("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".md") {
            documents.push(format!("docs/{name}"));
        }
    }
    for document in documents {
        for link in read(&document).split("](").skip(1) {
            let target = link.split([')', '#']).next().unwrap();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            let file = path(&document).with_file_name(target);
            assert!(file.exists(), "{document} links to {target}");
        }
    }
}

/// The example configuration is accepted without a warning, and means what the document shows.
#[test]
fn the_example_configuration_is_accepted() {
    let config = documents("deploy/configmap.yaml").remove(0);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.conf");
    fs::write(&file, config["data"]["config.conf"].as_str().unwrap()).unwrap();
    let output = render(&["--config", file.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        render::ruleset(&example().v4)
    );
}

/// What a document shows of an example is the example.
#[test]
fn the_example_in_the_guide_to_embedding_is_the_one_that_is_run() {
    let guide = read("docs/EMBEDDING.md");
    let shown = guide.split("```rust example cni\n").nth(1).unwrap();
    let shown = shown.split("```\n").next().unwrap();
    assert_eq!(shown, read("nftproxy-core/examples/cni.rs"));
    for example in fs::read_dir(path("nftproxy-core/examples")).unwrap() {
        let name = example.unwrap().file_name().into_string().unwrap();
        let name = name.trim_end_matches(".rs");
        assert!(guide.contains(name), "{name} is not in the guide");
    }
}

/// The listing without a mark, object by object; and nothing is missing of what it is about.
#[test]
fn the_listing_without_a_mark_is_the_one_of_the_example() {
    let document = read("docs/RULESET.md");
    let section = document.split("## Without a mark\n").nth(1).unwrap();
    let shown = section.split("```text\n").nth(1).unwrap();
    let shown = shown.split("```\n").next().unwrap();
    let listing = render::listing(
        &example_on(Node {
            masquerade_mark: None,
            ..example_node()
        })
        .v4,
    );
    let flat = |text: &str| -> Vec<String> {
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        words
            .split("} ")
            .map(|object| object.trim_end_matches(" }").to_owned())
            .collect()
    };
    let listed = flat(&listing);
    for object in flat(shown) {
        assert!(listed.contains(&object), "{object}\nis not in\n{listing}");
    }
    assert!(!listing.contains("mark "), "{listing}");
    for object in objects(&listing)
        .keys()
        .filter(|name| name.contains("masquerad"))
    {
        assert!(
            shown.contains(&format!("{object} {{")),
            "{object} is not shown"
        );
    }
}
