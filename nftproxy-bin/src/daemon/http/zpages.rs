//! `/flagz` and `/statusz`: text for people, and JSON or YAML for those who name its version.

use std::collections::BTreeMap;

use http::StatusCode;
use http::header::{HeaderValue, WARNING};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::Response;
use super::respond::{PLAIN_TEXT, bare, error, full};
use crate::metrics::exposition::start_time;
use crate::version;
use crate::wall_clock;

const DISCLAIMER: &str = "Warning: This endpoint is not meant to be machine parseable, has no \
     formatting compatibility guarantees and is for debugging purposes only.";
/// kube-proxy's, which those who ask for it expect.
const COMPONENT: &str = "kube-proxy";

/// What a client takes.
#[derive(Debug, PartialEq, Eq)]
enum Form {
    Text,
    /// In this version.
    Document(Syntax, &'static str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Syntax {
    Json,
    Yaml,
}

impl Syntax {
    fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Yaml => "application/yaml",
        }
    }

    fn write(self, document: &Value) -> String {
        match self {
            Self::Json => document.to_string(),
            Self::Yaml => serde_norway::to_string(document).expect("what is JSON is YAML"),
        }
    }
}

/// The first form of a header `Accept` that there is of this kind.
fn form(accept: &str, kind: &str) -> Option<Form> {
    if accept.trim().is_empty() {
        return Some(Form::Text);
    }
    accept.split(',').find_map(|entry| {
        let mut parameters = entry.split(';').map(str::trim);
        match parameters.next()? {
            "*/*" | "text/plain" | "text/*" => Some(Form::Text),
            name @ ("application/json" | "application/yaml") => {
                let syntax = [Syntax::Json, Syntax::Yaml]
                    .into_iter()
                    .find(|syntax| syntax.media_type() == name)?;
                let parameters: BTreeMap<_, _> =
                    parameters.filter_map(|part| part.split_once('=')).collect();
                let is_asked = parameters.get("g") == Some(&"config.k8s.io")
                    && parameters.get("as") == Some(&kind);
                let version = parameters.get("v").filter(|_| is_asked)?;
                let known = ["v1beta1", "v1alpha1"];
                known
                    .into_iter()
                    .find(|known| known == version)
                    .map(|version| Form::Document(syntax, version))
            }
            _ => None,
        }
    })
}

fn respond(
    accept: &str,
    kind: &str,
    text: impl Fn() -> String,
    fields: impl Fn() -> Value,
) -> Response {
    match form(accept, kind) {
        None => error(
            StatusCode::NOT_ACCEPTABLE,
            "only the following media types are accepted: text/plain, and application/json or \
             application/yaml with v=v1beta1;g=config.k8s.io",
        ),
        Some(Form::Text) => {
            let page = kind.to_lowercase();
            let text = format!("\n{COMPONENT} {page}\n{DISCLAIMER}\n{}", text());
            bare(StatusCode::OK, PLAIN_TEXT, full(text))
        }
        Some(Form::Document(syntax, version)) => {
            let mut object = json!({
                "kind": kind,
                "apiVersion": format!("config.k8s.io/{version}"),
                "metadata": {"name": COMPONENT},
            });
            if let (Value::Object(object), Value::Object(fields)) = (&mut object, fields()) {
                object.extend(fields);
            }
            let media_type = syntax.media_type();
            let content_type = format!("{media_type};g=config.k8s.io;v={version};as={kind}");
            let body = full(syntax.write(&object));
            let mut response = bare(StatusCode::OK, &content_type, body);
            if version == "v1alpha1" {
                let warning = format!(
                    "299 - \"config.k8s.io/v1alpha1 {kind} is deprecated, use config.k8s.io/v1beta1 {kind}\""
                );
                if let Ok(warning) = HeaderValue::try_from(warning) {
                    response.headers_mut().insert(WARNING, warning);
                }
            }
            response
        }
    }
}

/// Every flag and its value.
pub(super) struct Flagz<'a>(pub(super) &'a BTreeMap<&'static str, String>);

impl Flagz<'_> {
    pub(super) fn respond(&self, accept: &str) -> Response {
        let text = || {
            let lines = self
                .0
                .iter()
                .map(|(name, value)| format!("{name}: {value}\n"));
            lines.collect()
        };
        respond(accept, "Flagz", text, || json!({ "flags": self.0 }))
    }
}

/// Since when what runs.
pub(super) struct Statusz {
    started: Timestamp,
    up_seconds: i64,
    paths: Vec<&'static str>,
}

impl Statusz {
    pub(super) fn now(has_flagz: bool) -> Self {
        let started = i64::try_from(start_time()).unwrap_or_default();
        let started = Timestamp::from_second(started).unwrap_or_default();
        let paths = ["/configz", "/flagz", "/healthz", "/metrics", "/proxyMode"];
        Self {
            started,
            up_seconds: (wall_clock::now().as_second() - started.as_second()).max(0),
            paths: paths
                .into_iter()
                .filter(|path| has_flagz || *path != "/flagz")
                .collect(),
        }
    }

    pub(super) fn respond(&self, accept: &str) -> Response {
        let Self {
            started,
            up_seconds,
            paths,
        } = self;
        let version = env!("CARGO_PKG_VERSION");
        let text = || {
            let (hours, minutes, seconds) =
                (up_seconds / 3600, up_seconds / 60 % 60, up_seconds % 60);
            format!(
                "\nStarted= {}\nUp= {hours} hr {minutes:02} min {seconds:02} sec\n\
                 Go version= {}\nBinary version= {version}\nEmulation version= {}\nPaths= {}\n",
                started.strftime("%a %b %e %H:%M:%S UTC %Y"),
                version::RUSTC,
                version::KUBERNETES,
                paths.join(" ")
            )
        };
        let fields = || {
            json!({
                "startTime": started.to_string(),
                "uptimeSeconds": up_seconds,
                "goVersion": version::RUSTC,
                "binaryVersion": version,
                "emulationVersion": version::KUBERNETES,
                "paths": paths,
            })
        };
        respond(accept, "Statusz", text, fields)
    }
}
