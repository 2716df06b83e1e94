//! Scenarios: the story itself goes another way, because somebody who can sign does so. The ledger takes part in all of
//! them; the name of a scenario says who else.

use bytes::Bytes;
use custody::{
    head::SignedHead,
    id::{HeaderHash, ObjectHash},
    statement::ChainHead,
    wire::{self, LeafKind, LedgerEventKind, OpeningReason, Role, statement::Action},
};

use crate::golden::{
    self, keys,
    ledger::{Batch, BatchHook, Hooks, Ledger, StatementHook, after},
    records,
};

/// The hooks of a scenario.
pub(super) fn hooks(name: &str) -> Result<Hooks, String> {
    log(name)
        .or_else(|| seals(name))
        .or_else(|| incarnations(name))
        .or_else(|| signed_by(name))
        .or_else(|| enrolments(name))
        .or_else(|| chains(name))
        .or_else(|| signers(name))
        .or_else(|| contents(name))
        .or_else(|| numbers(name))
        .or_else(|| heads(name))
        .or_else(|| super::silence::hooks(name))
        .or_else(|| super::again::hooks(name))
        .or_else(|| name.starts_with("policy-").then(Hooks::default))
        .ok_or_else(|| format!("no such scenario: {name}"))
}

pub(super) fn sequel(sequel: impl Fn(&mut Ledger) + Send + Sync + 'static) -> Hooks {
    Hooks { sequel: Some(Box::new(sequel)), ..Hooks::default() }
}

fn with_batch(mut hooks: Hooks, label: &str, hook: BatchHook) -> Hooks {
    hooks.batches.insert(label.to_owned(), hook);
    hooks
}

fn with_statement(mut hooks: Hooks, label: &str, hook: StatementHook) -> Hooks {
    hooks.statements.insert(label.to_owned(), hook);
    hooks
}

/// One more batch of alpha's first gateway, in an epoch of its own.
fn one_more(l: &mut Ledger) {
    let calls = records::calls(1, 2, l.now());
    l.submit_batch("alpha", Batch::new("g1", "e9", calls).key("g1-new"));
}

/// Somebody else may have had the head key, since this index of the log.
fn head_key_in_doubt(since: u64) -> Hooks {
    sequel(move |l| {
        let key_id = keys::id("head-2", Role::Head).into();
        l.ledger_statement(Action::Suspect(wire::Suspect { key_id, since }));
    })
}

fn hold(label: &str) -> Action {
    let hold = Bytes::copy_from_slice(&keys::short(label));
    Action::Hold(wire::Hold { hold, since: 1, until: None })
}

/// What the log says.
fn log(name: &str) -> Option<Hooks> {
    let impostor = || -> StatementHook { Box::new(|_| Some("impostor")) };
    let enrol = |l: &mut Ledger| l.enrol(None, None, Role::Log, "log-2", "");
    Some(match name {
        "impostor-enrols-a-log-key" => with_statement(sequel(enrol), "keys/7", impostor()),
        "old-root-enrols-a-log-key" => with_statement(
            sequel(enrol),
            "keys/7",
            Box::new(|said| {
                said.era = 1;
                Some("root-1")
            }),
        ),
        "ledger-enrols-a-log-key-itself" => with_statement(sequel(enrol), "keys/7", Box::new(|_| Some("log-1"))),
        "term-again" => sequel(|l| {
            l.term -= 1;
            l.start_term();
        }),
        "term-of-another-incarnation" => sequel(|l| {
            l.incarnation += 1;
            l.start_term();
            l.incarnation -= 1;
        }),
        "workspace-name-again" => with_statement(
            sequel(|l| l.create("delta")),
            "delta/0",
            Box::new(|said| {
                said.action = Some(Action::Create(wire::Create { name: "alpha".to_owned() }));
                None
            }),
        ),
        "workspace-id-again" => with_statement(
            sequel(|l| l.create("delta")),
            "delta/0",
            Box::new(|said| {
                said.workspace = Some(keys::workspace("alpha").into());
                None
            }),
        ),
        "workspace-created-by-an-impostor" => with_statement(sequel(|l| l.create("delta")), "delta/0", impostor()),
        "removed-workspace-goes-on" => sequel(|l| {
            let calls = records::calls(9, 2, l.now());
            l.submit_batch("gamma", Batch::new("k1", "k2", calls));
            l.cut_all();
        }),
        "suspect-keys" => sequel(golden::doubts),
        "head-key-in-doubt" => head_key_in_doubt(250),
        "head-key-in-doubt-from-now-on" => head_key_in_doubt(100_000),
        "ledger-statement-replayed" => sequel(|l| {
            // The last statement on the ledger's keys, once more.
            let object = l.statements.last().cloned().unwrap_or_default();
            l.repeat_ledger_statement(object);
        }),
        _ => return None,
    })
}

