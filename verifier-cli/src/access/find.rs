//! From a gateway's changes to an answer: what was in force, what changed, and what cannot be known. Pure.

use custody::{
    access::{Change, Recorded, State, count_until, in_force},
    id::{GatewayId, MemberId, WorkspaceId},
    wire::{AccessAction, Decision, access_change::Actor},
};

use super::{
    Question, Tool, When,
    effect::{Effect, effects},
    read::{Heard, Why, Workspace},
};
use crate::time;

/// What is said of one gateway in one workspace.
#[derive(Debug)]
pub struct OfGateway {
    pub(super) workspace: WorkspaceId,
    pub(super) workspace_name: String,
    pub(super) gateway: GatewayId,
    /// When it signed its first batch and its last one that are here, by its clock, and when the last was received.
    pub(super) begun_at: u64,
    pub(super) heard_at: u64,
    pub(super) received_at: u64,
    /// Before its first batch there was nothing.
    pub(super) is_begun: bool,
    /// What was in force at the end of the question's time.
    pub(super) state: State,
    /// The change that made it so.
    pub(super) since: Option<Made>,
    /// In between, in order of position.
    pub(super) changes: Vec<Listed>,
    /// Why the records do not say it all.
    pub doubts: Vec<Doubt>,
    /// Changes on which the gateway's clock and the ledger's disagree.
    pub(super) notes: Vec<Doubt>,
}

/// Something that is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doubt {
    /// A stable name.
    pub name: &'static str,
    /// In words.
    pub text: String,
}

/// Who made a change, when and why.
#[derive(Clone, Debug)]
pub(super) struct Made {
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) at: u64,
    pub(super) received_at: u64,
    pub(super) actor: Who,
    pub(super) reason: String,
    pub(super) ticket: String,
    pub(super) before: Option<Vec<u8>>,
    pub(super) after: Vec<u8>,
}

#[derive(Clone, Debug)]
pub(super) enum Who {
    Member(MemberId),
    System(String),
}

/// A change with what it changed.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) made: Made,
    pub(super) cut_short: bool,
    /// It does not continue what was in force, or a record does not fit: something is missing before it.
    pub(super) has_gap: bool,
    /// A whole policy was applied.
    pub(super) is_whole: bool,
    pub(super) effects: Vec<Effect>,
    /// Who could call the tool that was asked for, before and after, where that differs.
    pub(super) calls: Vec<(MemberId, Could, Could)>,
}

/// What was decided of a request, and by which rule; none where nobody known by that id could call at all.
pub(super) type Could = Option<(bool, String)>;

pub(super) fn could(state: &State, member: &MemberId, at: u64, tool: &Tool, method: &str) -> Could {
    let decided = state.decide(member, at, &tool.server, Some(&tool.name), method);
    decided.map(|(decision, rule)| (decision == Decision::Allowed, rule.to_owned()))
}

/// The changes of the gateways of one workspace, in order of position.
pub(super) fn in_order(gateways: &[OfGateway]) -> Vec<(&OfGateway, &Listed)> {
    let mut all: Vec<_> = gateways.iter().flat_map(|of| of.changes.iter().map(move |change| (of, change))).collect();
    all.sort_by_key(|(_, change)| change.made.first);
    all
}

/// What is said of the gateways of a workspace.
pub(super) fn find(workspace: &Workspace, question: &Question) -> Vec<OfGateway> {
    let asked = workspace.gateways.iter().filter(|(id, _)| question.gateway.is_none_or(|asked| asked == **id));
    asked.map(|(gateway, heard)| of_gateway(workspace, *gateway, heard, question)).collect()
}

fn of_gateway(workspace: &Workspace, gateway: GatewayId, heard: &Heard, question: &Question) -> OfGateway {
    let changes = heard.history.changes();
    let end = question.when.end();
    let count = count_until(&changes, end);
    let (counted, later) = changes.split_at(count);
    let state = in_force(counted);
    // Of what was in force at a time, or from then on.
    let begin = match question.when {
        When::At(_) => count,
        When::Between(begin, _) => count_until(&changes, begin).min(count),
    };
    let mut doubts = doubts(&workspace.name, heard, (counted, later), (&state, begin), end);
    let mut listed = Vec::new();
    if let When::Between(..) = question.when {
        listed = list(counted, begin, question);
        let before = counted.get(..begin).unwrap_or_default();
        let is_known = before.iter().all(|change| change.cut_short) || in_force(before).is_whole();
        let is_doubted = doubts.iter().any(|doubt| doubt.name == GAP);
        if !is_doubted && (!is_known || listed.iter().any(|change| change.has_gap)) {
            doubts.push(Doubt { name: GAP, text: gap(&workspace.name) });
        }
        listed.retain(|change| is_asked_for(change, &state, question));
    }
    let made = |change: &&Change<'_>| !change.cut_short && change.before() != Some(change.after());
    OfGateway {
        workspace: workspace.id,
        workspace_name: workspace.name.clone(),
        gateway,
        begun_at: heard.begun_at,
        heard_at: heard.heard_at,
        received_at: heard.received_at,
        is_begun: count > 0 || heard.begun_at <= end,
        since: counted.iter().rev().find(made).and_then(Made::of),
        state,
        changes: listed,
        doubts,
        notes: notes(&workspace.name, counted, later, end),
    }
}

