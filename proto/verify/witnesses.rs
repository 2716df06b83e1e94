//! Claims 4 to 6: what third parties, and the auditor's own known files, say of the whole log (FORMAT.md, 13.6).

use std::collections::BTreeMap;

use super::{Log, Options, known::Knowledge};
use crate::{
    policy::Policy,
    verdict::{Claim, State, Verdict},
};

/// Seconds by which a witness's clock may be ahead of the auditor's. What is further ahead was not signed when it says, or
/// not yet when the question was asked; it must not make an archive fresh on the day that it names.
const AHEAD_S_MAX: u64 = 300;

/// Says claims 4 to 6. Without a log that verified, nobody's word is on anything.
pub(super) fn say(
    log: Option<(&Log, &Knowledge<'_>, Option<String>)>,
    policy: &Policy,
    options: &Options,
    verdict: &mut Verdict,
) {
    let Some((log, knowledge, falls_short)) = log else {
        for claim in [Claim::NotRolledBack, Claim::NotRewritten, Claim::Dated] {
            verdict.third_party.push((claim, State::Undecided, "the log itself did not verify".to_owned()));
        }
        return;
    };
    let now_s = options.as_of.checked_div(1_000_000).unwrap_or(0);
    let times = times(log, now_s, verdict);
    let quorum = policy.quorum as usize;
    let met = quorum > 0 && times.len() >= quorum;
    // The quorum stood when the last of its members had signed.
    let quorum_at = met.then(|| times.len().checked_sub(quorum).and_then(|at| times.get(at)).copied()).flatten();
    let age = quorum_at.map(|at| now_s.saturating_sub(at));
    let fresh = age.is_some_and(|age| policy.greatest_age_seconds > 0 && age <= policy.greatest_age_seconds);
    let mut say = |claim, state, why: &str| verdict.third_party.push((claim, state, why.to_owned()));
    if knowledge.has_unsigned() {
        // Even a fresh quorum: what the auditor holds is later than all that is here, or the auditor was given the wrong file.
        let why = "a known file has no signature by a key that this archive knows: the archive may end before that key was \
                   enrolled";
        say(Claim::NotRolledBack, State::Undecided, why);
    } else if let Some(why) = falls_short.filter(|_| !fresh) {
        say(Claim::NotRolledBack, State::Undecided, &format!("{why}, and no quorum of witnesses signed lately"));
    } else {
        say(Claim::NotRolledBack, State::Verified, "");
    }
    for claim in [Claim::NotRewritten, Claim::Dated] {
        if met {
            say(claim, State::Verified, "");
        } else {
            say(claim, State::Undecided, "no quorum of witnesses signed the checkpoint");
        }
    }
}

/// When the policy's witnesses cosigned the checkpoint that is verified, in seconds, ascending: of each witness its last
/// word. A word from after the question is none.
fn times(log: &Log, now_s: u64, verdict: &mut Verdict) -> Vec<u64> {
    let mut last: BTreeMap<&str, u64> = BTreeMap::new();
    for line in log.cosignatures.iter().filter(|line| line.size == log.checkpoint.checkpoint.size) {
        if line.at_s > now_s.saturating_add(AHEAD_S_MAX) {
            let text = format!("{} says that it signed after the time of the question", line.witness);
            verdict.find("uncounted", None, line.place.clone(), text);
        } else {
            let at = last.entry(&line.witness).or_insert(line.at_s);
            *at = line.at_s.max(*at);
        }
    }
    let mut times: Vec<u64> = last.into_values().collect();
    times.sort_unstable();
    times
}
