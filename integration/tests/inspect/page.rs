//! The page of `nftproxy audit -o html`, in a real browser without a window.
//!
//! A second page holds the first in a frame, and does what a person would: types, clicks, looks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use integration::daemon::binary;
use integration::netns;
use serde_json::{Value, json};

use super::recorded_listing;

const BROWSERS: [&str; 4] = [
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
];

/// A browser, with a folder for what it has to read and write.
struct Browser {
    program: &'static str,
    folder: tempfile::TempDir,
}

impl Browser {
    /// `None`, and a word about it, if there is none.
    fn new() -> Option<Self> {
        let paths = std::env::var_os("PATH").unwrap_or_default();
        let is_there =
            |name: &&&str| std::env::split_paths(&paths).any(|at| at.join(name).exists());
        let Some(program) = BROWSERS.iter().find(is_there) else {
            netns::skip("there is no Chromium; `make setup` installs it");
            return None;
        };
        Some(Self {
            program,
            folder: tempfile::tempdir().unwrap(),
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, arguments: &[&str], page: &Path) -> String {
        let profile = self.path("profile");
        let output = Command::new(self.program)
            .args(["--headless", "--no-sandbox", "--disable-gpu"])
            .args([
                "--disable-dev-shm-usage",
                "--no-first-run",
                "--disable-background-networking",
            ])
            .arg("--allow-file-access-from-files")
            .arg("--virtual-time-budget=5000")
            .arg(format!("--user-data-dir={}", profile.display()))
            .args(arguments)
            .arg(format!("file://{}", page.display()))
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Shows a page at a width of 1200, lets a script look at it as `page` and `frame`, and returns
    /// what that returns.
    fn ask(&self, page: &str, fragment: &str, script: &str) -> Value {
        self.ask_frame(page, "", fragment, script)
    }

    /// The same, in a frame with attributes.
    fn ask_frame(&self, page: &str, attributes: &str, fragment: &str, script: &str) -> Value {
        fs::write(self.path("page.html"), page).unwrap();
        let harness = format!(
            r##"<!doctype html><meta charset="utf-8">
<iframe id="frame" {attributes} width="1200" height="800" src="page.html#{fragment}"></iframe><pre id="said"></pre>
<script>
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
document.getElementById("frame").addEventListener("load", async (event) => {{
  const frame = event.target.contentWindow, page = frame.document;
  const $ = (what) => page.querySelector(what), $$ = (what) => [...page.querySelectorAll(what)];
  const names = () => $$("#table tbody").filter((body) => !body.hidden).map((body) => body.querySelector("th button").textContent);
  let said;
  try {{ said = await (async () => {{ {script} }})(); }} catch (error) {{ said = {{ failed: String(error.stack) }}; }}
  document.getElementById("said").textContent = "said:" + btoa(unescape(encodeURIComponent(JSON.stringify(said)))) + ":said";
}});
</script>"##
        );
        fs::write(self.path("harness.html"), harness).unwrap();
        let text = self.run(&["--dump-dom"], &self.path("harness.html"));
        let said = text
            .split_once("said:")
            .and_then(|(_, rest)| rest.split_once(":said"));
        let (said, _) = said.unwrap_or_else(|| panic!("the browser says nothing: {text}"));
        let said = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, said);
        serde_json::from_slice(&said.unwrap()).unwrap()
    }
}

fn audit(arguments: &[&str]) -> String {
    let output = Command::new(binary().unwrap())
        .args(["audit", "-o", "html"])
        .args(arguments)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(!output.stdout.is_empty(), "{complaint}");
    String::from_utf8(output.stdout).unwrap()
}

const DAMAGED: [&str; 8] = [
    "--manifests",
    "docs/example.yaml",
    "--ruleset",
    "docs/damaged.nft",
    "--hostname-override",
    "worker-1",
    "--cluster-cidr",
    "10.244.0.0/16",
];

#[test]
fn a_person_can_search_sort_and_look() {
    let Some(browser) = Browser::new() else {
        return;
    };
    let said = browser.ask(
        &audit(&DAMAGED),
        "",
        r##"
        const all = names();
        const search = $("#search");
        const type = async (text) => {
          search.value = text;
          search.dispatchEvent(new frame.Event("input"));
          await pause(300);
          return [names(), $("#count").textContent];
        };
        const found = await type("WEB https");
        const byAddress = await type("10.244.2.60");
        const byChain = await type("external-local");
        const none = await type("nobody");
        await type("");
        $("#problems").click();
        const withProblems = names();
        $("#problems").click();
        const head = $("[data-sort=ends] button");
        head.click();
        const fewest = names();
        head.click();
        const most = names(), order = head.closest("th").getAttribute("aria-sort");
        const link = frame.location.hash;
        $("[data-sort=name] button").click();
        const sorted = names();
        const button = $$("#table tbody button").find((at) => at.textContent === "shop/ingress:http");
        button.click();
        const picture = button.closest("tbody").querySelector("svg");
        const box = picture.getBoundingClientRect();
        const shown = {
          texts: [...picture.querySelectorAll("text")].map((at) => at.textContent),
          lines: picture.querySelectorAll("path").length,
          visible: box.width > 300 && box.height > 200,
          role: picture.getAttribute("role"),
          label: picture.getAttribute("aria-label"),
          expanded: button.getAttribute("aria-expanded"),
        };
        button.click();
        const closed = $$("svg").length;
        $(".findings a").click();
        await pause(300);
        return { all, found, byAddress, byChain, none, withProblems, fewest, most, order, link, sorted, shown, closed,
                 byLink: $$("svg").length, title: page.title };
        "##,
    );
    let all = [
        "kube-system/dns:dns",
        "shop/api:http",
        "shop/cart:http",
        "shop/idle:http",
        "shop/ingress:http",
        "shop/web:https",
    ];
    assert_eq!(said["title"], "Audit of worker-1", "{said:#}");
    assert_eq!(said["all"], json!(all));
    assert_eq!(said["found"], json!([["shop/web:https"], "1 of 6"]));
    assert_eq!(said["byAddress"][0], json!(["shop/cart:http"]));
    assert_eq!(said["byChain"][0], json!(["shop/ingress:http"]));
    assert_eq!(said["none"], json!([[], "0 of 6"]));
    assert_eq!(
        said["withProblems"],
        json!(["shop/api:http", "shop/ingress:http"])
    );
    assert_eq!(said["fewest"][0], "shop/idle:http");
    assert_eq!(said["most"][5], "shop/idle:http");
    assert_eq!(said["order"], "descending");
    assert_eq!(said["link"], "#sort=-ends");
    assert_eq!(said["sorted"], json!(all));
    let shown = &said["shown"];
    let texts: Vec<_> = shown["texts"].as_array().unwrap().iter().collect();
    for text in [
        "pods",
        "outside",
        "203.0.113.40:80/tcp",
        "external-local",
        "pick-2",
        "10.244.1.40:8080",
        "left alone",
        "1/2",
    ] {
        assert!(texts.contains(&&json!(text)), "{text} is not in {texts:?}");
    }
    assert_eq!(shown["visible"], true);
    assert_eq!(shown["role"], "img");
    assert_eq!(shown["expanded"], "true");
    assert!(shown["lines"].as_u64().unwrap() > 10);
    let label = shown["label"].as_str().unwrap();
    assert!(
        label.contains(
            "203.0.113.40:80/tcp by services › external-local › pick-local-1 to 1 10.244.1.40:8080"
        ),
        "{label}"
    );
    assert_eq!((&said["closed"], &said["byLink"]), (&json!(0), &json!(1)));
}

/// A link to a view shows it.
#[test]
fn views_can_be_linked_to() {
    let Some(browser) = Browser::new() else {
        return;
    };
    let said = browser.ask(
        &audit(&DAMAGED),
        "q=shop&problems=1&sort=-name&show=shop%2Fapi%3Ahttp",
        "return { names: names(), svg: $$('svg').length, wide: page.documentElement.scrollWidth };",
    );
    assert_eq!(said["names"], json!(["shop/ingress:http", "shop/api:http"]));
    assert_eq!(said["svg"], 1);
    // Nothing is wider than the window, whatever is drawn.
    assert!(said["wide"].as_u64().unwrap() <= 1200, "{said}");
}

#[test]
fn it_prints_and_needs_no_script() {
    let Some(browser) = Browser::new() else {
        return;
    };
    let page = browser.path("page.html");
    fs::write(&page, audit(&DAMAGED)).unwrap();
    let pdf = browser.path("page.pdf");
    let print = format!("--print-to-pdf={}", pdf.display());
    browser.run(&[print.as_str()], &page);
    let pdf = fs::read(pdf).unwrap();
    assert!(pdf.starts_with(b"%PDF-"));
    let n = pdf.windows(11).filter(|at| at == b"/Type /Page").count();
    assert!(n >= 2, "{n} pages");

    // A frame without scripts is a browser without them, and can still be looked at.
    let said = browser.ask_frame(
        &audit(&DAMAGED),
        "sandbox=\"allow-same-origin\"",
        "",
        r##"
        const height = (at) => at.getBoundingClientRect().height;
        return { text: page.body.innerText.replace(/\s+/g, " "), buttons: $$("button").length, tools: height($("#tools")),
                 rows: $$("#table tr").filter(height).length, all: $$("#table tr").length };
        "##,
    );
    let text = said["text"].as_str().unwrap();
    for shown in [
        "Not as it should be",
        "endpoint 10.244.2.40:8080 is missing",
        "services › external-local › pick-local-1 1 10.244.1.40:8080",
        "1/2 10.244.1.5:53, 10.244.2.5:53",
    ] {
        assert!(text.contains(shown), "{shown:?} is not in {text}");
    }
    assert_eq!((&said["buttons"], &said["tools"]), (&json!(0), &json!(0)));
    assert_eq!(said["rows"], said["all"]);
}

/// Nothing that anybody can name becomes part of the page, and if it did, it would not run.
#[test]
fn names_stay_names() {
    let Some(browser) = Browser::new() else {
        return;
    };
    let evil =
        "<img src=x onerror=alert(1)></table></script><script>document.title='evil'</script>";
    let quoted = "\"'><b id=evil>&lt;&#x41;";
    let listing = fs::read_to_string(recorded_listing("nft-1.1.7.txt")).unwrap();
    let damaged = format!(
        "{listing}\n{evil}\ntable ip other {{\n\tchain c {{\n\t\ttype nat hook prerouting priority -150; policy accept;\n\t\tip daddr 10.96.0.1 dnat to 10.0.0.1 comment \"{evil}\"\n\t\t{quoted} \u{202e}\n\t}}\n}}\n"
    );
    let path = browser.path("<b id=evil> & .nft");
    fs::write(&path, damaged).unwrap();
    let mut arguments = super::recorded_cluster();
    arguments.extend(["--ruleset".into(), path.to_str().unwrap().into()]);
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let page = audit(&arguments);
    assert!(page.contains("&lt;img src=x"), "{page}");
    assert!(!page.contains('\u{202e}'));
    let said = browser.ask(
        &page,
        "q=%3Cimg%20src%3Dx%3E&show=%3Cscript%3E",
        r##"
        // What is not ours does not run, even if it came to be there.
        const script = page.createElement("script");
        script.textContent = "document.title = 'ran'";
        page.body.append(script);
        const image = page.createElement("img");
        image.src = "data:image/gif;base64,R0lGODlhAQABAAAAACw=";
        page.body.append(image);
        await pause(100);
        return { title: page.title, foreign: $$("img, iframe, object, #evil").length, scripts: $$("script").length, tables: $$("table").length };
        "##,
    );
    assert_eq!(
        said,
        json!({"title": format!("Audit of {}", integration::fixtures::NODE_NAME), "foreign": 1, "scripts": 2, "tables": 2})
    );
}

/// A cluster of 10,000 Services with 5 endpoints each: 10 MB at most, and a browser can use it.
#[test]
fn large_clusters_fit() {
    let Some(browser) = Browser::new() else {
        return;
    };
    let mut items = Vec::new();
    for n in 0..10_000 {
        let name = format!("service-{n}");
        let (high, low) = (n / 250, n % 250);
        items.push(json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": "a-namespace"},
            "spec": {"type": "NodePort", "clusterIP": format!("10.96.{high}.{}", low + 1), "clusterIPs": [format!("10.96.{high}.{}", low + 1)],
                     "ports": [{"name": "http", "port": 80, "targetPort": 8080, "nodePort": if n < 2700 { json!(30000 + n) } else { json!(null) }}]}
        }));
        let endpoints: Vec<_> = (0..5)
            .map(|at| json!({"addresses": [format!("10.{}.{high}.{}", 200 + at, low + 1)], "conditions": {"ready": true}, "nodeName": "other"}))
            .collect();
        items.push(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": format!("{name}-a"), "namespace": "a-namespace", "labels": {"kubernetes.io/service-name": name}},
            "endpoints": endpoints, "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]
        }));
    }
    let cluster = json!({"apiVersion": "v1", "kind": "List", "items": items});
    let path = browser.path("cluster.json");
    fs::write(&path, cluster.to_string()).unwrap();
    let path = path.to_str().unwrap();
    let node = [
        "--node-ip",
        "192.0.2.10",
        "--hostname-override",
        "worker-1",
        "--cluster-cidr",
        "10.192.0.0/10",
    ];
    // Without rules each way is shown twice: as it is, and as it should be.
    let ruleset = browser.path("ruleset.nft");
    fs::write(&ruleset, "table ip other {\n}\n").unwrap();
    let mut arguments = vec![
        "--manifests",
        path,
        "--family",
        "ipv4",
        "--ruleset",
        ruleset.to_str().unwrap(),
    ];
    arguments.extend(node);
    let page = audit(&arguments);
    assert!(page.len() <= 10_000_000, "{} bytes", page.len());
    assert_eq!(page.matches("10.204.39.250:8080").count(), 1);
    let said = browser.ask(
        &page,
        "q=service-9999&sort=-name",
        "return [names(), $('#count').textContent, $('.verdict').textContent, $$('#table tbody').length];",
    );
    assert_eq!(
        said,
        json!([
            ["a-namespace/service-9999:http"],
            "1 of 10000",
            "Not as it should be",
            10_000
        ])
    );
}