/// What the root says of a recovery.
fn incarnations(name: &str) -> Option<Hooks> {
    let change = |change: fn(&mut wire::Incarnation)| {
        let hook: StatementHook = Box::new(move |said| {
            if let Some(Action::Incarnation(said)) = &mut said.action {
                change(said);
            }
            None
        });
        Some(with_statement(Hooks::default(), "keys/5", hook))
    };
    match name {
        "incarnation-of-another-log" => change(|said| said.log_root = Bytes::copy_from_slice(&[7; 32])),
        "incarnation-of-other-seals" => change(|said| said.last_seals_hash = Bytes::copy_from_slice(&[7; 32])),
        "incarnation-left-out-a-number" => change(|said| said.number += 1),
        _ => None,
    }
}

/// What seals and segments say of where they stand.
fn seals(name: &str) -> Option<Hooks> {
    Some(match name {
        "positions-left-out" => sequel(|l| {
            l.workspace("ledger").skip_positions(1);
            let event = vec![records::ledger_event(l.now(), LedgerEventKind::Drill, "drill")];
            l.submit_batch("ledger", Batch::new("ledger", "l2", event).key("record-1"));
            l.cut_all();
        }),
        "old-ledger-chain" => sequel(|l| {
            let now = l.chain;
            let older = l.statements.iter().take(6).fold(ChainHead::GENESIS, |head, object| after(head, object));
            l.chain = older;
            let event = vec![records::ledger_event(l.now(), LedgerEventKind::Drill, "drill")];
            l.submit_batch("ledger", Batch::new("ledger", "l2", event).key("record-1"));
            l.cut_all();
            l.chain = now;
        }),
        "revocation-withheld" => sequel(|l| {
            let before = l.workspace("beta").chain;
            let key_id = keys::id("h1", Role::Gateway).into();
            l.statement("beta", None, Action::Revoke(wire::Revoke { key_id, void_serials: Vec::new() }));
            l.workspace("beta").chain = before;
            let calls = records::calls(20, 2, l.now());
            l.submit_batch("beta", Batch::new("h1", "f2", calls));
            l.cut_all();
        }),
        "segment-under-keys-that-never-were" => sequel(|l| {
            let real = l.workspace("beta").chain;
            l.workspace("beta").chain.hash = ObjectHash([7; 32]);
            let calls = records::calls(20, 2, l.now());
            l.submit_batch("beta", Batch::new("h1", "f2", calls.clone()));
            l.cut_all();
            l.workspace("beta").chain = real;
            l.submit_batch("beta", Batch::new("h2", "p3", calls));
            l.cut_all();
        }),
        "statement-in-no-segment" => sequel(|l| {
            l.statement("beta", None, hold("hold 5"));
            let other = l.workspace("alpha").statements.get(1).cloned().unwrap_or_default();
            let place = l.workspace("beta");
            if let Some(committed) = place.segments.last_mut().and_then(|segment| segment.leaves.last_mut()) {
                committed.signed = other;
            }
            l.workspace("beta").rebuild_history();
            let calls = records::calls(20, 2, l.now());
            l.submit_batch("beta", Batch::new("h1", "f2", calls));
            l.cut_all();
        }),
        "batch-after-a-statement" => sequel(|l| {
            l.statement("beta", None, hold("hold 5"));
            let statement = l.workspace("beta").uncut();
            let calls = records::calls(20, 2, l.now());
            l.log.pop();
            if let Some(chain) = statement {
                let now = l.workspace("beta").chain;
                l.workspace("beta").chain = chain;
                l.submit_batch("beta", Batch::new("h1", "f2", calls));
                l.cut_all();
                l.workspace("beta").chain = now;
            }
        }),
        _ => return None,
    })
}

/// The next statement of beta's chain.
const NEXT_OF_BETA: &str = "beta/8";

pub(super) fn one_more_hold(registrar: Option<&'static str>) -> Hooks {
    sequel(move |l| l.statement("beta", registrar, hold("hold 5")))
}

