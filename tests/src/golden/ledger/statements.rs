//! What root and registrars say in the story: statements on keys, workspaces and holds, and where each of them stands.

use std::collections::BTreeMap;

use bytes::Bytes;
use custody::{
    id::{ObjectHash, RootHash, WorkspaceId},
    key::{Context, sign},
    log::encode_entry,
    merkle::Tree,
    note::Checkpoint,
    statement::{ChainHead, encode_signed as encode_statement, possession},
    wire::{self, LeafKind, Role, log_entry, statement::Action},
};
use prost::Message as _;

use super::{Ledger, LogItem, Workspace, after, keys, render};

impl Ledger {
    fn sign_statement(&mut self, label: &str, mut said: wire::Statement, registrar: Option<&'static str>) -> Bytes {
        let mut signer = registrar.unwrap_or(self.root.1);
        if let Some(hook) = self.hooks.statements.get(label) {
            signer = hook(&mut said).unwrap_or(signer);
        }
        let bytes = said.encode_to_vec();
        encode_statement(&bytes, sign(&keys::signing(signer), Context::Statement, &bytes)).into()
    }

    fn draft(
        &self,
        workspace: Option<WorkspaceId>,
        chain: ChainHead,
        registrar: Option<&'static str>,
        action: Action,
    ) -> wire::Statement {
        let seen = self.publications.last().map(|publication| &publication.checkpoint);
        wire::Statement {
            version: 1,
            origin: self.origin.clone(),
            workspace: workspace.map(Into::into),
            serial: chain.count,
            previous: chain.hash.into(),
            checkpoint_size: seen.map_or(0, |checkpoint| checkpoint.size),
            checkpoint_hash: seen.map_or(ObjectHash::ZERO, Checkpoint::hash).into(),
            issued_at: self.clock,
            era: self.root.0,
            registrar: registrar.map(|label| keys::id(label, Role::Registrar).into()),
            reason: "planned".to_owned(),
            ticket: "SEC-12".to_owned(),
            action: Some(action),
        }
    }

    /// A root statement on the ledger's own keys: cuts everything, then stands in the log.
    pub fn ledger_statement(&mut self, action: Action) {
        self.clock += 500_000;
        self.cut_all();
        let said = self.draft(None, self.chain, None, action);
        let object = self.sign_statement(&format!("keys/{}", self.chain.count), said, None);
        self.chain = after(self.chain, &object);
        self.log.push(LogItem::Entry(encode_entry(log_entry::Entry::Statement(object.clone()))));
        self.statements.push(object);
    }

    /// Takes a statement on the ledger's own keys once more.
    pub fn repeat_ledger_statement(&mut self, object: Bytes) {
        self.cut_all();
        self.chain = after(self.chain, &object);
        self.log.push(LogItem::Entry(encode_entry(log_entry::Entry::Statement(object.clone()))));
        self.statements.push(object);
    }

    /// A recovery: the root names the last checkpoint, and a new incarnation begins.
    pub fn recover(&mut self) {
        let size = self.log.len() as u64;
        let rendered = render::render(self, &mut render::Truth);
        let last: BTreeMap<WorkspaceId, (u64, ObjectHash)> = self
            .log
            .iter()
            .filter_map(|item| match item {
                LogItem::Seal(id, segment) => Some((*id, (*segment, *rendered.seals.get(&(*id, *segment))?))),
                LogItem::Entry(_) => None,
            })
            .collect();
        let last: Vec<_> = last.into_iter().map(|(id, (segment, hash))| (id, segment, hash)).collect();
        self.ledger_statement(Action::Incarnation(wire::Incarnation {
            number: self.incarnation + 1,
            log_size: size,
            log_root: rendered.root.unwrap_or(RootHash::ZERO).into(),
            last_seals_hash: Bytes::copy_from_slice(&custody::verify::last_seals_hash(&last)),
        }));
        self.incarnation += 1;
    }

    /// The root creates a workspace.
    pub fn create(&mut self, name: &str) {
        self.clock += 500_000;
        let id = keys::workspace(name);
        let action = Action::Create(wire::Create { name: name.to_owned() });
        let said = self.draft(Some(id), ChainHead::GENESIS, None, action);
        let object = self.sign_statement(&format!("{name}/0"), said, None);
        self.log.push(LogItem::Entry(encode_entry(log_entry::Entry::Statement(object.clone()))));
        self.workspaces.push(Workspace {
            id,
            chain: after(ChainHead::GENESIS, &object),
            statements: vec![object],
            segments: Vec::new(),
            open: Vec::new(),
            history: Tree::default(),
            first_position: 0,
            next_position: 0,
        });
    }

    /// A statement of a workspace's chain by the root or a registrar: the last leaf of the segment that it cuts.
    pub fn statement(&mut self, workspace: &str, registrar: Option<&'static str>, action: Action) {
        self.clock += 500_000;
        let removes = matches!(action, Action::Remove(_));
        let (id, chain) = (keys::workspace(workspace), self.workspace(workspace).chain);
        let said = self.draft(Some(id), chain, registrar, action);
        let object = self.sign_statement(&format!("{workspace}/{}", chain.count), said, registrar);
        self.append(workspace, LeafKind::Statement, object.clone());
        self.cut(id);
        let place = self.workspace(workspace);
        place.chain = after(chain, &object);
        place.statements.push(object.clone());
        if removes {
            self.log.push(LogItem::Entry(encode_entry(log_entry::Entry::Statement(object))));
        }
    }

    /// Enrols a key, with proof of possession, in a workspace's chain or (`None`) in the ledger's.
    pub fn enrol(&mut self, workspace: Option<&str>, registrar: Option<&'static str>, role: Role, key: &str, of: &str) {
        let id = workspace.map(keys::workspace);
        let gateway = matches!(role, Role::Gateway | Role::Record).then(|| keys::gateway(of));
        let proof = possession(&self.origin, id, role, keys::public(key), gateway);
        let action = Action::Enrol(wire::Enrol {
            role: role as i32,
            public_key: Bytes::copy_from_slice(&keys::public(key).to_bytes()),
            gateway: gateway.map(Into::into),
            name: of.to_owned(),
            possession: Some(Bytes::copy_from_slice(&sign(&keys::signing(key), Context::Possession, &proof))),
        });
        match workspace {
            Some(name) => self.statement(name, registrar, action),
            None => self.ledger_statement(action),
        }
    }

    /// Delegates a registrar.
    pub fn delegate(&mut self, workspace: &str, key: &str, enrolments_max: u32) {
        let proof =
            possession(&self.origin, Some(keys::workspace(workspace)), Role::Registrar, keys::public(key), None);
        let action = Action::Delegate(wire::Delegate {
            public_key: Bytes::copy_from_slice(&keys::public(key).to_bytes()),
            enrolments_max,
            possession: Bytes::copy_from_slice(&sign(&keys::signing(key), Context::Possession, &proof)),
        });
        self.statement(workspace, None, action);
    }
}
