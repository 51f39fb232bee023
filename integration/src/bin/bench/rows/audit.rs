//! An audit of a healthy node's saved listing.

use std::time::Instant;

use anyhow::{Result, ensure};
use nftproxy_core::compile::compile;
use nftproxy_core::inspect::{Desired, audit};
use nftproxy_core::model::IpFamily;
use nftproxy_core::ruleset::Table;
use nftproxy_core::{listing, render};

use super::{Job, Scale};
use crate::cluster::{Cluster, Size, node};
use crate::measure::{mean, ms, spread};
use crate::table::Row;

const GROUP: &str = "audit";
const FLOOR: &str = "the words of the same text counted";

pub(crate) fn jobs(scale: Scale) -> Vec<Job> {
    [scale.medium(), scale.many_endpoints()]
        .map(|size| Job::new(format!("{GROUP}, {size}"), move || rows(scale, size)))
        .into()
}

fn rows(scale: Scale, size: Size) -> Result<Vec<Row>> {
    let state = Cluster::new(size).state();
    let node = node();
    let desired = Desired {
        state: &state,
        node: &node,
    };
    let text = render::listing(&compile(&state, &node).v4);
    let table = Table::default();
    let costs = scale.few().repeat(|_| {
        let start = Instant::now();
        let listing = listing::read(&text, &table);
        let read = start.elapsed();
        let report = audit(desired, &listing, &table, &[IpFamily::V4], |_| ());
        let total = start.elapsed();
        ensure!(
            report.findings.is_empty() && report.unread.is_empty(),
            "the listing is what it should be: {:?}",
            report.findings.first()
        );
        let start = Instant::now();
        let n_words = text.split_whitespace().count();
        ensure!(n_words > 0, "there are words");
        Ok((read, total, start.elapsed(), report.scope.observed_elements))
    })?;
    let ours = spread(costs.iter().map(|(_, total, _, _)| *total));
    let floor = spread(costs.iter().map(|(_, _, floor, _)| *floor));
    let row = Row::ms(GROUP, FLOOR, format!("{size}, saved text"), ours, floor)
        .with("read ms", mean(costs.iter().map(|(read, ..)| ms(*read))))
        .with("elements", mean(costs.iter().map(|(.., n)| *n as f64)));
    Ok(vec![row])
}
