//! Changes of a policy: what people see of them, what stays in the file, what records say, and what any crash leaves.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex as Locked,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
};

use custody::{
    access::State as Replayed,
    wire::{AccessAction, Decision},
};

use super::*;
use crate::access::{Ask, Cut, NewRule, Why};

const ALICE: &str = "a11ce000000000000000000000000001";
const BOB: &str = "b0b00000000000000000000000000001";
const AGENT: &str = "a9000000000000000000000000000001";

/// Files and records of a machine that stops after so many writes: what is written then is not there.
#[derive(Default)]
struct Machine {
    files: Locked<BTreeMap<PathBuf, String>>,
    records: Locked<Vec<AccessChange>>,
    left: AtomicUsize,
    /// No record has its place.
    is_full: AtomicBool,
}

impl Machine {
    /// Whether it still runs; each write takes one.
    fn runs(&self) -> bool {
        self.left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok()
    }

    fn file(&self, path: &Path) -> Option<String> {
        self.files.lock().unwrap().get(path).cloned()
    }

    fn put(&self, path: &Path, text: &str) {
        self.files.lock().unwrap().insert(path.to_owned(), text.to_owned());
    }

    /// What the records say, all of them in strict form.
    fn replayed(&self) -> Replayed {
        let mut state = Replayed::default();
        for change in self.records.lock().unwrap().iter() {
            custody::record::check(&custody::record::encode(Kind::AccessChange(change.clone()))).unwrap();
            state.replay(change);
        }
        state
    }
}

fn stopped() -> io::Error {
    io::Error::other("it stopped")
}

impl Files for Arc<Machine> {
    fn read(&self, path: &Path) -> io::Result<Option<String>> {
        Ok(self.file(path))
    }

    fn replace(&self, path: &Path, text: &str) -> io::Result<()> {
        if !self.runs() {
            return Err(stopped());
        }
        self.put(path, text);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        if !self.runs() {
            return Err(stopped());
        }
        self.files.lock().unwrap().remove(path).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Recorder for Arc<Machine> {
    fn record(&self, changes: Vec<AccessChange>) -> BoxFuture<'_, Result<(), Refused>> {
        Box::pin(async move {
            if self.is_full.load(SeqCst) {
                return Err(Refused::SpoolFull);
            }
            for change in changes {
                if !self.runs() {
                    return Err(Refused::Stopped);
                }
                self.records.lock().unwrap().push(change);
            }
            Ok(())
        })
    }
}

fn paths() -> Paths {
    Paths { dir: "state".into(), workspace: "access.toml".into(), organisation: Some("organisation.toml".into()) }
}

fn policy() -> String {
    format!(
        "# Who may call what; see the handbook.\nversion = 1\n\n[members.{ALICE}] # the first\ngroups = [\"staff\"]\n\n\
         [agents.{AGENT}]\n\n# Nothing is deleted on Fridays.\n[[rules]]\nid = \"staff\"\neffect = \"allow\"\ngroups = \
         [\"staff\"]\ntools = [\"mail/*\"] # all of it\n\n[servers.mail]\nowner = \"platform\"\neffects = [\"read\", \
         \"send\"]\n"
    )
}

const ORGANISATION: &str =
    "version = 1\n[[rules]]\nid = \"org\"\neffect = \"deny\"\neveryone = true\ntools = [\"*/destroy\"]\n";

fn machine() -> Arc<Machine> {
    let machine = Machine { left: AtomicUsize::new(usize::MAX), ..Machine::default() };
    machine.put(&paths().workspace, &policy());
    machine.put(Path::new("organisation.toml"), ORGANISATION);
    Arc::new(machine)
}

async fn open(machine: &Arc<Machine>) -> Result<Engine, ChangeError> {
    Engine::open_with(paths(), Box::new(Arc::clone(machine)), Box::new(Arc::clone(machine))).await
}

fn why() -> Reason {
    Reason {
        actor: Actor::System("uid:1000".into()),
        account: Some(1_000),
        code: "left".into(),
        ticket: "HR-12".into(),
    }
}

fn member(id: &str) -> MemberId {
    MemberId::from_hex(id).unwrap()
}

fn ask(name: &str) -> Ask<'_> {
    Ask { server: "mail", method: "tools/call", name: Some(name), from_server: false, request_bytes: 0 }
}

