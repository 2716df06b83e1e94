//! The index against a scan that knows nothing of it: what is found, in which order, how many, and on which page; while records
//! come in, across borders of days, restarts, losses and kills.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use custody::{
    batch::{Header, Submitted, encode_signed, seal_header},
    id::{Epoch, GatewayId, HeaderHash, KeyId, RootHash, WorkspaceId},
    query::{Expr, Facts, Field, HistogramWish, PercentilesWish, Tally, Text, Want, Wishes},
    record,
    segment::{Content, Entry, Leaf, encode_entry},
    wire::{self, Decision, LeafKind, Outcome, Phase, call::Target, record::Kind as Record},
};
use ed25519_dalek::SigningKey;

use super::*;
use crate::{
    rig::{Dir, rng::Rng},
    store::{Halves, LeafPlace, Notes, Rank, Store, call_rows, leaf_key, numbered},
    tail::News,
};

/// Only bounds a failure.
const WAIT: Duration = Duration::from_secs(60);
const DAY_0: u64 = 20_000 * DAY_US;

fn id(byte: u64) -> [u8; 16] {
    [u8::try_from(byte).unwrap(); 16]
}

/// A store that is written as the writer writes it, without keys that anybody looks at.
struct World {
    dir: PathBuf,
    store: Option<Arc<Store>>,
    tail: Arc<Tail>,
    rng: Rng,
    committed: u64,
    positions: BTreeMap<WorkspaceId, u64>,
    now: u64,
    calls: u64,
    /// Which run of the gateway signs now.
    epoch: u64,
    /// Calls that run: number, and when they began.
    open: Vec<(u64, u64)>,
    /// Sums that came from rollups.
    rolled: u64,
    /// What was committed, in order: rank, facts.
    all: Vec<(Rank, WorkspaceId, Facts)>,
}

