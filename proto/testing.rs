//! What the tests of this crate share: a seeded generator of numbers, messages in strict form made from the table, and the
//! small world of fixed keys and ids from which the golden files are built.
//!
//! Whatever is random here comes from one seed, which is printed, and which `CUSTODY_SEED` sets.

use ed25519_dalek::SigningKey;

use crate::{
    id::{Epoch, GatewayId, KeyId, ObjectHash, WorkspaceId},
    key::{Context, public, sign},
    statement::{Chain, Refused, Roots, Signed, encode_signed, possession},
    strict::{Field, Kind, Message, Presence, Text, table},
    wire::{self, Role, statement::Action},
};

/// splitmix64: small, and the same everywhere.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A generator for one test, from `CUSTODY_SEED` or else from a fixed seed; prints what to set to see the same again.
    pub(crate) fn for_test(name: &str) -> Self {
        let seed = number("CUSTODY_SEED").unwrap_or(0xC0_57_0D_11);
        println!("{name}: CUSTODY_SEED={seed}");
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).unwrap()
    }

    pub(crate) fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next().to_be_bytes()[0]).collect()
    }

    pub(crate) fn node(&mut self) -> [u8; 32] {
        self.bytes(32).try_into().unwrap()
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.index(from.len())]
    }

    /// Small ones, great ones and those at the edges, at most `max`.
    pub(crate) fn integer(&mut self, max: u64) -> u64 {
        let any = self.next() >> self.below(64);
        let edge = [0, 1, 127, 128, 255, 256, u64::from(u32::MAX), max.saturating_sub(1), max];
        if self.one_in(3) { (*self.pick(&edge)).min(max) } else { any.min(max) }
    }
}

/// A number from the environment.
pub(crate) fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number in the environment"))
}

/// Folder with the shared test vectors, where it is there (as in CI).
pub(crate) fn vectors() -> Option<std::path::PathBuf> {
    let shared = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
    shared.exists().then(|| shared.join("vectors"))
}

/// A file of `proto/testdata`.
pub(crate) fn testdata(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("proto/testdata").join(name)
}

macro_rules! reencode {
    ($message:expr, $bytes:expr, $($name:ident)*) => {
        match $message.name {
            $(stringify!($name) => <wire::$name as prost::Message>::decode($bytes)
                .ok()
                .map(|m| prost::Message::encode_to_vec(&m)),)*
            other => panic!("{other} is new: name it here"),
        }
    };
}

/// What prost makes of `bytes`, written again; `None` if it reads nothing.
pub(crate) fn reencode(message: &Message, bytes: &[u8]) -> Option<Vec<u8>> {
    reencode!(message, bytes,
        Record Link TraceContext ForensicReceipt Extension Call AccessRule AccessChange ToolDefinition Opened ServerLife
        Delivery Counts ClockJump GatewayEvent DirectoryEntry DirectoryContents LedgerEvent Search Alarm Disposition BatchHeader SignedBatch
        ChainHead OpenHead SignedHead HeadConsistency BatchInclusion Receipt ArchivedReceipt SegmentEntry SegmentHeader
        SegmentFrame SegmentIndex RosterEntry Roster Seal Create Remove Delegate Enrol Retire Revoke Suspect Hold Release
        SucceedRoot Incarnation Statement SignedStatement Possession SealReference TermStart LogEntry Claim EvidenceBatch
        EvidenceSegment Evidence)
}

