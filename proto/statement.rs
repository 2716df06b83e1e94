//! Statement chains: who held which key, where, by whose word (FORMAT.md, 8).
//!
//! A chain is replayed from its beginning; [`Chain`] is its state after so many statements. There is one chain for each
//! workspace and one for the ledger's keys. Within a segment the state never changes, because a statement cuts it.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message as _;

use crate::{
    hash::{object_hash, root_successor},
    id::{GatewayId, KeyId, ObjectHash, WorkspaceId},
    key::{Context, PublicKey},
    strict::{self, NotStrict, table},
    wire::{self, Role, statement::Action},
};

/// Name of the ledger's own workspace; no other may bear it.
pub const RESERVED_NAME: &str = "ledger";
/// Greatest number of statements in one chain: what an auditor's machine replays in under a minute.
pub const CHAIN_STATEMENTS_MAX: u64 = 1_048_576;

/// How far a chain had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainHead {
    /// Number of statements.
    pub count: u64,
    /// Hash of the last one's object; zeros for none.
    pub hash: ObjectHash,
}

impl ChainHead {
    /// The head of a chain without statements.
    pub const GENESIS: Self = Self { count: 0, hash: ObjectHash::ZERO };

    /// From its message, which strict form has shown to be whole.
    pub fn from_wire(head: Option<&wire::ChainHead>) -> Self {
        let hash = head.and_then(|h| ObjectHash::try_from(h.hash.as_ref()).ok()).unwrap_or(ObjectHash::ZERO);
        Self { count: head.map_or(0, |h| h.count), hash }
    }

    /// As a message.
    pub fn to_wire(self) -> wire::ChainHead {
        wire::ChainHead { count: self.count, hash: self.hash.into() }
    }
}

/// A statement with its signature, read but not yet judged.
#[derive(Clone, Debug, PartialEq)]
pub struct Signed {
    /// What is said.
    pub statement: wire::Statement,
    /// The bytes under the signature.
    pub statement_bytes: bytes::Bytes,
    /// By root or registrar.
    pub signature: bytes::Bytes,
    /// SHA-256 of the whole object.
    pub hash: ObjectHash,
}

impl Signed {
    /// Reads a `SignedStatement` object.
    ///
    /// # Errors
    /// [`NotStrict`].
    pub fn parse(object: &[u8]) -> Result<Self, NotStrict> {
        let outer: wire::SignedStatement = strict::decode(&table::SIGNED_STATEMENT, object)?;
        let statement: wire::Statement = strict::decode(&table::STATEMENT, &outer.statement)?;
        Ok(Self { statement, statement_bytes: outer.statement, signature: outer.signature, hash: object_hash(object) })
    }

    /// The workspace whose chain this belongs to; `None` for the chain of the ledger's keys.
    pub fn workspace(&self) -> Option<WorkspaceId> {
        self.statement.workspace.as_ref().and_then(|id| WorkspaceId::try_from(id.as_ref()).ok())
    }

    /// Whether the log carries this statement in full: workspaces created and removed, and the ledger's own chain.
    pub fn is_log_entry(&self) -> bool {
        self.workspace().is_none() || matches!(self.statement.action, Some(Action::Create(_) | Action::Remove(_)))
    }
}

/// Object bytes of a statement and its signature.
pub fn encode_signed(statement: &[u8], signature: [u8; 64]) -> Vec<u8> {
    wire::SignedStatement {
        version: crate::FORMAT_VERSION,
        statement: bytes::Bytes::copy_from_slice(statement),
        signature: bytes::Bytes::copy_from_slice(&signature),
    }
    .encode_to_vec()
}

/// The root keys by era, as far as the audit policy and the ledger's chain tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots {
    eras: BTreeMap<u32, (PublicKey, [u8; 32])>,
    /// Era of the root that signs now.
    current: u32,
    /// Whoever replays a chain without knowing when its statements stood accepts the eras before, too.
    past: bool,
}

impl Roots {
    /// Eras as `(number, key, hash of the successor)`; the least is in force at genesis. `None` without any.
    pub fn new(eras: impl IntoIterator<Item = (u32, PublicKey, [u8; 32])>) -> Option<Self> {
        let eras: BTreeMap<_, _> = eras.into_iter().map(|(era, key, next)| (era, (key, next))).collect();
        let current = *eras.keys().next()?;
        Some(Self { eras, current, past: false })
    }

