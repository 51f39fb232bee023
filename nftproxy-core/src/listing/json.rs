//! `nft -j list ruleset`: JSON to the words of the text, which are then read like any.
//!
//! Each element is parsed by itself, so that a large map costs no more memory than its text.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::ours::type_name;
use super::text::short;
use super::token::Tokens;
use super::{Base, Reading, RuleText, SetHead, Sink};
use crate::ruleset::name::ChainName;

#[derive(Deserialize)]
struct Document<'a> {
    #[serde(borrow)]
    nftables: Vec<&'a RawValue>,
}

/// An object's fields.
type Fields<'a> = BTreeMap<Cow<'a, str>, &'a RawValue>;

/// Reads all objects. Those that cannot be read are noted, and the others go on.
pub(super) fn read(text: &str, reading: &mut Reading<'_>) {
    let document: Document<'_> = match serde_json::from_str(text) {
        Ok(document) => document,
        Err(error) => return reading.unread(error.line(), format!("no listing in JSON: {error}")),
    };
    let mut line = Lines::new(text);
    for raw in document.nftables {
        let line = line.of(raw.get());
        if let Err(why) = object(raw.get(), line, reading) {
            reading.unread(line, why);
        }
    }
}

/// Line numbers of pieces of a text, in order.
struct Lines<'a> {
    text: &'a str,
    at: usize,
    line: usize,
}

impl<'a> Lines<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            text,
            at: 0,
            line: 1,
        }
    }

    /// The line on which a piece starts.
    fn of(&mut self, piece: &str) -> usize {
        let offset = (piece.as_ptr() as usize).saturating_sub(self.text.as_ptr() as usize);
        let between = self
            .text
            .as_bytes()
            .get(self.at..offset)
            .unwrap_or_default();
        self.line += between.iter().filter(|byte| **byte == b'\n').count();
        self.at = offset.max(self.at);
        self.line
    }
}

fn object(raw: &str, line: usize, reading: &mut Reading<'_>) -> Result<(), String> {
    let unreadable = |error: serde_json::Error| format!("`{}`: {error}", short(raw));
    let outer: Fields<'_> = serde_json::from_str(raw).map_err(unreadable)?;
    let Some((kind, inner)) = outer.into_iter().next() else {
        return Err("an object that is empty".into());
    };
    if kind == "metainfo" {
        return Ok(());
    }
    let fields: Fields<'_> = serde_json::from_str(inner.get()).map_err(unreadable)?;
    let field =
        |name: &str| -> Option<String> { serde_json::from_str(fields.get(name)?.get()).ok() };
    let need = |name: &str| field(name).ok_or_else(|| format!("a {kind} without {name}"));
    let family = need("family")?;
    let table = need(if kind == "table" { "name" } else { "table" })?;
    let sink = reading.table(&family, &table);
    match &*kind {
        "table" => {
            for flag in strings(&fields, "flags") {
                sink.table_flag(&flag);
            }
        }
        "chain" => {
            let base = match field("hook") {
                None => None,
                Some(hook) => Some(Base {
                    hook,
                    chain_type: need("type")?,
                    priority: fields
                        .get("prio")
                        .and_then(|priority| priority.get().parse().ok())
                        .ok_or("a chain whose priority is no number")?,
                    policy: field("policy").unwrap_or_else(|| "accept".into()),
                }),
            };
            sink.chain(&need("name")?, base);
        }
        "rule" => rule(&need("chain")?, &fields, line, sink)?,
        "set" | "map" => set(&kind, need("name")?, &fields, sink)?,
        // What an element is named by itself, as in what `nft monitor` prints, is none of a listing.
        other => {
            let name = field("name").unwrap_or_default();
            sink.other(format!("{other} {name}"));
        }
    }
    Ok(())
}

/// A string, or an array of strings.
fn strings(fields: &Fields<'_>, name: &str) -> Vec<String> {
    let Some(raw) = fields.get(name) else {
        return Vec::new();
    };
    match serde_json::from_str(raw.get()) {
        Ok(Value::String(one)) => vec![one],
        Ok(Value::Array(many)) => many
            .iter()
            .filter_map(|value| value.as_str().map(String::from))
            .collect(),
        _ => Vec::new(),
    }
}

