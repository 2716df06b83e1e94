//! A gateway as the ledger meets it: keys, enrolment through the command line, a stream over mutual TLS, signed batches, and
//! every receipt held against what this gateway knows.
//!
//! What must hold: it believes nothing but the root key; a head counts only if its signature, its key chains and its
//! consistency with the last head verify, and a batch is acknowledged only with its inclusion under that head. What it says
//! is durable lives in this process, which stands for the disk of a gateway that does not crash.

use std::{collections::VecDeque, path::Path, time::Duration};

use bytes::Bytes;
use custody::{
    FORMAT_VERSION,
    batch::{Header, Submitted, encode_signed, seal_header},
    hash::object_hash,
    head::{Head, SignedHead, history_leaf, includes_batch, is_consistent, nodes},
    id::{Epoch, GatewayId, HeaderHash, LeafHash, RootHash, WorkspaceId, hex},
    key::{self, Context},
    log::encode_seal_entry,
    merkle::{HistoryTree, LogTree, log_leaf, verify_inclusion},
    note::SignedCheckpoint,
    policy::Policy,
    record,
    segment::Seal,
    statement::{Chain, ChainHead, Roots, Signed, possession},
    strict::{self, table},
    wire::{
        self, ClockState, OpeningReason, Role, WriterClass, from_gateway, from_ledger::Message, gateway_event,
        ingest_client::IngestClient, record::Kind,
    },
};
use ed25519_dalek::SigningKey;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status, Streaming,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use crate::process::{Home, Process, write};

mod receipts;

/// Messages that may wait for the stream.
const OUTBOX_MAX: usize = 256;
/// Limit of a connection's start and of a wait for an answer: generous, it only bounds a failure.
pub const ANSWER: Duration = Duration::from_secs(30);

/// Why a stream is of no more use.
#[derive(Debug)]
pub enum Fault {
    /// The ledger is not there, or went away.
    Gone(String),
    /// It refused the stream.
    Refused(Status),
    /// It said what it may not say: a fork, or a receipt that proves nothing.
    Lie(String),
}

fn lie<T>(what: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::Lie(what.into()))
}

/// What the ledger said, after it was checked.
#[derive(Debug)]
pub enum Heard {
    /// A statement of a chain.
    Statement,
    /// The welcome: the epoch that it knows, and the batch that comes next there.
    Welcome(Option<Epoch>, u64),
    /// Receipts for so many batches that had none.
    Receipt(usize),
    /// A segment is archived.
    Archived(u64),
    /// A batch was refused.
    Rejection(wire::Rejection),
    /// A batch must come again later.
    Pushback(wire::Pushback),
    /// A new certificate.
    Certificate(String),
    /// Who somebody is.
    Member(wire::MemberEnrolled),
}

/// A batch with its receipt: what the ledger owes from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields of an inclusion, described in head.proto")]
pub struct Acknowledged {
    pub workspace: WorkspaceId,
    pub gateway: GatewayId,
    pub epoch: Epoch,
    pub batch_number: u64,
    pub header_hash: HeaderHash,
    pub records: u64,
    pub segment: u64,
    pub leaf_index: u64,
    pub first_position: u64,
    pub received_at: u64,
    pub term: u64,
}

/// Random bytes.
#[expect(clippy::disallowed_methods, reason = "a gateway of tests makes its own keys")]
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the system gives random bytes");
    bytes
}

/// Microseconds since 1970.
#[expect(clippy::disallowed_methods, reason = "a gateway of tests has the machine's own clock")]
pub fn now_us() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

/// How it reaches the ledger.
#[derive(Clone, Debug)]
pub struct Door {
    /// PEM of its certificate with the authority's.
    pub certificate: String,
    /// PEM of the certificate's key.
    pub tls_key: String,
    /// PEM of the ledger's authority.
    pub authority: String,
}