const GAP: &str = "gap";

fn gap(workspace: &str) -> String {
    format!(
        "records of changes are missing in {workspace}: a change continues another policy than the one before it made, or does not fit it"
    )
}

/// What makes it uncertain that this was in force at that time, or that nothing else changed since the change with number
/// `begin` was the next.
fn doubts(
    workspace: &str,
    heard: &Heard,
    (counted, later): (&[Change<'_>], &[Change<'_>]),
    (state, begin): (&State, usize),
    at: u64,
) -> Vec<Doubt> {
    let mut doubts = Vec::new();
    let mut doubt = |name, text| doubts.push(Doubt { name, text });
    let next = later.iter().find(|change| !change.cut_short);
    let before = counted.get(..begin).unwrap_or_default();
    let since = before.last().map(Change::last_position);
    let to = next.map_or(u64::MAX, |next| next.first.position);
    let last = counted.iter().rev().find(|change| !change.cut_short);
    let had_not_begun = heard.begun_at > at && last.is_none();
    // Of before its first batch nothing is known to whoever lost it by then.
    let reasons = if had_not_begun { reasons(heard, None, heard.begun_position) } else { reasons(heard, since, to) };
    if !had_not_begun && last.is_none() {
        doubt("no-policy", "no record says what its access policy was by then".to_owned());
    } else if !had_not_begun && !state.is_whole() {
        doubt(GAP, gap(workspace));
    }
    let goes_on = |next: &Change<'_>| {
        // Or it is the same once more.
        last.is_some_and(|last| {
            next.before() == Some(last.after()) || (next.before(), next.after()) == (last.before(), last.after())
        })
    };
    let is_asked = had_not_begun || last.is_some();
    if let Some(next) = next.filter(|next| is_asked && next.before().is_some() && !goes_on(next)) {
        let place = format!("{workspace}/{}", next.first.position);
        doubt(
            "gap-after",
            format!(
                "records of changes are missing before {place}, which continues another policy; they may be of before that time"
            ),
        );
    }
    let within = counted.get(begin..).unwrap_or_default();
    let open = open(counted).or_else(|| open(before)).or_else(|| within.iter().find(|of| of.is_open && !of.cut_short));
    if let Some(open) = open {
        let place = format!("{workspace}/{}", open.last_position());
        let text = format!("no record says that the change which ends at {place} has no more records than are here");
        doubt("last-change-open", text);
    }
    for why in reasons {
        match why {
            Why::StateLost => doubt(
                "state-lost",
                "it lost its state before its next change, and what it was set back to is not known".into(),
            ),
            Why::Rewound => doubt(
                "rewound",
                "it was set back to an earlier state before its next change, and to which is not known".into(),
            ),
            Why::Dropped => doubt("dropped", "it declared, before its next change, that it had lost records".into()),
            Why::NotKept => doubt("not-kept", not_kept()),
        }
    }
    if had_not_begun {
        return doubts;
    }
    let is_between = |position: &&u64| since.is_none_or(|since| since <= **position) && **position < to;
    if let Some(position) = heard.foreign.iter().find(is_between) {
        let text =
            format!("a call at {workspace}/{position} was decided by an access policy that no record before it has");
        doubt("other-policy", text);
    }
    if heard.heard_at < at {
        let text = format!("nothing that it signed after {} is in this archive", time::text(heard.heard_at));
        doubt("not-heard-since", text);
    }
    doubts
}

/// Why records may be missing behind one position, or from the beginning on, and up to the other: also where the next change goes
/// on from this policy, for what was lost may have undone what it did itself.
fn reasons(heard: &Heard, since: Option<u64>, to: u64) -> Vec<Why> {
    let mut reasons = Vec::new();
    for gone in
        heard.breaks.iter().filter(|gone| since.is_none_or(|since| since < gone.position) && gone.position <= to)
    {
        if !reasons.contains(&gone.why) {
            reasons.push(gone.why);
        }
    }
    reasons
}