/// Who signs statements.
fn signed_by(name: &str) -> Option<Hooks> {
    let by = |key: &'static str| with_statement(one_more_hold(None), NEXT_OF_BETA, Box::new(move |_| Some(key)));
    Some(match name {
        "impostor-sets-a-hold" => by("impostor"),
        "ledger-sets-a-hold-itself" => by("log-1"),
        "old-root-sets-a-hold" => with_statement(
            one_more_hold(None),
            NEXT_OF_BETA,
            Box::new(|said| {
                said.era = 1;
                Some("root-1")
            }),
        ),
        "registrar-of-another-workspace" => one_more_hold(Some("registrar-1")),
        "revoked-registrar-sets-a-hold" => one_more_hold(Some("registrar-2")),
        "registrar-removes-the-workspace" => {
            sequel(|l| l.statement("alpha", Some("registrar-1"), Action::Remove(wire::Remove {})))
        }
        "registrar-delegates" => with_statement(
            sequel(|l| l.delegate("alpha", "registrar-3", 5)),
            "alpha/10",
            Box::new(|said| {
                said.registrar = Some(keys::id("registrar-1", Role::Registrar).into());
                Some("registrar-1")
            }),
        ),
        _ => return None,
    })
}

/// Which keys are enrolled.
fn enrolments(name: &str) -> Option<Hooks> {
    let enrol = |workspace: &'static str, role: Role, key: &'static str| {
        sequel(move |l| l.enrol(Some(workspace), None, role, key, key))
    };
    let change = |change: fn(&mut wire::Enrol)| {
        let hook: StatementHook = Box::new(move |said| {
            if let Some(Action::Enrol(said)) = &mut said.action {
                change(said);
            }
            None
        });
        with_statement(enrol("beta", Role::Gateway, "h4"), NEXT_OF_BETA, hook)
    };
    Some(match name {
        "registrar-enrols-one-too-many" => sequel(|l| {
            l.enrol(Some("alpha"), Some("registrar-1"), Role::Gateway, "g4", "g4");
            l.enrol(Some("alpha"), Some("registrar-1"), Role::Gateway, "g5", "g5");
        }),
        "enrolled-without-possession" => change(|said| said.possession = Some(Bytes::copy_from_slice(&[1; 64]))),
        "weak-key-enrolled" => change(|said| {
            // The neutral element of the curve: a point of small order.
            let mut small_order = [0; 32];
            small_order[0] = 1;
            said.public_key = Bytes::copy_from_slice(&small_order);
        }),
        "gateway-enrolled-in-the-ledgers-workspace" => enrol("ledger", Role::Gateway, "h4"),
        "log-key-enrolled-in-a-workspace" => enrol("beta", Role::Log, "log-2"),
        "key-enrolled-again" => enrol("beta", Role::Gateway, "h1"),
        _ => return None,
    })
}

/// What chains of statements say.
fn chains(name: &str) -> Option<Hooks> {
    let change = |change: fn(&mut wire::Statement)| {
        let hook: StatementHook = Box::new(move |said| {
            change(said);
            None
        });
        with_statement(one_more_hold(None), NEXT_OF_BETA, hook)
    };
    Some(match name {
        "serial-left-out" => change(|said| said.serial += 1),
        "another-predecessor" => change(|said| said.previous = ObjectHash([7; 32]).into()),
        "another-checkpoint-named" => change(|said| said.checkpoint_hash = ObjectHash([7; 32]).into()),
        "statement-of-another-origin" => change(|said| "ledger.example/other".clone_into(&mut said.origin)),
        "statement-of-another-workspace" => change(|said| said.workspace = Some(keys::workspace("alpha").into())),
        "statement-replayed" => sequel(|l| {
            // The hold that was set as the last one, once more.
            let object = l.workspace("beta").statements.last().cloned().unwrap_or_default();
            l.append("beta", LeafKind::Statement, object.clone());
            l.cut(keys::workspace("beta"));
            let place = l.workspace("beta");
            place.chain = after(place.chain, &object);
            place.statements.push(object);
        }),
        "hold-released-that-never-stood" => sequel(|l| {
            let hold = Bytes::copy_from_slice(&keys::short("hold 77"));
            l.statement("beta", None, Action::Release(wire::Release { hold }));
        }),
        _ => return None,
    })
}