/// A gateway with all that it knows.
pub struct Gateway {
    /// Name of the log.
    pub origin: String,
    /// Its workspace.
    pub workspace: WorkspaceId,
    /// Its id.
    pub gateway: GatewayId,
    /// Signs its batches.
    pub key: SigningKey,
    /// Certificates.
    pub door: Door,
    /// The open epoch.
    pub epoch: Epoch,
    /// Number of its next batch.
    pub next_batch: u64,
    /// Number of its next record.
    pub next_record: u64,
    /// Hash of the header before.
    pub previous: HeaderHash,
    /// Batches without a receipt, in order: the spool.
    pub waiting: VecDeque<Submitted>,
    /// Batches with one.
    pub acknowledged: Vec<Acknowledged>,
    /// Number of segments that are archived, as proven.
    pub archived: u64,
    last_head: Option<(Bytes, Head)>,
    roots: Roots,
    ledger: Chain,
    chain: Chain,
    ledger_heads: Vec<ChainHead>,
    chain_heads: Vec<ChainHead>,
}

/// An open stream.
pub struct Session {
    outgoing: mpsc::Sender<wire::FromGateway>,
    incoming: Streaming<wire::FromLedger>,
}

impl Session {
    /// Sends bytes as a batch.
    ///
    /// # Errors
    /// [`Fault::Gone`].
    pub async fn send(&self, batch: Bytes) -> Result<(), Fault> {
        self.say(from_gateway::Message::Batch(batch)).await
    }

    /// Sends any message.
    ///
    /// # Errors
    /// [`Fault::Gone`].
    pub async fn say(&self, message: from_gateway::Message) -> Result<(), Fault> {
        let message = wire::FromGateway { message: Some(message) };
        self.outgoing.send(message).await.map_err(|_| Fault::Gone("the stream ended".to_owned()))
    }
}

impl Gateway {
    /// Makes a gateway and its request, not enrolled yet.
    pub fn request(home: &Home, workspace: WorkspaceId) -> (Self, serde_json::Value) {
        let policy = std::fs::read(home.policy()).expect("init wrote a policy");
        let roots = Policy::parse(&policy).expect("the policy is in form").roots().expect("it has roots");
        // What an earlier root said of a workspace still holds after a succession.
        let roots = roots.with_past();
        let (gateway, key) = (GatewayId(random()), SigningKey::from_bytes(&random()));
        let public = key::public(&key);
        let tls = rcgen::KeyPair::generate().expect("a key for TLS");
        let message = possession(&home.origin, Some(workspace), Role::Gateway, public, Some(gateway));
        let request = serde_json::json!({
            "version": 1,
            "origin": home.origin,
            "workspace": workspace.to_string(),
            "gateway": gateway.to_string(),
            "name": "",
            "public_key": hex(&public.to_bytes()),
            "possession": hex(&key::sign(&key, Context::Possession, &message)),
            "tls_request": certificate_request(&tls),
        });
        let door = Door { certificate: String::new(), tls_key: tls.serialize_pem(), authority: String::new() };
        let made = Self {
            origin: home.origin.clone(),
            workspace,
            gateway,
            key,
            door,
            epoch: Epoch(random()),
            next_batch: 0,
            next_record: 0,
            previous: HeaderHash::ZERO,
            waiting: VecDeque::new(),
            acknowledged: Vec::new(),
            archived: 0,
            last_head: None,
            roots,
            ledger: Chain::new(&home.origin, None),
            chain: Chain::new(&home.origin, Some(workspace)),
            ledger_heads: vec![ChainHead::GENESIS],
            chain_heads: vec![ChainHead::GENESIS],
        };
        (made, request)
    }

    /// Makes a gateway and has the root enrol it.
    pub fn enrol(home: &Home, workspace: WorkspaceId) -> Self {
        let key = home.root_key();
        let key = key.to_str().expect("paths of tests are text").to_owned();
        Self::enrol_signed(home, workspace, &["--root-key", &key])
    }

    /// Makes a gateway and enrols it, signed as `signing` says.
    pub fn enrol_signed(home: &Home, workspace: WorkspaceId, signing: &[&str]) -> Self {
        let (mut made, request) = Self::request(home, workspace);
        let (asked, answered) = made.files(home);
        write(Path::new(&asked), request.to_string().as_bytes());
        home.say(&[&["gateway", "enrol", &asked, "--out", &answered], signing].concat());
        made.take_answer(Path::new(&answered));
        made
    }