/// Appends a minimal varint.
pub(crate) fn put_varint(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Appends a length-delimited field.
pub(crate) fn put_bytes(tag: u32, content: &[u8], out: &mut Vec<u8>) {
    put_varint(u64::from(tag) << 3 | 2, out);
    put_varint(content.len() as u64, out);
    out.extend_from_slice(content);
}

/// Appends a varint field.
pub(crate) fn put_number(tag: u32, number: u64, out: &mut Vec<u8>) {
    put_varint(u64::from(tag) << 3, out);
    put_varint(number, out);
}

/// A random message in strict form.
pub(crate) fn generate(rng: &mut Rng, message: &'static Message) -> Vec<u8> {
    let mut out = Vec::new();
    let (mut group, mut chosen) = (0, 0);
    for field in message.fields {
        let written = match field.presence {
            Presence::Required => 1,
            Presence::Implicit | Presence::Optional => rng.below(2),
            Presence::Repeated { count } => rng.below(4).min(count),
            Presence::OneOf { first, required } => {
                if group != first {
                    let of_group = |f: &&Field| matches!(f.presence, Presence::OneOf { first: g, .. } if g == first);
                    let tags: Vec<u32> = message.fields.iter().filter(of_group).map(|f| f.tag).collect();
                    (group, chosen) = (first, *rng.pick(&tags));
                    if !required && rng.one_in(3) {
                        chosen = 0;
                    }
                }
                u64::from(chosen == field.tag)
            }
        };
        put_field(rng, field, written, &mut out);
    }
    out
}

fn put_field(rng: &mut Rng, field: &'static Field, times: u64, out: &mut Vec<u8>) {
    if let (Kind::Integer { max }, Presence::Repeated { .. }) = (&field.kind, field.presence) {
        let mut packed = Vec::new();
        for _ in 0..times {
            put_varint(rng.integer(*max), &mut packed);
        }
        if times > 0 {
            put_bytes(field.tag, &packed, out);
        }
        return;
    }
    for _ in 0..times {
        match &field.kind {
            Kind::Version | Kind::Bool => put_number(field.tag, 1, out),
            Kind::Integer { max } => {
                let zero_is_absent = matches!(field.presence, Presence::Implicit);
                put_number(field.tag, rng.integer(*max).max(u64::from(zero_is_absent)), out);
            }
            Kind::Enum { max } => put_number(field.tag, 1 + rng.below(*max), out),
            Kind::Bytes { .. } | Kind::Text { .. } => put_bytes(field.tag, &content(rng, field), out),
            Kind::Message(inner) => put_bytes(field.tag, &generate(rng, inner), out),
        }
    }
}

/// Random content of a bytes or text field.
fn content(rng: &mut Rng, field: &Field) -> Vec<u8> {
    const TOKEN: &[u8] = b"ABCXYZabcxyz0189_./:@+-";
    let (Kind::Bytes { min, max } | Kind::Text { min, max, .. }) = field.kind else { unreachable!() };
    let min = min.max(u64::from(matches!(field.presence, Presence::Implicit)));
    let most = if rng.one_in(50) { max.min(5_000) } else { max.min(40) };
    let length = usize::try_from(min + rng.below(most.max(min) - min + 1)).unwrap();
    match field.kind {
        Kind::Text { text: Text::Utf8, .. } => {
            let mut text = String::new();
            while text.len() + 4 <= length {
                text.push(*rng.pick(&['a', ' ', '\0', 'é', '漢', '🦀']));
            }
            while text.len() < length {
                text.push('z');
            }
            text.into_bytes()
        }
        Kind::Text { text, .. } => {
            let letters = if text == Text::Pattern { &[TOKEN, b"*"].concat() } else { &TOKEN.to_vec() };
            (0..length).map(|_| *rng.pick(letters)).collect()
        }
        _ => rng.bytes(length),
    }
}

/// The message of this name in the table.
pub(crate) fn message(name: &str) -> &'static Message {
    table::ALL.iter().find(|message| message.name == name).expect("a message of the table")
}

/// The organisation of the golden files.
pub(crate) const ORIGIN: &str = "log.example/custody";
/// 2026-01-02T03:04:05.000006Z.
pub(crate) const AT: u64 = 1_767_323_045_000_006;

/// Keys by their one repeated byte.
pub(crate) const ROOT: u8 = 1;
pub(crate) const NEXT_ROOT: u8 = 2;
pub(crate) const LAST_ROOT: u8 = 3;
pub(crate) const REGISTRAR: u8 = 4;
pub(crate) const GATEWAY: u8 = 5;
pub(crate) const RECEIPT: u8 = 6;
pub(crate) const RECORD: u8 = 7;
pub(crate) const HEAD: u8 = 8;
pub(crate) const LOG: u8 = 9;
pub(crate) const WITNESS: u8 = 10;

/// The key whose seed is this byte 32 times.
pub(crate) fn key(byte: u8) -> SigningKey {
    SigningKey::from_bytes(&[byte; 32])
}

/// Its id in a role.
pub(crate) fn key_id(byte: u8, role: Role) -> KeyId {
    public(&key(byte)).id(role)
}

pub(crate) const WORKSPACE: WorkspaceId = WorkspaceId([0x11; 16]);
pub(crate) const GATEWAY_ID: GatewayId = GatewayId([0x22; 16]);
pub(crate) const EPOCH: Epoch = Epoch([0x33; 16]);
pub(crate) const LEDGER_ID: GatewayId = GatewayId([0x44; 16]);

/// What the eras of the root say: 1 is followed by 2, and 2 by 3.
pub(crate) fn roots() -> Roots {
    let next = crate::hash::root_successor(&public(&key(NEXT_ROOT)).to_bytes());
    Roots::new([(1, public(&key(ROOT)), next)]).unwrap()
}

