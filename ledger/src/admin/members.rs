//! People, for administrators: decode, ask the directory, encode.

use custody::{
    id::{MemberId, WorkspaceId},
    statement::RESERVED_NAME,
    strict::is_token,
    wire,
};
use tokio::sync::oneshot;
use tonic::{Request as Call, Response, Status};

use super::{AdminService, Answer, workspace_id};
use crate::{
    commit::Request,
    directory::{self, Ask, Because, By, Enrolment, MemberView, Refusal, Standing},
    pki::{self, Identity},
};

/// What is told to whoever asked.
fn status(why: Refusal) -> Status {
    match why {
        Refusal::Later(_, why) => Status::unavailable(why),
        Refusal::Never(why) => Status::failed_precondition(why),
        Refusal::Held(holds) => Status::failed_precondition(format!(
            "{holds} legal hold{} stand{}, and the refusal is on record (hint: ledger hold list; ask whoever set it; --force --reason \
             CODE --ticket REF erases all the same, on record)",
            if holds == 1 { "" } else { "s" },
            if holds == 1 { "s" } else { "" },
        )),
    }
}

fn member_id(bytes: &[u8]) -> Result<MemberId, Status> {
    MemberId::try_from(bytes).map_err(|_| Status::invalid_argument("a member id has 16 bytes"))
}

/// Who asks, by the certificate, and why.
pub(super) fn because<T>(call: &Call<T>, said: Option<&wire::Because>) -> Result<Because, Status> {
    let said = said.cloned().unwrap_or_default();
    let token = |text: &str, most: usize| text.is_empty() || (text.len() <= most && is_token(text));
    if !token(&said.reason, 64) || !token(&said.ticket, 128) {
        return Err(Status::invalid_argument(
            "reason and ticket are tokens of at most 64 and 128 characters (hint: a code and a reference, no sentence)",
        ));
    }
    let certificate = call.peer_certs().and_then(|chain| chain.first().map(|leaf| leaf.to_vec()));
    let actor = match certificate.and_then(|der| pki::peer_identity(&der)) {
        Some(Identity::Admin { name, .. }) if is_token(&name) => name,
        Some(_) => "administrator".to_owned(),
        None => "plaintext".to_owned(),
    };
    Ok(Because { actor, reason: said.reason, ticket: said.ticket })
}

fn encode(view: MemberView) -> wire::Member {
    let contents = view.contents.unwrap_or_default();
    let state = match view.standing {
        Standing::Known => wire::MemberState::Known,
        Standing::Erased => wire::MemberState::Erased,
        Standing::KeyNotAvailable => wire::MemberState::KeyNotAvailable,
    };
    wire::Member {
        member: view.member.into(),
        state: state as i32,
        revision: view.revision,
        entered_at: view.entered_at,
        erased_at: view.erased_at,
        name: contents.name,
        address: contents.address,
        groups: contents.groups,
    }
}

impl AdminService {
    pub(super) async fn members_listed(
        &self,
        call: Call<wire::ListMembersRequest>,
    ) -> Answer<wire::ListMembersResponse> {
        let because = because(&call, call.get_ref().because.as_ref())?;
        let asked = call.into_inner();
        let after = if asked.after.is_empty() { None } else { Some(member_id(&asked.after)?) };
        let names = asked.names;
        let listed = directory::ask(&self.directory, move |directory| directory.list(after, names, &because)).await;
        let (members, more) = listed.map_err(status)?;
        Ok(Response::new(wire::ListMembersResponse { members: members.into_iter().map(encode).collect(), more }))
    }

    pub(super) async fn member_shown(&self, call: Call<wire::ShowMemberRequest>) -> Answer<wire::ShowMemberResponse> {
        let because = because(&call, call.get_ref().because.as_ref())?;
        let who = call.into_inner().who;
        let shown = directory::ask(&self.directory, move |directory| directory.show(&who, &because)).await;
        let members = shown.map_err(status)?.into_iter().map(encode).collect();
        Ok(Response::new(wire::ShowMemberResponse { members }))
    }

    pub(super) async fn member_added(&self, call: Call<wire::AddMemberRequest>) -> Answer<wire::AddMemberResponse> {
        let by = By::Admin(because(&call, call.get_ref().because.as_ref())?);
        let asked = call.into_inner();
        let workspace = workspace_id(&asked.workspace)?;
        if workspace.is_none() && !asked.groups.is_empty() {
            return Err(Status::invalid_argument("groups are a workspace's (hint: --workspace)"));
        }
        let groups = workspace.map(|workspace| (workspace, asked.groups));
        let enrolment = Enrolment::new(&asked.address, &asked.name, groups, by).map_err(status)?;
        let (reply, answer) = oneshot::channel();
        let told = Box::new(move |member| drop(reply.send(member)));
        let gone = || Status::unavailable("the ledger is ending (hint: try again)");
        self.directory.send(Ask::Enrol(enrolment, told)).await.map_err(|_| gone())?;
        let member = answer.await.map_err(|_| gone())?.map_err(status)?;
        Ok(Response::new(wire::AddMemberResponse { member: member.into() }))
    }

    pub(super) async fn member_erased(
        &self,
        call: Call<wire::EraseMemberRequest>,
    ) -> Answer<wire::EraseMemberResponse> {
        let because = because(&call, call.get_ref().because.as_ref())?;
        let asked = call.into_inner();
        let (member, force) = (member_id(&asked.member)?, asked.force);
        let erased = directory::ask(&self.directory, move |directory| directory.erase(member, force, &because)).await;
        let (erased_at, again) = erased.map_err(status)?;
        // Once the record is in the archive no backup of the vault brings the key back, whatever becomes of this machine.
        let archived = match self.reserved_workspace().await? {
            Some(workspace) => self.archived_now(workspace).await?,
            None => false,
        };
        Ok(Response::new(wire::EraseMemberResponse { erased_at, again, archived }))
    }

    pub(super) async fn members_disclosed(
        &self,
        call: Call<wire::DiscloseMembersRequest>,
    ) -> Answer<wire::DiscloseMembersResponse> {
        let because = because(&call, call.get_ref().because.as_ref())?;
        let members = call.into_inner().members;
        let members = members.iter().map(|member| member_id(member)).collect::<Result<Vec<_>, _>>()?;
        let work = move |directory: &mut directory::Directory| directory.disclose(&members, &because);
        let disclosure = directory::ask(&self.directory, work).await.map_err(status)?;
        Ok(Response::new(wire::DiscloseMembersResponse { disclosure: disclosure.to_text().into_bytes().into() }))
    }

    async fn reserved_workspace(&self) -> Result<Option<WorkspaceId>, Status> {
        self.look(|writer| writer.workspaces().find(|known| known.chain.name() == RESERVED_NAME).map(|known| known.id))
            .await
    }

    /// Cuts a workspace's segment and waits until it is archived; `false` if that takes too long.
    async fn archived_now(&self, workspace: WorkspaceId) -> Result<bool, Status> {
        let (reply, answer) = oneshot::channel();
        let gone = || Status::unavailable("the ledger is ending (hint: ask again)");
        self.writer.send(Request::Cut(Some(workspace), reply)).await.map_err(|_| gone())?;
        Ok(self.archived(answer.await.map_err(|_| gone())?).await)
    }
}
