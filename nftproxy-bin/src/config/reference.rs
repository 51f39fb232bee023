//! The configuration as tables for `docs/OPTIONS.md`: the fields of the file, and the flags that
//! `--help` hides. Both are gathered from the code; only fields that no flag describes are described
//! here. Entry points: [`fields`] and [`hidden_flags`].

use std::collections::BTreeMap;

use clap::{Args, Command};
use serde_json::Value;

use super::file::{KubeProxyConfiguration, Own};
use super::flags::{ConfigFlags, tests::FIELD_OF_FLAG};
use super::validate::INERT;

/// What fields mean that no flag of the table writes, or that are not quite like their flag.
const BY_HAND: &[(&str, &str)] = &[
    ("kind", "Must be this"),
    ("apiVersion", "Must be this"),
    (
        "clientConnection.acceptContentTypes",
        "What is asked of the API server, in order, over `contentType`; JSON is always taken",
    ),
    (
        "healthzBindAddress",
        "Listener of the health check; empty is the default",
    ),
    ("hostnameOverride", "`--hostname-override`"),
    (
        "metricsBindAddress",
        "Listener of the metrics; empty is the default",
    ),
    (
        "nftables.masqueradeBit",
        "Bit of the packet mark, 0 to 31, that says that a packet is to be masqueraded",
    ),
    ("nftproxy.apiServers", "`--api-servers`"),
];

/// One field of the document to a row.
pub(crate) fn fields() -> String {
    let mut paths = Vec::new();
    let every: Value = serde_norway::from_str(include_str!("testdata/every-field.yaml")).unwrap();
    gather("", &every, &mut paths);
    gather(
        "nftproxy",
        &serde_json::to_value(Own::default()).unwrap(),
        &mut paths,
    );
    let mut defaults = KubeProxyConfiguration::defaults();
    super::set_platform_defaults(&mut defaults);
    let defaults = serde_json::to_value(defaults).unwrap();
    let (flags, helps) = (flag_of_field(), helps());

    let mut table = "| field | default | meaning |\n| --- | --- | --- |\n".to_owned();
    let mut by_hand: BTreeMap<_, _> = BY_HAND.iter().copied().collect();
    for path in paths {
        let default = match defaults.pointer(&format!("/{}", path.replace('.', "/"))) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(Value::Object(fields)) if fields.is_empty() => String::new(),
            Some(other) => other.to_string(),
        };
        let default = match default.as_str() {
            "" => default,
            _ => format!("`{default}`"),
        };
        let flag = flags.get(path.as_str());
        let meaning = if is_inert(&path) {
            "Accepted without effect".to_owned()
        } else if let Some(meaning) = by_hand.remove(path.as_str()) {
            meaning.to_owned()
        } else {
            let flag = flag.unwrap_or_else(|| panic!("nothing says what {path} means"));
            let (help, _) = &helps[flag];
            let help = help.split(" [default:").next().unwrap();
            format!("{} (`{}`)", escaped(help), spelled(flag))
        };
        table.push_str(&format!("| `{path}` | {default} | {meaning} |\n"));
    }
    assert!(by_hand.is_empty(), "no such fields: {by_hand:?}");
    table
}

/// One flag that `--help` does not show to a row.
pub(crate) fn hidden_flags() -> String {
    let flags = flag_of_field();
    let mut table = "| flag | effect |\n| --- | --- |\n".to_owned();
    for (flag, (_, is_hidden)) in helps() {
        if !is_hidden {
            continue;
        }
        let field = flags.iter().find(|(_, other)| **other == flag);
        let effect = match (flag.as_str(), field) {
            ("healthz-port" | "metrics-port", None) => {
                let address = flag.replace("port", "bind-address");
                format!("the port of `--{address}`, where that has none; 0 switches it off")
            }
            (_, None) => "none".to_owned(),
            (_, Some((path, _))) if is_inert(path) => "none".to_owned(),
            (_, Some((path, _))) => panic!("--{flag} writes {path} and should be shown"),
        };
        table.push_str(&format!("| `--{flag}` | {effect} |\n"));
    }
    table
}

/// Text for a cell of a table.
pub(crate) fn escaped(text: &str) -> String {
    let text = text.replace('|', "\\|").replace('<', "&lt;");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn spelled(flag: &str) -> String {
    format!("{}{flag}", if flag.len() == 1 { "-" } else { "--" })
}

fn is_inert(path: &str) -> bool {
    INERT.iter().any(|inert| {
        let rest = path.strip_prefix(inert);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    })
}

/// The paths of the fields that hold values. Feature gates have names that are no fields.
fn gather(path: &str, value: &Value, paths: &mut Vec<String>) {
    match value {
        Value::Object(fields) if path != "featureGates" => {
            for (name, field) in fields {
                let dot = if path.is_empty() { "" } else { "." };
                gather(&format!("{path}{dot}{name}"), field, paths);
            }
        }
        _ => paths.push(path.to_owned()),
    }
}

/// Which flag writes a field; a test of the flags tries each.
fn flag_of_field() -> BTreeMap<String, String> {
    let rows = FIELD_OF_FLAG.lines().map(|line| line.split_whitespace());
    rows.filter_map(|mut words| {
        let flag = words.next().filter(|word| *word != "#")?;
        // Items of a list or map stand for all of it.
        let pointer = words.nth(1)?.strip_prefix('/')?;
        let path = pointer.split("/0").next()?.replace('/', ".");
        let path = match path.strip_prefix("featureGates.") {
            Some(_) => "featureGates".to_owned(),
            None => path,
        };
        Some((path, flag.to_owned()))
    })
    .collect()
}

/// What `--help` says of each flag, and whether it hides it.
fn helps() -> BTreeMap<String, (String, bool)> {
    let command = ConfigFlags::augment_args(Command::new("nftproxy"));
    let flags = command.get_arguments().filter_map(|argument| {
        let help = argument.get_help().map(ToString::to_string);
        let name = argument.get_long()?.to_owned();
        Some((name, (help.unwrap_or_default(), argument.is_hide_set())))
    });
    flags.collect()
}