async fn edited(engine: &Engine, verb: Edit) -> Changed {
    engine.edit(verb, why()).await.unwrap_or_else(|error| panic!("{error}"))
}

#[tokio::test]
async fn the_very_first_start_applies_the_file_and_a_later_one_does_not() {
    let machine = machine();
    let engine = open(&machine).await.unwrap();
    let state = machine.replayed();
    assert_eq!((state.digest, state.gaps), (Some(engine.access().digest()), 0));
    assert_eq!(state.rules.0.iter().map(|rule| rule.id.as_str()).collect::<Vec<_>>(), ["org", "staff"]);
    assert_eq!(machine.file(&paths().in_force()), Some(policy()));
    {
        let records = machine.records.lock().unwrap();
        assert!(records.iter().all(|record| record.reason == "first" && record.policy_digest_before.is_none()));
        assert_eq!(records.last().unwrap().action(), AccessAction::PolicyApplied);
    }
    let made = machine.records.lock().unwrap().len();
    machine.put(&paths().workspace, &policy().replace("mail/*", "*"));
    let engine = open(&machine).await.unwrap();
    assert_eq!(machine.records.lock().unwrap().len(), made);
    let told = engine.differs().await.unwrap();
    assert!(told.contains("hint: gateway-shim access plan"), "{told}");
    let plan = engine.plan().await.unwrap();
    assert_eq!(plan.lines, ["~ rule staff: allow group staff: *, tools/call"]);
    assert_eq!(plan.before, engine.access().digest());
    let changed = engine.apply(None, Allowance::default(), why()).await.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((changed.lines, changed.digest), (plan.lines, plan.after));
    assert_eq!((machine.replayed().gaps, engine.differs().await), (0, None));
}

#[tokio::test]
async fn a_plan_is_a_line_for_each_part() {
    let machine = machine();
    let engine = open(&machine).await.unwrap();
    let text = policy()
        .replace("groups = [\"staff\"]\n\n", "groups = [\"interns\"]\n\n")
        .replace(
            "owner = \"platform\"",
            "environment = \"production\"\ndata_class = \"personal\"\non_change = \"quarantine\"",
        )
        .replace(
            "# Nothing",
            &format!("[members.{BOB}]\nkind = \"service\"\nowner = \"{ALICE}\"\ngroups = [\"bots\"]\n# Nothing"),
        )
        + "[[rules]]\nid = \"bots\"\neffect = \"deny\"\nmembers = [\"b0b00000000000000000000000000001\"]\ntools = \
           [\"mail/send\", \"files/*\"]\nmethods = [\"*\"]\n[[limits]]\nid = \"few\"\ngroups = [\"bots\"]\ncalls_per_day = \
           9\nresponse_bytes_max = 100\n"
        + &format!(
            "[[tokens]]\nid = \"{BOB}\"\nsha256 = \"{}\"\nmember = \"{BOB}\"\nagent = \"{AGENT}\"\nissued_at = \
             2026-11-01T00:00:00Z\nexpires_at = 2026-12-01T10:00:00+02:00\n",
            "00".repeat(32)
        );
    let plan = engine.plan_of(text.clone()).await.unwrap();
    let changed = engine.apply(Some(text), Allowance::default(), why()).await.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(plan.lines, changed.lines);
    let back = engine.plan().await.unwrap();
    insta::assert_snapshot!(format!("{}\n\nand back:\n{}\n", plan.lines.join("\n"), back.lines.join("\n")));
}

