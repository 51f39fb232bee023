//! Runs rules on one packet, as often as there are numbers to be drawn.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::flight::Flight;
use super::{MAX_DEPTH, MAX_RUNS, Outcome, Packet, Share, Step, TraceError, Ways};
use crate::compile::pick_rules;
use crate::jhash::{jhash, scale};
use crate::model::{EndpointAddress, Family};
use crate::ruleset::element::{Data, Element};
use crate::ruleset::expr::{
    CLIENT_HASH_SEED, CT_STATUS_DNAT, CtOriginalKey, Expr, INTERFACE_NAME_LEN, LookupData, MetaKey,
    ROUTE_TYPE_LOCAL, Reject, Verdict,
};
use crate::ruleset::name::{ChainName, SetName};
use crate::ruleset::schema::{BaseChain, Hook, base_chain, schema};
use crate::ruleset::{FamilyRuleset, Rule};
/// A ruleset that is ready to be followed by many packets.
pub(crate) struct Tracer<'a, F: Family> {
    chains: BTreeMap<ChainName, Rc<[Rule]>>,
    elements: BTreeMap<SetName, BTreeMap<Vec<u8>, &'a Element<F>>>,
    is_local: &'a dyn Fn(F::Address) -> bool,
    /// The source of a packet stands for others like it, whose hashes differ.
    is_any_client: bool,
    /// The numbers that are drawn in this run, and how many each was drawn from.
    draws: Vec<(u32, u32)>,
    /// How many of them have been drawn so far.
    n_drawn: usize,
}

/// How a chain ended.
enum End {
    /// At the end of its rules, or by `return`.
    Continue,
    /// By `accept`: no chain of this hook and priority goes on.
    Accept,
    /// With something that ends the hook: an address was translated.
    Translated,
    Drop,
    Reject(Reject),
}

/// What comes after an expression.
enum After {
    Next,
    /// The rule does not match.
    Break,
    Verdict(Verdict),
    End(End),
}

impl<'a, F: Family> Tracer<'a, F> {
    pub(crate) fn new(
        ruleset: &'a FamilyRuleset<F>,
        is_local: &'a dyn Fn(F::Address) -> bool,
    ) -> Self {
        let fixed = ruleset.skeleton.chains.iter();
        let fixed = fixed.map(|(chain, rules)| (*chain, rules.as_slice().into()));
        let picks = ruleset.picks.iter();
        let picks = picks.map(|pick| (ChainName::Pick(*pick), pick_rules::<F>(*pick).into()));
        // Whatever is led there comes back.
        let about = (ChainName::About, Vec::new().into());
        let chains = fixed.chain(picks).chain([about]).collect();
        let mut elements = BTreeMap::<_, BTreeMap<_, _>>::new();
        for element in &ruleset.elements {
            let mut key = Vec::new();
            element.write_key(&mut key);
            elements
                .entry(element.set())
                .or_default()
                .insert(key, element);
        }
        Self {
            chains,
            elements,
            is_local,
            is_any_client: false,
            draws: Vec::new(),
            n_drawn: 0,
        }
    }

    /// The same, where the source of a packet stands for a class of clients: what follows from an
    /// address is as open as what is drawn at random.
    pub(crate) fn for_any_client(self) -> Self {
        Self {
            is_any_client: true,
            ..self
        }
    }

