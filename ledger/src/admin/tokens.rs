//! API tokens, for administrators: each change is on record before its answer.

use bytes::Bytes;
use custody::{
    id::hex,
    strict::is_token,
    wire::{self, LedgerEventKind, record::Kind},
};
use prost::Message as _;
use tonic::{Request as Call, Response, Status};

use super::{AdminService, Answer, members::because, workspace_id};
use crate::{
    clock,
    commit::{Untaken, put_on_record},
    directory::Because,
    store::{ApiTokenRow, Family, Store, StoreError},
    token::{self, Role},
};

/// Tokens at one time, revoked ones too: each is a row, and a list of all is one answer.
const TOKENS_MAX: usize = 4_096;
/// Workspaces of one token: more are all.
const WORKSPACES_MAX: usize = 1_024;

fn broken(why: &StoreError) -> Status {
    tracing::error!(%why, "the API tokens cannot be read");
    Status::unavailable("the API tokens cannot be read (hint: the ledger's log says why)")
}

fn wanted(token: Option<wire::ApiToken>) -> Result<wire::ApiToken, Status> {
    let token = token.unwrap_or_default();
    let refuse = |why: &str| Err(Status::invalid_argument(why));
    if token.name.is_empty() || token.name.len() > 64 || !is_token(&token.name) {
        return refuse("a token's name has 1 to 64 characters of [A-Za-z0-9_./:@+-]");
    }
    if Role::named(&token.role).is_none() {
        return refuse("there is no such role (hint: admin, analyst, auditor or exporter)");
    }
    if token.workspaces.len() > WORKSPACES_MAX {
        return refuse("a token lists at most 1024 workspaces (hint: with none it sees all)");
    }
    if token.expires_at != 0 && token.expires_at <= clock::now_us() {
        return refuse("the token would have expired already");
    }
    token.workspaces.iter().try_for_each(|id| workspace_id(id).map(|_| ()))?;
    Ok(token)
}

impl AdminService {
    fn store(&self) -> Result<std::sync::Arc<Store>, Status> {
        self.store.upgrade().ok_or_else(|| Status::unavailable("the ledger is ending (hint: try again)"))
    }

    /// A token's row and what tells of it, in one write.
    async fn commit_token(&self, id: [u8; 16], row: &ApiTokenRow, verb: &str, because: Because) -> Result<(), Status> {
        let event = wire::LedgerEvent {
            at: clock::now_us(),
            kind: LedgerEventKind::Administration as i32,
            action: verb.to_owned(),
            outcome: "ok".to_owned(),
            actor: because.actor,
            reason: because.reason,
            ticket: because.ticket,
            details: vec![wire::Extension {
                key: "api_token".to_owned(),
                value: Some(wire::extension::Value::Digest(Bytes::copy_from_slice(&custody::hash::sha256(&[&id])))),
            }],
            ..Default::default()
        };
        let row = (Family::ApiTokens, Bytes::copy_from_slice(&id), row.encode_to_vec().into());
        let gone = || Status::unavailable("the ledger is ending (hint: try again)");
        let told = put_on_record(&self.writer, vec![row], vec![Kind::LedgerEvent(event)]).await;
        told.ok_or_else(gone)?.map_err(|why| match why {
            Untaken::Later(why) => Status::unavailable(why),
            Untaken::Held(_) => Status::failed_precondition("a legal hold stands"),
        })
    }

    pub(super) async fn token_added(&self, call: Call<wire::AddApiTokenRequest>) -> Answer<wire::AddApiTokenResponse> {
        let because = because(&call, call.get_ref().because.as_ref())?;
        let token = wanted(call.into_inner().token)?;
        let known: usize =
            self.store()?.api_tokens().try_fold(0, |sum, step| step.map(|_| sum + 1)).map_err(|why| broken(&why))?;
        if known >= TOKENS_MAX {
            return Err(Status::resource_exhausted("there are 4096 tokens (hint: fewer programs with one each)"));
        }
        let made = token::make();
        let row = ApiTokenRow {
            sha256: Bytes::copy_from_slice(&made.sha256),
            name: token.name,
            role: token.role,
            workspaces: token.workspaces,
            names: token.names,
            created_at: clock::now_us(),
            expires_at: token.expires_at,
            revoked_at: 0,
        };
        self.commit_token(made.id, &row, "token.add", because).await?;
        Ok(Response::new(wire::AddApiTokenResponse { token: Bytes::copy_from_slice(&made.id), secret: made.text }))
    }

    pub(super) fn tokens_listed(&self) -> Answer<wire::ListApiTokensResponse> {
        let mut tokens = Vec::new();
        for step in self.store()?.api_tokens() {
            let (id, row) = step.map_err(|why| broken(&why))?;
            tokens.push(wire::ApiToken {
                token: Bytes::copy_from_slice(&id),
                name: row.name,
                role: row.role,
                workspaces: row.workspaces,
                names: row.names,
                created_at: row.created_at,
                expires_at: row.expires_at,
                revoked_at: row.revoked_at,
            });
        }
        Ok(Response::new(wire::ListApiTokensResponse { tokens }))
    }

    pub(super) async fn token_revoked(
        &self,
        call: Call<wire::RevokeApiTokenRequest>,
    ) -> Answer<wire::RevokeApiTokenResponse> {
        let because = because(&call, call.get_ref().because.as_ref())?;
        let id = call.into_inner().token;
        let id: [u8; 16] = id.as_ref().try_into().map_err(|_| Status::invalid_argument("a token's id has 16 bytes"))?;
        let row = self.store()?.api_token(&id).map_err(|why| broken(&why))?;
        let mut row = row.ok_or_else(|| {
            Status::not_found(format!("there is no API token {} (hint: ledger token list)", hex(&id)))
        })?;
        let again = row.revoked_at != 0;
        if !again {
            row.revoked_at = clock::now_us();
            self.commit_token(id, &row, "token.revoke", because).await?;
        }
        Ok(Response::new(wire::RevokeApiTokenResponse { again }))
    }
}