/// The ledger's record key writes, in somebody's workspace, what only gateways may.
fn ledger_writes(make: fn(u64) -> Vec<Bytes>) -> Hooks {
    sequel(move |l| {
        let records = make(l.now());
        l.submit_batch("alpha", Batch::new("ledger", "la", records).key("record-1"));
        l.cut_all();
    })
}

/// A key of another role signs a batch, and says its own id.
fn other_role(key: &'static str, role: Role) -> Hooks {
    let workspace = if role == Role::Receipt { "beta" } else { "alpha" };
    let signs = sequel(move |l| {
        let calls = records::calls(30, 2, l.now());
        l.submit_batch(workspace, Batch::new(key, "z1", calls));
        l.cut_all();
    });
    let hook: BatchHook = Box::new(move |header, _| header.key_id = keys::id(key, role));
    with_batch(signs, &format!("{workspace}/{key}/z1/0"), hook)
}

/// Who signs batches.
fn signers(name: &str) -> Option<Hooks> {
    let batch = |workspace: &'static str, make: fn(Vec<Bytes>) -> Batch| {
        sequel(move |l| {
            let calls = records::calls(30, 2, l.now());
            l.submit_batch(workspace, make(calls));
            l.cut_all();
        })
    };
    Some(match name {
        "batch-of-another-workspace" => with_batch(
            sequel(|l| {
                let alarm = vec![records::alarm(l.now())];
                l.submit_batch("beta", Batch::new("ledger", "lx", alarm).key("record-1"));
                l.cut_all();
            }),
            "beta/ledger/lx/0",
            Box::new(|header, _| header.workspace = keys::workspace("alpha")),
        ),
        "batch-of-another-origin" => with_batch(
            sequel(|l| {
                one_more(l);
                l.cut_all();
            }),
            "alpha/g1/e9/0",
            Box::new(|header, _| "ledger.example/other".clone_into(&mut header.origin)),
        ),
        "key-never-enrolled" => batch("alpha", |calls| Batch::new("g9", "z1", calls)),
        "key-of-another-workspace" => batch("alpha", |calls| Batch::new("h1", "z1", calls)),
        "key-of-another-gateway" => batch("alpha", |calls| Batch::new("g2", "z1", calls).key("g1-new")),
        "key-voided-with-its-registrar" => batch("beta", |calls| Batch::new("h3", "z1", calls)),
        "head-key-signs-a-batch" => batch("alpha", |calls| Batch::new("g1", "z1", calls).key("head-2")),
        "revoked-key-writes" => batch("alpha", |calls| Batch::new("g2", "d1", calls)),
        "retired-key-opens-an-epoch" => batch("alpha", |calls| Batch::new("g1", "e3", calls)),
        "gateway-writes-in-the-ledgers-workspace" => batch("ledger", |calls| Batch::new("g1", "e3", calls)),
        "ledger-writes-a-call" => batch("alpha", |calls| Batch::new("ledger", "la", calls).key("record-1")),
        "ledger-writes-an-access-change" => ledger_writes(records::access_changes),
        "ledger-writes-a-tool-definition" => ledger_writes(records::tool_definitions),
        "ledger-writes-a-call-in-its-own-workspace" => {
            batch("ledger", |calls| Batch::new("ledger", "l2", calls).key("record-1"))
        }
        "gateway-under-the-ledgers-id" => sequel(|l| {
            l.enrol(Some("alpha"), None, Role::Gateway, "g7", "ledger");
            let calls = records::calls(30, 2, l.now());
            l.submit_batch("alpha", Batch::new("ledger", "z1", calls).key("g7"));
            l.cut_all();
        }),
        "ledger-under-a-gateways-id" => with_batch(
            sequel(|l| {
                // The gateway falls silent, and nobody would see it: its epoch is continued, and closed.
                l.enrol(None, None, Role::Record, "record-2", "h1");
                let alarm = vec![records::alarm(l.now())];
                l.submit_batch("beta", Batch::new("h1", "z1", alarm).key("record-2").close());
                l.cut_all();
            }),
            "beta/h1/z1/0",
            Box::new(|header, _| header.key_id = keys::id("record-2", Role::Record)),
        ),
        "log-key-signs-a-batch" => other_role("log-1", Role::Log),
        "head-key-signs-a-batch-under-its-own-id" => other_role("head-2", Role::Head),
        "receipt-key-signs-a-batch" => other_role("runtime-1", Role::Receipt),
        "registrar-signs-a-batch" => other_role("registrar-1", Role::Registrar),
        _ => return None,
    })
}