/// The last change of which more records may be missing, since it last began anew.
fn open<'a, 'h>(counted: &'a [Change<'h>]) -> Option<&'a Change<'h>> {
    for change in counted.iter().rev().filter(|change| !change.cut_short) {
        if change.is_open {
            return Some(change);
        }
        if change.before().is_none() {
            break;
        }
    }
    None
}

fn not_kept() -> String {
    "a part of the workspace's records, in which there may be changes, is no longer kept".to_owned()
}

/// Where the two clocks disagree on whether a change was made by then.
fn notes(workspace: &str, counted: &[Change<'_>], later: &[Change<'_>], at: u64) -> Vec<Doubt> {
    let places = |changes: &mut dyn Iterator<Item = &Change<'_>>| {
        let all: Vec<String> = changes.map(|change| format!("{workspace}/{}", change.first.position)).collect();
        let more = if all.len() > 3 { format!(" and {} more", all.len() - 3) } else { String::new() };
        (!all.is_empty()).then(|| format!("{}{more}", all.iter().take(3).cloned().collect::<Vec<_>>().join(", ")))
    };
    let mut notes = Vec::new();
    let mut note = |name, found: Option<String>, text: &str| {
        notes.extend(found.map(|places| Doubt { name, text: format!("{text}: {places}") }));
    };
    note(
        "received-later",
        places(&mut counted.iter().filter(|change| change.first.received_at > at)),
        "made by then by the gateway's clock, so they count; the ledger received them only later",
    );
    note(
        "clock-set-back",
        places(&mut counted.iter().filter(|change| change.at() > at)),
        "made later by the gateway's clock, but before others, in order, that were made by then, so they count",
    );
    note(
        "clock-ahead",
        places(&mut later.iter().filter(|change| change.first.received_at <= at)),
        "made later by the gateway's clock, so they do not count; the ledger had received them by then",
    );
    notes
}

/// The changes from the one with number `begin` on, each with what it changed.
fn list(changes: &[Change<'_>], begin: usize, question: &Question) -> Vec<Listed> {
    let begin = begin.min(changes.len());
    let (before, listed) = changes.split_at(begin);
    let mut state = in_force(before);
    let decide = |state: &State, at: u64| {
        let tool = question.tool.as_ref()?;
        let members = state.members.keys().filter(|id| question.member.is_none_or(|asked| asked == **id));
        Some(members.map(|id| (*id, could(state, id, at, tool, &question.method))).collect::<Vec<_>>())
    };
    let list = |change: &Change<'_>| {
        let wrong = (state.gaps, state.misfits);
        let decided = decide(&state, change.at());
        let effects = if change.cut_short { Vec::new() } else { effects(&mut state, change) };
        Some(Listed {
            made: Made::of(change)?,
            cut_short: change.cut_short,
            has_gap: wrong != (state.gaps, state.misfits),
            is_whole: change.records.iter().any(|record| record.change.action() == AccessAction::PolicyApplied),
            effects,
            calls: decided
                .map_or_else(Vec::new, |before| differing(before, decide(&state, change.at()).unwrap_or_default())),
        })
    };
    listed.iter().filter_map(list).collect()
}

/// What was decided of a member before and after, where it differs.
fn differing(before: Vec<(MemberId, Could)>, after: Vec<(MemberId, Could)>) -> Vec<(MemberId, Could, Could)> {
    use std::collections::BTreeMap;
    let mut both: BTreeMap<MemberId, (Could, Could)> = BTreeMap::new();
    before.into_iter().for_each(|(id, could)| both.entry(id).or_default().0 = could);
    after.into_iter().for_each(|(id, could)| both.entry(id).or_default().1 = could);
    both.into_iter().filter(|(_, (a, b))| a != b).map(|(id, (a, b))| (id, a, b)).collect()
}

/// Whether a change is of the member and of the tool of the question.
fn is_asked_for(change: &Listed, state: &State, question: &Question) -> bool {
    match (&question.tool, &question.member) {
        (Some(_), _) => !change.calls.is_empty() || change.has_gap,
        (None, Some(member)) => change.has_gap || change.effects.iter().any(|effect| effect.is_of(member, state)),
        (None, None) => true,
    }
}

impl Made {
    fn of(change: &Change<'_>) -> Option<Self> {
        let Recorded { position, received_at, change: said, .. } = change.first;
        Some(Self {
            first: *position,
            last: change.last_position(),
            at: said.at,
            received_at: *received_at,
            actor: match said.actor.as_ref()? {
                Actor::ActorMember(id) => Who::Member(MemberId::try_from(id.as_ref()).ok()?),
                Actor::ActorSystem(name) => Who::System(name.clone()),
            },
            reason: said.reason.clone(),
            ticket: said.ticket.clone(),
            before: change.before().map(<[u8]>::to_vec),
            after: change.after().to_vec(),
        })
    }
}