    /// As [`ways`](super::ways).
    pub(crate) fn ways(&mut self, packet: &Packet<F>) -> Result<Ways<F>, TraceError> {
        let mut ways = Ways::new();
        // Each number that can be drawn is a way to go. The first run draws 0 wherever it draws,
        // and each run after that goes on where the one before left off, the last draw first.
        self.draws.clear();
        for _ in 0..MAX_RUNS {
            self.n_drawn = 0;
            let (outcome, steps) = self.run(packet)?;
            self.draws.truncate(self.n_drawn);
            let moduli = self.draws.iter().map(|(_, modulus)| u64::from(*modulus));
            let share = Share::one_in(moduli.fold(1, u64::saturating_mul));
            ways.entry(outcome)
                .and_modify(|(sum, _)| *sum = sum.plus(share))
                .or_insert((share, steps));
            while self
                .draws
                .pop_if(|(draw, modulus)| *draw + 1 >= *modulus)
                .is_some()
            {}
            match self.draws.last_mut() {
                Some((draw, _)) => *draw += 1,
                None => return Ok(ways),
            }
        }
        Err(TraceError::TooMany)
    }

    /// Takes a packet through the hooks it meets.
    fn run(&mut self, packet: &Packet<F>) -> Result<(Outcome<F>, Vec<Step>), TraceError> {
        let mut flight = Flight {
            packet: packet.clone(),
            sent_to: (packet.destination, packet.destination_port),
            dnat: None,
            masquerade: false,
            registers: [0; 64],
            steps: Vec::new(),
        };
        let first = if packet.input_interface.is_some() {
            Hook::Prerouting
        } else {
            Hook::Output
        };
        match self.hook(first, &mut flight)? {
            End::Drop => return Ok((Outcome::Drop, flight.steps)),
            End::Reject(reject) => {
                let outcome = Outcome::Refuse {
                    reset: reject == Reject::TcpReset,
                };
                return Ok((outcome, flight.steps));
            }
            End::Continue | End::Accept | End::Translated => {}
        }
        // What comes in for this host itself is not routed on.
        let is_delivered = first == Hook::Prerouting && (self.is_local)(flight.packet.destination);
        let last = if is_delivered {
            Hook::Input
        } else {
            Hook::Postrouting
        };
        self.hook(last, &mut flight)?;
        let masquerade = flight.masquerade;
        let outcome = match flight.dnat {
            Some(endpoint) => Outcome::Endpoint {
                endpoint,
                masquerade,
            },
            None => Outcome::Pass { masquerade },
        };
        Ok((outcome, flight.steps))
    }

    /// Runs the base chains of a hook in order of priority, until one translates the packet: nat
    /// chains after that do not see it.
    fn hook(&mut self, hook: Hook, flight: &mut Flight<F>) -> Result<End, TraceError> {
        let mut at_hook: Vec<_> = self
            .chains
            .keys()
            .filter_map(|chain| Some((base_chain(*chain)?, *chain)))
            .filter(|(BaseChain { hook: at, .. }, _)| *at == hook)
            .map(|(BaseChain { priority, .. }, chain)| (priority, chain))
            .collect();
        at_hook.sort();
        for (_, chain) in at_hook {
            match self.chain(chain, flight, 0)? {
                End::Continue | End::Accept => {}
                end => return Ok(end),
            }
        }
        Ok(End::Continue)
    }

    fn chain(
        &mut self,
        chain: ChainName,
        flight: &mut Flight<F>,
        depth: usize,
    ) -> Result<End, TraceError> {
        if depth > MAX_DEPTH {
            return Err(TraceError::TooDeep(chain));
        }
        let rules = self.chains.get(&chain);
        let rules = Rc::clone(rules.ok_or(TraceError::NoChain(chain))?);
        for (number, rule) in rules.iter().enumerate() {
            let verdict = match self.rule(chain, number, rule, flight)? {
                After::Next | After::Break => continue,
                After::End(end) => return Ok(end),
                After::Verdict(verdict) => verdict,
            };
            match verdict {
                Verdict::Drop => return Ok(End::Drop),
                Verdict::Accept => return Ok(End::Accept),
                Verdict::Return => return Ok(End::Continue),
                Verdict::Goto(next) => return self.chain(next, flight, depth + 1),
                Verdict::Jump(next) => match self.chain(next, flight, depth + 1)? {
                    End::Continue => {}
                    end => return Ok(end),
                },
            }
        }
        Ok(End::Continue)
    }

