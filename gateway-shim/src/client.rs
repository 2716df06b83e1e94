//! The stream to the ledger: ships batches, checks and keeps receipts, and connects again for as long as it takes.
//!
//! What must hold: what the ledger says takes effect only after [`crate::receipt`] has accepted it, and only the writer
//! (`writer.rs`) changes what is kept. A lost connection loses nothing: batches are resent as they are, and the same batch
//! again is answered again. Only a fork or a final refusal ends this task.

use std::time::Duration;

use bytes::Bytes;
use custody::{
    id::{Epoch, KeyId},
    wire::{
        self, FromGateway, FromLedger, OpeningReason, RejectReason, from_gateway, from_ledger,
        ingest_client::IngestClient,
    },
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    clock,
    flight::{Flight, Window},
    key::{self, Name},
    random,
    receipt::{Accepted, Checker, Fork, Refusal, Sent},
    seen::Seen,
    writer::{Command, Desk, FULL_WAIT, Fetch, Progress, Refused, receipts},
};

mod enrol;
mod link;

pub use enrol::{EnrolError, QUEUE_MAX, Question, Questions, WAIT as ENROL_WAIT, enrol, enrolment};
use link::CONNECT_WAIT;
pub use link::{Link, Tls};

/// First and greatest wait before connecting again; each wait is a random part of a limit that doubles, so that a fleet
/// does not return at once.
const BACKOFF_MIN: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// The greatest wait after a refusal that somebody must mend (an enrolment, an upgrade).
const BACKOFF_MENDED_MAX: Duration = Duration::from_secs(60);
/// Longest wait for the ledger's Welcome: it may have to send many statements.
const WELCOME_WAIT: Duration = Duration::from_secs(30);
/// Without an answer for so long, with batches on their way, the connection counts as dead.
const PROGRESS_WAIT: Duration = Duration::from_secs(60);
/// Sent messages that wait for the connection: more than a window has, so that sending never blocks receiving.
const OUTBOX_MAX: usize = 512;
/// Greatest message of the ledger: a receipt for 256 batches with full paths.
const MESSAGE_BYTES_MAX: usize = 8 << 20;
/// How long until an unanswered request for a certificate is made again, in microseconds.
const RENEW_AGAIN_US: u64 = 600_000_000;
/// Of a ledger that has a connection and does nothing with it.
const SILENT: &str =
    "the ledger does not answer; hint: its port is open, so is its process stopped, or its disk very slow?";
/// Of a connection that broke off, or was cut because nothing answered.
const AWAY: &str = "hint: is the ledger running, and does it answer `ledger status`?";
/// Of a certificate of the ledger that the enrolment's authority did not sign, or that is for another name.
const OTHER_LEDGER: &str = "hint: is ledger.endpoint the ledger that answered with gateway.enrolment, and is its name \
                            there ledger.server_name?";
/// Of a ledger that does not take this gateway's certificate.
const OTHER_GATEWAY: &str = "hint: is gateway.enrolment of the ledger at ledger.endpoint, and has its certificate expired? \
                             gateway-shim request, then ledger gateway enrol";
/// Of a ledger that is there and refuses this gateway.
const TAKES_NOTHING: &str =
    "the ledger takes nothing of this gateway until somebody mends what it says; records are kept in the spool";
/// Epochs that may be begun anew, one after the other, without a receipt between: more means that the ledger refuses all.
const REWINDS_MAX: u32 = 3;

/// Why shipping ended for good.
#[derive(Clone, Debug)]
pub enum Stop {
    /// The ledger shows two histories.
    Fork(Box<Fork>),
    /// The ledger will never take this gateway's batches.
    Refused {
        /// The ledger's reason, or why this side gives up.
        reason: String,
    },
    /// The writer has ended.
    Writer,
}

/// The task.
pub struct Client {
    /// Who ships.
    pub who: Name,
    /// The key with which the writer signs; older batches may be of another.
    pub key_id: KeyId,
    /// To whom.
    pub link: Link,
    /// What is known of the ledger.
    pub checker: Checker,
    /// The writer.
    pub desk: Desk,
    /// What the writer has.
    pub progress: watch::Receiver<Progress>,
    /// Where is shown how it goes.
    pub seen: Seen,
    /// Who somebody is.
    pub questions: Questions,
}