    /// Names of the request's and the answer's file.
    pub fn files(&self, home: &Home) -> (String, String) {
        let file = |what: &str| home.dir.join(format!("{}.{what}.json", self.gateway)).display().to_string();
        (file("request"), file("answer"))
    }

    /// Takes what `ledger gateway enrol` answered.
    pub fn take_answer(&mut self, file: &Path) {
        let answer = std::fs::read(file).expect("the enrolment has an answer");
        let answer: serde_json::Value = serde_json::from_slice(&answer).expect("it is JSON");
        let field = |name: &str| answer[name].as_str().expect("it has the field").to_owned();
        self.door.certificate = field("certificate");
        self.door.authority = field("authority");
    }

    /// The last `SignedHead`; empty for none.
    pub fn last_head(&self) -> Bytes {
        self.last_head.as_ref().map(|(bytes, _)| bytes.clone()).unwrap_or_default()
    }

    /// The last head.
    pub fn head(&self) -> Option<&Head> {
        self.last_head.as_ref().map(|(_, head)| head)
    }

    /// Opens the gateway's next epoch.
    pub fn new_epoch(&mut self) {
        (self.epoch, self.next_batch, self.next_record) = (Epoch(random()), 0, 0);
    }

    /// A header for the next batch, without root and count.
    pub fn header(&self) -> Header {
        let opens_first = self.next_batch == 0 && self.previous == HeaderHash::ZERO;
        Header {
            origin: self.origin.clone(),
            workspace: self.workspace,
            gateway: self.gateway,
            key_id: key::public(&self.key).id(Role::Gateway),
            epoch: self.epoch,
            batch_number: self.next_batch,
            first_record: self.next_record,
            record_count: 0,
            previous: self.previous,
            opening_reason: opens_first.then_some(OpeningReason::First),
            batch_root: RootHash::ZERO,
            last_head: self.last_head(),
            dropped: 0,
            drop_reason: None,
            heartbeat: false,
            close: false,
            created_at: now_us(),
        }
    }

    /// Records for the next batch: the writer's where it opens the epoch, then so many calls.
    pub fn records(&self, calls: u64) -> Vec<Bytes> {
        let mut records = Vec::new();
        if self.next_batch == 0 {
            records.push(opened());
        }
        records.extend((0..calls).map(|n| call(self.next_record + n)));
        records
    }

    /// Signs a header over records, as it stands: bytes of a `SignedBatch`.
    pub fn sign(&self, mut header: Header, records: &[Bytes]) -> Bytes {
        let seed = random();
        header.heartbeat = records.is_empty() && !header.close;
        seal_header(&mut header, &seed, records);
        encode_signed(&header.encode(), &self.key, &seed, records).into()
    }

    /// The next batch with so many calls; it waits for its receipt from now on.
    pub fn batch(&mut self, calls: u64) -> Bytes {
        let bytes = self.sign(self.header(), &self.records(calls));
        self.keep(bytes.clone());
        bytes
    }

    /// Takes a batch of its own into the spool.
    pub fn keep(&mut self, bytes: Bytes) {
        let batch = Submitted::parse(bytes).expect("own batches are in form");
        self.previous = batch.header_hash();
        self.next_batch = batch.header.batch_number + 1;
        self.next_record = batch.header.next_record();
        self.waiting.push_back(batch);
    }

    /// Opens a stream and reads up to the welcome.
    ///
    /// # Errors
    /// [`Fault`].
    pub async fn connect(&mut self, port: u16) -> Result<Session, Fault> {
        let hello = self.hello();
        let channel = self.door.channel(port).await?;
        let mut session = open(channel, hello).await?;
        loop {
            if let Heard::Welcome(epoch, next) = self.hear(&mut session).await? {
                self.check_welcome(epoch, next)?;
                return Ok(session);
            }
        }
    }

