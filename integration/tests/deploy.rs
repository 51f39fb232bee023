//! What is in `deploy/` is what an API server takes, and refers to what there is.
//!
//! Overlays and the chart are rendered where kubectl and helm are installed; `make tools` gets both.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use integration::daemon::binary;
use integration::netns::unsupported;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use serde::Deserialize as _;
use serde::de::DeserializeOwned;
use serde_norway::Value;

fn path(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file)
}

fn read(file: &str) -> String {
    fs::read_to_string(path(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// The objects of a file, or of what a program has rendered.
struct Objects(Vec<Value>);

impl Objects {
    fn of(text: &str) -> Self {
        let documents = serde_norway::Deserializer::from_str(text);
        let objects = documents.map(|document| Value::deserialize(document).unwrap());
        Self(objects.filter(|object| !object.is_null()).collect())
    }

    fn of_file(file: &str) -> Self {
        Self::of(&read(file))
    }

    fn of_kind(&self, kind: &str) -> &Value {
        let mut found = self.0.iter().filter(|object| object["kind"] == kind);
        let object = found.next().unwrap_or_else(|| panic!("there is no {kind}"));
        assert!(found.next().is_none(), "there is more than one {kind}");
        object
    }

    /// All of these kinds, and nothing that an API server of 1.36 would not know.
    #[track_caller]
    fn assert_strict(&self, kinds: &[&str]) {
        let found: Vec<_> = self
            .0
            .iter()
            .map(|object| object["kind"].as_str().unwrap())
            .collect();
        assert_eq!(found, kinds);
        for object in &self.0 {
            match object["kind"].as_str().unwrap() {
                "ServiceAccount" => strict::<ServiceAccount>(object),
                "ClusterRoleBinding" => strict::<ClusterRoleBinding>(object),
                "ConfigMap" => strict::<ConfigMap>(object),
                "DaemonSet" => strict::<DaemonSet>(object),
                // Not Kubernetes' own.
                "PrometheusRule" => {}
                other => panic!("{other} is not expected"),
            }
        }
    }
}

/// The object has no field that its type does not, and none of another type.
fn strict<T: DeserializeOwned>(object: &Value) {
    let mut unknown = Vec::new();
    let typed = serde_ignored::deserialize::<_, _, T>(object.clone(), |field| {
        unknown.push(field.to_string());
    });
    let what = format!("{:?} {:?}", object["kind"], object["metadata"]["name"]);
    assert!(typed.is_ok(), "{what}: {}", typed.err().unwrap());
    // Optional fields have a question mark each.
    let unknown = unknown.join(", ").replace("?.", "");
    assert_eq!(unknown, "", "{what} has fields that there are not");
}

/// The strictness that the other tests rely on.
#[test]
fn fields_that_do_not_exist_are_found() {
    let mut object = Objects::of_file("deploy/base/daemonset.yaml").0.remove(0);
    object["spec"]["template"]["spec"]["containers"][0]["imagePullPolice"] = "Always".into();
    let failure = std::panic::catch_unwind(|| strict::<DaemonSet>(&object)).unwrap_err();
    let message = failure.downcast_ref::<String>().unwrap();
    let field = "\"spec.template.spec.containers.0.imagePullPolice\"";
    assert!(message.contains(field), "{message}");
}

/// What a program prints; `None` if it is not here.
fn rendered(program: &str, arguments: &[&str]) -> Option<Objects> {
    let own = path("target/tools").join(program);
    let program_path = if own.exists() { own } else { program.into() };
    let output = Command::new(program_path)
        .args(arguments)
        .current_dir(path("."))
        .output();
    let Ok(output) = output else {
        unsupported(&format!("{program} is not installed"));
        return None;
    };
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {error}");
    Some(Objects::of(&String::from_utf8(output.stdout).unwrap()))
}

#[test]
fn manifests_are_strictly_what_the_api_has() {
    Objects::of_file("deploy/base/rbac.yaml")
        .assert_strict(&["ServiceAccount", "ClusterRoleBinding"]);
    Objects::of_file("deploy/base/daemonset.yaml").assert_strict(&["DaemonSet"]);
    Objects::of_file("deploy/drop-in.yaml").assert_strict(&["DaemonSet"]);
    Objects::of_file("deploy/configmap.yaml").assert_strict(&["ConfigMap"]);
}

/// O-158, O-160 to O-162: the ConfigMap has kube-proxy's two keys, the account is in kube-system and
/// has the built-in role, and the container has one capability.
#[test]
fn the_daemon_set_has_what_it_refers_to() {
    let objects = ["base/rbac", "base/daemonset", "configmap"]
        .map(|file| Objects::of_file(&format!("deploy/{file}.yaml")).0);
    assert_complete(&Objects(objects.concat()));
}

#[track_caller]
fn assert_complete(objects: &Objects) {
    let account = objects.of_kind("ServiceAccount");
    let binding = objects.of_kind("ClusterRoleBinding");
    let config = objects.of_kind("ConfigMap");
    let daemon_set = objects.of_kind("DaemonSet");
    let template = &daemon_set["spec"]["template"];
    let pod = &template["spec"];
    let container = &pod["containers"][0];

    for object in [account, config, daemon_set] {
        assert_eq!(object["metadata"]["namespace"], "kube-system");
    }
    assert_eq!(
        daemon_set["spec"]["selector"]["matchLabels"],
        template["metadata"]["labels"]
    );
    assert_eq!(pod["serviceAccountName"], account["metadata"]["name"]);
    assert_eq!(binding["subjects"][0]["name"], account["metadata"]["name"]);
    assert_eq!(binding["subjects"][0]["namespace"], "kube-system");
    assert_eq!(binding["roleRef"]["name"], "system:node-proxier");
    assert_eq!(pod["hostNetwork"], true);
    assert_eq!(
        pod["volumes"][0]["configMap"]["name"],
        config["metadata"]["name"]
    );
    assert_eq!(
        container["volumeMounts"][0]["name"],
        pod["volumes"][0]["name"]
    );

    let security = &container["securityContext"];
    assert_eq!(security["privileged"], false);
    assert_eq!(security["readOnlyRootFilesystem"], true);
    assert_eq!(security["capabilities"]["drop"][0], "ALL");
    assert_eq!(
        security["capabilities"]["add"],
        serde_norway::from_str::<Value>("[NET_ADMIN]").unwrap()
    );

    let folder = container["volumeMounts"][0]["mountPath"].as_str().unwrap();
    let argument = container["command"][1].as_str().unwrap();
    let file = argument
        .strip_prefix(&format!("--config={folder}/"))
        .unwrap();
    let settings = accepted(config, file);
    let kubeconfig = settings["clientConnection"]["kubeconfig"].as_str().unwrap();
    let kubeconfig = kubeconfig.strip_prefix(&format!("{folder}/")).unwrap();
    let kubeconfig = config["data"][kubeconfig].as_str().unwrap();
    let kubeconfig: Value = serde_norway::from_str(kubeconfig).unwrap();
    let cluster = &kubeconfig["clusters"][0]["cluster"];
    assert!(cluster["server"].as_str().unwrap().starts_with("https://"));
}

/// The configuration in a ConfigMap, which the program takes without a warning.
#[track_caller]
fn accepted(config: &Value, key: &str) -> Value {
    let text = config["data"][key].as_str().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(key);
    fs::write(&file, text).unwrap();
    let output = render(&file);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    serde_norway::from_str(text).unwrap()
}

fn render(config: &Path) -> Output {
    Command::new(binary().unwrap())
        .args(["render", "--hostname-override=worker-1", "--manifests"])
        .arg(path("docs/example.yaml"))
        .arg("--config")
        .arg(config)
        .output()
        .unwrap()
}

/// The configuration for systemd is accepted without a warning.
#[test]
fn the_configuration_of_the_unit_is_accepted() {
    let output = render(&path("deploy/systemd/config.yaml"));
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}

/// Each overlay is a whole deployment; kubeadm's takes the ConfigMap that is there.
#[test]
fn overlays_are_complete() {
    let kustomize = |overlay: &str| rendered("kubectl", &["kustomize", overlay]);
    for overlay in ["k3s", "kind"] {
        let Some(objects) = kustomize(&format!("deploy/overlays/{overlay}")) else {
            return;
        };
        objects.assert_strict(&[
            "ServiceAccount",
            "ClusterRoleBinding",
            "ConfigMap",
            "DaemonSet",
        ]);
        assert_complete(&objects);
    }
    let Some(mut objects) = kustomize("deploy/overlays/kubeadm") else {
        return;
    };
    objects.assert_strict(&["ServiceAccount", "ClusterRoleBinding", "DaemonSet"]);
    objects
        .0
        .extend(Objects::of_file("deploy/configmap.yaml").0);
    assert_complete(&objects);
}

/// The chart with no values is what the base is; with all of them it brings what it names.
#[test]
fn the_chart_is_complete() {
    let chart = |values: &[&str]| {
        let arguments = ["template", "nftproxy", "deploy/helm", "-n", "kube-system"];
        rendered("helm", &[&arguments, values].concat())
    };
    let Some(mut objects) = chart(&[]) else {
        return;
    };
    objects.assert_strict(&["ServiceAccount", "ClusterRoleBinding", "DaemonSet"]);
    objects
        .0
        .extend(Objects::of_file("deploy/configmap.yaml").0);
    assert_complete(&objects);
    assert_eq!(
        of_base(objects.of_kind("DaemonSet")),
        of_base(Objects::of_file("deploy/base/daemonset.yaml").of_kind("DaemonSet"))
    );

    let values = [
        "--set=config.clusterCIDR=10.0.0.0/8,config.clientConnection.qps=20,config.mode=nftables",
        "--set=apiServer=https://control-plane.example:6443,init.enabled=false",
        "--set=prometheusRule.enabled=true,dashboard.enabled=true",
    ];
    let Some(mut objects) = chart(&values) else {
        return;
    };
    objects.assert_strict(&[
        "ServiceAccount",
        "ConfigMap",
        "ConfigMap",
        "ClusterRoleBinding",
        "DaemonSet",
        "PrometheusRule",
    ]);
    let pod = &objects.of_kind("DaemonSet")["spec"]["template"]["spec"];
    assert!(pod.get("initContainers").is_none());
    let rule = objects.of_kind("PrometheusRule");
    let original = Objects::of_file("deploy/prometheusrule.yaml");
    assert_eq!(rule["spec"], original.0[0]["spec"]);
    let is_dashboard = |object: &Value| object["metadata"]["name"] == "nftproxy-dashboard";
    let place = objects.0.iter().position(is_dashboard).unwrap();
    let dashboard = objects.0.remove(place);
    let json = dashboard["data"]["nftproxy.json"].as_str().unwrap();
    let original = read("deploy/grafana-dashboard.json");
    let parse = |text| serde_json::from_str::<serde_json::Value>(text).unwrap();
    assert_eq!(parse(json), parse(&original));
    assert_complete(&objects);
    let settings = accepted(objects.of_kind("ConfigMap"), "config.conf");
    assert_eq!(settings["clientConnection"]["qps"], 20);
}

/// A DaemonSet without what the chart's values are there to set.
fn of_base(daemon_set: &Value) -> Value {
    let mut spec = daemon_set["spec"].clone();
    let pod = &mut spec["template"]["spec"];
    for containers in ["initContainers", "containers"] {
        let container = pod[containers][0].as_mapping_mut().unwrap();
        container.remove("image");
        container.remove("resources");
    }
    spec
}

/// A value that does not exist, and a configuration without an API server, are refused.
#[test]
fn the_chart_refuses_mistakes() {
    let own = path("target/tools/helm");
    let helm = if own.exists() { own } else { "helm".into() };
    for (value, message) in [
        ("tpyo=1", "additional properties 'tpyo' not allowed"),
        ("config.mode=nftables", "apiServer must be set with config"),
        ("image.pullPolicy=Sometimes", "/image/pullPolicy"),
    ] {
        let output = Command::new(&helm)
            .args(["template", "nftproxy", "deploy/helm", "--set", value])
            .current_dir(path("."))
            .output();
        let Ok(output) = output else {
            return unsupported("helm is not installed");
        };
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{value}");
        assert!(error.contains(message), "{value}: {error}");
    }
}

/// Every metric that alerts, dashboard and guide name is one that the program exports, with the
/// labels that they look at.
#[test]
fn metrics_that_are_named_exist() {
    let folder = "nftproxy-bin/src/metrics";
    let sources: String = ["proxy", "own", "api", "counts", "process", "build"]
        .map(|file| read(&format!("{folder}/{file}.rs")))
        .concat();
    let is_letter = |c: char| c.is_ascii_lowercase() || c == '_';
    let mut n_names = 0;
    for file in [
        "deploy/prometheusrule.yaml",
        "deploy/grafana-dashboard.json",
        "docs/OPERATING.md",
    ] {
        let text = read(file);
        let words = text.split(|c| !is_letter(c));
        let names = words.filter(|word| {
            let prefixes = ["kubeproxy_", "nftproxy_", "rest_client_"];
            prefixes.iter().any(|prefix| word.starts_with(prefix))
        });
        for name in names {
            let suffixes = ["", "_bucket", "_sum", "_count"];
            let is_there = suffixes.iter().any(|suffix| {
                let base = name.strip_suffix(suffix);
                base.is_some_and(|base| sources.contains(&format!("\"{base}\"")))
            });
            assert!(is_there, "{file} names {name}");
            n_names += 1;
        }
    }
    assert!(n_names > 30);
}

/// O-156, O-157, O-162: the drop-in is kubeadm's DaemonSet, but for the image; and the variant with few
/// rights has an init container for what takes more.
#[test]
fn the_drop_in_is_kubeadms_and_the_other_has_an_init_container() {
    let drop_in = Objects::of_file("deploy/drop-in.yaml");
    let drop_in = drop_in.of_kind("DaemonSet");
    let pod = &drop_in["spec"]["template"]["spec"];
    assert_eq!(drop_in["metadata"]["name"], "kube-proxy");
    assert_eq!(pod["serviceAccountName"], "kube-proxy");
    let container = &pod["containers"][0];
    assert_eq!(container["name"], "kube-proxy");
    let command: Vec<_> = container["command"].as_sequence().unwrap().iter().collect();
    assert_eq!(command[0], "/usr/local/bin/kube-proxy");
    assert_eq!(container["securityContext"]["privileged"], true);

    let few_rights = Objects::of_file("deploy/base/daemonset.yaml");
    let pod = &few_rights.of_kind("DaemonSet")["spec"]["template"]["spec"];
    let init = &pod["initContainers"][0];
    assert_eq!(init["securityContext"]["privileged"], true);
    let arguments = init["command"].as_sequence().unwrap();
    assert!(arguments.iter().any(|argument| argument == "--init-only"));
    let container = &pod["containers"][0];
    assert_eq!(container["livenessProbe"]["httpGet"]["path"], "/livez");

    // O-159: an upgrade would set kube-proxy's image again.
    assert!(read("deploy/README.md").contains("--skip-phases=addon/kube-proxy"));
}
