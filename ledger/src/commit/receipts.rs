//! What the ledger finds the forensic receipts of tool runtimes to be, in the same write as the batch that shows them. It is
//! said in records of the ledger's own, one for each batch and finding; nothing is refused for it.
//!
//! What must hold: a receipt is `valid` once. Whoever shows it again, for another call or in another workspace, shows a
//! replay, whether it is kept whole there or not; a receipt that was never valid takes the place of no valid one.

use std::collections::BTreeMap;

use custody::{
    batch::Header,
    forensic::Standing,
    key::PublicKey,
    statement::Chain,
    wire::{LedgerEventKind, Role},
};

use super::{Group, Writer, own::number};
use crate::{
    admit::Shown,
    store::{Family, StoreError, numbered},
};

/// Positions that a finding names; the rest is counted. With the batch's number and that count they fill a record's details.
const POSITIONS_MAX: usize = 14;
/// Behind its digest in the key of a receipt that was shown, and not kept whole.
const WITHHELD: &[u8] = b"withheld";

/// As records have it. Each has its own name there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Finding {
    Valid,
    Bad,
    UnknownKey,
    Revoked,
    Replayed,
    Withheld,
}

impl Finding {
    fn name(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Bad => "bad",
            Self::UnknownKey => "unknown-key",
            Self::Revoked => "revoked",
            Self::Replayed => "replayed",
            Self::Withheld => "withheld",
        }
    }
}

/// All that needs no look at what was shown before.
fn judge(shown: &Shown, chain: &Chain) -> Finding {
    let key = PublicKey::new(&shown.signer).and_then(|key| chain.key(&key.id(Role::Receipt)));
    match key {
        None => Finding::UnknownKey,
        Some(key) if key.revoked || key.retired => Finding::Revoked,
        Some(_) => match shown.standing {
            Standing::Signed => Finding::Valid,
            Standing::Bad => Finding::Bad,
            Standing::Withheld => Finding::Withheld,
        },
    }
}

impl Writer {
    /// Puts on record what the receipts of a batch are that has just got its place.
    pub(super) fn judge_receipts(
        &mut self,
        header: &Header,
        first_position: u64,
        receipts: &[Shown],
        group: &mut Group<'_>,
    ) -> Result<(), StoreError> {
        let mut found: BTreeMap<Finding, Vec<u64>> = BTreeMap::new();
        for shown in receipts {
            let lost = StoreError::Damaged("a workspace");
            let chain = &self.workspaces.get(&header.workspace).ok_or(lost)?.chain;
            let position = first_position + u64::from(shown.record);
            let finding = match judge(shown, chain) {
                Finding::Valid => self.first_shown(Finding::Valid, shown.digest.to_vec(), position, header, group)?,
                Finding::Withheld if self.was_shown(&shown.digest, group)? => Finding::Replayed,
                // A row of its own: what nobody can verify is not the first showing of what somebody can.
                Finding::Withheld => {
                    let key = [&shown.digest[..], WITHHELD].concat();
                    self.first_shown(Finding::Withheld, key, position, header, group)?
                }
                finding => finding,
            };
            found.entry(finding).or_default().push(position);
        }
        for (finding, positions) in found {
            self.own.event(LedgerEventKind::ReceiptFinding, "receipt.finding", finding.name(), |event| {
                event.workspace = Some(header.workspace.into());
                event.gateway = Some(header.gateway.into());
                event.epoch = Some(header.epoch.into());
                event.details = vec![number("batch", header.batch_number), number("count", positions.len() as u64)];
                let named = positions.iter().take(POSITIONS_MAX);
                event.details.extend(named.map(|position| number("position", *position)));
            });
        }
        Ok(())
    }

    fn was_shown(&self, key: &[u8], group: &Group<'_>) -> Result<bool, StoreError> {
        Ok(group.shown.contains(key) || self.parts.store.value(Family::Receipts, key)?.is_some())
    }

    /// What was found, if nothing was shown under this key before; else a replay.
    fn first_shown(
        &self,
        finding: Finding,
        key: Vec<u8>,
        position: u64,
        header: &Header,
        group: &mut Group<'_>,
    ) -> Result<Finding, StoreError> {
        if self.was_shown(&key, group)? {
            return Ok(Finding::Replayed);
        }
        group.change.put(Family::Receipts, &key, numbered(header.workspace, position));
        group.shown.insert(key);
        Ok(finding)
    }
}

#[cfg(test)]
mod tests;
