//! Texts in, entries or one fault out.

use super::*;

fn ids(text: &str) -> Vec<String> {
    let contents = parse(text).unwrap();
    contents
        .entries
        .iter()
        .map(|entry| entry.id.to_string())
        .collect()
}

fn fault(text: &str) -> (usize, String) {
    let Fault { line, message } = parse(text).unwrap_err();
    (line, message)
}

fn fixture(name: &str) -> Contents {
    let root = env!("CARGO_MANIFEST_DIR");
    let path = format!("{root}/../integration/fixtures/cluster-small/{name}");
    parse(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn counts(contents: &Contents) -> [usize; 4] {
    let n = |kind| {
        contents
            .entries
            .iter()
            .filter(|entry| entry.id.kind == kind)
            .count()
    };
    [
        n(Kind::Service),
        n(Kind::EndpointSlice),
        n(Kind::Node),
        n(Kind::ServiceCidr),
    ]
}

const WEB: &str = "\
apiVersion: v1
kind: Service
metadata:
  name: web
spec:
  clusterIP: 10.96.0.7
  ports:
  - port: 80
";

#[test]
fn a_recorded_cluster_reads_the_same_as_yaml_and_as_json() {
    let all = fixture("all.yaml");
    assert_eq!(counts(&all), [17, 19, 3, 1]);
    assert_eq!(all.n_ignored, 0);
    assert_eq!(counts(&fixture("after.yaml")), [16, 18, 3, 1]);

    let names = |contents: &Contents, kind| -> Vec<Id> {
        let of_kind = contents
            .entries
            .iter()
            .filter(|entry| entry.id.kind == kind);
        let mut ids: Vec<Id> = of_kind.map(|entry| entry.id.clone()).collect();
        ids.sort();
        ids
    };
    // These are ServiceList and the like, whose items do not say what they are.
    for (file, kind) in [
        ("services.json", Kind::Service),
        ("endpointslices.json", Kind::EndpointSlice),
        ("nodes.json", Kind::Node),
        ("servicecidrs.json", Kind::ServiceCidr),
    ] {
        assert_eq!(names(&fixture(file), kind), names(&all, kind), "{file}");
    }
}

#[test]
fn documents_know_their_lines() {
    let text = format!(
        "# a comment\n%YAML 1.2\n---\n\n{WEB}---  # next\n---\nnull\n...\n--- {{apiVersion: v1, kind: Node, metadata: {{name: n}}}}\n"
    );
    let contents = parse(&text).unwrap();
    let lines: Vec<_> = contents
        .entries
        .iter()
        .map(|entry| (entry.id.to_string(), entry.line))
        .collect();
    assert_eq!(
        lines,
        [
            ("Service default/web".to_owned(), 5),
            ("Node n".to_owned(), 17)
        ]
    );
}

#[test]
fn nothing_is_nothing() {
    for text in [
        "",
        "\n",
        "---\n",
        "---",
        "# only words\n",
        "\u{feff}",
        "null\n",
    ] {
        assert_eq!(parse(text).unwrap(), Contents::default(), "{text:?}");
    }
}

#[test]
fn a_marker_needs_a_line_of_its_own() {
    assert_eq!(ids(&format!("{WEB}---x: 1\n")).len(), 1, "this is a key");
    assert_eq!(ids(&WEB.replace("80", "80 # ---")), ["Service default/web"]);
    assert_eq!(
        ids(&format!("{WEB}---\r\n{}", WEB.replace("web", "api"))).len(),
        2
    );
}

#[test]
fn json_objects_may_follow_each_other() {
    let json = |name: &str| {
        format!(
            "\n{{\"apiVersion\":\"v1\",\n\t\"kind\":\"Node\",\"metadata\":{{\"name\":\"{name}\"}}}}"
        )
    };
    let contents = parse(&format!("{}{}\n---\n{}", json("a"), json("b"), json("c"))).unwrap();
    let lines: Vec<_> = contents
        .entries
        .iter()
        .map(|entry| (entry.id.to_string(), entry.line))
        .collect();
    let expected = [("Node a", 2), ("Node b", 4), ("Node c", 8)];
    assert_eq!(lines, expected.map(|(id, line)| (id.to_owned(), line)));
}

#[test]
fn an_opening_brace_may_also_be_yaml() {
    let flow = "{apiVersion: v1, kind: Node, metadata: {name: n}}\n";
    assert_eq!(
        ids(&format!("{WEB}---\n{flow}")),
        ["Service default/web", "Node n"]
    );
    let (line, message) = fault("{\"kind\": \"Node\"\n\"apiVersion\": \"v1\"}\n");
    assert_eq!(
        (line, message.as_str()),
        (2, "expected `,` or `}`"),
        "what is neither is JSON"
    );
}

#[test]
fn other_kinds_are_counted() {
    let other = "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: x}\n";
    let list = "apiVersion: v1\nkind: PodList\nitems: [{metadata: {name: a}}, {}]\n";
    let contents = parse(&format!("{other}---\n{WEB}---\n{list}")).unwrap();
    assert_eq!(contents.entries.len(), 1);
    assert_eq!(contents.n_ignored, 3);
}

#[test]
fn lists_may_be_mixed_or_empty() {
    let text = "
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Pod, metadata: {name: p}}
- {apiVersion: v1, kind: Node, metadata: {name: n}}
- {apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, endpoints: [], metadata: {name: s, namespace: a}}
";
    assert_eq!(ids(text), ["Node n", "EndpointSlice a/s"]);
    for items in ["", "items: null\n", "items: []\n"] {
        assert_eq!(
            ids(&format!("apiVersion: v1\nkind: ServiceList\n{items}")),
            [""; 0]
        );
    }
}

#[test]
fn omissions_are_filled_in_as_the_api_server_does() {
    let contents = parse(WEB).unwrap();
    let Item::Object(object) = &contents.entries[0].item else {
        panic!("{contents:?}")
    };
    let Object::Service(service) = object.as_ref() else {
        panic!("{object:?}")
    };
    assert_eq!(service.metadata.namespace.as_deref(), Some("default"));
    let spec = service.spec.as_ref().unwrap();
    assert_eq!(spec.session_affinity.as_deref(), Some("None"));
    assert_eq!(spec.cluster_ips, Some(vec!["10.96.0.7".to_owned()]));
    assert_eq!(
        spec.ports.as_ref().unwrap()[0].protocol.as_deref(),
        Some("TCP")
    );
    assert_eq!(spec.ports.as_ref().unwrap()[0].port, 80);
}

#[test]
fn what_is_given_is_kept() {
    let text = WEB
        .replace("name: web", "name: web\n  namespace: shop")
        .replace("port: 80", "port: 80\n    protocol: UDP")
        .replace("spec:\n", "spec:\n  sessionAffinity: ClientIP\n");
    let contents = parse(&text).unwrap();
    assert_eq!(contents.entries[0].id.to_string(), "Service shop/web");
    let Item::Object(object) = &contents.entries[0].item else {
        panic!("{contents:?}")
    };
    let Object::Service(service) = object.as_ref() else {
        panic!("{object:?}")
    };
    let spec = service.spec.as_ref().unwrap();
    assert_eq!(spec.session_affinity.as_deref(), Some("ClientIP"));
    assert_eq!(
        spec.ports.as_ref().unwrap()[0].protocol.as_deref(),
        Some("UDP")
    );
}

#[test]
fn merge_keys_are_resolved() {
    let text = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  ports:
  - &http {name: a, port: 80, protocol: UDP}
  - {<<: *http, name: b}
";
    let contents = parse(&text.replace("{<<:", "{ <<:")).unwrap();
    let Item::Object(object) = &contents.entries[0].item else {
        panic!("{contents:?}")
    };
    let Object::Service(service) = object.as_ref() else {
        panic!("{object:?}")
    };
    let port = &service.spec.as_ref().unwrap().ports.as_ref().unwrap()[1];
    assert_eq!((port.port, port.protocol.as_deref()), (80, Some("UDP")));
    assert_eq!(port.name.as_deref(), Some("b"));
}

#[test]
fn a_wrong_field_is_named_with_its_line() {
    let (line, message) = fault(&format!("{WEB}---\n{}", WEB.replace("80", "http")));
    assert_eq!(line, 17);
    assert_eq!(
        message,
        "Service default/web: spec.ports[0].port: invalid type: string \"http\", expected i32"
    );
}

#[test]
fn a_wrong_item_of_a_list_is_named_with_its_line() {
    let text = "
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Node, metadata: {name: n}}
- apiVersion: v1
  kind: Service
  metadata: {name: web, namespace: shop}
  spec:
    ports: 80
";
    let (line, message) = fault(text);
    assert_eq!(line, 10, "{message}");
    assert!(
        message.starts_with("Service shop/web: items[1].spec.ports: invalid type"),
        "{message}"
    );

    let nameless = text
        .replace("name: web, ", "")
        .replace("ports: 80", "ports: []");
    assert_eq!(
        fault(&nameless),
        (2, "Service items[1]: metadata.name is missing".to_owned())
    );
}

