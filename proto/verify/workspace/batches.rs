//! Batches in their place: numbering, the heads that they hold, and what the ledger calls an equivocation.

use super::{
    super::{
        Archive, Stop,
        segment::{Batch, Task},
    },
    Walk, Writer,
};
use crate::{
    head::Head,
    merkle::{SegmentTree, Tree},
    segment::{Content, Entry},
    statement::ChainHead,
    verdict::{Check, Verdict, ensure},
    wire::{LeafKind, OpeningReason, WriterClass},
};

impl<A: Archive> Walk<'_, '_, A> {
    pub(super) fn take_batch(
        &mut self,
        task: &Task<'_>,
        at: u64,
        batch: &Batch,
        received_at: u64,
        place: &str,
        verdict: &mut Verdict,
    ) -> Result<(), Stop> {
        let id = self.id();
        let header = &batch.header;
        let gateway = self.gateways.entry(header.gateway).or_default();
        (gateway.numbering.unknown_past, gateway.numbering.unknown_beginning) = (self.unknown_past, self.has_gap);
        let admitted = gateway.numbering.admit(header);
        ensure(
            Check::Numbering,
            admitted.is_ok(),
            || place.to_owned(),
            || {
                let known = gateway.numbering.epochs.get(&header.epoch);
                let expected = known.map_or_else(
                    || "a new epoch that continues the gateway's last one".to_owned(),
                    |e| format!("batch {} from record {}", e.last_batch.saturating_add(1), e.next_record),
                );
                let found = format!("batch {} from record {}: {admitted:?}", header.batch_number, header.first_record);
                (expected, format!("gateway {} epoch {}: {found}", header.gateway, header.epoch))
            },
        )?;
        gateway.numbering.take(header, batch.hash);
        let mut find = |name, text: String| verdict.find(name, Some(id), place.to_owned(), text);
        match header.opening_reason {
            Some(OpeningReason::StateLost) => {
                find(
                    "state-lost",
                    format!("gateway {} lost what it knew: records before may be missing", header.gateway),
                );
            }
            Some(OpeningReason::Rewound) => {
                find("rewound", format!("gateway {} had used numbers before that it did not know of", header.gateway));
            }
            _ => {}
        }
        if header.dropped > 0 {
            let why = header.drop_reason.map_or("", |reason| reason.as_str_name());
            find("dropped", format!("gateway {} declares {} records dropped: {why}", header.gateway, header.dropped));
        }
        if batch.suspect {
            find("suspect-key", format!("signed by key {}, which is in doubt there", header.key_id));
        }
        if let Some(opened) = &batch.opened {
            let always_on = opened.class() == WriterClass::AlwaysOn;
            let writer = Writer {
                always_on,
                silence_us_max: opened.silence_us_max,
                last_created_at: header.created_at,
                last_received_at: received_at,
            };
            gateway.writers.insert(header.epoch, writer);
        } else if let Some(writer) = gateway.writers.get_mut(&header.epoch) {
            let silent = header.created_at.saturating_sub(writer.last_created_at);
            if writer.always_on && writer.silence_us_max > 0 && silent > writer.silence_us_max {
                find(
                    "silent",
                    format!(
                        "gateway {} was silent for {} s",
                        header.gateway,
                        silent.checked_div(1_000_000).unwrap_or(0)
                    ),
                );
            }
            (writer.last_created_at, writer.last_received_at) = (header.created_at, received_at);
        }
        verdict.counts.hear(header.created_at, self.options.as_of);
        verdict.counts.dropped = verdict.counts.dropped.saturating_add(header.dropped);
        verdict.suspect_batches = verdict.suspect_batches.saturating_add(u64::from(batch.suspect));
        match &batch.held {
            Some(head) => self.check_held_head(task.seal.segment, at, head, place, verdict),
            None => Ok(()),
        }
    }

    /// The head that a batch holds lies before the batch and on this history.
    pub(super) fn check_held_head(
        &mut self,
        segment: u64,
        leaf: u64,
        head: &Head,
        place: &str,
        verdict: &mut Verdict,
    ) -> Result<(), Stop> {
        verdict.counts.heads = verdict.counts.heads.saturating_add(1);
        if head.unfenced {
            let text = "a head that was signed while the fence was out of reach".to_owned();
            verdict.find("unfenced", Some(self.id()), place.to_owned(), text);
        }
        self.find_doubt(head, place, verdict);
        let seal = usize::try_from(head.segment).ok().and_then(|at| self.seals.get(at));
        if let Some(seal) = seal.filter(|seal| head.incarnation < seal.incarnation) {
            let text = format!("a head of incarnation {}; the segment is of {}", head.incarnation, seal.incarnation);
            verdict.find("superseded", Some(self.id()), place.to_owned(), text);
            return Ok(());
        }
        let before = head.segment < segment || (head.segment == segment && head.size <= leaf);
        let history = self.history.root_at(head.segment);
        // A head of none may be older than the statement that came before the segment's first leaf.
        let earlier = |of_head: ChainHead, of_seal: ChainHead| of_head.count <= of_seal.count && head.size == 0;
        let chained = self.chain.head_at(head.workspace_chain.count) == Some(head.workspace_chain);
        let agrees = seal.is_some_and(|seal| {
            head.incarnation == seal.incarnation
                && (head.ledger_chain == seal.ledger_chain || earlier(head.ledger_chain, seal.ledger_chain))
                && (head.workspace_chain == seal.workspace_chain || earlier(head.workspace_chain, seal.workspace_chain))
                && head.size <= seal.size
                && chained
        });
        let says = || format!("head of segment {} size {} root {}", head.segment, head.size, head.root);
        ensure(
            Check::HeldHead,
            before && agrees && history == Some(head.history_root),
            || place.to_owned(),
            || ("a head of this history from before the batch", says()),
        )?;
        let Some(tree) = self.trees.get(&head.segment) else {
            let older = (head.root, place.to_owned());
            let known = self.older_heads.entry((head.segment, head.size)).or_insert(older);
            return Ok(ensure(
                Check::HeldHead,
                known.0 == head.root,
                || place.to_owned(),
                || (format!("root {}, as another batch holds", known.0), says()),
            )?);
        };
        let root = tree.root_at(head.size);
        Ok(ensure(Check::HeldHead, root == Some(head.root), || place.to_owned(), || (format!("{:?}", root), says()))?)
    }

