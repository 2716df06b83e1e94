//! A gateway as far as a ledger can see: its chain of headers, signed in advance, and its stream.

use bytes::Bytes;
use custody::{
    batch::{Header, encode_signed, seal_header},
    hash::header_hash,
    id::{Epoch, GatewayId, HeaderHash, RootHash, WorkspaceId},
    key::{self, PublicKey},
    wire::{
        self, FromGateway, FromLedger, OpeningReason, Role, from_gateway, from_ledger, ingest_client::IngestClient,
    },
};
use ed25519_dalek::SigningKey;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};

use crate::{Done, records};

/// Messages that wait for the connection.
const OUTBOX_MAX: usize = 64;

/// A batch that is ready to be sent.
pub(crate) struct Signed {
    pub(crate) bytes: Bytes,
    pub(crate) number: u64,
    pub(crate) first_record: u64,
    pub(crate) records: u64,
}

/// What a gateway signs next.
pub(crate) struct Chain {
    pub(crate) origin: String,
    pub(crate) workspace: WorkspaceId,
    pub(crate) gateway: GatewayId,
    pub(crate) key: SigningKey,
    which: u64,
    /// Microseconds between two of its calls.
    pub(crate) pace_us: u64,
    epoch: Epoch,
    next_batch: u64,
    next_record: u64,
    previous: HeaderHash,
    /// The last head that this gateway was given: it stands in every header, as a real gateway's does.
    pub(crate) last_head: Bytes,
}

impl Chain {
    /// A gateway with random ids.
    pub(crate) fn new(origin: &str, workspace: WorkspaceId, which: u64) -> Self {
        Self {
            origin: origin.to_owned(),
            workspace,
            gateway: GatewayId(::ledger::keys::random()),
            key: ::ledger::keys::generate(),
            which,
            pace_us: records::PACE_US,
            epoch: Epoch(::ledger::keys::random()),
            next_batch: 0,
            next_record: 0,
            previous: HeaderHash::ZERO,
            last_head: Bytes::new(),
        }
    }

    /// One that no ledger knows.
    pub(crate) fn fixed(which: u64) -> Self {
        Self::new("bench.example/custody", WorkspaceId([7; 16]), which)
    }

    pub(crate) fn public(&self) -> PublicKey {
        key::public(&self.key)
    }

    /// The next batch, with so many calls.
    pub(crate) fn calls(&mut self, count: u64, with_trace: bool) -> Signed {
        let numbers = self.next_record..self.next_record + count;
        self.batch(numbers.map(|number| records::encoded(self.which, number, with_trace, self.pace_us)).collect())
    }

    /// The batch that opens the epoch.
    pub(crate) fn opening(&mut self) -> Signed {
        self.batch(vec![records::opened()])
    }

    fn batch(&mut self, records: Vec<Bytes>) -> Signed {
        let mut header = Header {
            origin: self.origin.clone(),
            workspace: self.workspace,
            gateway: self.gateway,
            key_id: self.public().id(Role::Gateway),
            epoch: self.epoch,
            batch_number: self.next_batch,
            first_record: self.next_record,
            record_count: 0,
            previous: self.previous,
            opening_reason: (self.next_batch == 0).then_some(OpeningReason::First),
            batch_root: RootHash::ZERO,
            last_head: self.last_head.clone(),
            dropped: 0,
            drop_reason: None,
            heartbeat: false,
            close: false,
            created_at: records::BEGINNING + self.next_record * self.pace_us,
        };
        let seed: [u8; 32] = ::ledger::keys::random();
        seal_header(&mut header, &seed, &records);
        let bytes = header.encode();
        let signed = Signed {
            bytes: encode_signed(&bytes, &self.key, &seed, &records).into(),
            number: self.next_batch,
            first_record: self.next_record,
            records: records.len() as u64,
        };
        self.previous = header_hash(&bytes);
        self.next_batch += 1;
        self.next_record += signed.records;
        signed
    }
}

/// An open stream.
pub(crate) struct Stream {
    outbox: mpsc::Sender<FromGateway>,
    incoming: Streaming<FromLedger>,
}

/// The half that sends.
#[derive(Clone)]
pub(crate) struct Sending(mpsc::Sender<FromGateway>);

impl Sending {
    pub(crate) async fn batch(&self, bytes: Bytes) -> Done {
        let message = FromGateway { message: Some(from_gateway::Message::Batch(bytes)) };
        self.0.send(message).await.map_err(|_| "the ledger closed a stream".into())
    }
}

impl Stream {
    /// Greets, and waits for the Welcome.
    pub(crate) async fn open(channel: Channel, chain: &Chain) -> Done<Self> {
        let mut client = IngestClient::new(channel).max_decoding_message_size(8 << 20);
        let (outbox, outgoing) = mpsc::channel(OUTBOX_MAX);
        let hello = wire::Hello {
            origin: chain.origin.clone(),
            workspace: chain.workspace.into(),
            gateway: chain.gateway.into(),
            product: "custody-bench".to_owned(),
            product_version: "1".to_owned(),
            ..Default::default()
        };
        outbox.send(FromGateway { message: Some(from_gateway::Message::Hello(hello)) }).await?;
        let mut incoming = client.submit(ReceiverStream::new(outgoing)).await?.into_inner();
        loop {
            match incoming.message().await?.and_then(|message| message.message) {
                Some(from_ledger::Message::Welcome(_)) => return Ok(Self { outbox, incoming }),
                Some(_) => {}
                None => return Err("the ledger closed a stream before its Welcome".into()),
            }
        }
    }

    /// For sending while this half receives.
    pub(crate) fn sending(&self) -> Sending {
        Sending(self.outbox.clone())
    }

    /// Numbers of the batches in the next receipt, and its head.
    pub(crate) async fn receipts(&mut self) -> Done<(Vec<u64>, Bytes)> {
        loop {
            let message = self.incoming.message().await?.and_then(|message| message.message);
            match message.ok_or("the ledger closed a stream")? {
                from_ledger::Message::Receipt(bytes) => {
                    let receipt = <wire::Receipt as prost::Message>::decode(bytes)?;
                    let numbers = receipt.batches.iter().map(|batch| batch.batch_number).collect();
                    return Ok((numbers, receipt.signed_head));
                }
                from_ledger::Message::Rejection(no) => {
                    return Err(format!("batch {} rejected: {}", no.batch_number, no.detail).into());
                }
                from_ledger::Message::Pushback(no) => {
                    return Err(format!("batch {} pushed back: {}", no.batch_number, no.detail).into());
                }
                _ => {}
            }
        }
    }
}
