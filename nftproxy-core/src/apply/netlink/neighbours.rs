//! Who else has tables here.

use super::Netlink;
use super::attribute::{attributes, be32, find, string};
use super::constants::*;
use crate::apply::ApplyError;
use crate::neighbour::{Act, BaseChain, Neighbour};

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
    /// It takes a request more, and as many bytes as there are rules.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    pub fn neighbours_and_rules(
        &mut self,
        is_of_interest: impl Fn(&Neighbour) -> bool,
    ) -> Result<Vec<Neighbour>, ApplyError> {
        let mut neighbours = self.neighbours()?;
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
                for (_, expression) in attributes(list) {
                    let (act, leads_to) = conduct(expression);
                    if act.is_some() || leads_to.is_some() {
                        let conduct = owner.conduct.entry(chain.into()).or_default();
                        conduct.acts.extend(act);
                        conduct.leads_to.extend(leads_to.map(String::from));
                    }
                }
            })?;
        Ok(neighbours)
    }
}

/// What an expression may do to a packet, and where it leads.
fn conduct(expression: &[u8]) -> (Option<Act>, Option<&str>) {
    let name = find(expression, NFTA_EXPR_NAME).and_then(string);
    let data = find(expression, NFTA_EXPR_DATA).unwrap_or_default();
    let number = |attribute| find(data, attribute).and_then(be32);
    let act = match name.unwrap_or_default() {
        "nat" if number(1) == Some(NFT_NAT_DNAT) => Some(Act::Dnat),
        "nat" | "masq" => Some(Act::Snat),
        "redir" | "tproxy" => Some(Act::Dnat),
        // Extensions of iptables.
        "target" => find(data, 1).and_then(string).and_then(Act::of),
        // Without a register to load to, the data is a verdict.
        "lookup" if number(3) == Some(0) => Some(Act::VerdictMap),
        "immediate" => {
            let verdict = find(data, 2).and_then(|data| find(data, NFTA_DATA_VERDICT));
            let code = verdict
                .and_then(|verdict| find(verdict, NFTA_VERDICT_CODE))
                .and_then(be32);
            let chain = verdict
                .and_then(|verdict| find(verdict, NFTA_VERDICT_CHAIN))
                .and_then(string);
            return ((code == Some(NF_DROP as u32)).then_some(Act::Drop), chain);
        }
        name => Act::of(name),
    };
    (act, None)
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