    /// A head may be of a key that is in doubt where its segment was sealed: whoever else had that key could have made it.
    pub(super) fn find_doubt(&self, head: &Head, place: &str, verdict: &mut Verdict) {
        let newest = self.log.ledger.last().and_then(|state| state.chain.key(&head.key_id));
        let Some(since) = newest.and_then(|key| key.suspect_since) else { return };
        let sealed = usize::try_from(head.segment).ok().and_then(|at| self.workspace.seals.get(at));
        if sealed.is_none_or(|(index, _)| *index >= since) {
            let text = format!("holds a head signed by key {}, which is in doubt there", head.key_id);
            verdict.find("suspect-key", Some(self.id()), place.to_owned(), text);
            verdict.suspect_batches = verdict.suspect_batches.saturating_add(1);
        }
    }

    /// Heads that point further back than the trees in memory: those segments are read once more.
    pub(super) fn check_older_heads(&mut self, verdict: &mut Verdict) -> Result<(), Stop> {
        let older = std::mem::take(&mut self.older_heads);
        let mut tree: Option<(u64, Option<Tree<SegmentTree>>)> = None;
        for ((segment, size), (root, place)) in older {
            if tree.as_ref().is_none_or(|(number, _)| *number != segment) {
                tree = Some((segment, self.tree_of(segment)?));
            }
            let Some((_, Some(tree))) = &tree else {
                verdict.counts.heads_not_checked = verdict.counts.heads_not_checked.saturating_add(1);
                continue;
            };
            let found = tree.root_at(size);
            ensure(
                Check::HeldHead,
                found == Some(root),
                || place,
                || (format!("segment {segment} size {size}: {found:?}"), root),
            )?;
        }
        Ok(())
    }

    /// The tree of a segment that was verified before; `None` if its object is not there.
    pub(super) fn tree_of(&self, number: u64) -> Result<Option<Tree<SegmentTree>>, Stop> {
        let Some(seal) = usize::try_from(number).ok().and_then(|at| self.seals.get(at)) else { return Ok(None) };
        let Some(entries) = self.entries_of(seal)? else { return Ok(None) };
        let tree: Tree<SegmentTree> = entries.iter().map(Entry::leaf_hash).collect();
        Ok(((tree.size(), tree.root()) == (seal.size, seal.root)).then_some(tree))
    }

    pub(super) fn check_equivocation(&mut self, batch: &Batch, place: &str, verdict: &mut Verdict) -> Result<(), Stop> {
        let header = &batch.header;
        let epoch = self.gateways.get(&header.gateway).and_then(|g| g.numbering.epochs.get(&header.epoch));
        let taken = epoch.is_some_and(|epoch| header.batch_number <= epoch.last_batch);
        ensure(
            Check::Equivocation,
            taken || (epoch.is_none() && self.has_gap),
            || place.to_owned(),
            || ("another header under a number that is taken", format!("batch {}", header.batch_number)),
        )?;
        let name = (header.gateway, header.epoch, header.batch_number, batch.hash, place.to_owned());
        self.equivocations.push(name);
        let text = format!("gateway {} signed two batches {}", header.gateway, header.batch_number);
        verdict.find("equivocation", Some(self.id()), place.to_owned(), text);
        Ok(())
    }

    /// The copy that took the number is another one: else a gateway would be blamed for sending a batch again. There are
    /// few of these, so the segments are read once more rather than every header's hash kept.
    pub(super) fn check_equivocations(&mut self) -> Result<(), Stop> {
        let open = std::mem::take(&mut self.equivocations);
        for seal in self.seals.iter().filter(|_| !open.is_empty()) {
            for entry in self.entries_of(seal)?.unwrap_or_default() {
                let (Content::Batch(batch), LeafKind::Batch) = (&entry.content, entry.leaf.kind) else { continue };
                let header = &batch.header;
                let number = (header.gateway, header.epoch, header.batch_number);
                // Of segments outside of the period the numbering was not checked: a number may be there twice, and the
                // second must not hide behind the first.
                for (.., hash, place) in open.iter().filter(|one| (one.0, one.1, one.2) == number) {
                    ensure(
                        Check::Equivocation,
                        batch.header_hash() != *hash,
                        || place.clone(),
                        || ("another header than the one that took the number", "the same"),
                    )?;
                }
            }
        }
        Ok(())
    }
}
