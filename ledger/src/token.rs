//! API tokens: who may ask, what, and of which workspaces.
//!
//! What must hold: of a token only the SHA-256 of its secret is kept; it is found by its id, which is no secret, and compared in constant time;
//! whatever is wrong with one, whoever presents it hears the same. What a role may do stands in one table ([`Role::may`]).
//!
//! `cqt_<id, 32 hex digits>_<secret, 64 hex digits>`.

use std::collections::BTreeSet;

use custody::id::{WorkspaceId, hex, unhex};
use subtle::ConstantTimeEq as _;

use crate::{
    keys,
    store::{ApiTokenRow, Store, StoreError},
};

/// What a token begins with, so that scanners for leaked secrets find it.
const PREFIX: &str = "cqt_";

/// What may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// Searches, sums, single records, traces.
    Search,
    /// What is committed from now on.
    Follow,
    /// All that matches, as a file.
    Export,
    /// The ledger's own records: administration, searches of others, alarms.
    OwnRecords,
}

/// What somebody does here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Answers for the service: everything.
    Admin,
    /// Looks for what is out of the ordinary.
    Analyst,
    /// Holds the records against what others say, and looks over the shoulders of all.
    Auditor,
    /// A program that takes records to another system.
    Exporter,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 4] = [Self::Admin, Self::Analyst, Self::Auditor, Self::Exporter];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Analyst => "analyst",
            Self::Auditor => "auditor",
            Self::Exporter => "exporter",
        }
    }

    /// The role of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.name() == name)
    }

    /// Whether it may.
    pub fn may(self, right: Right) -> bool {
        match self {
            Self::Admin => true,
            Self::Analyst => matches!(right, Right::Search | Right::Follow),
            Self::Auditor => matches!(right, Right::Search | Right::Export | Right::OwnRecords),
            Self::Exporter => matches!(right, Right::Follow | Right::Export),
        }
    }
}

/// A token as its holder presents it. It is shown nowhere.
struct Presented {
    id: [u8; 16],
    secret: [u8; 32],
}

impl Presented {
    fn parse(authorization: &str) -> Option<Self> {
        let (scheme, token) = authorization.split_once(' ')?;
        let token = scheme.eq_ignore_ascii_case("Bearer").then(|| token.trim_matches(' '))?;
        let (id, secret) = token.strip_prefix(PREFIX)?.split_once('_')?;
        Some(Self { id: unhex(id)?.try_into().ok()?, secret: unhex(secret)?.try_into().ok()? })
    }
}

/// A token that was just made: its id, what is kept, and what its holder gets.
pub struct Made {
    /// Its id, which is no secret.
    pub id: [u8; 16],
    /// What is kept of its secret.
    pub sha256: [u8; 32],
    /// For its holder alone.
    pub text: String,
}

/// A new token.
pub fn make() -> Made {
    let (id, secret) = (keys::random::<16>(), keys::random::<32>());
    Made { id, sha256: custody::hash::sha256(&[&secret]), text: format!("{PREFIX}{}_{}", hex(&id), hex(&secret)) }
}

/// Who asks.
#[derive(Clone, Debug)]
pub struct Holder {
    /// The token's id in hex: what stands in records.
    pub id: String,
    /// What it may.
    pub role: Role,
    /// Workspaces that it may see; `None`: all, also those that are made later.
    pub workspaces: Option<BTreeSet<WorkspaceId>>,
    /// It may see the names of people.
    pub names: bool,
}

impl Holder {
    /// Whether it may see a workspace; the ledger's own is seen by those alone who may.
    pub fn sees(&self, workspace: WorkspaceId, reserved: bool) -> bool {
        let listed = self.workspaces.as_ref().is_none_or(|listed| listed.contains(&workspace));
        listed && (!reserved || self.role.may(Right::OwnRecords))
    }
}

/// Whoever presents this; `None` for all others.
///
/// # Errors
/// [`StoreError`].
pub fn authenticate(store: &Store, authorization: &str, now_us: u64) -> Result<Option<Holder>, StoreError> {
    let Some(presented) = Presented::parse(authorization) else { return Ok(None) };
    let Some(row) = store.api_token(&presented.id)? else { return Ok(None) };
    let same = custody::hash::sha256(&[&presented.secret]).ct_eq(&row.sha256);
    Ok((bool::from(same) && row_stands(&row, now_us)).then(|| holder(&presented.id, &row)).flatten())
}

fn row_stands(row: &ApiTokenRow, now_us: u64) -> bool {
    row.revoked_at == 0 && (row.expires_at == 0 || now_us < row.expires_at)
}

/// Whether a token that was once presented stands now.
///
/// # Errors
/// [`StoreError`].
pub fn stands(store: &Store, holder: &Holder, now_us: u64) -> Result<bool, StoreError> {
    let id = unhex(&holder.id).and_then(|id| id.try_into().ok());
    let row = id.map(|id| store.api_token(&id)).transpose()?.flatten();
    Ok(row.is_some_and(|row| row_stands(&row, now_us)))
}

fn holder(id: &[u8; 16], row: &ApiTokenRow) -> Option<Holder> {
    let listed = row.workspaces.iter().map(|id| WorkspaceId::try_from(id.as_ref()).ok());
    let listed: BTreeSet<WorkspaceId> = listed.collect::<Option<_>>()?;
    Some(Holder {
        id: hex(id),
        role: Role::named(&row.role)?,
        workspaces: (!row.workspaces.is_empty()).then_some(listed),
        names: row.names,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_was_made_and_no_other() {
        let made = make();
        let presented = Presented::parse(&format!("bearer  {}", made.text)).unwrap();
        assert_eq!((presented.id, custody::hash::sha256(&[&presented.secret])), (made.id, made.sha256));
        for other in ["", "Bearer", "Bearer cqt_", "Basic x", &format!("Bearer {}0", made.text), &made.text] {
            assert!(Presented::parse(other).is_none(), "{other}");
        }
    }

    #[test]
    fn each_role_may_what_it_needs() {
        let rights = [Right::Search, Right::Follow, Right::Export, Right::OwnRecords];
        let table = Role::ALL.map(|role| rights.map(|right| u8::from(role.may(right))));
        assert_eq!(table, [[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 1, 1], [0, 1, 1, 0]]);
    }
}