/// Why a session ended.
enum End {
    Stop(Stop),
    /// Connect again, after a wait.
    Lost(String),
    /// Connect again, but somebody must mend something first.
    Mend(String),
    /// Connect again at once: with a new certificate.
    Renewed,
}

impl End {
    /// Of a connection that failed. Which certificates fit is not mended by waiting.
    fn of_connection(error: &(dyn std::error::Error + 'static), said: &str) -> Self {
        let said = if said.is_empty() { String::new() } else { format!("{said}: ") };
        let text = format!("{said}{}", in_words(error));
        match tls_error(error) {
            Some(rustls::Error::InvalidCertificate(_)) => Self::Mend(format!("{text}; {OTHER_LEDGER}")),
            Some(rustls::Error::AlertReceived(_)) => Self::Mend(format!("{text}; {OTHER_GATEWAY}")),
            _ => Self::Lost(format!("{text}; {AWAY}")),
        }
    }
}

impl From<Refused> for End {
    fn from(refused: Refused) -> Self {
        match refused {
            // What could not be kept comes again with the next connection.
            Refused::SpoolFull => {
                Self::Lost("the disk of the spool is full; hint: make room, some MiB are enough".into())
            }
            _ => Self::Stop(Stop::Writer),
        }
    }
}

impl From<Refusal> for End {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Fork(fork) => Self::Stop(Stop::Fork(fork)),
            Refusal::Worthless(why) => Self::Lost(format!("the ledger's message {why}")),
        }
    }
}

impl From<tonic::Status> for End {
    fn from(status: tonic::Status) -> Self {
        if let Some(cause) = std::error::Error::source(&status) {
            // Not the ledger's own words, but what became of the connection.
            return Self::of_connection(cause, &printable(status.message()));
        }
        let text = format!("the ledger says: {}", printable(status.message()));
        match status.code() {
            tonic::Code::Unauthenticated
            | tonic::Code::PermissionDenied
            | tonic::Code::InvalidArgument
            | tonic::Code::FailedPrecondition => Self::Mend(text),
            _ => Self::Lost(text),
        }
    }
}

/// One connection, after its Welcome.
struct Session {
    outbox: mpsc::Sender<FromGateway>,
    flight: Flight,
    /// Nothing is sent before then.
    hold_until: Option<tokio::time::Instant>,
    answered_at: tokio::time::Instant,
    /// By the wall clock, as the certificate: it goes on while the machine sleeps.
    renew_at_us: Option<u64>,
}

