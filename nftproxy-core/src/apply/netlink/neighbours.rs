//! Who else has tables here.

use super::Netlink;
use super::attribute::{be32, find, string};
use super::constants::*;
use crate::apply::ApplyError;

/// A table, of anybody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// Its family, as nft(8) calls it: `ip`, `ip6`, `inet`, `bridge`, …
    pub family: &'static str,
    /// Its name.
    pub table: String,
    /// Whether its chains see no packets for now.
    pub is_dormant: bool,
    /// The names of its chains.
    pub chains: Vec<String>,
    /// Those of them that packets come to by themselves.
    pub base_chains: Vec<BaseChain>,
}

/// A chain at a hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseChain {
    /// Its name.
    pub name: String,
    /// `filter`, `nat` or `route`.
    pub chain_type: String,
    /// The hook's number, `NF_INET_…` in the families `ip`, `ip6` and `inet`.
    pub hook: u32,
    /// Lower ones run first.
    pub priority: i32,
}

impl Netlink {
    /// All tables of this network namespace with their chains, our own included.
    ///
    /// It takes two requests, and as many bytes as there are chains.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    pub fn neighbours(&mut self) -> Result<Vec<Neighbour>, ApplyError> {
        let mut neighbours: Vec<Neighbour> = Vec::new();
        let message = |kind| NFNL_SUBSYS_NFTABLES << 8 | kind;
        self.connection
            .dump_all(message(NFT_MSG_GETTABLE), "tables", |family, table| {
                let name = find(table, NFTA_TABLE_NAME).and_then(string);
                let flags = find(table, NFTA_TABLE_FLAGS).and_then(be32);
                neighbours.extend(name.map(|name| Neighbour {
                    family: family_name(family),
                    table: name.into(),
                    is_dormant: flags.unwrap_or_default() & NFT_TABLE_F_DORMANT != 0,
                    chains: Vec::new(),
                    base_chains: Vec::new(),
                }));
            })?;
        self.connection
            .dump_all(message(NFT_MSG_GETCHAIN), "chains", |family, chain| {
                let family = family_name(family);
                let table = find(chain, NFTA_CHAIN_TABLE).and_then(string);
                let name = find(chain, NFTA_CHAIN_NAME).and_then(string);
                let (Some(table), Some(name)) = (table, name) else {
                    return;
                };
                let owner = neighbours
                    .iter_mut()
                    .find(|neighbour| neighbour.family == family && neighbour.table == table);
                if let Some(owner) = owner {
                    owner.chains.push(name.into());
                    owner.base_chains.extend(base_chain(name, chain));
                }
            })?;
        Ok(neighbours)
    }
}

fn base_chain(name: &str, chain: &[u8]) -> Option<BaseChain> {
    let hook = find(chain, NFTA_CHAIN_HOOK)?;
    Some(BaseChain {
        name: name.into(),
        chain_type: find(chain, NFTA_CHAIN_TYPE).and_then(string)?.into(),
        hook: find(hook, NFTA_HOOK_HOOKNUM).and_then(be32)?,
        priority: find(hook, NFTA_HOOK_PRIORITY).and_then(be32)? as i32,
    })
}

/// What nft(8) calls an `NFPROTO_…`.
fn family_name(family: u8) -> &'static str {
    match family {
        1 => "inet",
        2 => "ip",
        3 => "arp",
        5 => "netdev",
        7 => "bridge",
        10 => "ip6",
        _ => "of another family",
    }
}
