//! Rulesets and deltas as text for nft(8).

use std::fmt::Write;

use crate::compile::Remembered;
use crate::diff::{Delta, Sizes, TableChange, diff, for_each_set};
use crate::model::Family;
use crate::ruleset::element::Element;
use crate::ruleset::name::{ChainName, SetName, TABLE_COMMENT};
use crate::ruleset::schema::{DataType, Schema, schema};
use crate::ruleset::{FamilyRuleset, SetOptions, Table};

/// Elements per line of a script.
const ELEMENTS_PER_COMMAND: usize = 500;

/// A whole ruleset as a script that `nft -f` accepts, and that creates the default table.
pub fn ruleset<F: Family>(ruleset: &FamilyRuleset<F>) -> String {
    ruleset_in(&Table::default(), ruleset)
}

/// The same for another table.
pub fn ruleset_in<F: Family>(table: &Table, ruleset: &FamilyRuleset<F>) -> String {
    delta_in(table, &diff(None, ruleset))
}

/// A delta of the default table as a script that does the same as applying it, as one transaction.
pub fn delta<F: Family>(delta: &Delta<F>) -> String {
    delta_in(&Table::default(), delta)
}

/// The same for another table.
pub fn delta_in<F: Family>(place: &Table, delta: &Delta<F>) -> String {
    let Delta {
        take_over,
        table,
        sizes,
        set_options,
        add_sets,
        add_chains,
        set_rules,
        forget,
        delete_elements,
        add_elements,
        remember,
        delete_chains,
        about,
    } = delta;
    let mut out = String::new();
    let at = format!("{} {}", F::FAMILY.nft_name(), place.name());
    let mut line = |text: String| {
        out.push_str(&text);
        out.push('\n');
    };
    if let Some(table) = take_over {
        let other = format!("{} {}", F::FAMILY.nft_name(), table.name());
        // What is added may be deleted, whether or not it was there.
        line(format!("add table {other}"));
        line(format!("delete table {other}"));
    }
    match table {
        TableChange::Keep | TableChange::Claim => {}
        TableChange::Create => create_table::<F>(&at, sizes, *set_options, &mut line),
        TableChange::Recreate => {
            line(format!("delete table {at}"));
            create_table::<F>(&at, sizes, *set_options, &mut line);
        }
    }
    for set in add_sets {
        add_set::<F>(&at, *set, sizes, *set_options, &mut line);
    }
    for chain in add_chains {
        line(match place.base_chain(*chain) {
            None => format!("add chain {at} {chain}"),
            Some(base) => format!(
                "add chain {at} {chain} {{ type nat hook {} priority {}; policy accept; }}",
                base.hook.nft(),
                base.priority
            ),
        });
    }
    let flushed = set_rules.iter().map(|(chain, _)| chain);
    for chain in flushed.filter(|chain| !add_chains.contains(chain)) {
        line(format!("flush chain {at} {chain}"));
    }
    if !table.is_new() {
        for set in sizes.keys().filter(|set| !add_sets.contains(set)) {
            line(format!("delete {} {at} {set}", kind(&schema(*set))));
            add_set::<F>(&at, *set, sizes, *set_options, &mut line);
        }
    }
    for (chain, rules) in set_rules {
        for rule in rules {
            line(format!("add rule {at} {chain} {}", rule.text));
        }
    }
    write_elements("delete", &at, forget, &mut line);
    write_elements("delete", &at, delete_elements, &mut line);
    write_elements("add", &at, add_elements, &mut line);
    for remembered in remember {
        let set = remembered.element.set();
        line(format!(
            "add element {at} {set} {{ {} }}",
            expiring(remembered)
        ));
    }
    for chain in delete_chains {
        line(format!("delete chain {at} {chain}"));
    }
    if let Some(about) = about {
        let chain = ChainName::About;
        line(format!("add chain {at} {chain}"));
        line(format!("flush chain {at} {chain}"));
        line(format!("add rule {at} {chain} return comment \"{about}\""));
    }
    out
}

/// An element with the time it has; those have no comment.
fn expiring<F: Family>(remembered: &Remembered<F>) -> String {
    let Remembered {
        element,
        timeout,
        expires,
    } = remembered;
    let (timeout, expires) = (timeout.as_millis(), expires.as_millis());
    let times = format!(" timeout {timeout}ms expires {expires}ms : ");
    element.nft().replacen(" : ", &times, 1)
}

fn create_table<F: Family>(
    at: &str,
    sizes: &Sizes,
    options: SetOptions,
    line: &mut impl FnMut(String),
) {
    line(format!("add table {at} {{ comment \"{TABLE_COMMENT}\"; }}"));
    for set in SetName::ALL {
        add_set::<F>(at, set, sizes, options, line);
    }
}

fn add_set<F: Family>(
    at: &str,
    set: SetName,
    sizes: &Sizes,
    options: SetOptions,
    line: &mut impl FnMut(String),
) {
    let schema = schema(set);
    let kind = kind(&schema);
    let size = sizes.get(&set);
    let size = size.map_or_else(String::new, |size| format!(" size {size};"));
    let counter = if options.counts(set) { " counter;" } else { "" };
    line(format!(
        "add {kind} {at} {set} {{ {};{size}{counter} }}",
        schema.nft::<F>()
    ));
}

/// What nft(8) calls it.
fn kind(schema: &Schema) -> &'static str {
    if schema.data == DataType::None {
        "set"
    } else {
        "map"
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

/// A ruleset of the default table in the layout of `nft list table`, for people: chains in the order
/// in which packets meet them, elements sorted.
pub fn listing<F: Family>(ruleset: &FamilyRuleset<F>) -> String {
    listing_in(&Table::default(), ruleset)
}

/// The same for another table.
pub fn listing_in<F: Family>(table: &Table, ruleset: &FamilyRuleset<F>) -> String {
    let mut out = format!("table {} {} {{\n", F::FAMILY.nft_name(), table.name());
    let _ = writeln!(out, "\tcomment \"{TABLE_COMMENT}\"");
    let optional = ruleset.skeleton.sets.iter().copied();
    for set in SetName::ALL.into_iter().chain(optional) {
        let schema = schema(set);
        let kind = kind(&schema);
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
        if let Some(base) = table.base_chain(chain) {
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
