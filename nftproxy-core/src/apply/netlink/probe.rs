//! What this kernel can do, found out by trying: a batch without its end is checked by the kernel
//! like any other, and then undone.
//!
//! Nothing is ever in force: the scratch table is dormant, and gone before anybody could list it.
//! The kernel loads modules on the way, as it would for the real thing.

use std::io;
use std::num::{NonZeroU16, NonZeroU32};

use nftnl::nftnl_sys as sys;
use nix::errno::Errno;

use super::constants::*;
use super::encode::Encoder;
use super::part::Part;
use super::{Netlink, Refusal};
use crate::apply::{ApplyError, Verb};
use crate::compile::pick_rules;
use crate::model::{Family, IpFamily, Protocol, V4, V6};
use crate::ruleset::element::{Destination, Element, Role};
use crate::ruleset::expr::{Expr, MetaKey, Register, Statement, Verdict};
use crate::ruleset::name::{ChainName, Draw, Pick, SetName, SlotMap};
use crate::ruleset::schema::base_chain;
use crate::ruleset::{Rule, SetOptions, Table};

/// The name of a table that never is.
const SCRATCH: &str = "nftproxy-scratch";

/// How many registers of 32 bits there are.
const REGISTERS: Register = 16;

/// Something that this kernel lacks.
#[derive(Debug)]
pub struct Lack {
    /// For which family.
    pub family: IpFamily,
    /// What.
    pub part: Part,
    /// The error number that the kernel gave.
    pub source: io::Error,
}

impl Netlink {
    /// Tries all that rulesets are made of, in a scratch table for each family. The answer is what
    /// the kernel lacks: nothing, if all is well. What could not be tried for want of something
    /// else is not in it.
    ///
    /// It takes as long as the kernel needs to undo it, some 10 to 30 ms.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked, above all [`ApplyError::NotPermitted`].
    pub fn try_rules(&mut self, families: &[IpFamily]) -> Result<Vec<Lack>, ApplyError> {
        let scratch = scratch();
        let mut encoder = Encoder::<V4>::new(&scratch, true);
        encoder.begin();
        let mut tried = Vec::new();
        for family in families {
            encoder = match family {
                IpFamily::V4 => try_family(encoder, &mut tried),
                IpFamily::V6 => try_family(encoder.in_family::<V6>(), &mut tried).in_family::<V4>(),
            };
        }
        let refusals = self.try_batch(encoder)?;
        let mut lacks: Vec<Lack> = Vec::new();
        for Refusal {
            sequence, errno, ..
        } in refusals
        {
            // What comes before them all is nf_tables itself.
            let refused = match tried.iter().find(|(tried, ..)| *tried == sequence) {
                Some((_, family, part)) => vec![(*family, *part)],
                None => families
                    .iter()
                    .map(|family| (*family, Part::Tables))
                    .collect(),
            };
            match Errno::from_raw(errno) {
                Errno::EPERM | Errno::EACCES => return Err(ApplyError::NotPermitted),
                _ => lacks.extend(refused.into_iter().map(|(family, part)| Lack {
                    family,
                    part,
                    source: io::Error::from_raw_os_error(errno),
                })),
            }
        }
        lacks.sort_by_key(|lack| (lack.family, lack.part));
        lacks.dedup_by_key(|lack| (lack.family, lack.part));
        // Without a table nothing else can be tried, and without sets no lookup.
        let without = |lacks: &[Lack], part| -> Vec<IpFamily> {
            let lacks = lacks.iter().filter(|lack| lack.part == part);
            lacks.map(|lack| lack.family).collect()
        };
        let tables = without(&lacks, Part::Tables);
        let sets = without(&lacks, Part::Sets);
        lacks.retain(|Lack { family, part, .. }| match part {
            Part::Tables => true,
            Part::Basics | Part::Update => !tables.contains(family) && !sets.contains(family),
            _ => !tables.contains(family),
        });
        Ok(lacks)
    }

