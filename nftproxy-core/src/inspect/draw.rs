//! An explanation as a picture: a graph for Graphviz, or SVG of our own.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::{Explanation, Query};
use crate::model::Family;
use crate::trace::Outcome;

/// A picture, before it is drawn: boxes in columns, and arrows between them.
struct Graph {
    boxes: Vec<Node>,
    /// From, to, and what is written beside.
    arrows: Vec<(usize, usize, String)>,
}

struct Node {
    text: String,
    column: usize,
    color: &'static str,
}

const PLAIN: &str = "#f2f2f2";
const GOOD: &str = "#d5f0d5";
const BAD: &str = "#f6d0d0";

impl Graph {
    fn new<F: Family>(query: &Query<F>, explanation: &Explanation<F>) -> Self {
        let packet = &query.packet;
        let to = std::net::SocketAddr::new(packet.destination.into(), packet.destination_port);
        let service = explanation.service_port.as_deref().unwrap_or("no Service");
        let mut graph = Self {
            boxes: vec![
                Node {
                    text: packet.source.to_string(),
                    column: 0,
                    color: PLAIN,
                },
                Node {
                    text: format!("{to}\n{service}"),
                    column: 1,
                    color: PLAIN,
                },
            ],
            arrows: vec![(0, 1, String::new())],
        };
        let mut known = BTreeMap::new();
        let mut arrows: BTreeMap<(usize, usize), Vec<String>> = BTreeMap::new();
        for way in &explanation.ways {
            let (mut last, mut column) = (1, 1);
            for step in &way.steps {
                column += 1;
                let next = *known.entry((step.chain, step.rule)).or_insert_with(|| {
                    graph.boxes.push(Node {
                        text: format!("{}\nrule {}", step.chain, step.rule + 1),
                        column,
                        color: PLAIN,
                    });
                    graph.boxes.len() - 1
                });
                let node = &mut graph.boxes[next];
                node.column = node.column.max(column);
                column = node.column;
                if last != next {
                    arrows.entry((last, next)).or_default();
                }
                last = next;
            }
            graph.boxes.push(Node {
                text: way.outcome.to_string(),
                column: column + 1,
                color: match way.outcome {
                    Outcome::Endpoint { .. } => GOOD,
                    Outcome::Pass { .. } => PLAIN,
                    Outcome::Drop | Outcome::Refuse { .. } => BAD,
                },
            });
            let end = graph.boxes.len() - 1;
            arrows
                .entry((last, end))
                .or_default()
                .push(way.share.to_string());
        }
        graph.arrows.extend(
            arrows
                .into_iter()
                .map(|((from, to), texts)| (from, to, texts.join(" + "))),
        );
        graph
    }
}

/// For Graphviz: `nftproxy explain … -o dot | dot -Tpng`.
pub fn dot<F: Family>(query: &Query<F>, explanation: &Explanation<F>) -> String {
    let graph = Graph::new(query, explanation);
    let quoted = |text: &str| {
        let text = text
            .replace('\\', "\\\\")
            .replace('"', "\\\"")
            .replace('\n', "\\n");
        format!("\"{text}\"")
    };
    let mut out = String::from(
        "digraph explain {\n  rankdir=LR;\n  node [shape=box, style=filled, fontname=\"sans-serif\"];\n",
    );
    for (index, node) in graph.boxes.iter().enumerate() {
        let _ = writeln!(
            out,
            "  n{index} [label={}, fillcolor=\"{}\"];",
            quoted(&node.text),
            node.color
        );
    }
    for (from, to, text) in &graph.arrows {
        let _ = writeln!(out, "  n{from} -> n{to} [label={}];", quoted(text));
    }
    out.push_str("}\n");
    out
}

const LINE: usize = 16;
const CHARACTER: usize = 8;
const GAP: usize = 70;
const MARGIN: usize = 20;

/// A picture that needs nothing else to be looked at.
pub fn svg<F: Family>(query: &Query<F>, explanation: &Explanation<F>) -> String {
    let graph = Graph::new(query, explanation);
    let escaped = |text: &str| {
        text.replace('&', "&amp;")
            .replace('<', "&lt;")
            .replace('>', "&gt;")
    };
    let width_of = |node: &Node| {
        let longest = node.text.lines().map(|line| line.chars().count()).max();
        longest.unwrap_or_default() * CHARACTER + 16
    };
    let height_of = |node: &Node| node.text.lines().count().max(1) * LINE + 12;
    let n_columns = graph
        .boxes
        .iter()
        .map(|node| node.column + 1)
        .max()
        .unwrap_or_default();
    let of_column = |column| graph.boxes.iter().filter(move |node| node.column == column);
    let mut left = vec![MARGIN; n_columns + 1];
    for column in 0..n_columns {
        let widest = of_column(column).map(width_of).max().unwrap_or_default();
        left[column + 1] = left[column] + widest + GAP;
    }
    let height = (0..n_columns)
        .map(|column| {
            of_column(column)
                .map(|node| height_of(node) + MARGIN)
                .sum::<usize>()
        })
        .max()
        .unwrap_or_default()
        + MARGIN;
    let mut used = vec![MARGIN; n_columns];
    let places: Vec<_> = graph
        .boxes
        .iter()
        .map(|node| {
            let top = used[node.column];
            used[node.column] += height_of(node) + MARGIN;
            (left[node.column], top, width_of(node), height_of(node))
        })
        .collect();
    let width = left[n_columns].saturating_sub(GAP) + MARGIN;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"monospace\" font-size=\"13\">\n\
         <defs><marker id=\"tip\" viewBox=\"0 0 8 8\" refX=\"8\" refY=\"4\" markerWidth=\"8\" \
         markerHeight=\"8\" orient=\"auto\"><path d=\"M0 0 8 4 0 8z\"/></marker></defs>\n"
    );
    for (from, to, text) in &graph.arrows {
        let (x, y, w, h) = places[*from];
        let (x1, y1) = (x + w, y + h / 2);
        let (x2, y, _, h) = places[*to];
        let y2 = y + h / 2;
        let _ = writeln!(
            out,
            "<path d=\"M{x1} {y1} C{} {y1} {} {y2} {x2} {y2}\" fill=\"none\" stroke=\"#555\" marker-end=\"url(#tip)\"/>",
            x1 + GAP / 2,
            x2.saturating_sub(GAP / 2),
        );
        if !text.is_empty() {
            let _ = writeln!(
                out,
                "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
                x2.saturating_sub(12),
                y2.saturating_sub(4),
                escaped(text)
            );
        }
    }
    for (node, (x, y, w, h)) in graph.boxes.iter().zip(&places) {
        let _ = writeln!(
            out,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{w}\" height=\"{h}\" rx=\"4\" fill=\"{}\" stroke=\"#555\"/>",
            node.color
        );
        for (number, line) in node.text.lines().enumerate() {
            let _ = writeln!(
                out,
                "<text x=\"{}\" y=\"{}\">{}</text>",
                x + 8,
                y + 6 + LINE * number + 12,
                escaped(line)
            );
        }
    }
    out.push_str("</svg>\n");
    out
}