#[tokio::test]
async fn verbs_change_the_text_and_leave_comments_as_they_stand() {
    let machine = machine();
    let engine = open(&machine).await.unwrap();
    let (alice, bob) = (member(ALICE), member(BOB));
    let rule = |tools: &str| NewRule { members: vec![bob], tools: vec![tools.into()], ..NewRule::default() };
    for verb in [
        Edit::MemberAdd { member: bob, owner: None, groups: vec!["staff".into()], subject: None },
        Edit::GroupJoin { member: bob, group: "night".into() },
        Edit::GroupLeave { member: alice, group: "staff".into() },
        Edit::Grant(rule("files/read")),
        Edit::Deny(NewRule { id: Some("not-bob".into()), methods: vec!["*".into()], ..rule("mail/send") }),
        Edit::Deny(rule("mail/read")),
        Edit::AgentAdd { agent: member("a9000000000000000000000000000002") },
        Edit::RuleRemove { id: "not-bob".into() },
    ] {
        edited(&engine, verb).await;
    }
    let text = machine.file(&paths().in_force()).unwrap();
    assert_eq!(machine.file(&paths().workspace), Some(text.clone()), "the file was as what was in force");
    insta::assert_snapshot!(text);
    assert_eq!((machine.replayed().gaps, machine.replayed().digest), (0, Some(engine.access().digest())));
    // A file that somebody is editing is left alone.
    machine.put(&paths().workspace, "# being edited\n");
    edited(&engine, Edit::MemberRevoke { member: bob }).await;
    assert_eq!(machine.file(&paths().workspace).unwrap(), "# being edited\n");
}

/// What stands above a blank line is not of one rule alone, and what stands behind an element is of that element.
#[tokio::test]
async fn a_verb_that_takes_something_out_leaves_the_comments_of_others() {
    let machine = machine();
    let text = format!(
        "version = 1\n[members.{ALICE}]\n# Hers.\ngroups = [\n  \"a\", # ops\n  \"b\", # of b\n  \"c\", # on call\n]\n\n# \
         ===== Rules, reviewed =====\n# The order matters.\n\n# One.\n[[rules]]\nid = \"one\"\neffect = \"allow\"\neveryone = \
         true\ntools = [\"x/a\"]\n\n# Two.\n[[rules]]\nid = \"two\"\neffect = \"allow\"\neveryone = true\ntools = \
         [\"x/b\"]\n# ===== Limits =====\n"
    );
    machine.put(&paths().workspace, &text);
    machine.put(Path::new("organisation.toml"), "version = 1\n");
    let engine = open(&machine).await.unwrap();
    let leave = |group: &str| Edit::GroupLeave { member: member(ALICE), group: group.into() };
    let deny = NewRule { id: Some("no".into()), everyone: true, tools: vec!["x/c".into()], ..NewRule::default() };
    for verb in [Edit::Deny(deny), leave("b")] {
        edited(&engine, verb).await;
    }
    let text = machine.file(&paths().workspace).unwrap();
    let at = |part: &str| text.find(part).unwrap_or_else(|| panic!("{part}: {text}"));
    assert!(
        at("The order matters") < at("\"no\"") && at("\"no\"") < at("# One.") && at("# One.") < at("\"one\""),
        "{text}"
    );
    assert!(text.contains("\"a\", # ops\n") && text.contains("\"c\", # on call\n") && !text.contains("of b"), "{text}");
    for verb in [leave("c"), leave("a"), Edit::RuleRemove { id: "no".into() }, Edit::RuleRemove { id: "one".into() }] {
        edited(&engine, verb).await;
    }
    let text = machine.file(&paths().workspace).unwrap();
    assert!(text.contains("# The order matters.\n\n# Two.\n[[rules]]") && !text.contains("# One."), "{text}");
    edited(&engine, Edit::RuleRemove { id: "two".into() }).await;
    let text = machine.file(&paths().workspace).unwrap();
    for kept in ["# Hers.", "===== Rules, reviewed", "===== Limits"] {
        assert!(text.contains(kept), "{kept}: {text}");
    }
}