    /// Whether elements can be deleted that may not exist, which the kernel learned in 6.3.
    ///
    /// It is tried at the first call.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    pub fn can_destroy(&mut self) -> Result<bool, ApplyError> {
        if let Some(can_destroy) = self.can_destroy {
            return Ok(can_destroy);
        }
        // Whichever family this kernel has.
        let can_destroy = self.try_destroy::<V4>()? || self.try_destroy::<V6>()?;
        self.can_destroy = Some(can_destroy);
        Ok(can_destroy)
    }

    /// Whether elements of maps can count, each by itself because the map's declaration says so, and
    /// rules can.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    pub fn can_count(&mut self) -> Result<bool, ApplyError> {
        // Whichever family this kernel has.
        Ok(self.try_counters::<V4>()? || self.try_counters::<V6>()?)
    }

    /// Whether rules can hash clients' addresses.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    pub fn can_hash(&mut self) -> Result<bool, ApplyError> {
        // Whichever family this kernel has.
        Ok(self.try_hash::<V4>()? || self.try_hash::<V6>()?)
    }

    fn try_hash<F: Family>(&mut self) -> Result<bool, ApplyError> {
        let scratch = scratch();
        let mut encoder = Encoder::<F>::new(&scratch, true);
        encoder.begin();
        encoder.add_dormant_table();
        let pick = Pick {
            map: SlotMap::Endpoints,
            draw: Draw::Hash,
            n: NonZeroU32::MIN,
            sticky: false,
        };
        encoder.add_set(pick.map.set(), 1, None, SetOptions::default());
        encoder.add_chain(ChainName::Pick(pick));
        // What translates may stand only where a nat chain leads, and is tried elsewhere.
        let is_hash = |expr: &Expr| !matches!(expr, Expr::Dnat { .. });
        for mut rule in pick_rules::<F>(pick) {
            rule.exprs.retain(is_hash);
            encoder.add_rule(ChainName::Pick(pick), &rule);
        }
        Ok(self.try_batch(encoder)?.is_empty())
    }

    fn try_counters<F: Family>(&mut self) -> Result<bool, ApplyError> {
        let scratch = scratch();
        let mut encoder = Encoder::<F>::new(&scratch, true);
        encoder.begin();
        encoder.add_dormant_table();
        encoder.add_set(SetName::Unavailable, 1, None, SetOptions { counts: true });
        let destination = Destination {
            address: F::read_address(&vec![0; F::ADDRESS_LEN]),
            protocol: Protocol::Tcp,
            port: NonZeroU16::MIN,
        };
        let elements = [Element::verdict(
            Role::Unavailable,
            destination,
            Verdict::Drop,
        )];
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        encoder.elements(Verb::Add, NFT_MSG_NEWSETELEM, flags, &elements);
        encoder.add_chain(ChainName::Guard);
        let rule = Rule::new::<F>([Statement::Counter]);
        encoder.add_rule(ChainName::Guard, &rule);
        Ok(self.try_batch(encoder)?.is_empty())
    }

    fn try_destroy<F: Family>(&mut self) -> Result<bool, ApplyError> {
        let scratch = scratch();
        let mut encoder = Encoder::<F>::new(&scratch, true);
        encoder.begin();
        encoder.add_dormant_table();
        encoder.add_set(SetName::ClusterIps, 1, None, SetOptions::default());
        let address = F::read_address(&vec![0; F::ADDRESS_LEN]);
        let elements: Vec<_> = address.map(Element::cluster_ip).into_iter().collect();
        encoder.elements(Verb::Forget, NFT_MSG_DESTROYSETELEM, 0, &elements);
        Ok(self.try_batch(encoder)?.is_empty())
    }

    /// Has the kernel check what was written, and undo it.
    pub(super) fn try_batch<F: Family>(
        &mut self,
        encoder: Encoder<'_, F>,
    ) -> Result<Vec<Refusal>, ApplyError> {
        let batch = encoder.without_end();
        self.connection.send(&batch.bytes)?;
        self.answers(batch.acknowledged)
    }
}

pub(super) fn scratch() -> Table {
    Table::new(SCRATCH, 0).unwrap_or_default()
}

/// Writes one family's scratch table, and notes which message tries what.
fn try_family<'a, F: Family>(
    mut encoder: Encoder<'a, F>,
    tried: &mut Vec<(u32, IpFamily, Part)>,
) -> Encoder<'a, F> {
    let mut note = |encoder: &Encoder<'_, F>, part| {
        tried.push((encoder.sequence(), F::FAMILY, part));
    };
    note(&encoder, Part::Tables);
    encoder.add_dormant_table();
    for (id, set) in (1..).zip(SetName::ALL) {
        note(&encoder, Part::Sets);
        encoder.add_set(set, id, None, SetOptions::default());
    }
    for chain in ChainName::FIXED {
        if base_chain(chain).is_some() {
            note(&encoder, Part::NatChains);
            encoder.add_chain(chain);
        }
    }
    // No base chain leads here, so that no hook restricts what it may hold.
    let chain = ChainName::Services;
    note(&encoder, Part::Tables);
    encoder.add_chain(chain);
    for part in Part::ALL {
        for expr in part.expressions() {
            note(&encoder, part);
            // Kernels from 6.17 on refuse what reads registers that nothing was loaded into.
            let loads = (0..REGISTERS).map(|register| Expr::Meta {
                key: MetaKey::Mark,
                register,
            });
            let rule = Rule {
                text: String::new(),
                exprs: loads.chain([expr]).collect(),
            };
            encoder.add_rule(chain, &rule);
        }
    }
    encoder
}

impl<'a, F: Family> Encoder<'a, F> {
    /// A table whose chains see no packets.
    fn add_dormant_table(&mut self) {
        let mut table = self.bare_table();
        table.u32(sys::NFTNL_TABLE_FLAGS, NFT_TABLE_F_DORMANT);
        self.message(
            NFT_MSG_NEWTABLE,
            NLM_F_CREATE | NLM_F_EXCL,
            &table,
            super::encode::Operation::Table(Verb::Add),
        );
    }
}