    /// The same roots, for whoever cannot tell when a statement stood: earlier eras count as well.
    #[must_use]
    pub fn with_past(mut self) -> Self {
        self.past = true;
        self
    }

    fn may_sign(&self, era: u32) -> bool {
        era == self.current || (self.past && era < self.current)
    }

    /// Era of the root that signs now.
    pub fn current(&self) -> u32 {
        self.current
    }

    fn key(&self, era: u32) -> Option<PublicKey> {
        self.eras.get(&era).map(|(key, _)| *key)
    }

    /// Takes the next era if `key` is what the current one committed to, and what the policy says if it names that era.
    fn succeed(&mut self, era: u32, key: PublicKey, next: [u8; 32]) -> bool {
        let committed = self.eras.get(&self.current).is_some_and(|(_, hash)| *hash == root_successor(&key.to_bytes()));
        let follows = self.current.checked_add(1) == Some(era);
        let agrees = self.eras.get(&era).is_none_or(|known| *known == (key, next));
        if committed && follows && agrees {
            self.eras.insert(era, (key, next));
            self.current = era;
        }
        committed && follows && agrees
    }
}

/// What a chain says of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyState {
    /// What it may sign.
    pub role: Role,
    /// The key.
    pub public_key: PublicKey,
    /// Whose it is: of gateways and of the record key.
    pub gateway: Option<GatewayId>,
    /// Serial of the statement that enrolled it.
    pub serial: u64,
    /// Name given at enrolment.
    pub name: String,
    /// Opens no new epochs.
    pub retired: bool,
    /// Signs nothing any more.
    pub revoked: bool,
    /// Serial of the statement that retired it first.
    pub retired_by: Option<u64>,
    /// Serial of the statement that revoked it first.
    pub revoked_by: Option<u64>,
    /// What it signed from this position (or log index) on is in doubt.
    pub suspect_since: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Registrar {
    public_key: PublicKey,
    enrolments_left: u32,
    revoked: bool,
}

/// A legal hold on a span of received-at times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HoldState {
    /// Microseconds.
    pub since: u64,
    /// Microseconds; `None` without end.
    pub until: Option<u64>,
}

/// Why a statement does not continue a chain. The text completes "the statement ...".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused(pub &'static str);

impl Refused {
    /// The root that signed is not the one that signs now.
    const NOT_IN_FORCE: Self = Self("is of a root era that is not in force");
    /// Another key signed than the one that the statement names.
    const FORGED: Self = Self("has a signature that does not verify");

    /// Whether the same words signed by another key could be taken.
    pub fn is_of_signer(self) -> bool {
        self == Self::NOT_IN_FORCE || self == Self::FORGED
    }
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Refused {}

/// State of a chain after so many statements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    origin: String,
    workspace: Option<WorkspaceId>,
    head: ChainHead,
    /// Hash of every statement so far, by serial.
    hashes: Vec<ObjectHash>,
    keys: BTreeMap<KeyId, KeyState>,
    registrars: BTreeMap<KeyId, Registrar>,
    /// Which serial enrolled which key, for voiding.
    enrolled: BTreeMap<u64, (Option<KeyId>, KeyId)>,
    public_keys: BTreeSet<[u8; 32]>,
    holds: BTreeMap<[u8; 16], HoldState>,
    name: String,
    removed: bool,
    /// Serials of the incarnations, which count them.
    incarnations: Vec<u64>,
}

/// The key that may sign batches as `gateway` under `id`, as so many statements of the workspace's chain and of the ledger's
/// leave it: a gateway's, or the ledger's record key. `None` too if both chains have that gateway id, because then the ledger
/// could go on, or end, where the gateway fell silent.
pub(crate) fn writer(
    (workspace, count): (&Chain, u64),
    (ledger, ledger_count): (&Chain, u64),
    id: &KeyId,
    gateway: GatewayId,
) -> Option<KeyState> {
    let of_workspace = workspace.key_at(id, count).filter(|key| key.role == Role::Gateway);
    let of_ledger = || ledger.key_at(id, ledger_count).filter(|key| key.role == Role::Record);
    let key = of_workspace.or_else(of_ledger).filter(|key| key.gateway == Some(gateway))?;
    let taken = match key.role {
        Role::Gateway => ledger.has_gateway(gateway, Role::Record, ledger_count),
        _ => workspace.has_gateway(gateway, Role::Gateway, count),
    };
    (!taken).then_some(key)
}