/// What batches contain.
fn contents(name: &str) -> Option<Hooks> {
    let change = |hook: BatchHook| {
        let goes_on = sequel(|l| {
            one_more(l);
            l.cut_all();
        });
        Some(with_batch(goes_on, "alpha/g1/e9/0", hook))
    };
    let add = |make: fn(u64) -> Bytes| change(Box::new(move |header, records| records.push(make(header.created_at))));
    let raw = |bytes: &'static [u8]| change(Box::new(move |_, records| records.push(Bytes::from_static(bytes))));
    match name {
        "gateway-writes-a-ledger-event" => add(|at| records::ledger_event(at, LedgerEventKind::Erasure, "erase")),
        "gateway-writes-an-alarm" => add(records::alarm),
        "gateway-writes-a-disposition" => add(records::disposition),
        "gateway-writes-a-directory-entry" => add(|at| records::ledgers_own(at).swap_remove(0)),
        "gateway-writes-a-search" => add(|at| records::ledgers_own(at).swap_remove(1)),
        "record-of-no-known-kind" => raw(b"\x08\x01\x7a\x00"),
        "record-of-no-kind" => raw(b"\x08\x01"),
        "record-of-a-future-version" => raw(b"\x08\x02\x12\x00"),
        "record-with-free-text" => add(|at| {
            let mut call = records::plain_call(77, at);
            "a secret, in plain words".clone_into(&mut call.server);
            custody::record::encode(wire::record::Kind::Call(call)).into()
        }),
        "intent-that-has-ended" => add(|at| {
            let mut call = records::plain_call(77, at);
            call.phase = wire::Phase::Intent as i32;
            custody::record::encode(wire::record::Kind::Call(call)).into()
        }),
        "epoch-without-its-writer" => change(Box::new(|header, records| {
            let calls = records::calls(50, 1, header.created_at);
            records.splice(..1, calls);
        })),
        _ => None,
    }
}

/// A run between two others is not there, whole, with its close.
fn without_a_run() -> Hooks {
    let goes_on = sequel(|l| {
        let calls = |first, now| records::calls(first, 2, now);
        l.submit_batch("beta", Batch::new("h1", "f2", calls(20, l.now())).close());
        l.submit_batch("beta", Batch::new("h1", "f3", calls(1, l.now())));
        l.submit_batch("beta", Batch::new("h1", "f3", calls(3, l.now())).close());
        l.submit_batch("beta", Batch::new("h1", "f4", calls(1, l.now())));
        l.cut_all();
    });
    Hooks { lost: vec!["beta/h1/f3/0".to_owned(), "beta/h1/f3/1".to_owned()], ..goes_on }
}

