//! A store that is written as the writer writes it, and what a scan finds that knows nothing of any index.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use custody::{
    batch::{Header, Submitted, encode_signed, seal_header},
    id::{Epoch, GatewayId, HeaderHash, KeyId, RootHash, WorkspaceId},
    query::{Expr, Facts, Field, HistogramWish, Kind, PercentilesWish, Tally, Text, Want, Wishes},
    record,
    segment::{Content, Entry, Leaf, encode_entry},
    wire::{self, Decision, LeafKind, Outcome, Phase, call::Target, record::Kind as Record},
};
use ed25519_dalek::SigningKey;

use super::*;
use crate::{
    rig::{Dir, rng::Rng},
    store::{Halves, LeafPlace, Notes, call_rows, leaf_key, numbered},
    tail::{CommittedBatch, News},
};

/// Only bounds a failure.
pub(super) const WAIT: Duration = Duration::from_secs(60);
pub(super) const DAY_0: u64 = 20_000 * DAY_US;

pub(super) fn id(byte: u64) -> [u8; 16] {
    [u8::try_from(byte).unwrap(); 16]
}

/// A store that is written as the writer writes it, without keys that anybody looks at.
pub(super) struct World {
    pub(super) dir: PathBuf,
    pub(super) store: Option<Arc<Store>>,
    pub(super) tail: Arc<Tail>,
    pub(super) rng: Rng,
    pub(super) committed: u64,
    positions: BTreeMap<WorkspaceId, u64>,
    pub(super) now: u64,
    calls: u64,
    /// Which run of the gateway signs now.
    epoch: u64,
    /// Calls that run: number, and when they began.
    open: Vec<(u64, u64)>,
    /// Sums that came from rollups.
    pub(super) rolled: u64,
    /// Questions that were answered.
    pub(super) asked: u64,
    /// What was committed, in order.
    pub(super) all: Vec<Told>,
    /// Intents that stand: workspace, call number, epoch, start, index in `all`.
    standing: Vec<(WorkspaceId, u64, String, Option<u64>, usize)>,
    /// Commit below which retention let all go.
    pub(super) floor: u64,
}

/// A record, as the scan has it.
pub(super) struct Told {
    pub(super) rank: Rank,
    pub(super) workspace: WorkspaceId,
    pub(super) facts: Facts,
    /// Commit from which on it does not stand for its call any more.
    fell: Option<u64>,
}

impl World {
    pub(super) fn new(dir: &Dir, rng: Rng) -> Self {
        let store = Arc::new(Store::open(&dir.0.join("store"), 8 << 20, 32 << 20).unwrap());
        let tail = Arc::new(Tail::open(&store).unwrap());
        let dir = dir.0.clone();
        let positions = BTreeMap::new();
        Self {
            dir,
            store: Some(store),
            tail,
            rng,
            committed: 0,
            positions,
            now: DAY_0 + 1,
            calls: 0,
            epoch: 0,
            open: Vec::new(),
            rolled: 0,
            asked: 0,
            all: Vec::new(),
            standing: Vec::new(),
            floor: 0,
        }
    }