impl Chain {
    /// The chain of the ledger's keys (`workspace` `None`) or of one workspace, before its first statement.
    pub fn new(origin: &str, workspace: Option<WorkspaceId>) -> Self {
        Self {
            origin: origin.to_owned(),
            workspace,
            head: ChainHead::GENESIS,
            hashes: Vec::new(),
            keys: BTreeMap::new(),
            registrars: BTreeMap::new(),
            enrolled: BTreeMap::new(),
            public_keys: BTreeSet::new(),
            holds: BTreeMap::new(),
            name: String::new(),
            removed: false,
            incarnations: Vec::new(),
        }
    }

    /// How far this chain has come.
    pub fn head(&self) -> ChainHead {
        self.head
    }

    /// How far this chain had come after `count` statements; `None` if it has fewer.
    pub fn head_at(&self, count: u64) -> Option<ChainHead> {
        let Some(last) = count.checked_sub(1) else { return Some(ChainHead::GENESIS) };
        let hash = *self.hashes.get(usize::try_from(last).ok()?)?;
        Some(ChainHead { count, hash })
    }

    /// One key as it stood after the first `count` statements; doubt counts whenever it was cast.
    pub fn key_at(&self, id: &KeyId, count: u64) -> Option<KeyState> {
        let mut key = self.keys.get(id).filter(|key| key.serial < count)?.clone();
        key.retired = key.retired_by.is_some_and(|serial| serial < count);
        key.revoked = key.revoked_by.is_some_and(|serial| serial < count);
        Some(key)
    }

    fn has_gateway(&self, gateway: GatewayId, role: Role, count: u64) -> bool {
        self.keys.values().any(|key| key.role == role && key.gateway == Some(gateway) && key.serial < count)
    }

    /// The workspace; `None` for the ledger's keys.
    pub fn workspace(&self) -> Option<WorkspaceId> {
        self.workspace
    }

    /// The workspace's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The workspace takes no more batches.
    pub fn is_removed(&self) -> bool {
        self.removed
    }

    /// Number of the last incarnation; 0 before any.
    pub fn incarnation(&self) -> u64 {
        self.incarnations.len() as u64
    }

    /// That of what comes after `count` statements.
    pub fn incarnation_at(&self, count: u64) -> u64 {
        self.incarnations.partition_point(|serial| *serial < count) as u64
    }

    /// All keys ever enrolled.
    pub fn keys(&self) -> impl Iterator<Item = (&KeyId, &KeyState)> {
        self.keys.iter()
    }

    /// One key.
    pub fn key(&self, id: &KeyId) -> Option<&KeyState> {
        self.keys.get(id)
    }

    /// The holds that stand.
    pub fn holds(&self) -> impl Iterator<Item = (&[u8; 16], &HoldState)> {
        self.holds.iter()
    }