impl World {
    fn new(dir: &Dir, rng: Rng) -> Self {
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
            all: Vec::new(),
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
    fn commit(&mut self, count: u64) {
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
        let chunk = Chunk::of(self.committed, entry).unwrap();
        for (index, facts) in chunk.facts().iter().enumerate() {
            self.all.push((chunk.rank(index), workspace, facts.clone()));
        }
        self.committed += 1;
        self.tail.publish(News { chunks: vec![chunk], begun: halves.begun, ended: halves.ended }, self.committed);
        self.now += self.rng.below(20_000_000);
    }

    fn follower(&self) -> Follower {
        let told = (Alarms::new(), Metrics::new());
        Follower::open(self.dir.join("index"), Arc::clone(&self.tail), 90, told).unwrap()
    }

    /// A ledger that starts again: what was in memory alone is gone.
    fn restart(&mut self) {
        let store = self.store.take().unwrap();
        self.tail = Arc::new(Tail::open(&store).unwrap());
        self.store = Some(store);
    }

    /// What stands as of a commit, by a scan: newest first.
    fn expected(&self, seen: &BTreeSet<WorkspaceId>, expr: &Expr, pinned: u64) -> Vec<Rank> {
        // Workspace, call number, epoch, start, rank of what stands.
        let mut standing: Vec<(WorkspaceId, u64, String, Option<u64>, Rank)> = Vec::new();
        let mut fallen = std::collections::HashSet::new();
        let all: Vec<_> = self.all.iter().filter(|(rank, ..)| rank.commit_index() < pinned).collect();
        for (rank, workspace, facts) in &all {
            let Some((call, phase)) = facts.call_phase().filter(|(_, phase)| *phase != Phase::Complete) else {
                continue;
            };
            let (epoch, start) = (facts.texts(Field::Epoch).next().unwrap().to_owned(), facts.number(Field::At));
            let outcome = phase == Phase::Outcome;
            standing.retain(|(of, number, in_epoch, started, rank)| {
                let same = of == workspace && *number == call;
                let ended = same && (*in_epoch == epoch || outcome && *started == start);
                fallen.extend(ended.then_some(*rank));
                !ended
            });
            if phase == Phase::Intent {
                standing.push((*workspace, call, epoch, start, *rank));
            }
        }
        let stands = |rank: &Rank| !fallen.contains(rank);
        let matching = all.iter().rev().filter(|(_, workspace, facts)| seen.contains(workspace) && expr.matches(facts));
        matching.map(|(rank, ..)| *rank).filter(stands).collect()
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

    /// Some questions, each against the scan: all of it by pages, and the count.
    fn compare(&mut self, index: &Index, questions: usize) {
        for _ in 0..questions {
            let expr = self.expr(3);
            let seen: BTreeSet<WorkspaceId> =
                (1..4).filter(|_| self.rng.below(4) > 0).map(|w| WorkspaceId(id(w))).collect();
            // Pages that began before it are over.
            let floor = self.tail.store().unwrap().number(ENDED_FLOOR).unwrap().unwrap_or(0);
            let some = floor + self.rng.below(self.committed - floor + 1);
            let pinned = if self.rng.below(2) == 0 { self.committed } else { some };
            let question = Question { workspaces: &seen, expr: &expr, pinned, until: Instant::now() + WAIT };
            let expected = self.expected(&seen, &expr, pinned);
            assert_eq!(index.count(&question).unwrap(), (expected.len() as u64, true), "{expr:?} as of {pinned}");
            self.compare_sums(index, &question, &expected);
            let limit = 1 + usize::try_from(self.rng.below(40)).unwrap();
            let (mut found, mut below) = (Vec::new(), Rank::first_of(pinned));
            loop {
                let page = index.newest(&question, below, limit).unwrap();
                assert!(!page.cut_short && page.ranks.len() <= limit);
                let Some(last) = page.ranks.last() else { break };
                below = *last;
                found.extend(page.ranks);
            }
            assert_eq!(found, expected, "{expr:?} as of {pinned}, {limit} a page");
        }
    }
}

impl World {
    fn wishes(&mut self) -> Wishes {
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
    fn compare_sums(&mut self, index: &Index, question: &Question<'_>, expected: &[Rank]) {
        let wishes = self.wishes();
        let facts: HashMap<Rank, &Facts> = self.all.iter().map(|(rank, _, facts)| (*rank, facts)).collect();
        let mut sums = Tally::new(&wishes);
        for rank in expected {
            sums.take(&wishes, facts[rank]);
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

/// Steps until there is nothing to do but to commit, and commits.
fn settle(follower: &mut Follower) {
    while follower.step().unwrap() {}
    follower.commit_live().unwrap();
}

#[test]
fn index_and_memory_find_what_a_scan_finds() {
    let dir = Dir::new("index-scan");
    let mut world = World::new(&dir, Rng::for_test("index_and_memory_find_what_a_scan_finds"));
    let mut follower = world.follower();
    for round in 0..60 {
        for _ in 0..world.rng.below(12) {
            let count = 1 + world.rng.below(40);
            world.commit(count);
        }
        // What is indexed ends somewhere: behind it all is in memory, or in the store alone.
        match world.rng.below(4) {
            0 => settle(&mut follower),
            1 => {
                follower.step().unwrap();
            }
            2 => {
                drop(follower);
                world.restart();
                follower = world.follower();
            }
            _ => {}
        }
        if round % 20 == 19 {
            world.now += DAY_US / 2;
        }
        let index = follower.index();
        world.compare(&index, 25);
    }
    let days = follower.index().shown().len();
    assert!(days > 1 && world.rolled > 20, "{days} days, {} from rollups", world.rolled);
}

#[test]
fn what_is_lost_or_broken_is_built_again_and_found_meanwhile() {
    let dir = Dir::new("index-lost");
    let mut world = World::new(&dir, Rng::for_test("what_is_lost_or_broken_is_built_again_and_found_meanwhile"));
    let mut follower = world.follower();
    for _ in 0..4 {
        for _ in 0..10 {
            world.commit(30);
        }
        settle(&mut follower);
        world.now += DAY_US;
    }
    drop(follower);
    let folders = day::list(&dir.0.join("index")).unwrap();
    assert_eq!(folders.len(), 4);
    std::fs::remove_dir_all(&folders[1].1).unwrap();
    let file = std::fs::read_dir(&folders[2].1).unwrap().map(|file| file.unwrap().path());
    let meta = file.into_iter().find(|path| path.ends_with("meta.json")).unwrap();
    durable::write(&meta, b"{}", 0o600).unwrap();
    world.restart();
    let mut follower = world.follower();
    assert_eq!((follower.gaps.len(), follower.index().shown().len()), (1, 2));
    world.compare(&follower.index(), 40);
    settle(&mut follower);
    assert_eq!((follower.gaps.len(), follower.index().shown().len()), (0, 4));
    world.compare(&follower.index(), 40);
}

#[test]
fn an_index_of_another_store_is_thrown_away() {
    let dirs = [Dir::new("index-own"), Dir::new("index-other")];
    let mut worlds = dirs.each_ref().map(|dir| World::new(dir, Rng::for_test("an_index_of_another_store")));
    worlds[1].now += 1_000;
    for world in &mut worlds {
        world.commit(5);
        settle(&mut world.follower());
    }
    let folder = day::list(&dirs[1].0.join("index")).unwrap().remove(0).1;
    let own = day::list(&dirs[0].0.join("index")).unwrap().remove(0).1;
    std::fs::remove_dir_all(&own).unwrap();
    std::fs::create_dir(&own).unwrap();
    for file in std::fs::read_dir(folder).unwrap().map(|file| file.unwrap()) {
        std::fs::copy(file.path(), own.join(file.file_name())).unwrap();
    }
    let mut follower = worlds[0].follower();
    assert!(follower.index().shown().is_empty());
    settle(&mut follower);
    worlds[0].compare(&follower.index(), 10);
}

#[test]
fn days_past_the_hot_ones_go_and_are_not_built_again() {
    let dir = Dir::new("index-old");
    let mut world = World::new(&dir, Rng::for_test("days_past_the_hot_ones_go_and_are_not_built_again"));
    for _ in 0..5 {
        world.commit(10);
        world.now += DAY_US;
    }
    let told = (Alarms::new(), Metrics::new());
    let open = |world: &World| {
        Follower::open(dir.0.join("index"), Arc::clone(&world.tail), 2, (told.0.clone(), told.1.clone())).unwrap()
    };
    let mut follower = open(&world);
    settle(&mut follower);
    let kept = follower.index().shown().len();
    assert_eq!(kept, 3, "today and two days before");
    drop(follower);
    world.restart();
    let mut follower = open(&world);
    settle(&mut follower);
    assert_eq!((follower.gaps.len(), follower.index().shown().len()), (0, 3));
    let seen: BTreeSet<WorkspaceId> = (1..4).map(|w| WorkspaceId(id(w))).collect();
    let question =
        Question { workspaces: &seen, expr: &Expr::EVERYTHING, pinned: world.committed, until: Instant::now() + WAIT };
    let found = follower.index().newest(&question, Rank::first_of(world.committed), 1_000).unwrap();
    assert!(found.ranks.iter().all(|rank| rank.commit_index() >= 2));
}