#[tokio::test]
async fn a_verb_that_does_nothing_is_refused_with_the_next_move() {
    let engine = open(&machine()).await.unwrap();
    let (alice, bob) = (member(ALICE), member(BOB));
    let rule = NewRule { members: vec![bob], tools: vec!["mail/*".into()], ..NewRule::default() };
    for (verb, words) in [
        (Edit::MemberAdd { member: alice, owner: None, groups: vec![], subject: None }, "is a member already; hint"),
        (Edit::MemberRevoke { member: bob }, "is no member; hint"),
        (Edit::GroupJoin { member: alice, group: "staff".into() }, "is in group staff already"),
        (Edit::GroupLeave { member: alice, group: "x".into() }, "is not in that group; hint"),
        (Edit::Grant(rule.clone()), "who is no member; hint"),
        (Edit::Grant(NewRule { members: vec![], ..rule.clone() }), "applies to nobody; hint"),
        (Edit::Deny(NewRule { id: Some("staff".into()), ..rule }), "already; hint"),
        (Edit::RuleRemove { id: "org".into() }, "the workspace has no rule of that id; hint"),
        (Edit::TokenIssue { member: alice, agent: None, days: Some(91) }, "1 to 90 days here; hint"),
        (Edit::TokenIssue { member: alice, agent: Some(bob), days: None }, "is no agent; hint"),
        (Edit::TokenRevoke { token: [1; 16] }, "there is no good token of that id; hint"),
        (Edit::MemberRotate { member: alice, overlap_s: 0 }, "has no good token; hint"),
    ] {
        let Err(ChangeError::Refused(said)) = engine.edit(verb, why()).await else { panic!("{words}") };
        assert!(said.contains(words), "{said}");
    }
    let wrong = Reason { code: "Jörg asked".into(), ..why() };
    let Err(ChangeError::Refused(said)) = engine.edit(Edit::MemberRevoke { member: alice }, wrong).await else {
        panic!("no token")
    };
    assert!(!said.contains("Jörg") && said.contains("hint"), "{said}");
}

#[tokio::test]
async fn a_token_lives_from_its_issue_to_its_revocation_and_is_kept_nowhere() {
    let machine = machine();
    let engine = open(&machine).await.unwrap();
    let (access, alice, now) = (engine.access(), member(ALICE), clock::now_us());
    let issue = Edit::TokenIssue { member: alice, agent: Some(member(AGENT)), days: Some(1) };
    let first = edited(&engine, issue.clone()).await.tokens.pop().unwrap();
    let second = edited(&engine, issue).await.tokens.pop().unwrap();
    let kind = |token: &OneTimeToken, now| {
        access.authenticate(Some(&format!("Bearer {}", token.reveal())), now).map(drop).map_err(|refused| refused.kind)
    };
    assert_eq!(kind(&first, now), Ok(()));
    let caller = access.authenticate(Some(&format!("Bearer {}", second.reveal())), now).unwrap();
    assert_eq!((caller.member, caller.agent), (alice, Some(member(AGENT))));

    // Rotated with an overlap: both are good, then the new one alone.
    let mut rotated = edited(&engine, Edit::TokenRotate { token: first.id(), overlap_s: 60 }).await;
    let third = rotated.tokens.pop().unwrap();
    assert_eq!((kind(&first, now), kind(&third, now)), (Ok(()), Ok(())));
    assert_eq!(kind(&first, now + 61_000_000), Err(Why::Expired));
    {
        let records = machine.records.lock().unwrap();
        let record = records.iter().rfind(|record| record.token.as_deref() == Some(&first.id())).unwrap();
        let in_force = engine.0.state.try_lock().unwrap().policy.tokens[&first.id()].expires_at;
        assert_eq!((record.action(), record.expires_at), (AccessAction::TokenRotated, Some(in_force)));
    }
    let others = edited(&engine, Edit::MemberRotate { member: alice, overlap_s: 0 }).await.tokens;
    assert_eq!(others.len(), 3);
    assert_eq!((kind(&second, now), kind(&third, now)), (Err(Why::Revoked), Err(Why::Revoked)));
    let Err(Cut::Unauthenticated(cut)) = access.still_allowed(&caller, &ask("send"), now) else { panic!("rotated") };
    assert_eq!(cut.kind, Why::Revoked);

    edited(&engine, Edit::TokenRevoke { token: others[0].id() }).await;
    assert_eq!((kind(&others[0], now), kind(&others[1], now)), (Err(Why::Revoked), Ok(())));
    edited(&engine, Edit::MemberRevoke { member: alice }).await;
    assert!(others.iter().all(|token| kind(token, now) == Err(Why::Revoked)));
    edited(&engine, Edit::MemberAdd { member: alice, owner: None, groups: vec![], subject: None }).await;
    assert!(others.iter().all(|token| kind(token, now) == Err(Why::Revoked)), "who comes back has no token");

    let state = machine.replayed();
    assert_eq!((state.gaps, state.tokens_of(&alice, now).count()), (0, 0));
    let kept = format!("{:?}{:?}", machine.files.lock().unwrap(), machine.records.lock().unwrap());
    for token in [first, second, third].iter().chain(&others) {
        let secret = token.reveal().rsplit_once('_').unwrap().1.to_owned();
        assert!(!kept.contains(&secret));
    }
}