    fn call(&mut self) -> Record {
        self.calls += 1;
        let (mut number, mut phase) = (self.calls, Phase::Complete);
        let mut started_at = self.now - self.rng.below(5_000_000);
        match self.rng.below(8) {
            0 => {
                phase = Phase::Intent;
                self.open.push((number, started_at));
            }
            1 if !self.open.is_empty() => {
                let at = self.rng.below(self.open.len() as u64);
                let ends_elsewhere = self.rng.below(9) == 0;
                (number, started_at) = self.open.swap_remove(usize::try_from(at).unwrap());
                // Of another call that has the same number, as after a new start.
                started_at += u64::from(ends_elsewhere);
                phase = Phase::Outcome;
            }
            2 => {
                // A new start counts from the beginning; going on in a new epoch does not.
                self.epoch += 1;
                self.calls = if self.rng.below(2) == 0 { self.rng.below(self.calls) } else { self.calls };
            }
            _ => {}
        }
        let denied = self.rng.below(5) == 0;
        let outcome = match phase {
            Phase::Intent => Outcome::Running as i32,
            _ if denied => Outcome::Denied as i32,
            _ => {
                [Outcome::Ok, Outcome::ToolError, Outcome::Timeout][usize::try_from(self.rng.below(3)).unwrap()] as i32
            }
        };
        let tool = ["list", "read_file", "delete_contact"][usize::try_from(self.rng.below(3)).unwrap()];
        Record::Call(wire::Call {
            call_number: number,
            phase: phase as i32,
            mode: wire::Mode::Strict as i32,
            member: (self.rng.below(4) > 0).then(|| id(self.rng.below(6)).to_vec().into()),
            server: ["github", "crm"][usize::try_from(self.rng.below(2)).unwrap()].to_owned(),
            target: Some(Target::Tool(tool.to_owned())),
            decision: if denied { Decision::Denied } else { Decision::Allowed } as i32,
            started_at,
            duration_us: self.rng.below(4_000_000),
            outcome,
            request_bytes: self.rng.below(1_000),
            response_bytes: self.rng.below(100_000),
            trace: (self.rng.below(3) == 0).then(|| wire::TraceContext {
                trace_id: id(self.rng.below(9)).to_vec().into(),
                span_id: vec![1; 8].into(),
                flags: 0,
            }),
            ..Default::default()
        })
    }

    fn records(&mut self, count: u64) -> Vec<Bytes> {
        let other = |now| {
            Record::ToolDefinition(wire::ToolDefinition {
                at: now,
                change: wire::DefinitionChange::Changed as i32,
                action: wire::DefinitionAction::Warned as i32,
                server: "github".to_owned(),
                target: Some(wire::tool_definition::Target::Tool("list".to_owned())),
                ..Default::default()
            })
        };
        let make = |world: &mut Self| if world.rng.below(10) == 0 { other(world.now) } else { world.call() };
        (0..count).map(|_| record::encode(make(self)).into()).collect()
    }

    /// Commits a batch of so many records, as the writer does.
    pub(super) fn commit(&mut self, count: u64) {
        let records = self.records(count);
        let workspace = WorkspaceId(id(1 + self.rng.below(3)));
        let key = SigningKey::from_bytes(&[7; 32]);
        let mut header = Header {
            origin: "log.example/a".to_owned(),
            workspace,
            gateway: GatewayId([2; 16]),
            key_id: KeyId([3; 32]),
            epoch: Epoch([u8::try_from(self.epoch % 256).unwrap(); 16]),
            batch_number: 1,
            first_record: 1,
            record_count: 0,
            previous: HeaderHash([5; 32]),
            opening_reason: None,
            batch_root: RootHash::ZERO,
            last_head: Bytes::new(),
            dropped: 0,
            drop_reason: None,
            heartbeat: false,
            close: false,
            created_at: self.now,
        };
        seal_header(&mut header, &[9; 32], &records);
        let batch = Submitted::parse(encode_signed(&header.encode(), &key, &[9; 32], &records).into()).unwrap();
        let position = self.positions.entry(workspace).or_default();
        let leaf = Leaf { kind: LeafKind::Batch, first_position: *position, received_at: self.now, term: 1 };
        *position += count;
        let store = self.store.as_ref().unwrap();
        let mut change = store.change();
        let place = LeafPlace { segment: 0, leaf: self.committed };
        change.put(Family::Entries, leaf_key(workspace, 0, place.leaf), encode_entry(&leaf, batch.bytes.clone()));
        change.put(Family::Commits, self.committed.to_be_bytes(), leaf_key(workspace, 0, place.leaf));
        change.put(Family::Positions, numbered(workspace, leaf.first_position), place.encode());
        let mut halves = Halves::default();
        let notes = Notes::of(&batch.records);
        call_rows(store, &mut change, &batch, (self.committed, &notes), &mut halves).unwrap();
        store.commit(change).unwrap();
        let entry = Entry { leaf, content: Content::Batch(Box::new(batch)) };
        let batch = CommittedBatch::of(self.committed, entry).unwrap();
        for (index, facts) in batch.facts().iter().enumerate() {
            self.tell(batch.rank(index), workspace, facts.clone());
        }
        self.committed += 1;
        self.tail.publish(News { batches: vec![batch], begun: halves.begun, ended: halves.ended }, self.committed);
        self.now += self.rng.below(20_000_000);
    }