impl Client {
    /// Ships until there is a reason to stop for good.
    pub async fn run(mut self) -> Stop {
        let (mut failures, mut rewinds) = (0_u32, 0_u32);
        loop {
            let began = tokio::time::Instant::now();
            let (end, most, so) = match self.session(&mut rewinds).await {
                End::Stop(stop) => return stop,
                End::Renewed => continue,
                End::Lost(why) => {
                    (with_next_move(why), BACKOFF_MAX, "no connection to the ledger; records are kept in the spool")
                }
                End::Mend(why) => (why, BACKOFF_MENDED_MAX, TAKES_NOTHING),
            };
            failures = if began.elapsed() > BACKOFF_MAX { 0 } else { failures.saturating_add(1) };
            let wait = backoff(failures, most, u32::from_le_bytes(random::bytes()));
            let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
            tracing::warn!(reason = %end, wait_ms, "{so}");
            self.seen.lost(&end);
            clock::sleep(wait).await;
        }
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<Result<T, Refused>>) -> Command) -> Result<T, Refused> {
        self.desk.ask(command).await
    }

    async fn session(&mut self, rewinds: &mut u32) -> End {
        let (Ok(end) | Err(end)) = self.connected(rewinds).await;
        match self.desk.tell(Command::Linked(false)).await {
            Ok(()) => end,
            Err(_) => End::Stop(Stop::Writer),
        }
    }

    async fn connected(&mut self, rewinds: &mut u32) -> Result<End, End> {
        let channel = self.link.connect(CONNECT_WAIT).await?;
        let mut client = IngestClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let (outbox, outgoing) = mpsc::channel(OUTBOX_MAX);
        send(&outbox, from_gateway::Message::Hello(self.hello()))?;
        let answer = tokio::time::timeout(WELCOME_WAIT, client.submit(ReceiverStream::new(outgoing)));
        let mut incoming = answer.await.map_err(|_| End::Lost(SILENT.into()))??.into_inner();
        let welcome = loop {
            let message = tokio::time::timeout(WELCOME_WAIT, incoming.message()).await;
            let message = message.map_err(|_| End::Lost(SILENT.into()))??;
            match message.and_then(|message| message.message) {
                Some(from_ledger::Message::Statement(statement)) => self.statement(statement).await?,
                Some(from_ledger::Message::Welcome(welcome)) => break welcome,
                _ => return Err(End::Lost("the ledger begins with another message than Welcome".into())),
            }
        };
        let mut session = self.welcome(&welcome, outbox).await?;
        self.desk.tell(Command::Linked(true)).await?;
        tracing::info!(next_batch = welcome.next_batch, "connected to the ledger");
        self.seen.connected(self.link.certificate_until_us());
        for question in self.questions.again() {
            send(&session.outbox, from_gateway::Message::EnrolMember(question))?;
        }
        loop {
            self.fill(&mut session).await?;
            let deadline = session.deadline();
            tokio::select! {
                message = incoming.message() => {
                    let Some(message) = message? else { return Ok(End::Lost("the ledger ended the stream".into())) };
                    session.answered_at = tokio::time::Instant::now();
                    if let Some(end) = self.take(message, &mut session, rewinds).await? {
                        return Ok(end);
                    }
                }
                question = self.questions.next() => {
                    send(&session.outbox, from_gateway::Message::EnrolMember(question))?;
                }
                changed = self.progress.changed() => changed.map_err(|_| End::Stop(Stop::Writer))?,
                () = clock::sleep_until(deadline) => self.time_passed(&mut session)?,
            }
        }
    }

    fn hello(&self) -> wire::Hello {
        let (ledger_statements, workspace_statements) = self.checker.statements();
        wire::Hello {
            origin: self.who.origin.clone(),
            workspace: self.who.workspace.into(),
            gateway: self.who.gateway.into(),
            last_head: self.checker.last_head(),
            ledger_statements,
            workspace_statements,
            product: crate::PRODUCT.to_owned(),
            product_version: crate::VERSION.to_owned(),
        }
    }

    async fn statement(&mut self, statement: Bytes) -> Result<(), End> {
        if !self.checker.statement(&statement)? {
            return Ok(());
        }
        // The checker counts it from here on, so that the ledger does not send it again: it has to be kept.
        loop {
            match self.ask(|answer| Command::Statement(statement.clone(), answer)).await {
                Err(Refused::SpoolFull) => clock::sleep(FULL_WAIT).await,
                kept => return Ok(kept?),
            }
        }
    }

    /// Takes up where the ledger says that it stands.
    async fn welcome(&mut self, welcome: &wire::Welcome, outbox: mpsc::Sender<FromGateway>) -> Result<Session, End> {
        let accepted = self.receipt(&welcome.receipt, |_, _| None)?;
        let lost_from = match Epoch::try_from(welcome.epoch.as_ref()) {
            _ if accepted.new_incarnation || welcome.epoch.is_empty() => Some(0),
            Err(_) => return Err(End::Lost("the ledger names no epoch".into())),
            Ok(epoch) => {
                let next = self.ask(|answer| Command::OrderOf(epoch, welcome.next_batch, answer)).await?;
                let Some(last) = welcome.next_batch.checked_sub(1) else { return Err(End::Lost("no batch".into())) };
                let last = self.ask(|answer| Command::OrderOf(epoch, last, answer)).await?;
                next.or_else(|| last.map(|order| order + 1))
            }
        };
        if let Some(from) = lost_from {
            self.ask(|answer| Command::Unreceived(from, answer)).await?;
        }
        self.ask(|answer| Command::Receipts(receipts(accepted.head, []), answer)).await?;
        let flight = Flight::new(welcome.batches_in_flight_max, welcome.bytes_in_flight_max);
        let now = tokio::time::Instant::now();
        let renew_at_us = self.link.renew_at_us();
        Ok(Session { outbox, flight, hold_until: None, answered_at: now, renew_at_us })
    }

    fn receipt(&mut self, message: &Bytes, sent: impl Fn(Epoch, u64) -> Option<Sent>) -> Result<Accepted, Refusal> {
        let accepted = self.checker.receipt(message, sent)?;
        if let Some(head) = self.checker.head() {
            self.seen.receipt(head.segment, head.size);
        }
        Ok(accepted)
    }

    /// Sends what the window has room for.
    async fn fill(&mut self, session: &mut Session) -> Result<(), End> {
        let now = tokio::time::Instant::now();
        if session.hold_until.is_some_and(|until| now < until) {
            return Ok(());
        }
        session.hold_until = None;
        self.progress.mark_unchanged();
        while let Some(room) = session.flight.room() {
            let Window { batches_max: count_max, bytes_max } = room;
            let fetch = Fetch { from: session.flight.mark(), unreceived: true, count_max, bytes_max };
            let batches = self.desk.fetch(fetch).await?;
            if batches.is_empty() {
                break;
            }
            for (order, bytes) in batches {
                if session.flight.is_empty() {
                    session.answered_at = tokio::time::Instant::now();
                }
                if session.flight.send(order, &bytes) {
                    send(&session.outbox, from_gateway::Message::Batch(bytes))?;
                }
            }
        }
        Ok(())
    }

    async fn take(
        &mut self,
        message: FromLedger,
        session: &mut Session,
        rewinds: &mut u32,
    ) -> Result<Option<End>, End> {
        match message.message {
            Some(from_ledger::Message::Receipt(receipt)) => {
                let accepted = self.receipt(&receipt, |epoch, number| session.flight.sent(epoch, number))?;
                if accepted.new_incarnation {
                    // What was durable and not archived may be gone: everything that is held goes again.
                    self.ask(|answer| Command::Unreceived(0, answer)).await?;
                    session.flight.restart_from(0);
                }
                let durable = accepted.durable.iter();
                let covered: Vec<(u64, u64)> = durable
                    .filter_map(|batch| Some((session.flight.answered(batch.epoch, batch.number)?, batch.segment)))
                    .collect();
                if !covered.is_empty() {
                    *rewinds = 0;
                }
                self.ask(|answer| Command::Receipts(receipts(accepted.head, covered), answer)).await?;
            }
            Some(from_ledger::Message::Archived(archived)) => {
                let segment = self.checker.archived(&archived)?;
                self.ask(|answer| Command::Archived(segment, answer)).await?;
            }
            Some(from_ledger::Message::Statement(statement)) => self.statement(statement).await?,
            Some(from_ledger::Message::Certificate(pem)) => return Ok(self.link.renewed(pem)),
            Some(from_ledger::Message::Pushback(pushback)) => Self::pushed_back(&pushback, session),
            Some(from_ledger::Message::Rejection(rejection)) => {
                return self.rejected(&rejection, session, rewinds).await;
            }
            Some(from_ledger::Message::MemberEnrolled(answered)) => self.questions.take(answered),
            Some(from_ledger::Message::Welcome(_)) | None => {}
        }
        Ok(None)
    }

    fn pushed_back(pushback: &wire::Pushback, session: &mut Session) {
        let wait = Duration::from_millis(u64::from(pushback.retry_after_ms)).min(BACKOFF_MAX);
        tracing::info!(wait_ms = pushback.retry_after_ms, detail = %printable(&pushback.detail), "pushback");
        session.hold_until = Some(tokio::time::Instant::now() + wait);
        let epoch = Epoch::try_from(pushback.epoch.as_ref()).unwrap_or(Epoch::ZERO);
        if let Some(order) = session.flight.order_of(epoch, pushback.batch_number) {
            session.flight.again_from(order);
        }
    }

    /// The batch of this name and all after it go again, with or without a receipt. `false`: it is not held.
    async fn again_from(&self, epoch: &[u8], number: u64, session: &mut Session) -> Result<bool, End> {
        let Ok(epoch) = Epoch::try_from(epoch) else { return Ok(false) };
        let order = self.ask(|answer| Command::OrderOf(epoch, number, answer)).await?;
        if let Some(order) = order {
            self.ask(|answer| Command::Unreceived(order, answer)).await?;
            session.flight.restart_from(order);
        }
        Ok(order.is_some())
    }

    /// What each reason does; `docs/SHIPPING.md` has the same table.
    async fn rejected(
        &self,
        rejection: &wire::Rejection,
        session: &mut Session,
        rewinds: &mut u32,
    ) -> Result<Option<End>, End> {
        let Ok(epoch) = Epoch::try_from(rejection.epoch.as_ref()) else { return Ok(None) };
        // An answer to a batch that was signed again since, or goes again already.
        let Some((key_id, opening)) = session.flight.signed_as(epoch, rejection.batch_number) else { return Ok(None) };
        let reason = rejection.reason();
        let detail = printable(&rejection.detail);
        tracing::warn!(batch = rejection.batch_number, reason = reason.as_str_name(), detail = %detail, "the ledger rejects a batch");
        let text = format!("{}: {detail}", reason.as_str_name());
        let new_epoch = match reason {
            RejectReason::Gap => {
                if session.flight.sent(epoch, rejection.expected_batch).is_some()
                    && rejection.expected_batch != rejection.batch_number
                {
                    return Ok(None);
                }
                if self.again_from(&rejection.epoch, rejection.expected_batch, session).await? {
                    return Ok(None);
                }
                // What the ledger lacks was let go here.
                Some(OpeningReason::StateLost)
            }
            RejectReason::Equivocation if opening == Some(OpeningReason::First) => Some(OpeningReason::StateLost),
            RejectReason::Equivocation => Some(OpeningReason::Rewound),
            // A key that was replaced, because others know it or it was never enrolled: what it signed is still true, and
            // the key of now can say so.
            RejectReason::Forged | RejectReason::Revoked | RejectReason::Unauthorised if key_id != self.key_id => None,
            RejectReason::FutureVersion | RejectReason::Unauthorised => return Ok(Some(End::Mend(text))),
            _ => return Ok(Some(End::Stop(Stop::Refused { reason: text }))),
        };
        if *rewinds >= REWINDS_MAX {
            return Ok(Some(End::Stop(Stop::Refused { reason: format!("every new epoch is refused: {text}") })));
        }
        self.ask(|answer| Command::Rewind(new_epoch, answer)).await?;
        *rewinds += 1;
        session.flight.restart_from(0);
        Ok(None)
    }

    fn time_passed(&self, session: &mut Session) -> Result<(), End> {
        let now = tokio::time::Instant::now();
        if !session.flight.is_empty() && now >= session.answered_at + PROGRESS_WAIT {
            return Err(End::Lost(SILENT.into()));
        }
        let now_us = clock::now_us();
        if session.renew_at_us.is_some_and(|at_us| now_us >= at_us) {
            session.renew_at_us = Some(now_us + RENEW_AGAIN_US);
            if let Some(tls) = &self.link.tls {
                match key::certificate_request(&self.who, &tls.key) {
                    Ok(request) => send(&session.outbox, from_gateway::Message::RenewCertificate(request))?,
                    Err(error) => tracing::error!(%error, "failed to ask for a new certificate"),
                }
            }
        }
        Ok(())
    }
}

