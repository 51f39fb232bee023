//! What is done a while after the last change: unused chains go, and the table tells what it amounts
//! to.

use std::collections::BTreeSet;

use super::{Installed, Syncer};
use crate::apply::{ApplyError, Kernel};
use crate::compile::skeleton;
use crate::diff::Delta;
use crate::model::Family;
use crate::provenance::{self, Digest};
use crate::ruleset::Comment;
use crate::ruleset::name::{ChainName, Pick};

impl<F: Family, K: Kernel<F>> Syncer<F, K> {
    /// Deletes chains that nothing refers to any more, and returns how many: pick chains, and those
    /// that remember.
    ///
    /// It is a batch of its own, some time after the one that made them unused: kernels before
    /// 6.2 count a chain as referenced for a moment after its last element went.
    ///
    /// # Errors
    ///
    /// If the kernel refuses; the chains are left for another time.
    pub fn delete_unused_chains(&mut self) -> Result<usize, ApplyError> {
        let Some(installed) = &mut self.installed else {
            return Ok(0);
        };
        let used: BTreeSet<_> = self.compilation.picks().collect();
        // A plain one goes after the sticky one that leads to it.
        let leads_here = |pick: &Pick| {
            !pick.sticky
                && installed.picks.contains(&Pick {
                    sticky: true,
                    ..*pick
                })
        };
        let unused: BTreeSet<_> = installed
            .picks
            .difference(&used)
            .filter(|pick| !leads_here(pick))
            .copied()
            .collect();
        let timeouts = &installed.features.affinity;
        let is_forgotten = |chain: &ChainName| match chain {
            ChainName::Remember => timeouts.is_empty(),
            ChainName::RememberFor(seconds) => !timeouts.contains(seconds),
            _ => false,
        };
        let forgotten = installed.skeleton.chains.keys().copied();
        let delete_chains: Vec<_> = unused
            .iter()
            .map(|pick| ChainName::Pick(*pick))
            .chain(forgotten.filter(is_forgotten))
            .collect();
        let count = delete_chains.len();
        self.kernel.commit(&Delta {
            delete_chains,
            ..Delta::default()
        })?;
        installed.picks.retain(|pick| !unused.contains(pick));
        let chains = &mut installed.skeleton.chains;
        chains.retain(|chain, _| !is_forgotten(chain));
        Ok(count)
    }

    /// Writes into the table what it amounts to, unless that stands there; see
    /// [`crate::provenance`]. After a full sync this takes a look at all elements, else it costs the
    /// same however many there are.
    ///
    /// It is a batch of its own, some time after the last change: a line in each would cost each
    /// sync three messages.
    ///
    /// # Errors
    ///
    /// If the kernel refuses; it is left for another time.
    pub fn write_about(&mut self) -> Result<bool, ApplyError> {
        let Some(installed) = &self.installed else {
            return Ok(false);
        };
        let compilation = &self.compilation;
        let mut digest = *self.digest.get_or_insert_with(|| {
            let mut digest = Digest::default();
            let elements = compilation.elements();
            elements.iter().for_each(|element| digest.add(element));
            digest
        });
        let Installed {
            node,
            service_cidrs,
            features,
            ..
        } = installed;
        digest.add_chains(&skeleton::<F>(node, service_cidrs, features));
        let about = Comment::new(&provenance::line(digest));
        if self.about.as_ref() == Some(&about) {
            return Ok(false);
        }
        self.kernel.commit(&Delta {
            about: Some(about.clone()),
            ..Delta::default()
        })?;
        self.about = Some(about);
        Ok(true)
    }

    /// Keeps the digest in step with an ordinary sync.
    pub(super) fn note_digest(&mut self, delta: &Delta<F>) {
        if !delta.sizes.is_empty() {
            // It adds what was there already.
            self.digest = None;
        }
        if let Some(digest) = &mut self.digest {
            delta
                .delete_elements
                .iter()
                .for_each(|gone| digest.remove(gone));
            delta.add_elements.iter().for_each(|come| digest.add(come));
        }
    }
}
