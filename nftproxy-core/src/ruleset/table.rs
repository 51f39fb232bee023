//! Which table an instance has, and where its chains sit: what tells it from others on the node.

use super::name::ChainName;
use super::schema::{BaseChain, PRIORITY_SOURCE_RANGES, PRIORITY_SRCNAT, base_chain};

/// `NF_IP_PRI_CONNTRACK`: the kernel refuses nat chains that are not after connection tracking.
const PRIORITY_CONNTRACK: i32 = -200;
/// `NF_IP_PRI_CONNTRACK_HELPER`: what connection tracking does last of what depends on addresses.
const PRIORITY_CONNTRACK_HELPER: i32 = 300;

/// The table of one instance: its name, the same in both families, and a shift of its priorities.
///
/// ```
/// # use nftproxy_core::ruleset::Table;
/// let table = Table::new("my-cni", -5)?;
/// assert_eq!(table.name(), "my-cni");
/// assert_eq!(Table::default().name(), "nftproxy");
/// assert!(Table::new("my cni", 0).is_err());
/// # Ok::<(), nftproxy_core::ruleset::TableError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    name: Box<str>,
    priority_offset: i32,
}

/// Why a [`Table`] cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// nft(8) could not read the name.
    #[error(
        "{0:?} is no name for a table: it starts with a letter, and goes on with up to {max} \
         letters, digits and any of \"_.-/\"",
        max = Table::NAME_MAX_LEN - 1
    )]
    Name(Box<str>),
    /// Chains would be where the kernel, or connection tracking, does not allow them.
    #[error(
        "priorities cannot be shifted by {0}, only by {least} to {most}",
        least = Table::PRIORITY_OFFSET_MIN,
        most = Table::PRIORITY_OFFSET_MAX
    )]
    PriorityOffset(i32),
}

impl Table {
    /// The longest name, in bytes. The kernel would take 255; what people read in listings is short.
    pub const NAME_MAX_LEN: usize = 63;
    /// The furthest that chains can go forward.
    pub const PRIORITY_OFFSET_MIN: i32 = PRIORITY_CONNTRACK + 1 - PRIORITY_SOURCE_RANGES;
    /// The furthest that chains can go back.
    pub const PRIORITY_OFFSET_MAX: i32 = PRIORITY_CONNTRACK_HELPER - 1 - PRIORITY_SRCNAT;

    /// A table of this name, whose base chains are at their usual priority plus `priority_offset`.
    ///
    /// Instances that share ServiceCIDRs are to stay within -9 to 9: beyond, the guard of one comes
    /// before the DNAT of another, and takes its Services for addresses that nobody has.
    ///
    /// The name must not be a word of nft(8)'s language either, such as `masquerade`, or people
    /// could not name the table to it; that is not checked.
    ///
    /// # Errors
    ///
    /// If nft(8) could not read the name, or the kernel would refuse the priorities.
    pub fn new(name: &str, priority_offset: i32) -> Result<Self, TableError> {
        let is_letter = |c: char| c.is_ascii_alphabetic();
        let is_fine = |c: char| c.is_ascii_alphanumeric() || "_.-/".contains(c);
        let is_name = name.starts_with(is_letter)
            && name.chars().all(is_fine)
            && name.len() <= Self::NAME_MAX_LEN;
        if !is_name {
            return Err(TableError::Name(name.into()));
        }
        if !(Self::PRIORITY_OFFSET_MIN..=Self::PRIORITY_OFFSET_MAX).contains(&priority_offset) {
            return Err(TableError::PriorityOffset(priority_offset));
        }
        Ok(Self {
            name: name.into(),
            priority_offset,
        })
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The table beside it that tells clients of endpoints that are gone: its name, and `-gone`.
    pub fn of_gone(&self) -> Self {
        Self {
            name: format!("{}-gone", self.name).into(),
            priority_offset: 0,
        }
    }

    /// What is added to each priority.
    pub fn priority_offset(&self) -> i32 {
        self.priority_offset
    }

    /// Where a chain sits, if it is a base chain.
    pub fn base_chain(&self, chain: ChainName) -> Option<BaseChain> {
        base_chain(chain).map(|base| BaseChain {
            priority: base.priority + self.priority_offset,
            ..base
        })
    }
}

impl Default for Table {
    /// `nftproxy`, at the usual priorities.
    fn default() -> Self {
        Self {
            name: super::name::TABLE.into(),
            priority_offset: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_nft_cannot_read_are_refused() {
        for name in ["nftproxy", "a", "cni-2", "a/b_c.d", "A1"] {
            assert_eq!(Table::new(name, 0).unwrap().name(), name);
        }
        let long = "a".repeat(Table::NAME_MAX_LEN + 1);
        for name in [
            "", "1a", "-a", "a b", "a\"b", "a;", "a{", "ä", "a\nb", &long,
        ] {
            assert_eq!(
                Table::new(name, 0),
                Err(TableError::Name(name.into())),
                "{name:?}"
            );
        }
    }

    #[test]
    fn all_chains_stay_between_connection_tracking_and_its_helpers() {
        let range = [Table::PRIORITY_OFFSET_MIN, Table::PRIORITY_OFFSET_MAX];
        for offset in range {
            let table = Table::new("t", offset).unwrap();
            for base in ChainName::FIXED
                .into_iter()
                .filter_map(|chain| table.base_chain(chain))
            {
                assert!(base.priority > PRIORITY_CONNTRACK, "{base:?}");
                assert!(base.priority < PRIORITY_CONNTRACK_HELPER, "{base:?}");
            }
        }
        for offset in [range[0] - 1, range[1] + 1, i32::MIN, i32::MAX] {
            assert_eq!(
                Table::new("t", offset),
                Err(TableError::PriorityOffset(offset))
            );
        }
    }
}