impl Session {
    /// When something is to be done although nothing came.
    fn deadline(&self) -> tokio::time::Instant {
        let progress = (!self.flight.is_empty()).then_some(self.answered_at + PROGRESS_WAIT);
        let now = tokio::time::Instant::now();
        let renew = self.renew_at_us.map(|at_us| now + Duration::from_micros(at_us.saturating_sub(clock::now_us())));
        // Never far off: these waits stand still while the machine sleeps.
        [self.hold_until, progress, renew, Some(now + PROGRESS_WAIT)].into_iter().flatten().min().unwrap_or(now)
    }
}

fn send(outbox: &mpsc::Sender<FromGateway>, message: from_gateway::Message) -> Result<(), End> {
    let sent = outbox.try_send(FromGateway { message: Some(message) });
    sent.map_err(|_| End::Lost("the connection takes nothing more".into()))
}

/// Why a connection ended, with what to do about it.
fn with_next_move(why: String) -> String {
    if why.contains("hint: ") { why } else { format!("{why}; {AWAY}") }
}

/// An error with all its causes.
fn in_words(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// What TLS says among the causes of an error; an error of input or output hides its own.
fn tls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        let hidden = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = match hidden {
            Some(hidden) => Some(hidden),
            None => error.source(),
        };
    }
    None
}

/// Text of the ledger, fit for a log: bounded, and of one line.
fn printable(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_control()).take(256).collect()
}

/// A random part (at least a tenth) of a limit that doubles with each failure.
fn backoff(failures: u32, most: Duration, dice: u32) -> Duration {
    let limit = BACKOFF_MIN.saturating_mul(1 << failures.min(16)).min(most);
    limit.mul_f64(0.1 + 0.9 * f64::from(dice) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests;
