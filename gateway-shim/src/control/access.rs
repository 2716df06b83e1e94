//! The access policy over the control socket: asks the engine (`access::Engine`), which decides, and the ledger for who a person
//! is. What must hold: a change has an actor; who names none is known by the account that the system says; a token leaves here
//! in the answer to whoever asked for it, and nowhere else; a name and an address go to the ledger and into nothing of ours.

use custody::{
    id::MemberId,
    wire::{self, change_access_request::Verb},
};
use tonic::Status;

use crate::{
    access::{Actor, Allowance, ChangeError, Changed, Edit, Engine, NewRule, Reason},
    gateway::Gateway,
    random,
};

/// Every text ends with the next move, and fits after "failed to".
fn refused(why: ChangeError) -> Status {
    let text = format!("change the access policy: {why}");
    match why {
        ChangeError::Refused(_) => Status::failed_precondition(text),
        ChangeError::Unfinished(_) => Status::aborted(text),
    }
}

fn unfit(what: &str, hint: &str) -> Status {
    Status::invalid_argument(format!("change the access policy: {what}; hint: {hint}"))
}

fn there(engine: Option<&Engine>) -> Result<&Engine, Status> {
    let hint = "hint: a shim that runs `serve` has one";
    engine.ok_or_else(|| Status::failed_precondition(format!("find an access policy: this shim has none; {hint}")))
}

fn id(bytes: &[u8], of: &str) -> Result<[u8; 16], Status> {
    bytes.try_into().map_err(|_| unfit(&format!("the id of the {of} has not 16 bytes"), "32 hex digits"))
}

fn member(bytes: &[u8]) -> Result<MemberId, Status> {
    id(bytes, "member").map(MemberId)
}

fn optional(bytes: &[u8], of: &str) -> Result<Option<MemberId>, Status> {
    if bytes.is_empty() { Ok(None) } else { id(bytes, of).map(|id| Some(MemberId(id))) }
}

/// Who changes it, and why. The account is on record whoever is named besides; no name may be that of an account, or of what
/// the shim does by itself.
pub(super) fn reason(why: Option<wire::AccessWhy>, uid: Option<u32>) -> Result<Reason, Status> {
    let why = why.unwrap_or_default();
    let reserved = |name: &str| {
        ["start", custody::access::IDENTITY_PROVIDER].contains(&name)
            || name.starts_with("uid:")
            || name.starts_with("shim/")
    };
    let actor = match (why.actor.as_str(), uid) {
        ("", Some(uid)) => Actor::System(format!("uid:{uid}")),
        ("", None) => return Err(unfit("this system does not say whose the connection is", "--actor names who asks")),
        (named, _) if reserved(named) => {
            return Err(unfit(
                "--actor is a reserved name",
                "a member's id, the name of a system, or none for your account",
            ));
        }
        (named, _) => MemberId::from_hex(named).map_or_else(|| Actor::System(named.to_owned()), Actor::Member),
    };
    Ok(Reason { actor, account: uid, code: why.reason, ticket: why.ticket })
}

fn changed(changed: &Changed, member: Option<MemberId>) -> wire::AccessChanged {
    wire::AccessChanged {
        lines: changed.lines.clone(),
        tokens: changed.tokens.iter().map(crate::access::OneTimeToken::reveal).collect(),
        digest: changed.digest.to_vec().into(),
        member: member.map(Into::into).unwrap_or_default(),
        warnings: changed.warnings.clone(),
        unfinished: changed.unfinished.clone().unwrap_or_default(),
    }
}

/// What is in force.
pub(super) async fn show(engine: Option<&Engine>) -> Result<wire::AccessShown, Status> {
    let shown = there(engine)?.shown().await;
    Ok(wire::AccessShown { text: shown.text, lines: shown.lines, digest: shown.digest.to_vec().into() })
}

/// Gives up what waits.
pub(super) async fn abandon(
    engine: Option<&Engine>,
    uid: Option<u32>,
    asked: wire::AbandonAccessRequest,
) -> Result<wire::AccessChanged, Status> {
    let done = there(engine)?.abandon(reason(asked.why, uid)?).await.map_err(refused)?;
    Ok(changed(&done, None))
}

