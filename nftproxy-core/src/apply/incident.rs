//! What others did to our tables, as the kernel tells it. Read [`Incident`] first.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::model::{Family, IpFamily};
use crate::ruleset::element::{Element, Key};
use crate::ruleset::name::SetName;
use crate::ruleset::schema::schema;

/// So many elements of a set are looked at one by one; beyond, the set is read as a whole.
const KEYS_MAX: usize = 1000;
/// So many kinds of changes, and so many culprits, are told apart.
const DETAILS_MAX: usize = 16;

/// One family's table was touched by somebody else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incident {
    /// The family.
    pub family: IpFamily,
    /// Who did it, where the kernel says so; each once.
    pub culprits: Vec<Culprit>,
    /// What was done, and how often. Empty if it is not known.
    pub changes: BTreeMap<Change, usize>,
    /// What has to be looked at.
    pub scope: Scope,
    /// Notifications were lost, so there may be more to it, or nothing at all.
    pub is_lost: bool,
}

/// A process that committed a change of the ruleset.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Culprit {
    /// Its number in the first PID namespace.
    pub pid: u32,
    /// The name of the program, up to 15 bytes.
    pub name: String,
}

/// A kind of change.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    /// Whether something was added; else it was deleted.
    pub is_addition: bool,
    /// Of which kind.
    pub object: Object,
}

/// A kind of object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Object {
    /// The table itself, or its flags.
    Table,
    /// A chain, by its name.
    Chain(String),
    /// A rule of a chain.
    Rule(String),
    /// A set or map.
    Set(String),
    /// An element of a set or map.
    Element(String),
    /// Anything else that a table can hold.
    Other,
}

/// The elements of a table that may differ from what they should be. Chains, rules and sets are few
/// and are always looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// All of them.
    Everything,
    /// Those of these sets.
    Sets(BTreeMap<SetName, Keys>),
}

/// Elements of one set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keys {
    /// All of them.
    All,
    /// Those with these keys, as the kernel has them.
    Only(BTreeSet<Box<[u8]>>),
}

impl Incident {
    /// Something may have happened, and nobody knows what.
    pub fn unknown(family: IpFamily) -> Self {
        Self {
            scope: Scope::Everything,
            is_lost: true,
            ..Self::new(family)
        }
    }

    /// Nothing so far.
    pub fn new(family: IpFamily) -> Self {
        Self {
            family,
            culprits: Vec::new(),
            changes: BTreeMap::new(),
            scope: Scope::default(),
            is_lost: false,
        }
    }

    /// Notes a change.
    pub fn add(&mut self, change: Change, count: usize) {
        let is_known = self.changes.contains_key(&change);
        // What happened to the table explains all else.
        let is_table = change.object == Object::Table;
        let change = if is_known || is_table || self.changes.len() < DETAILS_MAX {
            change
        } else {
            Change {
                object: Object::Other,
                ..change
            }
        };
        *self.changes.entry(change).or_default() += count;
    }

    /// Notes who did it.
    pub fn blame(&mut self, culprit: Culprit) {
        if self.culprits.len() < DETAILS_MAX && !self.culprits.contains(&culprit) {
            self.culprits.push(culprit);
        }
    }

    /// Takes in another one of the same family.
    pub fn merge(&mut self, other: Self) {
        other.culprits.into_iter().for_each(|who| self.blame(who));
        for (change, count) in other.changes {
            self.add(change, count);
        }
        self.scope.merge(other.scope);
        self.is_lost |= other.is_lost;
    }
}

/// What was done: `deleted chain services, deleted 2 elements of services`.
impl fmt::Display for Incident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        // What went with something larger is not worth a word.
        let deleted = |object: Object| {
            let is_addition = false;
            self.changes.contains_key(&Change {
                is_addition,
                object,
            })
        };
        let is_implied = |change: &Change| match &change.object {
            _ if change.is_addition => false,
            Object::Table => false,
            _ if deleted(Object::Table) => true,
            Object::Rule(chain) => deleted(Object::Chain(chain.clone())),
            Object::Element(set) => deleted(Object::Set(set.clone())),
            _ => false,
        };
        for (change, count) in &self.changes {
            if is_implied(change) {
                continue;
            }
            let verb = if change.is_addition {
                "added"
            } else {
                "deleted"
            };
            write!(f, "{separator}{verb} ")?;
            match (&change.object, count) {
                (Object::Table, _) => f.write_str("the table")?,
                (Object::Chain(chain), _) => write!(f, "chain {chain}")?,
                (Object::Set(set), _) => write!(f, "set {set}")?,
                (Object::Rule(chain), 1) => write!(f, "a rule of chain {chain}")?,
                (Object::Rule(chain), count) => write!(f, "{count} rules of chain {chain}")?,
                (Object::Element(set), 1) => write!(f, "an element of {set}")?,
                (Object::Element(set), count) => write!(f, "{count} elements of {set}")?,
                (Object::Other, 1) => f.write_str("another object")?,
                (Object::Other, count) => write!(f, "{count} other objects")?,
            }
            separator = ", ";
        }
        if self.is_lost {
            write!(f, "{separator}lost notifications")?;
        }
        Ok(())
    }
}

