//! Who else has tables here.

mod conduct;

use super::Netlink;
use super::attribute::{attributes, be32, find, put_str, string};
use super::constants::*;
use crate::apply::ApplyError;
use crate::neighbour::{BaseChain, Conduct, Neighbour, VerdictMaps};

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
                    ..Neighbour::default()
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

    /// The same with what the rules of the tables that `is_of_interest` may do.
    ///
    /// It takes a request more, and one for each verdict map that such rules ask, and as many bytes
    /// as there are rules, and elements of such maps.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    pub fn neighbours_and_rules(
        &mut self,
        is_of_interest: impl Fn(&Neighbour) -> bool,
    ) -> Result<Vec<Neighbour>, ApplyError> {
        let mut neighbours = self.neighbours()?;
        let mut maps: Vec<_> = neighbours.iter().map(|_| VerdictMaps::default()).collect();
        let mut last = 0;
        let message_type = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETRULE;
        self.connection
            .dump_all(message_type, "rules", |family, rule| {
                let family = family_name(family);
                let table = find(rule, NFTA_RULE_TABLE).and_then(string);
                let chain = find(rule, NFTA_RULE_CHAIN).and_then(string);
                let (Some(table), Some(chain)) = (table, chain) else {
                    return;
                };
                // Rules come table by table.
                let is_it =
                    |neighbour: &Neighbour| neighbour.family == family && neighbour.table == table;
                if !neighbours.get(last).is_some_and(is_it) {
                    last = neighbours
                        .iter()
                        .position(is_it)
                        .unwrap_or(neighbours.len());
                }
                let Some(owner) = neighbours
                    .get_mut(last)
                    .filter(|owner| is_of_interest(owner))
                else {
                    return;
                };
                let list = find(rule, NFTA_RULE_EXPRESSIONS).unwrap_or_default();
                let (conduct, asked) = conduct::of_rule(family, list);
                for map in asked {
                    maps[last].ask(chain, map);
                }
                if conduct != Conduct::default() {
                    owner.conduct.entry(chain.into()).or_default().add(&conduct);
                }
            })?;
        for (owner, maps) in neighbours.iter_mut().zip(&mut maps) {
            self.read_maps(owner, maps);
            maps.resolve(&mut owner.conduct);
        }
        Ok(neighbours)
    }

    /// Reads the elements of the verdict maps that a table's rules ask. One that cannot be read, as
    /// somebody takes it away meanwhile, counts as one of which nothing is known.
    fn read_maps(&mut self, owner: &Neighbour, maps: &mut VerdictMaps) {
        let message_type = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETSETELEM;
        for map in maps.asked() {
            let name = |out: &mut Vec<u8>| {
                put_str(out, NFTA_SET_ELEM_LIST_TABLE, &owner.table);
                put_str(out, NFTA_SET_ELEM_LIST_SET, &map);
            };
            let take = |message: &[u8]| {
                let list = find(message, NFTA_SET_ELEM_LIST_ELEMENTS).unwrap_or_default();
                let verdicts = attributes(list).filter_map(|(_, element)| {
                    find(find(element, NFTA_SET_ELEM_DATA)?, NFTA_DATA_VERDICT)
                });
                for verdict in verdicts {
                    conduct::add_verdict(verdict, maps.element(&map));
                }
            };
            let family = family_number(owner.family);
            let done = self
                .connection
                .dump_of(family, message_type, &map, name, take);
            if done.is_err() {
                maps.forget(&map);
            }
        }
    }
}

fn base_chain(name: &str, chain: &[u8]) -> Option<BaseChain> {
    let hook = find(chain, NFTA_CHAIN_HOOK)?;
    Some(BaseChain {
        name: name.into(),
        chain_type: find(chain, NFTA_CHAIN_TYPE).and_then(string)?.into(),
        hook: find(hook, NFTA_HOOK_HOOKNUM).and_then(be32)?,
        priority: find(hook, NFTA_HOOK_PRIORITY).and_then(be32)? as i32,
        drops_by_default: find(chain, NFTA_CHAIN_POLICY).and_then(be32) == Some(NF_DROP as u32),
    })
}

/// The families, by their `NFPROTO_…` and as nft(8) calls them.
const FAMILIES: [(u8, &str); 6] = [
    (1, "inet"),
    (2, "ip"),
    (3, "arp"),
    (5, "netdev"),
    (7, "bridge"),
    (10, "ip6"),
];

/// What nft(8) calls an `NFPROTO_…`.
fn family_name(family: u8) -> &'static str {
    let known = FAMILIES.iter().find(|(number, _)| *number == family);
    known.map_or("of another family", |(_, name)| name)
}

fn family_number(family: &str) -> u8 {
    let known = FAMILIES.iter().find(|(_, name)| *name == family);
    known.map_or(NFPROTO_UNSPEC, |(number, _)| *number)
}
