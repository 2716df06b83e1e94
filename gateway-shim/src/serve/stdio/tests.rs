//! What becomes of requests to a process, without one: their answers, their time, and what is left behind them.

use http_body_util::BodyExt as _;

use super::{room::ROOM_BYTES_MAX, session::WAITING_MAX, *};
use crate::testing::within;

/// So long that no test sees it pass.
const WAIT: Duration = Duration::from_secs(86_400);

/// A session, and what its process would read.
fn session() -> (Arc<Session>, mpsc::Receiver<Bytes>) {
    let (stdin, lines) = mpsc::channel(INBOX_MAX);
    (Session::new(Kind::OfClient("session".into()), stdin, Arc::default()), lines)
}

fn request(id: &str) -> (Request, Bytes) {
    let body = format!(
        r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"name":"t","_meta":{{"progressToken":"p"}}}}}}"#
    );
    let Ok(Message::Request(request)) = envelope::parse(body.as_bytes()) else { panic!("no request") };
    (*request, body.into())
}

fn answer(session: &Session, request: &Request) {
    let waiting = session.asked(&request.id).unwrap();
    waiting.answered(None, Bytes::from_static(b"the answer"), None);
}

#[tokio::test]
async fn the_time_of_a_request_ends_no_other_under_its_id() {
    let (session, _lines) = session();
    let (request, body) = request("1");
    let mut first = session.ask(WAIT, &request, &body, None);
    answer(&session, &request);
    assert!(matches!(first.end.try_recv(), Ok(Told::Answer(..))));
    let mut second = session.ask(WAIT, &request, &body, None);
    let serial = session.lock().waiting[&request.id].serial;
    // The first one's, at the moment of its answer.
    session.late(&request.id, serial - 1);
    assert!(second.end.try_recv().is_err() && session.lock().waiting.len() == 1);
    session.late(&request.id, serial);
    assert!(matches!(second.end.try_recv(), Ok(Told::Failed(StatusCode::GATEWAY_TIMEOUT, ..))));
}

#[tokio::test]
async fn nothing_of_a_request_is_left_behind_its_answer() {
    let (session, mut lines) = session();
    let (request, body) = request("1");
    let hears = session.ask(WAIT, &request, &body, None);
    within(lines.recv()).await.unwrap();
    assert_eq!(Arc::strong_count(&session), 2, "its task waits");
    answer(&session, &request);
    within(async {
        while Arc::strong_count(&session) > 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(session.lock().order.is_empty());
    drop(hears);
}

/// A connection that reads slowly loses messages that nobody waits for, and never the answer.
#[tokio::test]
async fn an_answer_comes_behind_however_many_messages_nobody_has_read() {
    let (session, _lines) = session();
    let (request, body) = request("1");
    let hears = session.ask(WAIT, &request, &body, None);
    for _ in 0..WAITING_MAX * 2 {
        session.say(Bytes::from_static(b"progress"), request.progress.as_deref(), None);
    }
    answer(&session, &request);
    let body = within(answer_of(&request, hears)).await.into_body().collect();
    let body = within(body).await.unwrap().to_bytes();
    let events = String::from_utf8(body.to_vec()).unwrap();
    assert_eq!(events.matches("data: progress").count(), WAITING_MAX);
    assert!(events.trim_end().ends_with("data: the answer"), "{events}");
}

/// Long messages that nobody reads take no more memory than there is room for: those that wait for a stream go, the oldest
/// first; those that find none are let go; and the answer comes.
#[tokio::test]
async fn what_nobody_reads_has_a_bound_in_bytes() {
    const LONG: usize = 1 << 20;
    let (session, _lines) = session();
    for number in 0..100_u8 {
        session.say(vec![number; LONG].into(), None, None);
    }
    let mut stream = session.listen().unwrap();
    let kept: Vec<u8> = std::iter::from_fn(|| Some(stream.try_recv().ok()?[0])).collect();
    let most = u8::try_from(ROOM_BYTES_MAX / LONG).unwrap();
    assert_eq!(kept, (100 - most..100).collect::<Vec<_>>());
    let (request, body) = request("1");
    let mut hears = session.ask(WAIT, &request, &body, None);
    for number in 0..100_u8 {
        session.say(vec![number; LONG].into(), request.progress.as_deref(), None);
    }
    answer(&session, &request);
    let kept: Vec<u8> = std::iter::from_fn(|| Some(hears.messages.try_recv().ok()?[0])).collect();
    assert_eq!(kept, (0..most).collect::<Vec<_>>());
    assert!(matches!(hears.end.try_recv(), Ok(Told::Answer(..))));
}

/// A subscription lasts as long as its client is there. Within a session nobody sees it leave, so there it ends in its time.
#[tokio::test]
async fn a_subscription_ends_with_its_client_or_in_its_time() {
    let body = Bytes::from_static(br#"{"jsonrpc":"2.0","id":1,"method":"subscriptions/listen","params":{}}"#);
    let Ok(Message::Request(request)) = envelope::parse(&body) else { panic!("no request") };
    let (within_session, _lines) = session();
    let told = within(within_session.ask(Duration::ZERO, &request, &body, None).end).await.unwrap();
    assert!(matches!(told, Told::Failed(StatusCode::GATEWAY_TIMEOUT, ..)));
    let (stdin, mut lines) = mpsc::channel(INBOX_MAX);
    let without = Session::new(Kind::Sessionless, stdin, Arc::default());
    let hears = without.ask(Duration::ZERO, &request, &body, None);
    within(lines.recv()).await.unwrap();
    drop(hears.here);
    let told = within(hears.end).await.unwrap();
    assert!(matches!(told, Told::Failed(StatusCode::OK, ..)), "{told:?}");
}

/// A process that reads nothing keeps nobody waiting for longer than a request may take.
#[tokio::test]
async fn a_request_that_a_process_does_not_read_ends_in_its_time() {
    let (session, _lines) = session();
    let mut last = None;
    for id in 0..=INBOX_MAX {
        let (request, body) = request(&id.to_string());
        let wait = if id == INBOX_MAX { Duration::ZERO } else { WAIT };
        last = Some(session.ask(wait, &request, &body, None));
        tokio::task::yield_now().await;
    }
    let told = within(last.unwrap().end).await.unwrap();
    assert!(matches!(told, Told::Failed(StatusCode::GATEWAY_TIMEOUT, ..)));
}