fn set(kind: &str, name: String, fields: &Fields<'_>, sink: &mut dyn Sink) -> Result<(), String> {
    let value =
        |name: &str| -> Option<Value> { serde_json::from_str(fields.get(name)?.get()).ok() };
    let head = SetHead {
        name,
        kind: kind.into(),
        key: value("type").map(|value| types(&value)).unwrap_or_default(),
        data: value("map").map(|value| types(&value)).unwrap_or_default(),
        flags: strings(fields, "flags"),
        size: value("size")
            .and_then(|size| size.as_u64())
            .and_then(|size| size.try_into().ok()),
        has_timeout: fields.get("timeout").is_some(),
        counts: value("stmt")
            .and_then(|statements| statements.as_array().cloned())
            .is_some_and(|statements| statements.iter().any(|it| it.get("counter").is_some())),
    };
    sink.set(&head);
    let Some(elements) = fields.get("elem") else {
        return Ok(());
    };
    let elements: Vec<&RawValue> = serde_json::from_str(elements.get())
        .map_err(|error| format!("elements of {}: {error}", head.name))?;
    let mut text = String::new();
    for raw in elements {
        text.clear();
        let value: Value = serde_json::from_str(raw.get())
            .map_err(|error| format!("an element of {}: {error}", head.name))?;
        if element(&value, &mut text).is_none() {
            return Err(format!("element {} of {}", short(raw.get()), head.name));
        }
        let words: Vec<_> = Tokens::new(&text).collect();
        sink.element(&head.name, &words);
    }
    Ok(())
}

/// The types of a concatenation: names, an array of them, a text with dots, or expressions.
fn types(value: &Value) -> Vec<String> {
    let of = |text: &str| {
        text.split(" . ")
            .map(|part| type_name(part).to_owned())
            .collect()
    };
    match value {
        Value::String(text) => of(text),
        Value::Array(parts) => parts.iter().flat_map(types).collect(),
        Value::Object(fields) => {
            let mut text = String::new();
            match fields
                .get("typeof")
                .and_then(|value| operand(value, &mut text))
            {
                Some(()) => of(&text),
                None => Vec::new(),
            }
        }
        _ => Vec::new(),
    }
}

/// An element: a key, or a pair of key and data.
fn element(value: &Value, out: &mut String) -> Option<()> {
    match value {
        Value::Array(pair) => {
            let [key, data] = pair.as_slice() else {
                return None;
            };
            operand(key, out)?;
            out.push_str(" : ");
            match data.as_object().and_then(|data| data.iter().next()) {
                Some((name, argument)) if is_verdict(name) => verdict(name, argument, out),
                _ => operand(data, out),
            }
        }
        key => operand(key, out),
    }
}

fn is_verdict(name: &str) -> bool {
    ["jump", "goto", "return", "drop", "accept", "continue"].contains(&name)
}

fn verdict(name: &str, argument: &Value, out: &mut String) -> Option<()> {
    out.push_str(name);
    if let Some(target) = argument.get("target") {
        write!(out, " {}", target.as_str()?).ok()?;
    }
    Some(())
}

/// Words joined by a sign.
fn joined(values: &[Value], sign: &str, out: &mut String) -> Option<()> {
    for (index, value) in values.iter().enumerate() {
        if index > 0 {
            write!(out, " {sign} ").ok()?;
        }
        operand(value, out)?;
    }
    Some(())
}

/// `counter packets 1 bytes 60`, or the first word alone in a listing without state.
fn counter_text(counter: &Value, out: &mut String) -> Option<()> {
    match (counter.get("packets"), counter.get("bytes")) {
        (Some(packets), Some(bytes)) => write!(out, "counter packets {packets} bytes {bytes}").ok(),
        _ => {
            out.push_str("counter");
            Some(())
        }
    }
}

