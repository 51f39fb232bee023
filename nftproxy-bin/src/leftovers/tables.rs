//! Whole nftables tables.

use anyhow::Context;
use nftproxy_core::apply::ApplyError;
use nftproxy_core::apply::netlink::Netlink;
use nftproxy_core::model::{IpFamily, V4, V6};
use nftproxy_core::ruleset::Table;

/// Removes a family's table of this name, if there is one; whether there was.
pub(super) fn remove(family: IpFamily, name: &str) -> anyhow::Result<bool> {
    let table = Table::new(name, 0).context("naming the table")?;
    let mut netlink = Netlink::open_table(table, None)?;
    let removed = match family {
        IpFamily::V4 => netlink.remove::<V4>(),
        IpFamily::V6 => netlink.remove::<V6>(),
    };
    match removed {
        // A kernel without the family has none of its tables.
        Err(ApplyError::Unsupported(_)) => Ok(false),
        removed => Ok(removed?),
    }
}