    pub(super) fn follower(&self) -> Follower {
        self.follower_at(Root::new(self.dir.join("index")), 90, &(Alarms::new(), Metrics::new()))
    }

    pub(super) fn follower_at(&self, root: Root, days_max: u64, told: &(Alarms, Metrics)) -> Follower {
        Follower::open_at(root, Arc::clone(&self.tail), days_max, told.clone()).unwrap()
    }

    /// A ledger that starts again: what was in memory alone is gone.
    pub(super) fn restart(&mut self) {
        let store = self.store.take().unwrap();
        self.tail = Arc::new(Tail::open(&store).unwrap());
        self.store = Some(store);
    }

    /// What stands as of a commit, by a scan: newest first.
    pub(super) fn expected(&self, seen: &BTreeSet<WorkspaceId>, expr: &Expr, pinned: u64) -> Vec<Rank> {
        let stands = |told: &&Told| {
            (self.floor..pinned).contains(&told.rank.commit_index())
                && told.fell.is_none_or(|fell| fell >= pinned)
                && seen.contains(&told.workspace)
                && expr.matches(&told.facts)
        };
        self.all.iter().rev().filter(stands).map(|told| told.rank).collect()
    }

    /// Takes what was committed into the scan: what ends a call makes its intent fall.
    fn tell(&mut self, rank: Rank, workspace: WorkspaceId, facts: Facts) {
        if let Some((call, phase)) = facts.call_phase().filter(|(_, phase)| *phase != Phase::Complete) {
            let (epoch, start) = (facts.texts(Field::Epoch).next().unwrap().to_owned(), facts.number(Field::At));
            let outcome = phase == Phase::Outcome;
            let (all, fell) = (&mut self.all, Some(rank.commit_index()));
            self.standing.retain(|(of, number, in_epoch, started, at)| {
                let same = *of == workspace && *number == call;
                let ended = same && (*in_epoch == epoch || outcome && *started == start);
                if ended {
                    all[*at].fell = fell;
                }
                !ended
            });
            if phase == Phase::Intent {
                self.standing.push((workspace, call, epoch, start, self.all.len()));
            }
        }
        self.all.push(Told { rank, workspace, facts, fell: None });
    }

    /// A random question.
    fn expr(&mut self, depth: u64) -> Expr {
        let kind = if depth == 0 { 3 + self.rng.below(6) } else { self.rng.below(9) };
        let several = |world: &mut Self| (0..=world.rng.below(3)).map(|_| world.expr(depth - 1)).collect();
        match kind {
            0 => Expr::All(several(self)),
            1 => Expr::Any(several(self)),
            2 => Expr::Not(Box::new(self.expr(depth - 1))),
            3 => Expr::test(Field::Member, Want::Texts(vec![Text::Exact(custody::id::hex(&id(self.rng.below(7))))])),
            4 => {
                let outcomes = ["ok", "denied", "running", "timeout", "no_such"];
                let count = 1 + self.rng.below(3);
                let one =
                    |world: &mut Self| Text::Exact(outcomes[usize::try_from(world.rng.below(5)).unwrap()].to_owned());
                Expr::test(Field::Outcome, Want::Texts((0..count).map(|_| one(self)).collect()))
            }
            5 => {
                let patterns = ["github/*", "*/delete_*", "crm/*_file", "*", "x*"];
                let pattern = patterns[usize::try_from(self.rng.below(5)).unwrap()].to_owned();
                Expr::test(Field::Tool, Want::Texts(vec![Text::Pattern(pattern)]))
            }
            6 => {
                let fields = [Field::Duration, Field::ResponseBytes, Field::At, Field::Received, Field::Call];
                let field = fields[usize::try_from(self.rng.below(5)).unwrap()];
                let end = if field.kind() == Kind::Time { self.now - DAY_0 } else { 100_000 };
                let base = if field.kind() == Kind::Time { DAY_0 } else { 0 };
                let (mut a, mut b) = (base + self.rng.below(end), base + self.rng.below(end * 2));
                if field == Field::At && self.rng.below(2) == 0 {
                    // What rollups can tell.
                    (a, b) = (a - a % 60_000_000, b - b % 3_600_000_000 - 1);
                }
                Expr::test(field, Want::Numbers(vec![(a, b)]))
            }
            7 => {
                let fields = [Field::Member, Field::Trace, Field::Change, Field::Duration, Field::Gap];
                Expr::test(fields[usize::try_from(self.rng.below(5)).unwrap()], Want::Present)
            }
            _ => Expr::test(Field::Trace, Want::Texts(vec![Text::Exact(custody::id::hex(&id(self.rng.below(10))))])),
        }
    }

