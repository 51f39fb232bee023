//! Rulesets and deltas as text for nft(8).

use std::fmt::Write;

use crate::diff::{Delta, TableChange, diff, for_each_set};
use crate::model::Family;
use crate::ruleset::FamilyRuleset;
use crate::ruleset::element::Element;
use crate::ruleset::name::{ChainName, SetName, TABLE, TABLE_COMMENT};
use crate::ruleset::schema::{DataType, base_chain, schema};

/// Elements per line of a script.
const ELEMENTS_PER_COMMAND: usize = 500;

/// A whole ruleset as a script that `nft -f` accepts, and that creates the table.
pub fn ruleset<F: Family>(ruleset: &FamilyRuleset<F>) -> String {
    delta(&diff(None, ruleset))
}

/// A delta as a script that does the same as applying it, as one transaction.
pub fn delta<F: Family>(delta: &Delta<F>) -> String {
    let Delta {
        table,
        add_chains,
        set_rules,
        forget,
        delete_elements,
        add_elements,
        delete_chains,
    } = delta;
    let mut out = String::new();
    let at = format!("{} {TABLE}", F::FAMILY.nft_name());
    let mut line = |text: String| {
        out.push_str(&text);
        out.push('\n');
    };
    match table {
        TableChange::Keep => {}
        TableChange::Create => create_table::<F>(&at, &mut line),
        TableChange::Recreate => {
            line(format!("delete table {at}"));
            create_table::<F>(&at, &mut line);
        }
    }
    for chain in add_chains {
        line(match base_chain(*chain) {
            None => format!("add chain {at} {chain}"),
            Some(base) => format!(
                "add chain {at} {chain} {{ type nat hook {} priority {}; policy accept; }}",
                base.hook.nft(),
                base.priority
            ),
        });
    }
    for (chain, rules) in set_rules {
        if !add_chains.contains(chain) {
            line(format!("flush chain {at} {chain}"));
        }
        for rule in rules {
            line(format!("add rule {at} {chain} {}", rule.text));
        }
    }
    write_elements("delete", &at, forget, &mut line);
    write_elements("delete", &at, delete_elements, &mut line);
    write_elements("add", &at, add_elements, &mut line);
    for chain in delete_chains {
        line(format!("delete chain {at} {chain}"));
    }
    out
}

fn create_table<F: Family>(at: &str, line: &mut impl FnMut(String)) {
    line(format!("add table {at} {{ comment \"{TABLE_COMMENT}\"; }}"));
    for set in SetName::ALL {
        let schema = schema(set);
        let kind = if schema.data == DataType::None {
            "set"
        } else {
            "map"
        };
        line(format!(
            "add {kind} {at} {set} {{ {}; }}",
            schema.nft::<F>()
        ));
    }
}

fn write_elements<F: Family>(
    verb: &str,
    at: &str,
    elements: &[Element<F>],
    line: &mut impl FnMut(String),
) {
    for_each_set(elements, |set, elements| {
        for chunk in elements.chunks(ELEMENTS_PER_COMMAND) {
            let mut text = format!("{verb} element {at} {set} {{ ");
            for (index, element) in chunk.iter().enumerate() {
                let separator = if index == 0 { "" } else { ", " };
                let _ = write!(text, "{separator}{}", element.nft());
            }
            line(text + " }");
        }
    });
}

/// A ruleset in the layout of `nft list table`, for people: chains in the order in which packets
/// meet them, elements sorted.
pub fn listing<F: Family>(ruleset: &FamilyRuleset<F>) -> String {
    let mut out = format!("table {} {TABLE} {{\n", F::FAMILY.nft_name());
    let _ = writeln!(out, "\tcomment \"{TABLE_COMMENT}\"");
    for set in SetName::ALL {
        let schema = schema(set);
        let kind = if schema.data == DataType::None {
            "set"
        } else {
            "map"
        };
        let _ = writeln!(
            out,
            "\n\t{kind} {set} {{\n\t\t{}",
            schema.nft::<F>().replace("; ", "\n\t\t")
        );
        let elements: Vec<_> = ruleset
            .elements
            .iter()
            .filter(|element| element.set() == set)
            .map(Element::nft)
            .collect();
        if !elements.is_empty() {
            let _ = writeln!(
                out,
                "\t\telements = {{ {} }}",
                elements.join(",\n\t\t\t     ")
            );
        }
        out.push_str("\t}\n");
    }
    let fixed = ruleset
        .skeleton
        .chains
        .iter()
        .map(|(chain, rules)| (*chain, rules.clone()));
    let picks = ruleset.picks.iter().map(|pick| {
        (
            ChainName::Pick(*pick),
            crate::compile::pick_rules::<F>(*pick),
        )
    });
    for (chain, rules) in picks.chain(fixed) {
        let _ = writeln!(out, "\n\tchain {chain} {{");
        if let Some(base) = base_chain(chain) {
            let _ = writeln!(
                out,
                "\t\ttype nat hook {} priority {}; policy accept;",
                base.hook.nft(),
                base.priority
            );
        }
        for rule in rules {
            let _ = writeln!(out, "\t\t{}", rule.text);
        }
        out.push_str("\t}\n");
    }
    out.push_str("}\n");
    out
}