    fn rule(
        &mut self,
        chain: ChainName,
        number: usize,
        rule: &Rule,
        flight: &mut Flight<F>,
    ) -> Result<After, TraceError> {
        for expr in &rule.exprs {
            let after = self.expr(chain, expr, flight)?;
            let detail = match &after {
                After::Next => continue,
                After::Break => return Ok(After::Break),
                // One that stands in the rule itself has been said.
                After::Verdict(verdict) if rule.text.ends_with(&verdict.nft()) => String::new(),
                After::Verdict(verdict) => format!(" → {}", verdict.nft()),
                After::End(End::Translated) => flight
                    .dnat
                    .filter(|_| !flight.masquerade)
                    .map(|EndpointAddress { address, port }| format!(" → {address} port {port}"))
                    .unwrap_or_default(),
                After::End(_) => String::new(),
            };
            flight.steps.push(Step {
                chain,
                rule: number,
                text: format!("{}{detail}", rule.text),
            });
            return Ok(after);
        }
        flight.steps.push(Step {
            chain,
            rule: number,
            text: rule.text.clone(),
        });
        Ok(After::Next)
    }

    fn expr(
        &mut self,
        chain: ChainName,
        expr: &Expr,
        flight: &mut Flight<F>,
    ) -> Result<After, TraceError> {
        match expr {
            Expr::Payload {
                base,
                offset,
                len,
                register,
            } => match flight.payload(*base, *offset as usize, *len as usize) {
                Some(value) => flight.load(*register, &value),
                None => return Ok(After::Break),
            },
            Expr::Meta { key, register } => {
                let value = match key {
                    MetaKey::L4Proto => vec![flight.packet.protocol],
                    MetaKey::Mark => flight.packet.mark.to_ne_bytes().to_vec(),
                    MetaKey::Iifname => {
                        let name = flight.packet.input_interface.clone().unwrap_or_default();
                        let mut name = name.into_bytes();
                        name.resize(INTERFACE_NAME_LEN, 0);
                        name
                    }
                };
                flight.load(*register, &value);
            }
            Expr::SetMark { register } => {
                let value = flight.value(*register, 4);
                flight.packet.mark = u32::from_ne_bytes([value[0], value[1], value[2], value[3]]);
            }
            Expr::CtStatus { register } => {
                let status = if flight.dnat.is_some() {
                    CT_STATUS_DNAT
                } else {
                    0
                };
                flight.load(*register, &status.to_ne_bytes());
            }
            Expr::CtOriginal { key, register } => {
                let mut value = Vec::new();
                match key {
                    CtOriginalKey::Daddr => F::write_address(flight.sent_to.0, &mut value),
                    CtOriginalKey::Dport => value.extend(flight.sent_to.1.to_be_bytes()),
                }
                flight.load(*register, &value);
            }
            // What it writes concerns later connections only.
            Expr::Update { .. } | Expr::Counter => {}
            Expr::FibType {
                destination,
                register,
            } => {
                let address = if *destination {
                    flight.packet.destination
                } else {
                    flight.packet.source
                };
                // Other types of route are not told apart: no rule of ours asks for them.
                let kind = if (self.is_local)(address) {
                    ROUTE_TYPE_LOCAL
                } else {
                    0
                };
                flight.load(*register, &kind.to_ne_bytes());
            }
            Expr::Numgen { modulus, register } => {
                let draw = self.draw(*modulus);
                flight.load(*register, &draw.to_ne_bytes());
            }
            Expr::Hash {
                from,
                len,
                modulus,
                register,
            } => {
                let slot = if self.is_any_client {
                    self.draw(*modulus)
                } else {
                    let bytes = flight.value(*from, *len as usize);
                    scale(jhash(bytes, CLIENT_HASH_SEED), *modulus)
                };
                flight.load(*register, &slot.to_ne_bytes());
            }
            Expr::Cmp {
                negate,
                register,
                value,
            } => {
                if (flight.value(*register, value.len()) == &value[..]) == *negate {
                    return Ok(After::Break);
                }
            }
            Expr::Bitwise {
                register,
                mask,
                xor,
            } => {
                let value = flight.value(*register, mask.len()).to_vec();
                let result: Vec<_> = value
                    .iter()
                    .zip(mask)
                    .zip(xor)
                    .map(|((value, mask), xor)| value & mask ^ xor)
                    .collect();
                flight.load(*register, &result);
            }
            Expr::Lookup {
                set,
                register,
                data,
            } => {
                let key = flight.value(*register, schema(*set).key_len::<F>());
                let Some(element) = self.find(*set, key) else {
                    return Ok(After::Break);
                };
                match (data, element.data()) {
                    (LookupData::None, _) => {}
                    (LookupData::Verdict, Data::Verdict(verdict)) => {
                        return Ok(After::Verdict(*verdict));
                    }
                    (LookupData::Load(to), Data::Endpoint(EndpointAddress { address, port })) => {
                        let mut value = Vec::new();
                        F::write_address(*address, &mut value);
                        value.extend_from_slice(&port.get().to_be_bytes());
                        value.extend_from_slice(&[0, 0]);
                        flight.load(*to, &value);
                    }
                    (LookupData::Verdict | LookupData::Load(_), _) => return Ok(After::Break),
                }
            }
            Expr::LookupAbsent { set, register } => {
                let key = flight.value(*register, schema(*set).key_len::<F>());
                if self.find(*set, key).is_some() {
                    return Ok(After::Break);
                }
            }
            Expr::Verdict(verdict) => return Ok(After::Verdict(*verdict)),
            Expr::Dnat { address, port } => {
                let address = F::read_address(flight.value(*address, F::ADDRESS_LEN));
                let port = flight.value(*port, 2);
                let port = u16::from_be_bytes([port[0], port[1]]).try_into().ok();
                let (Some(address), Some(port)) = (address, port) else {
                    return Ok(After::Break);
                };
                flight.dnat = Some(EndpointAddress { address, port });
                flight.packet.destination = address;
                flight.packet.destination_port = port.get();
                return Ok(After::End(End::Translated));
            }
            Expr::Masquerade => {
                flight.masquerade = true;
                return Ok(After::End(End::Translated));
            }
            Expr::Reject(Reject::TcpReset) if flight.packet.protocol != 6 => {
                return Ok(After::Break);
            }
            Expr::Reject(reject) => return Ok(After::End(End::Reject(*reject))),
            Expr::Foreign(expression) => {
                return Err(TraceError::Foreign {
                    chain,
                    expression: expression.clone(),
                });
            }
        }
        Ok(After::Next)
    }
}

impl<'a, F: Family> Tracer<'a, F> {
    /// The number that is drawn in this run.
    fn draw(&mut self, modulus: u32) -> u32 {
        if self.n_drawn == self.draws.len() {
            self.draws.push((0, modulus));
        }
        let (draw, _) = self.draws[self.n_drawn];
        self.n_drawn += 1;
        draw
    }

    /// The element that has the key, or whose range does.
    fn find(&self, set: SetName, key: &[u8]) -> Option<&'a Element<F>> {
        let elements = self.elements.get(&set)?;
        if !schema(set).is_interval() {
            return elements.get(key).copied();
        }
        // Keys of a destination are equal but for the address at their end, in network byte order.
        let fixed = key.len() - F::ADDRESS_LEN;
        let is_in_range = |(first, element): &(&Vec<u8>, &&'a Element<F>)| {
            let mut last = Vec::new();
            element.write_key_end(&mut last);
            first[..fixed] == key[..fixed] && first.as_slice() <= key && key <= last.as_slice()
        };
        elements
            .iter()
            .find(is_in_range)
            .map(|(_, element)| *element)
    }
}
