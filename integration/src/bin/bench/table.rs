//! What is reported: rows, as text for people and as JSON for programs.
//!
//! A row may be of anything that has a number and a floor; nothing here knows what is measured.

use serde::{Deserialize, Serialize};

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    /// What kind of thing it is: rows of a group have the same figures.
    pub(crate) group: String,
    /// What the floor of the group is.
    pub(crate) floor_is: String,
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
    /// A row in milliseconds.
    pub(crate) fn ms(
        group: &str,
        floor_is: &str,
        case: String,
        ours: Spread,
        floor: Spread,
    ) -> Self {
        Self {
            group: group.into(),
            floor_is: floor_is.into(),
            case,
            unit: "ms".into(),
            ours,
            floor: Some(floor),
            ratio: (floor.p50 > 0.0).then(|| ours.p50 / floor.p50),
            figures: Vec::new(),
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
    let mut groups: Vec<Vec<&Row>> = Vec::new();
    for row in rows {
        match groups.iter_mut().find(|group| group[0].group == row.group) {
            Some(group) => group.push(row),
            None => groups.push(vec![row]),
        }
    }
    groups.iter().map(|group| group_text(group)).collect()
}

fn group_text(rows: &[&Row]) -> String {
    let first = rows[0];
    let unit = &first.unit;
    let mut header: Vec<_> = ["", "n", "p50", "p99", "floor", "floor p99", "ratio"]
        .map(String::from)
        .into();
    header[0].clone_from(&first.group);
    header.extend(first.figures.iter().map(|figure| figure.name.clone()));
    let mut lines = vec![header];
    for row in rows {
        let optional = |value: Option<f64>| value.map_or_else(|| "-".into(), number);
        let floor = row.floor.as_ref();
        let mut line = vec![
            row.case.clone(),
            row.ours.n.to_string(),
            number(row.ours.p50),
            number(row.ours.p99),
            optional(floor.map(|floor| floor.p50)),
            optional(floor.map(|floor| floor.p99)),
            row.ratio
                .map_or_else(|| "-".into(), |ratio| format!("{ratio:.2}")),
        ];
        line.extend(row.figures.iter().map(|figure| number(figure.value)));
        lines.push(line);
    }
    let columns = lines.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or_default()
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
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
    text.push_str(&format!("  in {unit}; floor: {}\n\n", first.floor_is));
    text
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

    #[test]
    fn a_group_becomes_a_table() {
        let spread = |p50, p99| Spread { n: 3, p50, p99 };
        let row = |case: &str, p50| {
            Row::ms(
                "sync",
                "replay",
                case.into(),
                spread(p50, 20.0),
                spread(8.0, 9.5),
            )
            .with("elements", 12345.0)
            .with("own ms", 0.25)
        };
        let other = Row {
            group: "restart".into(),
            floor: None,
            ratio: None,
            ..row("one", 1.0)
        };
        let rows = [row("small", 12.0), other, row("larger", 160.0)];
        assert_eq!(
            text(&rows),
            "\
sync    n  p50  p99  floor  floor p99  ratio  elements  own ms
small   3   12   20      8       9.50   1.50     12345   0.250
larger  3  160   20      8       9.50  20.00     12345   0.250
  in ms; floor: replay

restart  n  p50  p99  floor  floor p99  ratio  elements  own ms
one      3    1   20      -          -      -     12345   0.250
  in ms; floor: replay

"
        );
    }
}
