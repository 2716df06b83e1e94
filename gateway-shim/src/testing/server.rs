//! The ledger of `ledger.rs` behind the real gRPC service, on loopback, and a gateway that ships to it.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use custody::{
    id::{Epoch, GatewayId, KeyId},
    wire::{
        self, FromGateway, FromLedger, RejectReason, from_gateway,
        from_ledger::Message,
        ingest_server::{Ingest, IngestServer},
        member_enrolled::Answer,
    },
};
use prost::Message as _;
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle};
use tokio_stream::{
    Stream, StreamExt as _,
    wrappers::{ReceiverStream, TcpListenerStream},
};
use tonic::{Request, Response, Status, Streaming, transport};

use super::{TempDir, ledger::Ledger};
use crate::{
    batcher,
    client::Link,
    clock,
    config::{ForkConfig, WhenFull},
    durable::{Disk, Folder},
    forensic::Signers,
    gateway::{Gateway, Parts},
    key, spool,
    writer::{Settings, Waits},
};

pub(crate) const GATEWAY: GatewayId = GatewayId([9; 16]);

/// What the ledger does to the next batch instead of taking it.
#[derive(Clone, Debug)]
pub(crate) enum Trick {
    Pushback,
    Reject(RejectReason),
    /// Takes it, and ends the stream without a receipt.
    Vanish,
    /// Ends the stream without taking it.
    Lose,
    /// Answers with a head of another history.
    Fork,
}

#[derive(Default)]
pub(crate) struct Script {
    pub(crate) tricks: VecDeque<Trick>,
    /// Cuts and archives after each batch.
    pub(crate) archives: bool,
    /// Answers a request for a certificate.
    pub(crate) certificate: Option<String>,
    pub(crate) hellos: Vec<wire::Hello>,
    /// Every batch of this key is refused for this reason.
    pub(crate) refused: Option<(KeyId, RejectReason)>,
    /// Every batch that came, as it came.
    pub(crate) came: Vec<Bytes>,
    /// Answers to who somebody is: an id, or a refusal for so many milliseconds; `None` ends the stream. With none left
    /// all are refused.
    pub(crate) enrolments: VecDeque<Option<Result<[u8; 16], u32>>>,
    /// What was asked.
    pub(crate) enrolled: Vec<wire::EnrolMember>,
}

#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) ledger: Arc<Mutex<Ledger>>,
    pub(crate) script: Arc<Mutex<Script>>,
}

