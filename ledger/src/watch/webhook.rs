//! Alarms sent to another system: one POST for each batch of them, in order, until it is taken; and a heartbeat, so that silence means
//! that nobody watches.
//!
//! What must hold: an alarm is sent when it is on record, and again until the receiver takes it; how far that is stands in the store, so
//! that a restart forgets none (a receiver hears some twice, and tells them by their id); what is sent is signed; neither the address,
//! which may hold a secret, nor the secret is ever in a log. A receiver that is away holds up nothing else.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use custody::{
    id::{WorkspaceId, hex},
    record::{self, RecordKind},
};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Method, Request, Uri};
use hyper_rustls::{ConfigBuilderExt as _, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use ring::hmac;
use serde_json::json;
use tokio_rustls::rustls;
use verifier::{show, time};

use super::{Progress, own_workspace};
use crate::{
    alarm::{Alarm, Alarms},
    clock,
    commit::Chains,
    keys,
    log_view::report,
    metrics::Metrics,
    store::{Family, StoreError},
    tail::{CommittedBatch, Tail},
};

/// Name of the commit index before which alarms were taken by the receiver, among the store's numbers.
const SENT: &str = "webhook_sent";
/// How long one POST may take.
const POST_LIMIT: Duration = Duration::from_secs(10);
/// How long it waits after a failure, the first time; each further time twice as long, up to five minutes.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(300);
/// Failures of one message after which an operator hears of it: some fifteen minutes.
const FAILURES_MAX: u32 = 10;
/// Commits that are passed over between two notes of how far it is.
const NOTE_EVERY: u64 = 4_096;
/// Bytes of an answer that are read: only its status counts.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Where alarms go.
pub struct Webhook {
    url: Uri,
    key: hmac::Key,
    heartbeat: Duration,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    origin: String,
    tail: Arc<Tail>,
    chains: Chains,
    alarms: Alarms,
    metrics: Metrics,
    next: u64,
    noted: u64,
    /// Of the message that is tried.
    failures: u32,
    progress: Progress,
}

/// What a webhook is told by the configuration.
pub struct Wanted {
    /// Address: `https://`, or `http://` of a loopback address.
    pub url: String,
    /// File of mode 0600 with the secret of signatures.
    pub secret_file: PathBuf,
    /// Between two heartbeats.
    pub heartbeat: Duration,
}

fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The address, if it may be used.
fn address(text: &str) -> Result<Uri, String> {
    let wrong = || "watch.webhook_url is no https:// address (http:// of a loopback address will do)".to_owned();
    let url: Uri = text.parse().map_err(|_| wrong())?;
    match (url.scheme_str(), url.host()) {
        (Some("https"), Some(_)) => Ok(url),
        (Some("http"), Some(host)) if is_loopback(host) => Ok(url),
        _ => Err(wrong()),
    }
}

fn client(https: bool) -> Result<Client<HttpsConnector<HttpConnector>, Full<Bytes>>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().map_err(|why| why.to_string())?;
    let tls = match https {
        true => builder.with_native_roots().map_err(|why| {
            format!("this system has no certificate authorities ({why})\nhint: install ca-certificates")
        })?,
        false => builder.with_root_certificates(rustls::RootCertStore::empty()),
    };
    let connector =
        HttpsConnectorBuilder::new().with_tls_config(tls.with_no_client_auth()).https_or_http().enable_http1().build();
    Ok(Client::builder(TokioExecutor::new()).build(connector))
}

impl Webhook {
    /// Reads the secret and how far it is. What was raised before there was a webhook is not sent.
    ///
    /// # Errors
    /// In words, with the next move.
    pub fn open(
        wanted: Wanted,
        origin: &str,
        (tail, chains): (Arc<Tail>, Chains),
        (alarms, metrics, progress): (Alarms, Metrics, Progress),
    ) -> Result<Self, String> {
        let url = address(&wanted.url)?;
        let secret = keys::load_secret(&wanted.secret_file, None).map_err(|why| why.to_string())?;
        let secret: &[u8] = secret.trim_ascii();
        if secret.len() < 16 {
            return Err("the secret in watch.webhook_secret_file has fewer than 16 bytes\nhint: openssl rand -hex 32"
                .to_owned());
        }
        let broken = |why: StoreError| format!("failed to read the store: {why}");
        let sent = tail.store().and_then(|store| store.number(SENT)).map_err(broken)?;
        let next = sent.unwrap_or_else(|| tail.committed());
        let client = client(url.scheme_str() == Some("https"))?;
        let (key, heartbeat) = (hmac::Key::new(hmac::HMAC_SHA256, secret), wanted.heartbeat);
        let origin = origin.to_owned();
        Ok(Self {
            url,
            key,
            heartbeat,
            client,
            origin,
            tail,
            chains,
            alarms,
            metrics,
            next,
            noted: next,
            failures: 0,
            progress,
        })
    }

    /// Sends as long as the ledger runs.
    pub async fn run(mut self) {
        let mut news = self.tail.watch();
        let mut beat_at = Instant::now() + self.heartbeat;
        loop {
            let committed = *news.borrow_and_update();
            let pause = match self.send(committed).await {
                Ok(pause) => pause,
                Err(StoreError::Closed) => return,
                Err(why) => {
                    tracing::error!(why = report(&why), "the webhook cannot read what to send");
                    self.alarms.raise(Alarm::WebhookFailing, report(&why));
                    Some(PAUSE_FIRST)
                }
            };
            // Nothing is broken off: a message that is on its way is waited for.
            let until_beat = beat_at.saturating_duration_since(Instant::now());
            let more = async {
                match pause {
                    Some(pause) => clock::sleep(pause).await,
                    None => drop(news.changed().await),
                }
            };
            tokio::select! {
                () = more => {}
                () = clock::sleep(until_beat) => {}
            }
            if Instant::now() >= beat_at {
                self.beat().await;
                beat_at = Instant::now() + self.heartbeat;
            }
        }
    }

