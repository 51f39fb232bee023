//! What is reported: rows, as text for people, as Markdown for documents, and as JSON for programs.
//!
//! A row may be of anything that has a number, and perhaps a floor; nothing here knows what is measured.

use serde::{Deserialize, Serialize};

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    /// What kind of thing it is: rows of a group have the same figures.
    pub(crate) group: String,
    /// What the floor of the group is, if it has one.
    pub(crate) floor_is: Option<String>,
    /// Which of the kind.
    pub(crate) case: String,
    /// What `ours` and `floor` are in.
    pub(crate) unit: String,
    pub(crate) ours: Spread,
    pub(crate) floor: Option<Spread>,
    /// The median of `ours` in that of `floor`.
    pub(crate) ratio: Option<f64>,
    /// What else there is to say, in order. The name has the unit.
    pub(crate) figures: Vec<Figure>,
}

/// The distribution of what was measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    /// How often it was measured.
    pub(crate) n: usize,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

/// A number with a name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) value: f64,
}

impl Row {
    /// A row without a floor.
    pub(crate) fn new(group: &str, unit: &str, case: String, ours: Spread) -> Self {
        Self {
            group: group.into(),
            floor_is: None,
            case,
            unit: unit.into(),
            ours,
            floor: None,
            ratio: None,
            figures: Vec::new(),
        }
    }

    /// A row in milliseconds.
    pub(crate) fn ms(
        group: &str,
        floor_is: &str,
        case: String,
        ours: Spread,
        floor: Spread,
    ) -> Self {
        Self::new(group, "ms", case, ours).over(floor_is, floor)
    }

    /// The same row with a floor.
    pub(crate) fn over(self, floor_is: &str, floor: Spread) -> Self {
        Self {
            floor_is: Some(floor_is.into()),
            floor: Some(floor),
            ratio: (floor.p50 > 0.0).then(|| self.ours.p50 / floor.p50),
            ..self
        }
    }

    /// The same row with another figure.
    pub(crate) fn with(mut self, name: &str, value: f64) -> Self {
        let name = name.into();
        self.figures.push(Figure { name, value });
        self
    }
}

/// All that a run has found, and where.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Results {
    pub(crate) version: &'static str,
    pub(crate) kernel: String,
    pub(crate) cpu: String,
    pub(crate) cpus: usize,
    /// Whether sizes were those for a quick look, which say nothing of speed.
    pub(crate) is_quick: bool,
    pub(crate) rows: Vec<Row>,
}

/// The rows as text, a table for each group.
pub(crate) fn text(rows: &[Row]) -> String {
    let table = |group: Vec<&Row>| {
        let lines = cells(&group);
        let widths = widths(&lines);
        let mut text = String::new();
        for line in &lines {
            for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
                if column == 0 {
                    text.push_str(&format!("{cell:width$}"));
                } else {
                    text.push_str(&format!("  {cell:>width$}"));
                }
            }
            text.push('\n');
        }
        text + &format!("  {}\n\n", legend(group[0]))
    };
    groups(rows).into_iter().map(table).collect()
}

/// The rows in Markdown, a table for each group.
pub(crate) fn markdown(rows: &[Row]) -> String {
    let table = |group: Vec<&Row>| {
        let mut lines = cells(&group).into_iter().map(|line| line.join(" | "));
        let header = lines.next().unwrap_or_default();
        let rule = "---:|".repeat(header.matches('|').count());
        let body: String = lines.map(|line| format!("| {line} |\n")).collect();
        let legend = legend(group[0]);
        format!("| {header} |\n|---|{rule}\n{body}\n{legend}\n\n")
    };
    groups(rows).into_iter().map(table).collect()
}

fn groups(rows: &[Row]) -> Vec<Vec<&Row>> {
    let mut groups: Vec<Vec<&Row>> = Vec::new();
    for row in rows {
        match groups.iter_mut().find(|group| group[0].group == row.group) {
            Some(group) => group.push(row),
            None => groups.push(vec![row]),
        }
    }
    groups
}

/// The table of a group, the header first.
fn cells(rows: &[&Row]) -> Vec<Vec<String>> {
    let has_floor = rows.iter().any(|row| row.floor.is_some());
    let mut header = vec![rows[0].group.as_str(), "n", "p50", "p99"];
    if has_floor {
        header.extend(["floor", "floor p99", "ratio"]);
    }
    header.extend(rows[0].figures.iter().map(|figure| figure.name.as_str()));
    let mut lines = vec![header.into_iter().map(String::from).collect()];
    for row in rows {
        let mut line = vec![
            row.case.clone(),
            row.ours.n.to_string(),
            number(row.ours.p50),
            number(row.ours.p99),
        ];
        if has_floor {
            let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
            line.extend([
                or_dash(row.floor.map(|floor| number(floor.p50))),
                or_dash(row.floor.map(|floor| number(floor.p99))),
                or_dash(row.ratio.map(|ratio| format!("{ratio:.2}"))),
            ]);
        }
        line.extend(row.figures.iter().map(|figure| number(figure.value)));
        lines.push(line);
    }
    lines
}

fn widths(lines: &[Vec<String>]) -> Vec<usize> {
    let columns = lines.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        let widths = cells.map(|cell| cell.chars().count());
        widths.max().unwrap_or_default()
    };
    (0..columns).map(width).collect()
}

fn legend(row: &Row) -> String {
    let unit = &row.unit;
    match &row.floor_is {
        Some(floor_is) => format!("in {unit}; floor: {floor_is}"),
        None => format!("in {unit}"),
    }
}

/// Three digits that matter, or all before the point.
fn number(value: f64) -> String {
    let digits = match value.abs() {
        _ if value == value.trunc() && value.abs() >= 1.0 => 0,
        v if v == 0.0 || v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> [Row; 3] {
        let spread = |p50, p99| Spread { n: 3, p50, p99 };
        let row = |group: &str, case: &str, p50| {
            Row::new(group, "ms", case.into(), spread(p50, 20.0))
                .with("elements", 12345.0)
                .with("own ms", 0.25)
        };
        let floor = spread(8.0, 9.5);
        [
            row("sync", "small", 12.0).over("replay", floor),
            row("restart", "one", 1.0),
            row("sync", "larger", 160.0).over("replay", floor),
        ]
    }

    #[test]
    fn a_group_becomes_a_table() {
        assert_eq!(
            text(&rows()),
            "\
sync    n  p50  p99  floor  floor p99  ratio  elements  own ms
small   3   12   20      8       9.50   1.50     12345   0.250
larger  3  160   20      8       9.50  20.00     12345   0.250
  in ms; floor: replay

restart  n  p50  p99  elements  own ms
one      3    1   20     12345   0.250
  in ms

"
        );
    }

    #[test]
    fn a_group_becomes_a_table_in_markdown() {
        assert_eq!(
            markdown(&rows()),
            "\
| sync | n | p50 | p99 | floor | floor p99 | ratio | elements | own ms |
|---|---:|---:|---:|---:|---:|---:|---:|---:|
| small | 3 | 12 | 20 | 8 | 9.50 | 1.50 | 12345 | 0.250 |
| larger | 3 | 160 | 20 | 8 | 9.50 | 20.00 | 12345 | 0.250 |

in ms; floor: replay

| restart | n | p50 | p99 | elements | own ms |
|---|---:|---:|---:|---:|---:|
| one | 3 | 1 | 20 | 12345 | 0.250 |

in ms

"
        );
    }
}