    /// Applies the next statement to a copy: on refusal nothing changes.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn extended(&self, signed: &Signed, roots: &Roots) -> Result<(Self, Roots), Refused> {
        let (mut next, mut next_roots) = (self.clone(), roots.clone());
        next.apply(signed, &mut next_roots)?;
        Ok((next, next_roots))
    }

    /// Applies the next statement. After a refusal this state is of no use.
    ///
    /// # Errors
    /// [`Refused`] with the first rule that it breaks (FORMAT.md, 8.3, in that order).
    pub fn apply(&mut self, signed: &Signed, roots: &mut Roots) -> Result<(), Refused> {
        let said = &signed.statement;
        if said.origin != self.origin {
            return Err(Refused("is of another origin"));
        }
        if signed.workspace() != self.workspace {
            return Err(Refused("is of another chain"));
        }
        if said.serial != self.head.count {
            return Err(Refused("has a serial that does not follow"));
        }
        if said.previous.as_ref() != self.head.hash.as_ref() {
            return Err(Refused("names another predecessor"));
        }
        if self.removed {
            return Err(Refused("comes after the workspace was removed"));
        }
        if said.serial >= CHAIN_STATEMENTS_MAX {
            return Err(Refused("is one more than a chain may have"));
        }
        self.judge(signed, roots)?;
        self.head = ChainHead { count: said.serial.saturating_add(1), hash: signed.hash };
        self.hashes.push(signed.hash);
        Ok(())
    }

    /// Signature, authority and effect.
    fn judge(&mut self, signed: &Signed, roots: &mut Roots) -> Result<(), Refused> {
        let said = &signed.statement;
        let action = said.action.as_ref().ok_or(Refused("has no action"))?;
        let registrar = match &said.registrar {
            Some(id) => Some(KeyId::try_from(id.as_ref()).map_err(|_| Refused("names no registrar"))?),
            None => None,
        };
        if let Action::SucceedRoot(succeed) = action {
            let key = PublicKey::new(&succeed.public_key).ok_or(Refused("brings a weak key"))?;
            let next: [u8; 32] = succeed.successor_hash.as_ref().try_into().map_err(|_| Refused("has no successor"))?;
            if self.workspace.is_some() || registrar.is_some() || !roots.succeed(said.era, key, next) {
                return Err(Refused("brings a root that was not committed to"));
            }
        }
        let signer = match registrar {
            None if !roots.may_sign(said.era) => return Err(Refused::NOT_IN_FORCE),
            None => roots.key(said.era).ok_or(Refused("is of an unknown root era"))?,
            Some(id) => {
                let known = self.registrars.get(&id).filter(|r| !r.revoked);
                known.ok_or(Refused("is of a registrar that has no mandate"))?.public_key
            }
        };
        if !signer.verifies(Context::Statement, &signed.statement_bytes, &signed.signature) {
            return Err(Refused::FORGED);
        }
        if self.workspace.is_some() && (said.serial == 0) != matches!(action, Action::Create(_)) {
            return Err(Refused("creates what exists, or changes what does not"));
        }
        self.take_effect(said, action, registrar)
    }

    fn take_effect(
        &mut self,
        said: &wire::Statement,
        action: &Action,
        registrar: Option<KeyId>,
    ) -> Result<(), Refused> {
        let of_workspace = self.workspace.is_some();
        let by_root = registrar.is_none();
        match action {
            Action::Create(create) if of_workspace && by_root => create.name.clone_into(&mut self.name),
            Action::Remove(_) if of_workspace && by_root && self.name != RESERVED_NAME => self.removed = true,
            Action::Delegate(delegate) if of_workspace && by_root => self.delegate(said, delegate)?,
            Action::Enrol(enrol) => self.enrol(said, enrol, registrar)?,
            Action::Retire(retire) if of_workspace || by_root => {
                let key = self.key_mut(&retire.key_id)?;
                key.retired = true;
                key.retired_by.get_or_insert(said.serial);
            }
            Action::Revoke(revoke) if of_workspace || by_root => self.revoke(said.serial, revoke, by_root)?,
            Action::Suspect(suspect) if of_workspace || by_root => {
                let key = self.key_mut(&suspect.key_id)?;
                let since = key.suspect_since.map_or(suspect.since, |before| before.min(suspect.since));
                key.suspect_since = Some(since);
            }
            Action::Hold(hold) if of_workspace => {
                let id = hold.hold.as_ref().try_into().map_err(|_| Refused("names no hold"))?;
                let state = HoldState { since: hold.since, until: hold.until };
                if self.holds.insert(id, state).is_some() {
                    return Err(Refused("sets a hold that stands"));
                }
            }
            Action::Release(release) if of_workspace => {
                let id: [u8; 16] = release.hold.as_ref().try_into().map_err(|_| Refused("names no hold"))?;
                self.holds.remove(&id).ok_or(Refused("releases a hold that does not stand"))?;
            }
            Action::SucceedRoot(_) if !of_workspace => {}
            Action::Incarnation(incarnation) if !of_workspace && by_root => {
                if self.incarnation().checked_add(1) != Some(incarnation.number) {
                    return Err(Refused("counts incarnations wrongly"));
                }
                self.incarnations.push(said.serial);
            }
            _ => return Err(Refused("says what its signer or chain may not say")),
        }
        Ok(())
    }

    fn key_mut(&mut self, id: &[u8]) -> Result<&mut KeyState, Refused> {
        let id = KeyId::try_from(id).map_err(|_| Refused("names no key"))?;
        self.keys.get_mut(&id).ok_or(Refused("names a key that is not enrolled"))
    }

    fn delegate(&mut self, said: &wire::Statement, delegate: &wire::Delegate) -> Result<(), Refused> {
        let key = self.fresh_key(&delegate.public_key)?;
        if !self.possessed(said, Role::Registrar, key, None, &delegate.possession) {
            return Err(Refused("lacks proof of possession"));
        }
        let registrar = Registrar { public_key: key, enrolments_left: delegate.enrolments_max, revoked: false };
        self.registrars.insert(key.id(Role::Registrar), registrar);
        Ok(())
    }

    fn enrol(&mut self, said: &wire::Statement, enrol: &wire::Enrol, registrar: Option<KeyId>) -> Result<(), Refused> {
        let role = enrol.role();
        let allowed = match self.workspace {
            Some(_) => matches!(role, Role::Gateway | Role::Receipt),
            None => registrar.is_none() && matches!(role, Role::Record | Role::Head | Role::Log),
        };
        if !allowed || (role == Role::Gateway && self.name == RESERVED_NAME) {
            return Err(Refused("enrols a role that has no place in this chain"));
        }
        let writes = matches!(role, Role::Gateway | Role::Record);
        if enrol.gateway.is_some() != writes {
            return Err(Refused("must name a gateway for a key that signs batches, and for no other"));
        }
        let key = self.fresh_key(&enrol.public_key)?;
        let proven = match &enrol.possession {
            Some(signature) => self.possessed(said, role, key, enrol.gateway.as_deref(), signature),
            None => role == Role::Receipt,
        };
        if !proven {
            return Err(Refused("lacks proof of possession"));
        }
        if let Some(id) = registrar {
            let left = self.registrars.get_mut(&id).ok_or(Refused("is of a registrar that has no mandate"))?;
            left.enrolments_left = left
                .enrolments_left
                .checked_sub(1)
                .ok_or(Refused("is one enrolment more than the registrar may make"))?;
        }
        let gateway = enrol.gateway.as_deref().and_then(|id| GatewayId::try_from(id).ok());
        let state = KeyState {
            role,
            public_key: key,
            gateway,
            serial: said.serial,
            name: enrol.name.clone(),
            retired: false,
            revoked: false,
            retired_by: None,
            revoked_by: None,
            suspect_since: None,
        };
        self.enrolled.insert(said.serial, (registrar, key.id(role)));
        self.keys.insert(key.id(role), state);
        Ok(())
    }

    /// A key that is strong and new to this chain.
    fn fresh_key(&mut self, bytes: &[u8]) -> Result<PublicKey, Refused> {
        let key = PublicKey::new(bytes).ok_or(Refused("brings a weak key"))?;
        if !self.public_keys.insert(key.to_bytes()) {
            return Err(Refused("brings a key that this chain had before"));
        }
        Ok(key)
    }

    fn possessed(
        &self,
        said: &wire::Statement,
        role: Role,
        key: PublicKey,
        gateway: Option<&[u8]>,
        signature: &[u8],
    ) -> bool {
        let gateway = gateway.and_then(|id| GatewayId::try_from(id).ok());
        key.verifies(Context::Possession, &possession(&said.origin, self.workspace, role, key, gateway), signature)
    }

    fn revoke(&mut self, serial: u64, revoke: &wire::Revoke, by_root: bool) -> Result<(), Refused> {
        let id = KeyId::try_from(revoke.key_id.as_ref()).map_err(|_| Refused("names no key"))?;
        if let Some(registrar) = self.registrars.get_mut(&id) {
            if !by_root {
                return Err(Refused("revokes a registrar without being the root"));
            }
            registrar.revoked = true;
            for void in &revoke.void_serials {
                let made = self.enrolled.get(void).filter(|(by, _)| *by == Some(id));
                let (_, key) = made.ok_or(Refused("voids what that registrar did not enrol"))?;
                if let Some(key) = self.keys.get_mut(key) {
                    (key.revoked, key.suspect_since) = (true, Some(0));
                    key.revoked_by.get_or_insert(serial);
                }
            }
            return Ok(());
        }
        if !revoke.void_serials.is_empty() {
            return Err(Refused("voids serials of a key that is no registrar"));
        }
        let key = self.key_mut(&revoke.key_id)?;
        key.revoked = true;
        key.revoked_by.get_or_insert(serial);
        Ok(())
    }
}

/// The bytes that the holder of a new key signs, to prove that it holds it.
pub fn possession(
    origin: &str,
    workspace: Option<WorkspaceId>,
    role: Role,
    key: PublicKey,
    gateway: Option<GatewayId>,
) -> Vec<u8> {
    wire::Possession {
        version: crate::FORMAT_VERSION,
        origin: origin.to_owned(),
        workspace: workspace.map(Into::into),
        role: role as i32,
        public_key: bytes::Bytes::copy_from_slice(&key.to_bytes()),
        gateway: gateway.map(Into::into),
    }
    .encode_to_vec()
}

#[cfg(test)]
mod tests;