#[test]
fn json_faults_have_lines_too() {
    let good = "{\"apiVersion\": \"v1\", \"kind\": \"Node\", \"metadata\": {\"name\": \"n\"}}";
    let (line, message) = fault(&format!("{good}\n{}", good.replace("\"n\"", "\n7")));
    assert_eq!(line, 3, "{message}");
    assert!(!message.contains(" at line "), "{message}");
    let (line, message) = fault(&format!("{good}\n{good},\n"));
    assert_eq!(line, 2, "{message}");
}

#[test]
fn a_document_that_is_no_object_is_a_fault() {
    assert_eq!(fault("a: 1\n"), (1, "the document has no kind".to_owned()));
    assert_eq!(
        fault("kind: Node\n"),
        (1, "the Node has no apiVersion".to_owned())
    );
    assert_eq!(
        fault(&WEB.replace("name: web", "labels: {}")).1,
        "Service: metadata.name is missing"
    );
    let (line, message) = fault(&format!("{WEB}---\n- just\n- a list of words\n"));
    assert_eq!(line, 10, "{message}");
    assert!(message.contains("a Kubernetes object"), "{message}");
    let (line, message) = fault(&format!("{WEB}  bad: [\n"));
    assert!(
        line >= 9 && !message.contains(" at line "),
        "{line}: {message}"
    );
}

#[test]
fn endpoints_become_slices() {
    let text = "
apiVersion: v1
kind: Endpoints
metadata: {name: db}
subsets:
- addresses: [{ip: 192.0.2.1}]
  ports: [{port: 5432}]
";
    let contents = parse(text).unwrap();
    assert_eq!(contents.entries[0].id, Id::endpoints(None, "db"));
    let Item::Endpoints(slices) = &contents.entries[0].item else {
        panic!("{contents:?}")
    };
    let Object::EndpointSlice(slice) = slices[0].as_ref() else {
        panic!("{slices:?}")
    };
    assert_eq!(slice.metadata.namespace.as_deref(), Some("default"));
    assert_eq!(
        slice.ports.as_ref().unwrap()[0].protocol.as_deref(),
        Some("TCP")
    );

    let (line, message) = fault(&text.replace("192.0.2.1", "db"));
    assert_eq!(line, 2);
    assert_eq!(
        message,
        "Endpoints default/db: address \"db\" is not an IP address"
    );
}