/// What stands in a match, a key or a value.
fn operand(value: &Value, out: &mut String) -> Option<()> {
    let fields = match value {
        Value::String(text) => {
            out.push_str(text);
            return Some(());
        }
        Value::Number(number) => return write!(out, "{number}").ok(),
        Value::Object(fields) => fields,
        _ => return None,
    };
    let (name, argument) = fields.iter().next()?;
    let text = |name: &str| argument.get(name).and_then(Value::as_str);
    match name.as_str() {
        "concat" => return joined(argument.as_array()?, ".", out),
        "|" | "^" | "&" => return joined(argument.as_array()?, name, out),
        "prefix" => {
            operand(argument.get("addr")?, out)?;
            write!(out, "/{}", argument.get("len")?)
        }
        "range" => {
            let [first, last] = argument.as_array()?.as_slice() else {
                return None;
            };
            operand(first, out)?;
            out.push('-');
            return operand(last, out);
        }
        "elem" => {
            operand(argument.get("val")?, out)?;
            // In the order of the text; what is none of ours makes the element none of ours.
            for name in ["timeout", "expires"] {
                if let Some(seconds) = argument.get(name) {
                    write!(out, " {name} {seconds}s").ok()?;
                }
            }
            if let Some(counter) = argument.get("counter") {
                out.push(' ');
                counter_text(counter, out)?;
            }
            if let Some(comment) = text("comment") {
                write!(out, " comment \"{comment}\"").ok()?;
            }
            let known = ["val", "timeout", "expires", "counter", "comment"];
            let unknown = argument
                .as_object()?
                .keys()
                .find(|key| !known.contains(&key.as_str()));
            match unknown {
                Some(key) => write!(out, " {key}"),
                None => Ok(()),
            }
        }
        "payload" => match text("protocol") {
            Some(protocol) => write!(out, "{protocol} {}", text("field")?),
            None => write!(
                out,
                "@{},{},{}",
                text("base")?,
                argument.get("offset")?,
                argument.get("len")?
            ),
        },
        "meta" => write!(out, "meta {}", text("key")?),
        "ct" => match text("dir") {
            Some(dir) => write!(out, "ct {dir} {}", text("key")?),
            None => write!(out, "ct {}", text("key")?),
        },
        "fib" => {
            let flags = argument.get("flags")?;
            let flags: Vec<_> = match flags {
                Value::Array(flags) => flags.iter().filter_map(Value::as_str).collect(),
                flag => vec![flag.as_str()?],
            };
            write!(out, "fib {} {}", flags.join(" . "), text("result")?)
        }
        "numgen" => {
            write!(out, "numgen {} mod {}", text("mode")?, argument.get("mod")?).ok()?;
            match argument.get("offset").and_then(Value::as_u64) {
                None | Some(0) => Ok(()),
                Some(offset) => write!(out, " offset {offset}"),
            }
        }
        "jhash" => {
            out.push_str("jhash ");
            operand(argument.get("expr")?, out)?;
            write!(out, " mod {}", argument.get("mod")?).ok()?;
            if let Some(seed) = argument.get("seed").and_then(Value::as_u64) {
                write!(out, " seed {seed:#x}").ok()?;
            }
            match argument.get("offset").and_then(Value::as_u64) {
                None | Some(0) => Ok(()),
                Some(offset) => write!(out, " offset {offset}"),
            }
        }
        "map" => {
            operand(argument.get("key")?, out)?;
            out.push_str(" map ");
            return operand(argument.get("data")?, out);
        }
        _ => return None,
    }
    .ok()
}

fn rule(chain: &str, fields: &Fields<'_>, line: usize, sink: &mut dyn Sink) -> Result<(), String> {
    let statements = fields.get("expr").ok_or("a rule without expr")?;
    let statements: Vec<Value> = serde_json::from_str(statements.get())
        .map_err(|error| format!("a rule of chain {chain}: {error}"))?;
    let mut text = String::new();
    for value in &statements {
        if !text.is_empty() {
            text.push(' ');
        }
        let start = text.len();
        if statement(value, &mut text).is_none() {
            // None of ours: named, so that whoever reads others' tables finds what it does.
            text.truncate(start);
            unknown(value, &mut text);
        }
    }
    if ChainName::parse(chain) == Some(ChainName::About)
        && let Some(raw) = fields.get("comment")
        && let Ok(comment) = serde_json::from_str::<String>(raw.get())
    {
        let _ = write!(text, " comment \"{comment}\"");
    }
    let words: Vec<_> = Tokens::new(&text).collect();
    sink.rule(
        chain,
        &RuleText {
            words: &words,
            raw: &text,
            line,
        },
    );
    Ok(())
}