/// Whatever the last write was, the next start goes on: all of the change is in force and on record, or nothing of it is.
#[tokio::test]
async fn a_crash_after_any_write_is_completed_or_was_nothing() {
    let change = |machine: &Machine| {
        machine.put(Path::new("organisation.toml"), &ORGANISATION.replace("org", "staff").replace("destroy", "send"));
        let text = policy().replace("id = \"staff\"", "id = \"org\"").replace("mail/*", "mail/s*");
        machine.put(&paths().workspace, &text.replace("groups = [\"staff\"]\n\n", "groups = [\"staff\", \"org\"]\n\n"));
    };
    let (mut before, mut after) = (0, 0);
    for first in [true, false] {
        for writes in 0.. {
            let machine = machine();
            if !first {
                drop(open(&machine).await.unwrap());
                change(&machine);
            }
            let old = machine.replayed().digest;
            machine.left.store(writes, SeqCst);
            let ended = match open(&machine).await {
                Ok(engine) if !first => engine.apply(None, Allowance::default(), why()).await.map(drop),
                opened => opened.map(drop),
            };
            let whole = ended.is_ok() && machine.file(&paths().pending()).is_none();
            machine.left.store(usize::MAX, SeqCst);
            let engine = open(&machine).await.unwrap();
            let state = machine.replayed();
            let digest = engine.access().digest();
            assert_eq!((state.digest, state.gaps), (Some(digest), 0), "first {first}, after {writes} writes");
            assert_eq!(machine.file(&paths().pending()), None);
            let policy = engine.policy().await;
            let rules: Vec<&str> = state.rules.0.iter().map(|rule| rule.id.as_str()).collect();
            assert_eq!(rules, policy.rules.iter().map(|rule| &*rule.id).collect::<Vec<_>>(), "after {writes} writes");
            let groups = &state.members[&member(ALICE)].groups;
            assert_eq!(*groups, policy.members[&member(ALICE)].groups);
            match Some(digest) == old {
                // Only what was never written down was nothing.
                true => assert!((writes == 0, ended.is_err()) == (true, true), "after {writes} writes"),
                false if !whole => after += 1,
                false => {}
            }
            before += u32::from(Some(digest) == old);
            if whole {
                break;
            }
        }
    }
    assert!(before == 1 && after > 10, "{before} {after}");
}

#[tokio::test]
async fn what_cannot_be_recorded_is_not_in_force_and_goes_on_with_the_next_change() {
    let machine = machine();
    let engine = open(&machine).await.unwrap();
    machine.put(&paths().workspace, &policy().replace("mail/*", "*"));
    let digest = engine.access().digest();
    machine.left.store(1, SeqCst);
    let Err(ChangeError::Unfinished(said)) = engine.apply(None, Allowance::default(), why()).await else {
        panic!("it was recorded")
    };
    assert!(said.contains("it is not in force; hint"), "{said}");
    assert_eq!(engine.access().digest(), digest);
    machine.left.store(usize::MAX, SeqCst);
    edited(&engine, Edit::AgentAdd { agent: member(BOB) }).await;
    let (policy, state) = (engine.policy().await, machine.replayed());
    assert_eq!((&*policy.rules[1].scope.tools[0], policy.agents.len(), state.gaps), ("*", 2, 0));
    assert_eq!(state.rules.0[1].effect(), Decision::Allowed);
    // A disk that fails behind the records: it is in force, and the files follow.
    machine.left.store(2, SeqCst);
    let verb = Edit::AgentAdd { agent: member(ALICE) };
    let said = edited(&engine, verb).await.unfinished.expect("it was not written");
    assert!(said.contains("the change is in force; hint"), "{said}");
    assert_eq!(engine.policy().await.agents.len(), 3);
    machine.left.store(usize::MAX, SeqCst);
    assert_eq!(open(&machine).await.unwrap().policy().await.agents.len(), 3);
}