pub(crate) struct Server {
    pub(crate) shared: Shared,
    pub(crate) address: SocketAddr,
    pub(crate) key: ed25519_dalek::SigningKey,
    task: JoinHandle<()>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::with_key(key::generate()).await
    }

    pub(crate) async fn with_key(key: ed25519_dalek::SigningKey) -> Self {
        let ledger = Ledger::new(GATEWAY, &key);
        let shared = Shared { ledger: Arc::new(Mutex::new(ledger)), script: Arc::default() };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = serve(shared.clone(), listener);
        Self { shared, address, key, task }
    }

    /// The process dies; its streams break.
    pub(crate) fn kill(&self) {
        self.task.abort();
    }

    /// It comes back at the same address, with what it had, or with another ledger.
    pub(crate) async fn restart(&mut self) {
        let listener = loop {
            match TcpListener::bind(self.address).await {
                Ok(listener) => break listener,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        self.task = serve(self.shared.clone(), listener);
    }

    pub(crate) fn tricks(&self, tricks: impl IntoIterator<Item = Trick>) {
        self.shared.script.lock().unwrap().tricks.extend(tricks);
    }

    pub(crate) fn parts(&self, dir: &TempDir) -> Parts {
        let ledger = self.shared.ledger.lock().unwrap();
        let who = ledger.who(GATEWAY);
        let opened = wire::Opened {
            product: "test".into(),
            product_version: "1".into(),
            configuration_digest: Bytes::from_static(&[0; 32]),
            clock: 0,
            class: wire::WriterClass::AlwaysOn as i32,
            silence_us_max: 600_000_000,
        };
        let limits = batcher::Limits {
            records_max: 4,
            bytes_max: 100_000,
            age_max: Duration::from_millis(5),
            heartbeat_after: Duration::from_secs(200),
        };
        let settings = Settings {
            who: who.clone(),
            key: self.key.clone(),
            limits,
            when_full: WhenFull::Spool,
            servers: std::collections::BTreeMap::new(),
            signers: Signers::default(),
            receipt_metadata: std::collections::BTreeMap::new(),
            away_max: Duration::from_secs(30),
            waits: Waits::default(),
            clocks: clock::Clocks::real(),
            opened,
        };
        Parts {
            who,
            settings,
            link: Link { endpoint: format!("http://{}", self.address), tls: None },
            roots: ledger.roots(),
            fork: ForkConfig {
                dir: dir.path().join("forks"),
                second: Some(dir.path().join("second").to_string_lossy().into_owned()),
            },
            drain_wait: Duration::from_secs(10),
        }
    }

    pub(crate) async fn gateway(&self, dir: &TempDir) -> Gateway {
        let disk = loop {
            // The thread of a gateway that was dropped may still hold the folder.
            match Folder::open(&dir.path().join("spool")) {
                Ok(folder) => break folder,
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
            }
            tokio::task::yield_now().await;
        };
        Gateway::start(Box::new(disk) as Box<dyn Disk>, spool::Limits::of_mib(8), self.parts(dir)).unwrap()
    }
}

fn serve(shared: Shared, listener: TcpListener) -> JoinHandle<()> {
    tokio::spawn(async move {
        let router = transport::Server::builder().add_service(IngestServer::new(shared));
        router.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
    })
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<FromLedger, Status>> + Send>>;

#[tonic::async_trait]
impl Ingest for Shared {
    type SubmitStream = Answers;

    async fn submit(&self, call: Request<Streaming<FromGateway>>) -> Result<Response<Answers>, Status> {
        let mut incoming = call.into_inner();
        let (outbox, answers) = mpsc::channel(4_096);
        let shared = self.clone();
        tokio::spawn(async move {
            let Some(Ok(FromGateway { message: Some(from_gateway::Message::Hello(hello)) })) = incoming.next().await
            else {
                return;
            };
            let mut head = shared.welcome(&hello, &outbox).await;
            while let Some(Ok(message)) = incoming.next().await {
                let answers = match message.message {
                    Some(from_gateway::Message::Batch(bytes)) => shared.take(bytes, &mut head),
                    Some(from_gateway::Message::RenewCertificate(request)) => {
                        assert!(request.contains("BEGIN CERTIFICATE REQUEST"), "{request}");
                        shared.script.lock().unwrap().certificate.take().map(|pem| vec![Message::Certificate(pem)])
                    }
                    Some(from_gateway::Message::EnrolMember(asked)) => shared.enrol(asked),
                    _ => continue,
                };
                let Some(answers) = answers else { return };
                for answer in answers {
                    outbox.send(FromLedger { message: Some(answer) }).await.ok();
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers).map(Ok))))
    }
}

impl Shared {
    async fn welcome(&self, hello: &wire::Hello, outbox: &mpsc::Sender<FromLedger>) -> Bytes {
        let (statements, welcome, head) = {
            self.script.lock().unwrap().hellos.push(hello.clone());
            let ledger = self.ledger.lock().unwrap();
            let skip = |count: u64| usize::try_from(count).unwrap();
            let lacking = ledger.ledger_statements.iter().skip(skip(hello.ledger_statements));
            let of_workspace = ledger.workspace_statements.iter().skip(skip(hello.workspace_statements));
            let statements: Vec<Bytes> = lacking.chain(of_workspace).cloned().collect();
            let (epoch, next_batch, hash) = ledger.resume();
            let welcome = wire::Welcome {
                receipt: ledger.receipt(&hello.last_head, &[]).encode_to_vec().into(),
                epoch,
                next_batch,
                last_header_hash: hash.into(),
                batches_in_flight_max: 8,
                bytes_in_flight_max: 1 << 20,
            };
            (statements, welcome, ledger.signed_head())
        };
        for statement in statements {
            outbox.send(FromLedger { message: Some(Message::Statement(statement)) }).await.ok();
        }
        outbox.send(FromLedger { message: Some(Message::Welcome(welcome)) }).await.ok();
        head
    }

    /// `None` ends the stream.
    fn enrol(&self, asked: wire::EnrolMember) -> Option<Vec<Message>> {
        let mut script = self.script.lock().unwrap();
        let number = asked.number;
        script.enrolled.push(asked);
        let answer = match script.enrolments.pop_front().unwrap_or(Some(Err(0)))? {
            Ok(member) => Answer::Member(Bytes::copy_from_slice(&member)),
            Err(retry_after_ms) => Answer::Refusal(wire::MemberRefusal { retry_after_ms, detail: "a test".into() }),
        };
        Some(vec![Message::MemberEnrolled(wire::MemberEnrolled { number, answer: Some(answer) })])
    }

    /// `None` ends the stream.
    fn take(&self, bytes: Bytes, head: &mut Bytes) -> Option<Vec<Message>> {
        let mut script = self.script.lock().unwrap();
        let mut ledger = self.ledger.lock().unwrap();
        script.came.push(bytes.clone());
        let header = custody::batch::Submitted::parse(bytes.clone()).unwrap().header;
        let name = (header.epoch, header.batch_number);
        let reject = |reason: RejectReason, expected_batch: u64| {
            vec![Message::Rejection(wire::Rejection {
                epoch: name.0.into(),
                batch_number: name.1,
                reason: reason as i32,
                detail: "a test".into(),
                expected_batch,
            })]
        };
        if let Some((_, reason)) = script.refused.filter(|(key_id, _)| *key_id == header.key_id) {
            return Some(reject(reason, 0));
        }
        match script.tricks.pop_front() {
            Some(Trick::Pushback) => {
                return Some(vec![Message::Pushback(wire::Pushback {
                    epoch: name.0.into(),
                    batch_number: name.1,
                    retry_after_ms: 1,
                    detail: "a test".into(),
                })]);
            }
            Some(Trick::Reject(reason)) => return Some(reject(reason, 0)),
            Some(Trick::Vanish) => {
                if ledger.append(bytes.clone()).is_ok() {
                    return None;
                }
                // Not this batch, which comes too early, but the one that is missing.
                script.tricks.push_front(Trick::Vanish);
            }
            Some(Trick::Lose) => return None,
            Some(Trick::Fork) => {
                let mut other = ledger.clone();
                other.cut();
                let lie = other.receipt(&[], &[]);
                return Some(vec![Message::Receipt(lie.encode_to_vec().into())]);
            }
            None => {}
        }
        if let Err(reason) = ledger.append(bytes) {
            let expected = ledger.numbering.epochs.get(&name.0).map_or(0, |state| state.last_batch + 1);
            return Some(reject(reason, expected));
        }
        let mut answers = vec![self.receipt(&ledger, head, &[name])];
        if script.archives {
            let segment = ledger.cut();
            answers.push(self.receipt(&ledger, head, &[]));
            answers.push(Message::Archived(ledger.archived(segment).encode_to_vec().into()));
        }
        Some(answers)
    }

    fn receipt(&self, ledger: &Ledger, head: &mut Bytes, names: &[(Epoch, u64)]) -> Message {
        let receipt = ledger.receipt(head, names);
        *head = receipt.signed_head.clone();
        Message::Receipt(receipt.encode_to_vec().into())
    }
}