    /// A random question: which workspaces are seen, what is wanted, as of which commit. A `plain` one can be answered from counts.
    pub(super) fn question(&mut self, plain: bool) -> (BTreeSet<WorkspaceId>, Expr, u64) {
        let expr = if plain { self.plain() } else { self.expr(3) };
        let seen = (1..4).filter(|_| self.rng.below(4) > 0).map(|w| WorkspaceId(id(w))).collect();
        // Pages that began before it are over.
        let floor = self.tail.store().unwrap().number(ENDED_FLOOR).unwrap().unwrap_or(0).max(self.floor);
        let some = floor + self.rng.below(self.committed - floor + 1);
        (seen, expr, if plain || self.rng.below(2) == 0 { self.committed } else { some })
    }

    fn plain(&mut self) -> Expr {
        let (least, most) = (DAY_0 + self.rng.below(self.now - DAY_0), DAY_0 + self.rng.below(self.now - DAY_0));
        let hour = 3_600_000_000;
        match self.rng.below(4) {
            0 => Expr::EVERYTHING,
            1 => Expr::test(Field::At, Want::Numbers(vec![(least - least % hour, most - most % hour + hour - 1)])),
            2 => Expr::Not(Box::new(Expr::test(Field::Outcome, Want::Texts(vec![Text::Exact("ok".to_owned())])))),
            _ => Expr::test(Field::Decision, Want::Texts(vec![Text::Exact("denied".to_owned())])),
        }
    }

    /// Some questions, each against the scan: all of it by pages, the count, and sums; from the index as it is, every eighth time
    /// from memory and store without any folder, and every 32nd from the store alone.
    pub(super) fn compare(&mut self, index: &Index, questions: u64) {
        let (unwanted, _) = mpsc::channel(1);
        let without = |tail: Arc<Tail>| Index::new(tail, unwanted.clone());
        let walked = without(Arc::clone(&self.tail));
        let stored = without(Arc::new(Tail::open(self.store.as_ref().unwrap()).unwrap()));
        for _ in 0..questions {
            let plain = self.rng.below(4) == 0;
            let (seen, expr, pinned) = self.question(plain);
            let expected = self.expected(&seen, &expr, pinned);
            let question = Question { workspaces: &seen, expr: &expr, pinned, until: Instant::now() + WAIT };
            // Some pages, and not hundreds.
            let limit = 1 + usize::try_from(self.rng.below(40)).unwrap() + expected.len() / 6;
            let walks = self.rng.below(32);
            let others =
                [walks.is_multiple_of(8).then_some(("memory", &walked)), (walks == 0).then_some(("store", &stored))];
            for (name, index) in [Some(("index", index))].into_iter().chain(others).flatten() {
                let of = format!("{name}: {expr:?} as of {pinned} of {}", self.committed);
                let found = paged(index, &question, limit);
                assert!(found == expected, "{of}, {limit} a page: {:?}", differing(&found, &expected));
                assert_eq!(index.count(&question).unwrap(), (expected.len() as u64, true), "{of}");
                self.compare_sums(index, &question, (&expected, plain));
                self.asked += 1;
            }
        }
    }
}