#[tokio::test]
async fn what_was_counted_today_is_counted_after_a_restart() {
    let machine = machine();
    let limits = "[[limits]]\nid = \"two\"\neveryone = true\ncalls_per_day = 2\n[[limits]]\nid = \"together\"\neveryone = \
                  true\nshared = true\ncalls_per_day = 3\n";
    machine.put(&paths().workspace, &(policy() + limits));
    let engine = open(&machine).await.unwrap();
    let token = Edit::TokenIssue { member: member(ALICE), agent: None, days: None };
    let token = edited(&engine, token).await.tokens.pop().unwrap();
    let header = format!("Bearer {}", token.reveal());
    let alice = engine.access().authenticate(Some(&header), clock::now_us()).unwrap();
    drop(engine.access().enter(&alice, &ask("send")).unwrap());
    engine.keep_counts().await;
    let kept = machine.file(&paths().counts());
    engine.keep_counts().await;
    assert_eq!(machine.file(&paths().counts()), kept);
    let engine = open(&machine).await.unwrap();
    drop(engine.access().enter(&alice, &ask("send")).unwrap());
    assert_eq!(&*engine.access().enter(&alice, &ask("send")).unwrap_err().limit, "two");
    engine.keep_counts().await;
    // Yesterday's, and what is no such file, count nothing.
    let yesterday = machine.file(&paths().counts()).unwrap().replace("\"day\":2", "\"day\":1");
    assert_ne!(Some(&yesterday), machine.file(&paths().counts()).as_ref());
    for text in [yesterday.as_str(), "{"] {
        machine.put(&paths().counts(), text);
        assert!(open(&machine).await.unwrap().access().enter(&alice, &ask("send")).is_ok());
    }
}

/// The same over a real gateway and real files; what it takes from the verb to the first refusal is printed.
#[tokio::test]
async fn a_gateway_records_it_and_the_files_keep_their_mode() {
    use std::os::unix::fs::PermissionsExt as _;

    use crate::testing::{TempDir, server::Server};

    let (server, dir) = (Server::start().await, TempDir::new());
    let gateway = server.gateway(&dir).await;
    let file = dir.path().join("access.toml");
    durable::create_new(&file, policy().as_bytes(), false).unwrap();
    let paths = Paths { dir: dir.path().join("state"), workspace: file.clone(), organisation: None };
    let engine = Engine::open(paths.clone(), gateway.clone()).await.unwrap();
    let (access, alice) = (engine.access(), member(ALICE));
    let mut took = Vec::new();
    for _ in 0..20 {
        let token =
            edited(&engine, Edit::TokenIssue { member: alice, agent: None, days: None }).await.tokens.pop().unwrap();
        let caller = access.authenticate(Some(&format!("Bearer {}", token.reveal())), clock::now_us()).unwrap();
        let mut changes = access.changes();
        changes.mark_unchanged();
        let begun = std::time::Instant::now();
        let revoked = engine.edit(Edit::TokenRevoke { token: token.id() }, why());
        let cut = async {
            changes.changed().await.unwrap();
            assert!(access.still_allowed(&caller, &ask("send"), clock::now_us()).is_err());
            took.push(begun.elapsed());
        };
        assert!(tokio::join!(revoked, cut).0.is_ok());
    }
    took.sort_unstable();
    println!("from the verb to the first refusal: p50 {:?}, most {:?}", took[10], took[19]);
    let text = std::fs::read_to_string(&file).unwrap();
    assert_eq!(Some(text), std::fs::read_to_string(paths.in_force()).ok());
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&file), mode(&paths.in_force()), paths.pending().exists()), (0o644, 0o600, false));
    assert_eq!(gateway.drain().await.unwrap().unshipped, 0);
    let mut state = Replayed::default();
    for bytes in server.shared.ledger.lock().unwrap().records() {
        if let Some(Kind::AccessChange(change)) = custody::record::decode(&bytes).unwrap().kind {
            state.replay(&change);
        }
    }
    assert_eq!((state.digest, state.gaps, state.tokens.len()), (Some(access.digest()), 0, 0));
    assert_eq!(state.agents.len(), 21);
}

mod stuck;
