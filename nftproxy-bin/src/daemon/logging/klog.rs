//! Log lines in the forms of klog, which collectors of Kubernetes logs take apart.
//!
//! ```text
//! I0102 15:04:05.000000   1234 run_loop.rs:12] "SyncProxyRules complete" ipFamily="IPv4"
//! {"ts":1735830245000.1,"caller":"run_loop.rs:12","msg":"...","v":0,"ipFamily":"IPv4"}
//! ```

use std::fmt::{self, Write};

use jiff::Timestamp;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::config::LogFormat;
use crate::wall_clock;

/// Writes events in klog's text or JSON.
pub(super) struct Klog(pub(super) LogFormat);

impl<S, N> FormatEvent<S, N> for Klog
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut to: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let metadata = event.metadata();
        let file = metadata.file().unwrap_or("unknown");
        let line = Line {
            level: *metadata.level(),
            at: wall_clock::now(),
            file: file.rsplit('/').next().unwrap_or(file),
            line: metadata.line().unwrap_or_default(),
            fields,
        };
        match self.0 {
            LogFormat::Text => line.write_text(&mut to, std::process::id())?,
            LogFormat::Json => line.write_json(&mut to)?,
        }
        to.write_char('\n')
    }
}

struct Line<'a> {
    level: Level,
    at: Timestamp,
    file: &'a str,
    line: u32,
    fields: Fields,
}

#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<(&'static str, Value)>,
}

impl Fields {
    fn add(&mut self, field: &Field, value: impl Into<Value>) {
        let value = value.into();
        match (field.name(), value) {
            ("message", Value::String(message)) => self.message = message,
            // klog's name for it.
            ("error", value) => self.others.push(("err", value)),
            (name, value) => self.others.push((name, value)),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value);
    }
}

impl Line<'_> {
    fn write_text(&self, to: &mut impl Write, process: u32) -> fmt::Result {
        let letter = match self.level {
            Level::ERROR => 'E',
            Level::WARN => 'W',
            _ => 'I',
        };
        let at = self.at.strftime("%m%d %H:%M:%S%.6f");
        write!(
            to,
            "{letter}{at} {process:>7} {}:{}] ",
            self.file, self.line
        )?;
        quoted(&self.fields.message, to)?;
        for (name, value) in &self.fields.others {
            write!(to, " {name}=")?;
            match value {
                Value::String(text) => quoted(text, to)?,
                other => write!(to, "{other}")?,
            }
        }
        Ok(())
    }

    fn write_json(&self, to: &mut impl Write) -> fmt::Result {
        let milliseconds = self.at.as_microsecond() as f64 / 1000.0;
        let caller = format!("{}:{}", self.file, self.line);
        let message = Value::from(self.fields.message.as_str());
        write!(
            to,
            "{{\"ts\":{milliseconds},\"caller\":{},\"msg\":{message}",
            Value::from(caller)
        )?;
        // Errors have no verbosity.
        if self.level != Level::ERROR {
            let verbosity = match self.level {
                Level::DEBUG => super::VERBOSITY_DEBUG,
                Level::TRACE => super::VERBOSITY_TRACE,
                _ => 0,
            };
            write!(to, ",\"v\":{verbosity}")?;
        }
        let mut written = Map::new();
        for (name, value) in &self.fields.others {
            // A name that is there twice would make it no JSON for some.
            if written.insert((*name).to_owned(), Value::Null).is_none() {
                write!(to, ",{}:{value}", Value::from(*name))?;
            }
        }
        to.write_char('}')
    }
}

/// Text as Go's `%q` writes it.
fn quoted(text: &str, to: &mut impl Write) -> fmt::Result {
    to.write_char('"')?;
    for c in text.chars() {
        match c {
            '"' | '\\' => write!(to, "\\{c}")?,
            '\n' => to.write_str("\\n")?,
            '\r' => to.write_str("\\r")?,
            '\t' => to.write_str("\\t")?,
            c if u32::from(c) < 0x20 || c == '\u{7f}' => write!(to, "\\x{:02x}", u32::from(c))?,
            c => to.write_char(c)?,
        }
    }
    to.write_char('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(level: Level) -> Line<'static> {
        let fields = Fields {
            message: "Failed to start \"it\"".to_owned(),
            others: vec![
                ("service", "ns/a".into()),
                ("port", 80.into()),
                ("err", "a\nb".into()),
            ],
        };
        Line {
            level,
            at: "2026-01-02T15:04:05.000123Z".parse().unwrap(),
            file: "run_loop.rs",
            line: 7,
            fields,
        }
    }

    /// O-166
    #[test]
    fn text_is_klogs() {
        let mut text = String::new();
        line(Level::WARN).write_text(&mut text, 42).unwrap();
        assert_eq!(
            text,
            "W0102 15:04:05.000123      42 run_loop.rs:7] \"Failed to start \\\"it\\\"\" \
             service=\"ns/a\" port=80 err=\"a\\nb\""
        );
        for (level, letter) in [(Level::ERROR, 'E'), (Level::INFO, 'I'), (Level::TRACE, 'I')] {
            let mut text = String::new();
            line(level).write_text(&mut text, 1).unwrap();
            assert!(text.starts_with(letter), "{text}");
        }
    }

    /// O-166
    #[test]
    fn json_is_klogs() {
        let mut text = String::new();
        line(Level::DEBUG).write_json(&mut text).unwrap();
        assert_eq!(
            text,
            "{\"ts\":1767366245000.123,\"caller\":\"run_loop.rs:7\",\
             \"msg\":\"Failed to start \\\"it\\\"\",\"v\":2,\
             \"service\":\"ns/a\",\"port\":80,\"err\":\"a\\nb\"}"
        );
        let mut text = String::new();
        line(Level::ERROR).write_json(&mut text).unwrap();
        let parsed: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(parsed.get("v"), None);
    }
}