/// `nft (1234)`
impl fmt::Display for Culprit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.pid)
    }
}

impl Default for Scope {
    /// No elements.
    fn default() -> Self {
        Self::Sets(BTreeMap::new())
    }
}

impl Scope {
    /// Adds one element. In sets of ranges a key does not say which, so all of them.
    pub fn add_key(&mut self, set: SetName, key: &[u8]) {
        let Self::Sets(sets) = self else { return };
        let keys = sets
            .entry(set)
            .or_insert_with(|| Keys::Only(BTreeSet::new()));
        if schema(set).is_interval() {
            *keys = Keys::All;
        }
        if let Keys::Only(only) = keys {
            only.insert(key.into());
            if only.len() > KEYS_MAX {
                *keys = Keys::All;
            }
        }
    }

    /// Adds all elements of a set.
    pub fn add_set(&mut self, set: SetName) {
        if let Self::Sets(sets) = self {
            sets.insert(set, Keys::All);
        }
    }

    /// Takes in another one.
    pub fn merge(&mut self, other: Self) {
        match other {
            Self::Everything => *self = Self::Everything,
            Self::Sets(sets) => {
                for (set, keys) in sets {
                    match keys {
                        Keys::All => self.add_set(set),
                        Keys::Only(keys) => keys.iter().for_each(|key| self.add_key(set, key)),
                    }
                }
            }
        }
    }

    /// Whether elements of the set may be in it.
    pub fn has_set(&self, set: SetName) -> bool {
        match self {
            Self::Everything => true,
            Self::Sets(sets) => sets.contains_key(&set),
        }
    }

    /// Whether it contains an element. `scratch` is overwritten.
    pub fn contains<F: Family>(&self, element: &Element<F>, scratch: &mut Vec<u8>) -> bool {
        match self {
            Self::Everything => true,
            Self::Sets(sets) => match sets.get(&element.set()) {
                None => false,
                Some(Keys::All) => true,
                Some(Keys::Only(keys)) => {
                    scratch.clear();
                    Key::write(element.key(), scratch);
                    keys.contains(scratch.as_slice())
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::V4;

    fn change(is_addition: bool, object: Object) -> Change {
        Change {
            is_addition,
            object,
        }
    }

    #[test]
    fn incidents_read_as_sentences() {
        let mut incident = Incident::new(IpFamily::V4);
        incident.add(change(false, Object::Element("services".into())), 1);
        let mut other = Incident::unknown(IpFamily::V4);
        other.add(change(false, Object::Element("services".into())), 2);
        other.add(change(true, Object::Rule("services".into())), 1);
        incident.merge(other);
        let text = incident.to_string();
        let expected =
            "deleted 3 elements of services, added a rule of chain services, lost notifications";
        assert_eq!(text, expected);
    }

    #[test]
    fn what_went_with_a_table_is_not_told() {
        let mut incident = Incident::new(IpFamily::V4);
        incident.add(change(false, Object::Rule("services".into())), 2);
        incident.add(change(false, Object::Chain("services".into())), 1);
        assert_eq!(incident.to_string(), "deleted chain services");
        incident.add(change(false, Object::Table), 1);
        assert_eq!(incident.to_string(), "deleted the table");
    }

    #[test]
    fn many_kinds_of_changes_are_bounded() {
        let mut incident = Incident::new(IpFamily::V4);
        for number in 0..1000 {
            incident.add(change(true, Object::Chain(number.to_string())), 1);
        }
        assert!(incident.changes.len() <= DETAILS_MAX + 2);
        let n_changes: usize = incident.changes.values().sum();
        assert_eq!(n_changes, 1000, "none is left out of the count");
    }

    #[test]
    fn many_keys_are_the_whole_set() {
        let mut scope = Scope::default();
        let element = |n: u32| Element::<V4>::cluster_ip(std::net::Ipv4Addr::from(n));
        let mut key = Vec::new();
        for n in 0..=KEYS_MAX as u32 {
            assert!(!scope.contains(&element(KEYS_MAX as u32 + 1), &mut Vec::new()));
            key.clear();
            element(n).write_key(&mut key);
            scope.add_key(SetName::ClusterIps, &key);
            assert!(scope.contains(&element(n), &mut Vec::new()));
        }
        assert!(scope.contains(&element(KEYS_MAX as u32 + 1), &mut Vec::new()));
        assert!(!scope.has_set(SetName::Hairpin));
    }
}