/// A chain that is being written.
#[derive(Clone, Debug)]
pub(crate) struct Writer {
    pub(crate) chain: Chain,
    pub(crate) roots: Roots,
    pub(crate) objects: Vec<Vec<u8>>,
}

impl Writer {
    pub(crate) fn new(workspace: Option<WorkspaceId>) -> Self {
        Self { chain: Chain::new(ORIGIN, workspace), roots: roots(), objects: Vec::new() }
    }

    /// The statement that comes next, by the root in force.
    pub(crate) fn draft(&self, action: Action) -> wire::Statement {
        let head = self.chain.head();
        let genesis = head.count == 0;
        wire::Statement {
            version: 1,
            origin: ORIGIN.into(),
            workspace: self.chain.workspace().map(Into::into),
            serial: head.count,
            previous: head.hash.into(),
            checkpoint_size: if genesis { 0 } else { 7 },
            checkpoint_hash: if genesis { ObjectHash::ZERO } else { ObjectHash([0x77; 32]) }.into(),
            issued_at: AT + head.count,
            era: self.roots.current(),
            registrar: None,
            reason: "routine".into(),
            ticket: "OPS-7".into(),
            action: Some(action),
        }
    }

    /// Signs and applies; a refusal changes nothing.
    pub(crate) fn put(&mut self, statement: &wire::Statement, signer: u8) -> Result<(), Refused> {
        let object = sign_statement(statement, signer);
        let signed = Signed::parse(&object).expect("strict form");
        (self.chain, self.roots) = self.chain.extended(&signed, &self.roots)?;
        self.objects.push(object);
        Ok(())
    }

    /// The root says `action`, and it takes effect.
    pub(crate) fn say(&mut self, action: Action) {
        let signer = [ROOT, NEXT_ROOT, LAST_ROOT][self.roots.current() as usize - 1];
        let statement = self.draft(action);
        self.put(&statement, signer).unwrap();
    }

    /// The registrar says `action`.
    pub(crate) fn say_as_registrar(&mut self, action: Action) -> Result<(), Refused> {
        let mut statement = self.draft(action);
        statement.registrar = Some(key_id(REGISTRAR, Role::Registrar).into());
        self.put(&statement, REGISTRAR)
    }
}

pub(crate) fn sign_statement(statement: &wire::Statement, signer: u8) -> Vec<u8> {
    let bytes = prost::Message::encode_to_vec(statement);
    encode_signed(&bytes, sign(&key(signer), Context::Statement, &bytes))
}

/// Proof that the holder of this key has it.
pub(crate) fn proof(workspace: Option<WorkspaceId>, role: Role, byte: u8, gateway: Option<GatewayId>) -> bytes::Bytes {
    let said = possession(ORIGIN, workspace, role, public(&key(byte)), gateway);
    bytes::Bytes::copy_from_slice(&sign(&key(byte), Context::Possession, &said))
}

/// Enrols a key with its proof of possession.
pub(crate) fn enrol(workspace: Option<WorkspaceId>, role: Role, byte: u8, gateway: Option<GatewayId>) -> Action {
    Action::Enrol(wire::Enrol {
        role: role as i32,
        public_key: public_bytes(byte),
        gateway: gateway.map(Into::into),
        name: format!("key-{byte}"),
        possession: Some(proof(workspace, role, byte, gateway)),
    })
}

/// Gives the registrar a mandate.
pub(crate) fn delegate(enrolments_max: u32) -> Action {
    Action::Delegate(wire::Delegate {
        public_key: public_bytes(REGISTRAR),
        enrolments_max,
        possession: proof(Some(WORKSPACE), Role::Registrar, REGISTRAR, None),
    })
}

pub(crate) fn create(name: &str) -> Action {
    Action::Create(wire::Create { name: name.into() })
}

pub(crate) fn public_bytes(byte: u8) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(&public(&key(byte)).to_bytes())
}

/// The ledger's chain with its three keys.
pub(crate) fn ledger_chain() -> Writer {
    let mut writer = Writer::new(None);
    writer.say(enrol(None, Role::Record, RECORD, Some(LEDGER_ID)));
    writer.say(enrol(None, Role::Head, HEAD, None));
    writer.say(enrol(None, Role::Log, LOG, None));
    writer
}

/// A workspace's chain with a registrar and a gateway.
pub(crate) fn workspace_chain() -> Writer {
    let mut writer = Writer::new(Some(WORKSPACE));
    writer.say(create("payments"));
    writer.say(delegate(2));
    writer.say_as_registrar(enrol(Some(WORKSPACE), Role::Gateway, GATEWAY, Some(GATEWAY_ID))).unwrap();
    writer
}