fn statement(value: &Value, out: &mut String) -> Option<()> {
    // What this version has no JSON for stands there as text.
    if let Value::String(text) = value {
        out.push_str(text);
        return Some(());
    }
    let (name, argument) = value.as_object()?.iter().next()?;
    match name.as_str() {
        "match" => {
            operand(argument.get("left")?, out)?;
            match argument.get("op")?.as_str()? {
                "==" | "in" => out.push(' '),
                op => write!(out, " {op} ").ok()?,
            }
            operand(argument.get("right")?, out)
        }
        "mangle" => {
            operand(argument.get("key")?, out)?;
            out.push_str(" set ");
            operand(argument.get("value")?, out)
        }
        "vmap" => {
            operand(argument.get("key")?, out)?;
            out.push_str(" vmap ");
            operand(argument.get("data")?, out)
        }
        "dnat" => {
            out.push_str("dnat ");
            if let Some(family) = argument.get("family") {
                write!(out, "{} ", family.as_str()?).ok()?;
            }
            out.push_str("to ");
            operand(argument.get("addr")?, out)?;
            let known = ["family", "addr"];
            let is_more = argument
                .as_object()?
                .keys()
                .any(|key| !known.contains(&key.as_str()));
            (!is_more).then_some(())
        }
        "counter" if !argument.is_string() => counter_text(argument, out),
        "masquerade" => {
            let flags = match argument.get("flags") {
                None => {
                    out.push_str("masquerade");
                    return Some(());
                }
                Some(Value::String(flag)) => flag.clone(),
                Some(Value::Array(flags)) => {
                    let flags: Vec<_> = flags.iter().filter_map(Value::as_str).collect();
                    flags.join(",")
                }
                Some(_) => return None,
            };
            let is_more = argument.as_object()?.len() > 1;
            write!(out, "masquerade {flags}").ok()?;
            (!is_more).then_some(())
        }
        "reject" => match argument {
            Value::Null => {
                out.push_str("reject");
                Some(())
            }
            argument => {
                write!(out, "reject with {}", argument.get("type")?.as_str()?).ok()?;
                match argument.get("expr") {
                    Some(expr) => write!(out, " {}", expr.as_str()?).ok(),
                    None => Some(()),
                }
            }
        },
        // `update @affinity { key timeout : data }`, of nft 1.1 and up.
        "map" => {
            let set = argument.get("map")?.as_str()?;
            write!(out, "{} {set} {{ ", argument.get("op")?.as_str()?).ok()?;
            operand(argument.get("elem")?, out)?;
            out.push_str(" : ");
            operand(argument.get("data")?, out)?;
            out.push_str(" }");
            Some(())
        }
        name if is_verdict(name) => verdict(name, argument, out),
        _ => None,
    }
}

/// A statement that we have no words for: its name, and those of what it holds, as far as they tell
/// what it does.
fn unknown(value: &Value, out: &mut String) {
    let Some((name, argument)) = value.as_object().and_then(|fields| fields.iter().next()) else {
        out.push_str("unknown");
        return;
    };
    match name.as_str() {
        "mangle" => return unknown_value(argument, out),
        // Extensions of iptables.
        "xt" if argument.get("type").and_then(Value::as_str) == Some("match") => return,
        name => out.push_str(name),
    }
    if let Some(target) = argument.get("name").and_then(Value::as_str) {
        let _ = write!(out, " {target}");
    }
    if let Some(map) = argument.get("data").and_then(Value::as_str) {
        let _ = write!(out, " {map}");
    }
    // The verdicts of a map within the rule.
    let mut open = vec![argument];
    while let Some(value) = open.pop() {
        match value {
            Value::Array(values) => open.extend(values),
            Value::Object(fields) => {
                for (name, argument) in fields {
                    if is_verdict(name) {
                        out.push(' ');
                        let _ = verdict(name, argument, out);
                    }
                    open.push(argument);
                }
            }
            _ => {}
        }
    }
}

/// What is written to, with a value that we have no words for.
fn unknown_value(mangle: &Value, out: &mut String) {
    let start = out.len();
    if mangle
        .get("key")
        .and_then(|key| operand(key, out))
        .is_none()
    {
        out.truncate(start);
        out.push_str("unknown");
    }
    out.push_str(" set unknown");
}