    /// Says that it watches, how far it is, and which operator alarms stand: some cannot be put on record. One that is not taken is the
    /// message; none is sent when nobody watches any more.
    async fn beat(&mut self) {
        let Some(looked_at) = self.progress.next() else { return };
        let committed = self.tail.committed();
        let standing: Vec<&str> = self.alarms.latched().iter().map(|(alarm, ..)| alarm.name()).collect();
        let beat = json!({
            "type": "heartbeat",
            "origin": self.origin,
            "at": time::text(clock::now_us()),
            "lag_commits": committed.saturating_sub(looked_at),
            "unsent_commits": committed.saturating_sub(self.next),
            "operator_alarms": standing,
        });
        if let Err(why) = self.post(&beat).await {
            self.metrics.add("custody_webhook_failures_total", 1);
            tracing::warn!(why, "a heartbeat was not taken");
        }
    }

    /// Everything up to a commit, in order; how long to wait until it is tried again, if something was not taken.
    async fn send(&mut self, committed: u64) -> Result<Option<Duration>, StoreError> {
        let own = own_workspace(&self.chains);
        while self.next < committed {
            let batch = self.tail.batch(self.next)?.filter(|batch| Some(batch.workspace()) == own);
            let alarms = batch.map(|batch| alarms_of(&batch)).unwrap_or_default();
            let any = !alarms.is_empty();
            if any && !self.deliver(json!({ "type": "alarms", "origin": self.origin, "alarms": alarms })).await {
                self.metrics.set("custody_webhook_lag_commits", self.tail.committed().saturating_sub(self.next));
                return Ok(Some(PAUSE_FIRST.saturating_mul(1 << self.failures.min(9)).min(PAUSE_MAX)));
            }
            if any {
                // A crash here: the receiver hears the same again.
                crate::failpoint::hit("watch-webhook-taken");
            }
            self.next += 1;
            self.note(any)?;
        }
        self.metrics.set("custody_webhook_lag_commits", 0);
        self.note(true)?;
        Ok(None)
    }

    /// Once; whether it was taken.
    async fn deliver(&mut self, body: serde_json::Value) -> bool {
        let Err(why) = self.post(&body).await else {
            self.failures = 0;
            self.metrics.add("custody_webhook_sent_total", 1);
            return true;
        };
        self.failures = self.failures.saturating_add(1);
        self.metrics.add("custody_webhook_failures_total", 1);
        tracing::warn!(why, failures = self.failures, "the webhook was not taken; it is tried again");
        if self.failures == FAILURES_MAX {
            self.alarms.raise(Alarm::WebhookFailing, why);
        }
        false
    }

    async fn post(&self, body: &serde_json::Value) -> Result<(), String> {
        let body = body.to_string();
        let seconds = clock::now_us() / 1_000_000;
        let signature = hmac::sign(&self.key, format!("{seconds}.{body}").as_bytes());
        let request = Request::builder()
            .method(Method::POST)
            .uri(self.url.clone())
            .header("content-type", "application/json")
            .header("custody-signature", format!("t={seconds},v1={}", hex(signature.as_ref())))
            .body(Full::new(Bytes::from(body)))
            .map_err(|_| "the request cannot be made".to_owned())?;
        let answered = async {
            // What the transport says may name the address.
            let answer = self.client.request(request).await.map_err(|_| "it cannot be reached".to_owned())?;
            let status = answer.status();
            Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await.ok();
            if status.is_success() { Ok(()) } else { Err(format!("it answered {}", status.as_u16())) }
        };
        tokio::time::timeout(POST_LIMIT, answered).await.unwrap_or_else(|_| Err("it did not answer in 10 s".to_owned()))
    }

    /// Notes how far it is: at once, or every so many commits.
    fn note(&mut self, at_once: bool) -> Result<(), StoreError> {
        if self.next == self.noted || (!at_once && self.next - self.noted < NOTE_EVERY) {
            return Ok(());
        }
        let store = self.tail.store()?;
        let mut change = store.change();
        change.put(Family::Meta, SENT, self.next.to_be_bytes());
        store.derive(change)?;
        self.noted = self.next;
        Ok(())
    }
}

/// The alarms of a batch, conditions too, each with its place as its id.
fn alarms_of(batch: &CommittedBatch) -> Vec<serde_json::Value> {
    let alarm = |(index, bytes): (usize, &Bytes)| {
        let is_alarm = record::kind(bytes).is_some_and(|kind| kind == RecordKind::Alarm);
        let place = batch.place(index).filter(|_| is_alarm)?;
        let workspace: WorkspaceId = place.workspace;
        Some(json!({ "id": format!("{workspace}/{}", place.position), "alarm": show::fields(bytes) }))
    };
    batch.records().iter().enumerate().filter_map(alarm).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_https_or_of_this_machine() {
        for good in ["https://example.org/hook?x=1", "http://127.0.0.1:9/", "http://localhost:9/a", "http://[::1]:9/"] {
            assert!(address(good).is_ok(), "{good}");
        }
        for bad in ["", "example.org", "http://example.org/", "http://127.0.0.1.example.org/", "ftp://localhost/"] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }
}
