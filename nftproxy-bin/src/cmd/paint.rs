//! Columns and colours, for terminals.

use std::io::{IsTerminal, Write};

use anyhow::Context;
use nftproxy_core::inspect::Severity;

/// Colours, or none.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paint {
    is_on: bool,
}

impl Paint {
    /// For standard output: on a terminal, unless `NO_COLOR` is set.
    pub(crate) fn of_stdout() -> Self {
        let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self {
            is_on: std::io::stdout().is_terminal() && !is_set("NO_COLOR") && !is_dumb,
        }
    }

    fn wrap(self, code: &str, text: &str) -> String {
        if self.is_on && !text.is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    pub(crate) fn severity(self, severity: Severity, text: &str) -> String {
        match severity {
            Severity::Error => self.wrap("31", text),
            Severity::Warning => self.wrap("33", text),
            Severity::Note => self.wrap("36", text),
        }
    }

    pub(crate) fn good(self, text: &str) -> String {
        self.wrap("32", text)
    }

    pub(crate) fn bad(self, text: &str) -> String {
        self.wrap("31", text)
    }

    pub(crate) fn strong(self, text: &str) -> String {
        self.wrap("1", text)
    }

    pub(crate) fn faint(self, text: &str) -> String {
        self.wrap("2", text)
    }
}

/// Rows in columns as wide as they need to be; the last one is as long as it is.
pub(crate) struct Columns {
    rows: Vec<Vec<String>>,
}

impl Columns {
    pub(crate) fn new(heads: &[&str]) -> Self {
        Self {
            rows: vec![heads.iter().map(|&head| head.to_owned()).collect()],
        }
    }

    pub(crate) fn push(&mut self, row: impl IntoIterator<Item = String>) {
        self.rows.push(row.into_iter().collect());
    }

    /// The lines. `style` gets a row's number, where 0 is the head, a column's, and its text, filled
    /// up.
    pub(crate) fn lines(&self, style: impl Fn(usize, usize, &str) -> String) -> Vec<String> {
        let n = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or_default()
        };
        let widths: Vec<_> = (0..n).map(width).collect();
        let line = |(number, row): (usize, &Vec<String>)| {
            let cells = row.iter().enumerate().map(|(column, cell)| {
                let is_last = column + 1 == row.len();
                let fill = if is_last { 0 } else { widths[column] };
                style(number, column, &format!("{cell:<fill$}"))
            });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        self.rows.iter().enumerate().map(line).collect()
    }
}

/// Writes a text to standard output. Whoever stops reading wants no more of it.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    is_printed(text).map(|_| ())
}

/// The same, and whether somebody still reads it.
pub(crate) fn is_printed(text: &str) -> anyhow::Result<bool> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        result => result.context("writing to standard output").map(|()| true),
    }
}

/// A document of JSON, for people and programs.
pub(crate) fn json(document: &impl serde::Serialize) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(document).context("writing JSON")? + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut columns = Columns::new(&["A", "B"]);
        columns.push(["long".to_owned(), "x".to_owned()]);
        columns.push(["ü".to_owned(), String::new()]);
        let lines = columns.lines(|_, _, text| text.to_owned());
        assert_eq!(lines, ["A     B", "long  x", "ü"]);
    }
}