/// How batches are numbered, and what the ledger calls an equivocation.
fn numbers(name: &str) -> Option<Hooks> {
    let next = |hook: BatchHook| {
        let goes_on = sequel(|l| {
            let calls = records::calls(20, 2, l.now());
            l.submit_batch("beta", Batch::new("h1", "f2", calls));
            l.cut_all();
        });
        Some(with_batch(goes_on, "beta/h1/f2/9", hook))
    };
    let opening = |hook: BatchHook| {
        let goes_on = sequel(|l| {
            one_more(l);
            l.cut_all();
        });
        Some(with_batch(goes_on, "alpha/g1/e9/0", hook))
    };
    match name {
        // The one after it holds no later head, so that no root contradicts that it was left out.
        "first-batch-of-the-period-never-taken" => {
            let goes_on = sequel(|l| {
                for wait in [0, 600_000_000, 0] {
                    l.wait(wait);
                    let calls = records::calls(20, 2, l.now());
                    l.submit_batch("beta", Batch::new("h1", "f2", calls));
                    l.cut_all();
                }
            });
            Some(Hooks { lost: vec!["beta/h1/f2/10".to_owned()], ..goes_on })
        }
        "batch-never-taken" => Some(Hooks { lost: vec!["beta/h1/f2/3".to_owned()], ..Hooks::default() }),
        "opening-never-taken" => Some(Hooks { lost: vec!["beta/h2/p2/0".to_owned()], ..Hooks::default() }),
        "run-never-taken" => Some(without_a_run()),
        "records-left-out-undeclared" => next(Box::new(|header, _| header.first_record += 3)),
        "record-numbers-used-twice" => next(Box::new(|header, _| header.first_record -= 1)),
        "batch-number-left-out" => next(Box::new(|header, _| header.batch_number += 1)),
        "another-header-before" => next(Box::new(|header, _| header.previous = HeaderHash([7; 32]))),
        "key-changes-within-an-epoch" => Some(sequel(|l| {
            l.enrol(Some("beta"), None, Role::Gateway, "h1-new", "h1");
            let calls = records::calls(20, 2, l.now());
            l.submit_batch("beta", Batch::new("h1", "f2", calls).key("h1-new"));
            l.cut_all();
        })),
        "batch-after-close" => Some(sequel(|l| {
            let calls = records::calls(20, 2, l.now());
            l.submit_batch("beta", Batch::new("h2", "p2", calls));
            l.cut_all();
        })),
        "first-epoch-again" => opening(Box::new(|header, _| {
            (header.previous, header.opening_reason) = (HeaderHash::ZERO, Some(OpeningReason::First));
        })),
        "epoch-continues-another" => opening(Box::new(|header, _| header.previous = HeaderHash([7; 32]))),
        "batch-hidden-as-equivocation" => Some(sequel(|l| {
            let calls = records::calls(20, 2, l.now());
            l.submit_batch("beta", Batch::new("h1", "f2", calls));
            if let Some(hidden) = l.take_back("beta") {
                l.append("beta", LeafKind::Equivocation, hidden.signed);
            }
            l.cut_all();
        })),
        "same-batch-twice-as-equivocation" => Some(sequel(|l| {
            let calls = records::calls(20, 2, l.now());
            l.submit_batch("beta", Batch::new("h1", "f2", calls));
            let same = l.workspace("beta").open.last().map(|committed| committed.signed.clone());
            l.append("beta", LeafKind::Equivocation, same.unwrap_or_default());
            l.cut_all();
        })),
        _ => None,
    }
}

/// The heads that gateways hold.
fn heads(name: &str) -> Option<Hooks> {
    let holds = |make: fn(&mut custody::head::Head) -> &'static str| {
        let goes_on = sequel(|l| {
            one_more(l);
            l.cut_all();
        });
        let hook: BatchHook = Box::new(move |header, _| {
            if let Ok(signed) = SignedHead::parse(&header.last_head) {
                let mut head = signed.head;
                let key = make(&mut head);
                header.last_head = head.sign(&keys::signing(key)).into();
            }
        });
        Some(with_batch(goes_on, "alpha/g1/e9/0", hook))
    };
    match name {
        "held-head-by-an-impostor" => holds(|_| "impostor"),
        "held-head-by-the-log-key" => holds(|_| "log-1"),
        "held-head-of-another-workspace" => holds(|head| {
            head.workspace = keys::workspace("beta");
            "head-2"
        }),
        "held-head-of-another-origin" => holds(|head| {
            "ledger.example/other".clone_into(&mut head.origin);
            "head-2"
        }),
        "held-head-with-another-root" => holds(|head| {
            head.root.0[5] ^= 1;
            "head-2"
        }),
        "held-head-with-another-history" => holds(|head| {
            head.history_root.0[5] ^= 1;
            "head-2"
        }),
        "held-head-of-more-than-there-is" => holds(|head| {
            head.size += 1;
            "head-2"
        }),
        "held-head-of-a-segment-to-come" => holds(|head| {
            head.segment += 5;
            "head-2"
        }),
        "held-head-of-a-later-incarnation" => holds(|head| {
            head.incarnation += 1;
            "head-2"
        }),
        "held-head-under-other-keys" => holds(|head| {
            head.workspace_chain.count += 1;
            "head-2"
        }),
        "two-answers" => Some(sequel(|l| {
            // The gateway is shown its batch first; the archive has it second.
            one_more(l);
            let first = l.take_back("alpha");
            l.submit_batch("alpha", Batch::new("ledger", "la", vec![records::alarm(l.now())]).key("record-1"));
            if let Some(first) = first {
                l.replay("alpha", &first);
            }
            let calls = records::calls(9, 1, l.now());
            l.submit_batch("alpha", Batch::new("g1", "e9", calls).key("g1-new"));
            l.cut_all();
        })),
        _ => None,
    }
}
