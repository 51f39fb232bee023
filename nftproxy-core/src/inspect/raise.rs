//! Kernel expressions back to the statements that they were made from.
//!
//! Statements are guessed from what the expressions hold, and count only if they come down to just
//! these, so that no text says what the kernel does not do.

use crate::model::{Family, InterfaceName, Protocol};
use crate::ruleset::expr::{Expr, Match, MetaKey, PayloadBase, Reject, Statement};
use crate::ruleset::name::SetName;
use crate::ruleset::schema::schema;

/// A rule's text, if it is made of statements that we write.
pub(super) fn raise<F: Family>(exprs: &[Expr]) -> Option<String> {
    let mut rest = exprs;
    let mut texts = Vec::new();
    while !rest.is_empty() {
        let (statement, len) = candidates::<F>(rest)
            .into_iter()
            .filter_map(|statement| {
                let mut lowered = Vec::new();
                statement.lower(&mut lowered);
                rest.starts_with(&lowered)
                    .then_some((statement, lowered.len()))
            })
            .max_by_key(|(_, len)| *len)?;
        texts.push(statement.nft());
        rest = &rest[len..];
    }
    (!texts.is_empty()).then(|| texts.join(" "))
}

const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// Statements that expressions may start with.
fn candidates<F: Family>(exprs: &[Expr]) -> Vec<Statement<F>> {
    let mut all = vec![
        Statement::SaddrIsLocal,
        Statement::DaddrIsLocal,
        Statement::IsDnat,
        Statement::DnatToRemembered,
        Statement::Masquerade,
        Statement::Counter,
        Statement::Reject(Reject::PortUnreachable),
        Statement::Reject(Reject::TcpReset),
    ];
    for set in SetName::ALL.into_iter().chain(SetName::OPTIONAL) {
        all.extend([
            Statement::In(set),
            Statement::NotIn(set),
            Statement::Vmap(set),
        ]);
        if schema(set).key.len() == 1 {
            all.extend([Statement::OriginalIn(set), Statement::OriginalNotIn(set)]);
        }
        all.extend(PROTOCOLS.map(|protocol| Statement::VmapOriginal(set, protocol)));
    }
    all.extend(PROTOCOLS.map(Statement::L4Proto));
    for expr in exprs {
        match expr {
            Expr::Verdict(verdict) => all.push(Statement::Verdict(*verdict)),
            Expr::Update { timeout, .. } => {
                let seconds = u32::try_from(timeout / 1000)
                    .ok()
                    .and_then(|seconds| seconds.try_into().ok());
                all.extend(seconds.into_iter().flat_map(|seconds| {
                    PROTOCOLS.map(|protocol| Statement::Remember(protocol, seconds))
                }));
            }
            Expr::Bitwise { mask, xor, .. } => {
                let number = |bytes: &[u8]| bytes.try_into().map(u32::from_ne_bytes);
                let numbers = [number(mask), number(xor)];
                all.extend(numbers.into_iter().flatten().flat_map(|mark| {
                    [
                        Statement::HasMark(mark),
                        Statement::SetMark(mark),
                        Statement::ClearMark(mark),
                    ]
                }));
            }
            _ => {}
        }
    }
    all.extend(prefix_or_name(exprs));
    all
}

/// A match of an address or of an interface.
fn prefix_or_name<F: Family>(exprs: &[Expr]) -> Vec<Statement<F>> {
    match exprs {
        [
            Expr::Meta {
                key: MetaKey::Iifname,
                ..
            },
            Expr::Cmp { negate, value, .. },
            ..,
        ] => {
            let end = value
                .iter()
                .position(|byte| *byte == 0)
                .unwrap_or(value.len());
            let name = str::from_utf8(&value[..end]).ok();
            let Some(name) = name.and_then(|name| InterfaceName::new(name).ok()) else {
                return Vec::new();
            };
            let name = || Match {
                value: name.clone(),
                negate: *negate,
            };
            vec![Statement::Iifname(name()), Statement::IifnamePrefix(name())]
        }
        [
            Expr::Payload {
                base: PayloadBase::Network,
                ..
            },
            rest @ ..,
        ] => {
            let (mask, rest) = match rest {
                [Expr::Bitwise { mask, .. }, rest @ ..] => (Some(mask), rest),
                rest => (None, rest),
            };
            let [Expr::Cmp { negate, value, .. }, ..] = rest else {
                return Vec::new();
            };
            let len = match mask {
                Some(mask) => mask.iter().map(|byte| byte.count_ones() as usize).sum(),
                None => value.len() * 8,
            };
            let mut bytes = value.clone();
            bytes.resize(F::ADDRESS_LEN, 0);
            let address = F::read_address(&bytes);
            let prefix = address.map(|address| Match {
                value: (address, len as u8),
                negate: *negate,
            });
            let both = |prefix: Match<(F::Address, u8)>| {
                [Statement::Saddr(prefix.clone()), Statement::Daddr(prefix)]
            };
            prefix.into_iter().flat_map(both).collect()
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::{Features, skeleton};
    use crate::model::{DetectLocal, Node, NodePortAddresses, V4, V6};
    use crate::ruleset::expr::Verdict;
    use crate::ruleset::name::ChainName;

    fn all_rules<F: Family>(node: &Node, cidrs: &[(F::Address, u8)]) {
        let features = Features {
            source_ranges: true,
            affinity: [3600.try_into().unwrap()].into(),
        };
        let skeleton = skeleton::<F>(node, cidrs, &features);
        for rule in skeleton.chains.values().flatten() {
            assert_eq!(raise::<F>(&rule.exprs).as_ref(), Some(&rule.text));
        }
    }

    #[test]
    fn each_rule_of_ours_gets_its_text_back() {
        let cidrs = DetectLocal::Cidrs(vec![
            "10.244.0.0/13".parse().unwrap(),
            "fd00:10::/45".parse().unwrap(),
        ]);
        for detect_local in [
            cidrs,
            DetectLocal::BridgeInterface("cni0".parse().unwrap()),
            DetectLocal::InterfaceNamePrefix("veth".parse().unwrap()),
        ] {
            for (masquerade_mark, counts) in [(Some(1 << 14), true), (Some(1), false), (None, true)]
            {
                let node = Node {
                    detect_local: detect_local.clone(),
                    masquerade_mark,
                    counts,
                    node_port_addresses_v4: NodePortAddresses::Only(Default::default()),
                    ..Node::default()
                };
                all_rules::<V4>(&node, &[([10, 96, 0, 0].into(), 12)]);
                all_rules::<V6>(&node, &[("fd00::".parse().unwrap(), 112)]);
            }
        }
    }

    #[test]
    fn what_is_not_ours_gets_none() {
        let foreign = Expr::Foreign("limit".into());
        assert_eq!(raise::<V4>(std::slice::from_ref(&foreign)), None);
        assert_eq!(raise::<V4>(&[]), None);
        let half = [Expr::CtStatus { register: 0 }];
        assert_eq!(raise::<V4>(&half), None);
        let with_more = [Expr::Verdict(Verdict::Goto(ChainName::Refuse)), foreign];
        assert_eq!(raise::<V4>(&with_more), None);
    }
}