/// What an application would change.
pub(super) async fn plan(engine: Option<&Engine>, asked: wire::PlanAccessRequest) -> Result<wire::AccessPlan, Status> {
    let engine = there(engine)?;
    let plan = match asked.text {
        Some(text) => engine.plan_of(text).await,
        None => engine.plan().await,
    };
    let plan = plan.map_err(|why| Status::failed_precondition(format!("plan a change: {why}")))?;
    let (before, after) = (plan.before.to_vec().into(), plan.after.to_vec().into());
    Ok(wire::AccessPlan { lines: plan.lines, before, after, warnings: plan.warnings })
}

/// Applies a policy.
pub(super) async fn apply(
    engine: Option<&Engine>,
    uid: Option<u32>,
    asked: wire::ApplyAccessRequest,
) -> Result<wire::AccessChanged, Status> {
    let over = match asked.over.len() {
        0 => None,
        _ => {
            Some(<[u8; 32]>::try_from(asked.over.as_ref()).map_err(|_| unfit("--over is no digest", "64 hex digits"))?)
        }
    };
    let meant = Allowance { over, restore_revoked: asked.restore_revoked };
    let done = there(engine)?.apply(asked.text, meant, reason(asked.why, uid)?).await.map_err(refused)?;
    Ok(changed(&done, None))
}

/// Does a verb.
pub(super) async fn change(
    engine: Option<&Engine>,
    gateway: &Gateway,
    uid: Option<u32>,
    asked: wire::ChangeAccessRequest,
) -> Result<wire::AccessChanged, Status> {
    let (engine, why) = (there(engine)?, reason(asked.why, uid)?);
    let Some(verb) = asked.verb else { return Err(unfit("the request names no verb", "is this program newer?")) };
    if let Verb::Add(add) = verb {
        return self::add(engine, gateway, add, why).await;
    }
    let edit = edit(verb)?;
    let whose = match &edit {
        Edit::MemberRevoke { member } | Edit::TokenIssue { member, .. } | Edit::MemberRotate { member, .. } => {
            Some(*member)
        }
        _ => None,
    };
    let revoked = if let Edit::MemberRevoke { member } = &edit { Some(*member) } else { None };
    let mut done = engine.edit(edit, why).await.map_err(refused)?;
    if let Some(owner) = revoked {
        let policy = engine.policy().await;
        let services = policy.members.iter().filter(|(_, member)| member.owner == Some(owner) && !member.revoked);
        done.warnings.extend(services.map(|(id, _)| {
            format!(
                "{owner} answers for the service {id}, whose tokens go on; hint: gateway-shim member revoke {id}, or another \
                 owner in the file"
            )
        }));
    }
    Ok(changed(&done, whose))
}

fn edit(verb: Verb) -> Result<Edit, Status> {
    Ok(match verb {
        Verb::RevokeMember(id) => Edit::MemberRevoke { member: member(&id)? },
        Verb::Join(of) => Edit::GroupJoin { member: member(&of.member)?, group: of.group },
        Verb::Leave(of) => Edit::GroupLeave { member: member(&of.member)?, group: of.group },
        Verb::Grant(made) => Edit::Grant(rule(made)?),
        Verb::Deny(made) => Edit::Deny(rule(made)?),
        Verb::RemoveRule(id) => Edit::RuleRemove { id },
        Verb::IssueToken(made) => Edit::TokenIssue {
            member: member(&made.member)?,
            agent: optional(&made.agent, "agent")?,
            days: Some(made.days).filter(|days| *days > 0),
        },
        Verb::RotateMember(of) => Edit::MemberRotate { member: member(&of.id)?, overlap_s: of.overlap_s },
        Verb::RotateToken(of) => Edit::TokenRotate { token: id(&of.id, "token")?, overlap_s: of.overlap_s },
        Verb::RevokeToken(bytes) => Edit::TokenRevoke { token: id(&bytes, "token")? },
        Verb::Add(_) => return Err(unfit("a member is added by a verb of its own", "is this program newer?")),
    })
}