/// What is too much, and what is missing.
fn differing(found: &[Rank], expected: &[Rank]) -> [Vec<Rank>; 2] {
    let only = |of: &[Rank], other: &[Rank]| of.iter().copied().filter(|rank| !other.contains(rank)).collect();
    [only(found, expected), only(expected, found)]
}

/// All that is found, by pages.
pub(super) fn paged(index: &Index, question: &Question<'_>, limit: usize) -> Vec<Rank> {
    let (mut found, mut below) = (Vec::new(), Rank::first_of(question.pinned));
    loop {
        let page = index.newest(question, below, limit).unwrap();
        assert!(!page.cut_short && page.ranks.len() <= limit);
        let Some(last) = page.ranks.last() else { return found };
        below = *last;
        found.extend(page.ranks);
    }
}

impl World {
    fn wishes(&mut self, plain: bool) -> Wishes {
        if plain {
            let told = [Field::Outcome, Field::Kind, Field::Decision, Field::Workspace];
            let one = |world: &mut Self| told[usize::try_from(world.rng.below(4)).unwrap()];
            let split = (self.rng.below(2) == 0).then(|| one(self));
            let width = [60_000_000, 3_600_000_000][usize::try_from(self.rng.below(2)).unwrap()];
            let histogram = Some(HistogramWish { field: Field::At, width, split });
            return Wishes { facets: vec![one(self)], histogram, percentiles: None };
        }
        let some =
            |world: &mut Self, fields: &[Field]| fields[usize::try_from(world.rng.below(fields.len() as u64)).unwrap()];
        let texts =
            [Field::Tool, Field::Outcome, Field::Member, Field::Kind, Field::Decision, Field::Workspace, Field::Trace];
        let facets = (0..self.rng.below(3)).map(|_| some(self, &texts[..6])).collect();
        let histogram = (self.rng.below(2) == 0).then(|| HistogramWish {
            field: some(self, &[Field::At, Field::Received]),
            width: [60_000_000, 3_600_000_000, 7][usize::try_from(self.rng.below(3)).unwrap()],
            split: (self.rng.below(2) == 0).then(|| some(self, &texts)),
        });
        let percentiles = (self.rng.below(3) == 0).then(|| PercentilesWish {
            field: some(self, &[Field::Duration, Field::ResponseBytes]),
            by: (self.rng.below(2) == 0).then(|| some(self, &texts[..6])),
        });
        Wishes { facets, histogram, percentiles }
    }

    /// The sums against those of a scan.
    fn compare_sums(&mut self, index: &Index, question: &Question<'_>, (expected, plain): (&[Rank], bool)) {
        let wishes = self.wishes(plain);
        let mut sums = Tally::new(&wishes);
        for rank in expected {
            let at = self.all.binary_search_by_key(rank, |told| told.rank).unwrap();
            sums.take(&wishes, &self.all[at].facts);
        }
        // Values of what hardly two records share are not told apart.
        let unique = |field: Option<Field>| field.is_some_and(|field| field.kind() == Kind::Unique);
        if wishes.histogram.is_some_and(|wish| unique(wish.split)) {
            sums.buckets.values_mut().for_each(|bucket| bucket.values.clear());
        }
        let (mut found, whole, rolled) = index.tally(question, &wishes).unwrap();
        if wishes.histogram.is_some_and(|wish| unique(wish.split)) {
            found.buckets.values_mut().for_each(|bucket| bucket.values.clear());
        }
        assert!(
            whole && (found == sums || found.cut_short && sums.cut_short),
            "{:?} {wishes:?}: {found:?}",
            question.expr
        );
        self.rolled += u64::from(rolled);
    }
}