    /// The first message.
    pub fn hello(&self) -> wire::Hello {
        wire::Hello {
            origin: self.origin.clone(),
            workspace: self.workspace.into(),
            gateway: self.gateway.into(),
            last_head: self.last_head(),
            ledger_statements: self.ledger.head().count,
            workspace_statements: self.chain.head().count,
            product: "custody-tests".to_owned(),
            product_version: "1".to_owned(),
        }
    }

    /// Nothing that has a receipt may be unknown to the ledger, and nothing that was never sent known to it.
    fn check_welcome(&self, epoch: Option<Epoch>, next: u64) -> Result<(), Fault> {
        let last = self.acknowledged.iter().rev().find(|known| known.epoch == self.epoch);
        match (last, epoch) {
            (Some(last), Some(epoch)) if epoch == self.epoch && next > last.batch_number => {}
            (Some(last), known) => {
                return lie(format!(
                    "batch {} is acknowledged, the ledger knows {known:?} up to {next}",
                    last.batch_number
                ));
            }
            (None, _) => {}
        }
        if epoch == Some(self.epoch) && next > self.next_batch {
            return lie(format!("the ledger knows {next} batches of {}", self.next_batch));
        }
        Ok(())
    }

    /// The next message, checked.
    ///
    /// # Errors
    /// [`Fault`].
    pub async fn hear(&mut self, session: &mut Session) -> Result<Heard, Fault> {
        let next = tokio::time::timeout(ANSWER, session.incoming.message()).await;
        let Ok(next) = next else { return Err(Fault::Gone(format!("no answer within {ANSWER:?}"))) };
        let next = next.map_err(|why| Fault::Gone(why.to_string()))?;
        let Some(message) = next.and_then(|next| next.message) else {
            return Err(Fault::Gone("the ledger ended the stream".to_owned()));
        };
        match message {
            Message::Statement(object) => self.take_statement(&object).map(|()| Heard::Statement),
            Message::Welcome(welcome) => {
                self.take_receipt(&welcome.receipt)?;
                let epoch = Epoch::try_from(welcome.epoch.as_ref()).ok();
                Ok(Heard::Welcome(epoch, welcome.next_batch))
            }
            Message::Receipt(bytes) => self.take_receipt(&bytes).map(Heard::Receipt),
            Message::Archived(bytes) => self.take_archived(&bytes).map(Heard::Archived),
            Message::Rejection(rejection) => Ok(Heard::Rejection(rejection)),
            Message::Pushback(pushback) => Ok(Heard::Pushback(pushback)),
            Message::Certificate(pem) => Ok(Heard::Certificate(pem)),
            Message::MemberEnrolled(told) => Ok(Heard::Member(told)),
        }
    }

    /// Hears until every batch has its receipt.
    ///
    /// # Errors
    /// [`Fault`]; a refusal of a batch is [`Fault::Lie`] with its words.
    pub async fn settle(&mut self, session: &mut Session) -> Result<(), Fault> {
        while !self.waiting.is_empty() {
            match self.hear(session).await? {
                Heard::Rejection(rejection) => return lie(format!("refused: {rejection:?}")),
                Heard::Pushback(pushback) => return lie(format!("pushed back: {pushback:?}")),
                _ => {}
            }
        }
        Ok(())
    }

    /// Ships records in its next batch, after the writer's own if it opens an epoch; they must be taken.
    ///
    /// # Panics
    /// When they are not.
    pub async fn ship(&mut self, session: &mut Session, records: impl IntoIterator<Item = Bytes>) {
        let mut all: Vec<Bytes> = if self.header().opens() { vec![opened()] } else { Vec::new() };
        all.extend(records);
        let batch = self.sign(self.header(), &all);
        self.keep(batch.clone());
        session.send(batch).await.expect("the stream is open");
        self.settle(session).await.expect("the batch is taken");
    }

    /// Ships its next batch, with so many calls, which must be taken.
    pub async fn ship_one(&mut self, session: &mut Session, calls: u64) {
        let batch = self.batch(calls);
        let sent = session.send(batch).await;
        sent.unwrap_or_else(|why| panic!("{why:?}"));
        self.settle(session).await.unwrap_or_else(|why| panic!("{why:?}"));
    }

