//! What a gateway of the tests believes: statements that continue a chain, heads on one history, and receipts whose every
//! proof holds. Written apart from the shim, so that one does not believe what the other does.

use super::*;

impl Gateway {
    pub(super) fn take_statement(&mut self, object: &[u8]) -> Result<(), Fault> {
        let Ok(signed) = Signed::parse(object) else { return lie("a statement is not in form") };
        let (chain, heads) = match signed.workspace() {
            None => (&mut self.ledger, &mut self.ledger_heads),
            Some(_) => (&mut self.chain, &mut self.chain_heads),
        };
        if signed.statement.serial < chain.head().count {
            return Ok(());
        }
        match chain.extended(&signed, &self.roots) {
            Ok((next, roots)) => {
                heads.push(next.head());
                (*chain, self.roots) = (next, roots);
                Ok(())
            }
            Err(why) => lie(format!("a statement {}", why.0)),
        }
    }

    fn check_head(&self, signed: &SignedHead, receipt: &wire::Receipt) -> Result<(), Fault> {
        let head = &signed.head;
        if head.origin != self.origin || head.workspace != self.workspace {
            return lie("a head of another origin or workspace");
        }
        let known = |heads: &[ChainHead], named: ChainHead| {
            usize::try_from(named.count).ok().and_then(|at| heads.get(at)) == Some(&named)
        };
        if !known(&self.ledger_heads, head.ledger_chain) || !known(&self.chain_heads, head.workspace_chain) {
            return lie("a head names statements that were not sent");
        }
        let key = self.ledger.key(&head.key_id).filter(|key| key.role == Role::Head && !key.revoked);
        if !key.is_some_and(|key| signed.is_signed_by(key.public_key)) {
            return lie("a head is not signed by the ledger's head key");
        }
        let Some((bytes, last)) = &self.last_head else { return Ok(()) };
        let consistent = receipt.consistency.as_ref().is_some_and(|proof| is_consistent(last, head, proof));
        if consistent || *bytes == receipt.signed_head {
            return Ok(());
        }
        lie(format!("a fork: {head:?} does not extend {last:?}"))
    }

    pub(super) fn take_receipt(&mut self, bytes: &Bytes) -> Result<usize, Fault> {
        let Ok(receipt) = strict::decode_shared::<wire::Receipt>(&table::RECEIPT, bytes.clone()) else {
            return lie("a receipt is not in form");
        };
        let Ok(signed) = SignedHead::parse(&receipt.signed_head) else { return lie("a head is not in form") };
        self.check_head(&signed, &receipt)?;
        let mut new = 0;
        for inclusion in &receipt.batches {
            new += usize::from(self.take_inclusion(&signed.head, inclusion)?);
        }
        self.last_head = Some((receipt.signed_head, signed.head));
        Ok(new)
    }

    /// Checks one inclusion; whether it is the first for its batch.
    fn take_inclusion(&mut self, head: &Head, inclusion: &wire::BatchInclusion) -> Result<bool, Fault> {
        let Ok(epoch) = Epoch::try_from(inclusion.epoch.as_ref()) else { return lie("an inclusion names no epoch") };
        let at = self
            .waiting
            .iter()
            .position(|batch| batch.header.epoch == epoch && batch.header.batch_number == inclusion.batch_number);
        let found = |header: &Header, hash: HeaderHash| Acknowledged {
            workspace: header.workspace,
            gateway: header.gateway,
            epoch,
            batch_number: inclusion.batch_number,
            header_hash: hash,
            records: u64::from(header.record_count),
            segment: inclusion.segment,
            leaf_index: inclusion.leaf_index,
            first_position: inclusion.first_position,
            received_at: inclusion.received_at,
            term: inclusion.term,
        };
        let Some(batch) = at.and_then(|at| self.waiting.remove(at)) else {
            let known = self.acknowledged.iter().rev();
            let known = known.filter(|known| known.epoch == epoch).find(|k| k.batch_number == inclusion.batch_number);
            let same = known.is_some_and(|known| {
                (known.segment, known.leaf_index, known.first_position)
                    == (inclusion.segment, inclusion.leaf_index, inclusion.first_position)
            });
            return if same { Ok(false) } else { lie(format!("a second place for a batch: {inclusion:?}, {known:?}")) };
        };
        if !includes_batch(head, inclusion, &batch.header_bytes, &batch.signature) {
            return lie(format!("the head does not include batch {}", inclusion.batch_number));
        }
        self.acknowledged.push(found(&batch.header, batch.header_hash()));
        Ok(true)
    }

    pub(super) fn take_archived(&mut self, bytes: &Bytes) -> Result<u64, Fault> {
        let Ok(receipt) = strict::decode_shared::<wire::ArchivedReceipt>(&table::ARCHIVED_RECEIPT, bytes.clone())
        else {
            return lie("an archived receipt is not in form");
        };
        let (Ok(seal), Ok(note)) = (Seal::parse(&receipt.seal), SignedCheckpoint::parse(&receipt.checkpoint)) else {
            return lie("a seal or a checkpoint is not in form");
        };
        let mut keys = self.ledger.keys().filter(|(_, state)| state.role == Role::Log && !state.revoked);
        if note.checkpoint.origin != self.origin || !keys.any(|(_, state)| note.is_signed_by(state.public_key)) {
            return lie("a checkpoint is not signed by the ledger's log key");
        }
        let (Some(log_path), Some(history_path)) = (nodes(&receipt.log_path), nodes(&receipt.history_path)) else {
            return lie("a path is not in form");
        };
        let leaf = log_leaf(&encode_seal_entry(self.workspace, seal.segment, object_hash(&receipt.seal)));
        let checkpoint = &note.checkpoint;
        if !verify_inclusion::<LogTree>(receipt.log_index, checkpoint.size, &leaf, &log_path, &checkpoint.root) {
            return lie("a seal is not in the log");
        }
        let Some(head) = self.head().filter(|head| head.segment == receipt.history_size) else {
            return lie("an archived receipt is about a head that was not sent");
        };
        let leaf = LeafHash(history_leaf(seal.segment, seal.size, &seal.root));
        let (at, size) = (seal.segment, receipt.history_size);
        if !verify_inclusion::<HistoryTree>(at, size, &leaf, &history_path, &head.history_root) {
            return lie("an archived segment is not in the head's history");
        }
        self.archived = self.archived.max(seal.segment + 1);
        Ok(seal.segment)
    }
}