fn rule(made: wire::RuleMade) -> Result<NewRule, Status> {
    Ok(NewRule {
        id: Some(made.id).filter(|id| !id.is_empty()),
        members: made.members.iter().map(|id| member(id)).collect::<Result<_, _>>()?,
        groups: made.groups,
        everyone: made.everyone,
        tools: made.tools,
        methods: made.methods,
    })
}

/// Asks the ledger who it is, puts the member into the policy, and makes a token. The ledger's directory is told a name and
/// groups once the policy would take the member. Said again after a failure in between it goes on: the ledger gives the same id,
/// and a member without a token gets one by `member rotate` or `member token`.
async fn add(
    engine: &Engine,
    gateway: &Gateway,
    add: wire::MemberAdd,
    why: Reason,
) -> Result<wire::AccessChanged, Status> {
    let owner = optional(&add.owner, "owner")?;
    let ledgers = |why: crate::client::EnrolError| Status::failed_precondition(why.to_string());
    let asks = add.member.is_empty() && !add.address.is_empty();
    let member = match (add.member.is_empty(), add.address.is_empty()) {
        (false, _) => member(&add.member)?,
        (true, false) => gateway.member_of(&add.address).await.map_err(ledgers)?,
        // A service is nobody that the ledger's directory knows.
        (true, true) if owner.is_some() => MemberId(random::bytes()),
        (true, true) => {
            return Err(unfit("it is not said who is added", "--person FILE, --member ID, or --service --owner ID"));
        }
    };
    let made = Edit::MemberAdd { member, owner, groups: add.groups.clone(), subject: None };
    if asks {
        engine.may(made.clone(), &why).await.map_err(refused)?;
        gateway.enrol_member(&add.name, &add.address, &add.groups).await.map_err(ledgers)?;
    }
    let mut done = match engine.edit(made, why.clone()).await {
        Ok(done) => done,
        Err(why) => {
            // What the ledger was told is not so.
            engine.regroup(member).await;
            return Err(refused(why));
        }
    };
    if !add.without_token {
        let days = Some(add.days).filter(|days| *days > 0);
        let issued = engine.edit(Edit::TokenIssue { member, agent: None, days }, why).await;
        let issued = issued.map_err(|why| {
            let hint = format!("hint: gateway-shim member token {member} makes one");
            Status::aborted(format!("make a token: {why}; the member {member} is added; {hint}"))
        })?;
        done.lines.extend(issued.lines);
        done.warnings.extend(issued.warnings);
        (done.tokens, done.digest, done.unfinished) = (issued.tokens, issued.digest, issued.unfinished);
    }
    done.warnings.dedup();
    Ok(changed(&done, Some(member)))
}

/// All members and their tokens, by ids.
pub(super) async fn members(engine: Option<&Engine>) -> Result<wire::ShimMembersResponse, Status> {
    let policy = there(engine)?.narrowed().await;
    let mut members: Vec<wire::MemberShown> = Vec::with_capacity(policy.members.len());
    let mut tokens: std::collections::BTreeMap<MemberId, Vec<wire::TokenShown>> = std::collections::BTreeMap::new();
    for (id, token) in &policy.tokens {
        tokens.entry(token.member).or_default().push(wire::TokenShown {
            id: id.to_vec().into(),
            agent: token.agent.into(),
            issued_at: token.issued_at,
            expires_at: token.expires_at,
            revoked: token.revoked,
        });
    }
    for (id, member) in &policy.members {
        members.push(wire::MemberShown {
            member: (*id).into(),
            groups: member.groups.iter().cloned().collect(),
            owner: member.owner.map(Into::into).unwrap_or_default(),
            revoked: member.revoked,
            vouched: member.subject.is_some(),
            tokens: tokens.remove(id).unwrap_or_default(),
        });
    }
    Ok(wire::ShimMembersResponse { members, digest: policy.digest.to_vec().into() })
}