    /// Hears until a batch is refused.
    ///
    /// # Errors
    /// [`Fault`].
    pub async fn refusal(&mut self, session: &mut Session) -> Result<wire::Rejection, Fault> {
        loop {
            if let Heard::Rejection(rejection) = self.hear(session).await? {
                return Ok(rejection);
            }
        }
    }
}

impl Door {
    /// A connection with this certificate.
    ///
    /// # Errors
    /// [`Fault::Gone`].
    pub async fn channel(&self, port: u16) -> Result<Channel, Fault> {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.authority))
            .identity(Identity::from_pem(&self.certificate, &self.tls_key))
            .domain_name("localhost");
        let endpoint = Endpoint::from_shared(format!("https://127.0.0.1:{port}"));
        let endpoint = endpoint.and_then(|endpoint| endpoint.tls_config(tls));
        let endpoint = endpoint.map_err(|why| Fault::Gone(why.to_string()))?.connect_timeout(ANSWER);
        endpoint.connect().await.map_err(|why| Fault::Gone(format!("{why:?}")))
    }
}

/// Opens a stream with a first message, and hears nothing yet.
///
/// # Errors
/// [`Fault::Refused`] with the ledger's own status, or [`Fault::Gone`].
pub async fn open(channel: Channel, hello: wire::Hello) -> Result<Session, Fault> {
    let (outgoing, messages) = mpsc::channel(OUTBOX_MAX);
    let session_out = outgoing.clone();
    let hello = wire::FromGateway { message: Some(from_gateway::Message::Hello(hello)) };
    outgoing.send(hello).await.map_err(|_| Fault::Gone("no stream".to_owned()))?;
    let mut remote = IngestClient::new(channel).max_decoding_message_size(16 << 20);
    let answer = tokio::time::timeout(ANSWER, remote.submit(ReceiverStream::new(messages))).await;
    let answer = answer.map_err(|_| Fault::Gone("no answer to the greeting".to_owned()))?;
    let incoming = answer.map_err(Fault::Refused)?.into_inner();
    Ok(Session { outgoing: session_out, incoming })
}

/// A ledger that serves, with one gateway in a workspace `payments`, whose stream is open.
pub async fn served(name: &str, settings: &str) -> (Home, Process, Gateway, Session) {
    let home = Home::new(name, settings);
    let process = home.start();
    let mut gateway = Gateway::enrol(&home, home.workspace("payments"));
    let session = gateway.connect(home.grpc).await.expect("a gateway that is enrolled gets a stream");
    (home, process, gateway, session)
}

/// Ships so many batches of three calls each, one after the other.
pub async fn ship(gateway: &mut Gateway, session: &mut Session, batches: u64) {
    for _ in 0..batches {
        gateway.ship_one(session, 3).await;
    }
}

/// A PEM certificate request for a key, naming nobody: the ledger says who it is.
pub fn certificate_request(key: &rcgen::KeyPair) -> String {
    let params = rcgen::CertificateParams::new(Vec::new()).expect("no names are good names");
    params.serialize_request(key).and_then(|request| request.pem()).expect("a request for a certificate")
}

/// The record of the writer.
pub fn opened() -> Bytes {
    let opened = wire::Opened {
        product: "custody-tests".to_owned(),
        product_version: "1".to_owned(),
        configuration_digest: Bytes::from_static(&[0; 32]),
        clock: ClockState::Unknown as i32,
        class: WriterClass::Intermittent as i32,
        silence_us_max: 0,
    };
    let event = Some(gateway_event::Event::Opened(opened));
    record::encode(Kind::GatewayEvent(wire::GatewayEvent { at: now_us(), event })).into()
}

/// A call.
pub fn call(number: u64) -> Bytes {
    record::encode(Kind::Call(wire::Call {
        call_number: number,
        phase: 1,
        mode: 1,
        server: "s".to_owned(),
        decision: 1,
        started_at: now_us(),
        outcome: 1,
        ..Default::default()
    }))
    .into()
}

/// The version that every message carries.
pub const VERSION: u32 = FORMAT_VERSION;
