//! Tests of one stream's task without a network: what waits, and what goes on meanwhile.

use futures::FutureExt as _;

use super::*;
use crate::rig::{self, Dir, Rig};

/// Small batches; each limit is set to two of them by the test that is about it.
fn limits() -> Limits {
    Limits {
        batches_in_flight: 100,
        bytes_in_flight: 1 << 24,
        bytes_in_flight_total: 1 << 26,
        streams: 10,
        records_per_second: 0,
        idle: Duration::from_secs(100),
        plaintext: true,
    }
}

struct Bench {
    inner: Arc<Inner>,
    requests: mpsc::Receiver<Request>,
    asked: mpsc::Receiver<Ask>,
    streams: u64,
    /// Ends of what the writer would hold.
    kept: Vec<(mpsc::Sender<wire::FromLedger>, watch::Sender<()>)>,
}

impl Bench {
    fn new(rig: &Rig, limits: Limits) -> Self {
        let (writer, requests) = mpsc::channel(100);
        let (directory, asked) = mpsc::channel(100);
        let renew: Renew = Arc::new(|_, _| Err("not here".to_owned()));
        let service = IngestService::new(
            rig::ORIGIN,
            limits,
            (writer, directory),
            Arc::clone(&rig.chains),
            renew,
            (Weak::clone(&rig.store), rig.alarms.refusals().clone()),
        );
        Self { inner: service.inner, requests, asked, streams: 0, kept: Vec::new() }
    }

    fn pump(&mut self, peer: &rig::Peer) -> Pump {
        let (outbox, answers) = mpsc::channel(100);
        let (alive, gone) = watch::channel(());
        self.streams += 1;
        let peer = Peer { origin: rig::ORIGIN.to_owned(), workspace: peer.workspace, gateway: peer.gateway };
        let limits = self.inner.limits;
        let pump = Pump {
            stream: self.streams,
            outbox: outbox.downgrade(),
            gone,
            known: KnownHeads::default(),
            held: None,
            heard: oneshot::channel().1,
            hearing: Hearing(Arc::new(Mutex::new(Some(answers)))),
            places: Arc::new(Semaphore::new(limits.batches_in_flight as usize)),
            room: Arc::new(Semaphore::new(limits.bytes_in_flight as usize)),
            asked: Arc::new(Semaphore::new(enrol::ASKED_MAX)),
            _guard: Counted::new(&self.inner, Some(&peer)).unwrap(),
            inner: Arc::clone(&self.inner),
            peer,
        };
        self.kept.push((outbox, alive));
        pump
    }
}

/// Two of a stream's batches go to the writer and the third waits until the writer has answered one; `others_pass`: another
/// gateway's does not wait.
async fn third_waits(limit: impl Fn(&mut Limits, u32), others_pass: bool) {
    let dir = Dir::new("flight");
    let rig = Rig::start(&dir.0).await.unwrap();
    let ((_, mut one), (_, mut two)) = (rig.workspace(20).await, rig.workspace(21).await);
    let batches: Vec<Bytes> = (0..3).map(|_| one.batch(3).bytes).collect();
    let greatest = batches.iter().map(Bytes::len).max().unwrap();
    let mut limits = limits();
    limit(&mut limits, 2 * u32::try_from(greatest).unwrap());
    let mut bench = Bench::new(&rig, limits);
    let (mut pump, mut other) = (bench.pump(&one), bench.pump(&two));
    assert_eq!(pump.batch(batches[0].clone()).now_or_never(), Some(true));
    assert_eq!(pump.batch(batches[1].clone()).now_or_never(), Some(true));
    {
        let mut third = Box::pin(pump.batch(batches[2].clone()));
        assert_eq!((&mut third).now_or_never(), None, "there is no room for the third");
        let passed = other.batch(two.batch(1).bytes).now_or_never();
        assert_eq!(passed, others_pass.then_some(true));
        // Answered: the room comes back.
        drop(bench.requests.recv().await);
        assert_eq!((&mut third).now_or_never(), Some(true));
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_in_flight_are_bounded_for_each_stream() {
    third_waits(|limits, _| limits.batches_in_flight = 2, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_in_flight_are_bounded_for_each_stream() {
    third_waits(|limits, two| limits.bytes_in_flight = two, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_in_flight_are_bounded_for_all_streams_together() {
    third_waits(|limits, two| limits.bytes_in_flight_total = u64::from(two), false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_is_checked_once_and_a_known_one_never() {
    let dir = Dir::new("known");
    let rig = Rig::start(&dir.0).await.unwrap();
    let (_, mut peer) = rig.workspace(22).await;
    let mut answers = peer.open(&rig, 1).await.unwrap();
    let batch = peer.batch(1);
    peer.send(&rig, 1, &mut answers, batch).await.unwrap();
    let mut bench = Bench::new(&rig, limits());
    let mut pump = bench.pump(&peer);
    let head = peer.last_head.clone();
    let held = pump.held(&head).unwrap().expect("this stream was not sent it");
    assert_eq!(held.bytes(), &head);
    pump.held = None;
    pump.known.learn(head.clone());
    assert!(pump.held(&head).unwrap().is_none());
    assert!(pump.held.is_none(), "no signature was checked");
    assert_eq!(pump.held(&Bytes::from_static(b"junk")).unwrap_err().reason, RejectReason::Malformed);
    rig.stop().await;
}

/// Chains far longer than the outbox go over the line page by page, and the writer is asked for the welcome when all of them
/// have gone.
#[tokio::test(flavor = "multi_thread")]
async fn the_statements_of_a_greeting_wait_for_the_line() {
    let dir = Dir::new("pages");
    let rig = Rig::start(&dir.0).await.unwrap();
    let (id, one) = rig.workspace(23).await;
    for n in 1..=200_u8 {
        let hold = wire::Hold { hold: vec![n; 16].into(), since: clock::now_us(), until: None };
        rig.say(id, wire::statement::Action::Hold(hold)).await.unwrap();
    }
    let mut bench = Bench::new(&rig, limits());
    let pump = bench.pump(&one);
    let mut answers = pump.hearing.0.lock().unwrap().take().unwrap();
    let lacks = [0..3, 1..202];
    {
        let mut greeting = Box::pin(pump.greet(lacks.clone()));
        let mut sent = 0;
        // Until it waits for the line.
        while sent < 3 + 201 {
            let waiting = tokio::select! {
                biased;
                answer = answers.recv() => answer.unwrap(),
                greeted = &mut greeting => panic!("{greeted} after {sent}"),
            };
            assert!(matches!(waiting.message, Some(Message::Statement(_))));
            sent += 1;
            assert!(answers.len() <= 64, "one page at a time");
            assert!(bench.requests.try_recv().is_err(), "not before all have gone");
        }
        assert!(greeting.await);
    }
    assert!(matches!(bench.requests.recv().await, Some(Request::Greeted(1))));
    // The writer has closed the stream: nothing is read any more.
    bench.kept.clear();
    assert!(!pump.greet(lacks).await);
    rig.stop().await;
}

/// Why the newest answer of a stream is a refusal, and for how long; `None` if there was no answer.
fn refused(pump: &Pump) -> Option<(u32, String)> {
    let mut hearing = pump.hearing.0.lock().unwrap();
    let answers = hearing.as_mut().unwrap();
    let mut last = None;
    while let Ok(answer) = answers.try_recv() {
        let Some(Message::MemberEnrolled(told)) = answer.message else { panic!("{answer:?}") };
        let Some(wire::member_enrolled::Answer::Refusal(refusal)) = told.answer else { panic!("{told:?}") };
        last = Some((refusal.retry_after_ms, refusal.detail));
    }
    last
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_about_people_are_bounded_for_each_stream_and_gateway() {
    let dir = Dir::new("asked");
    let rig = Rig::start(&dir.0).await.unwrap();
    let ((workspace, one), (_, two)) = (rig.workspace(24).await, rig.workspace(25).await);
    let mut bench = Bench::new(&rig, limits());
    let (pump, other) = (bench.pump(&one), bench.pump(&two));
    let question = |address: &str| wire::EnrolMember { address: address.into(), ..Default::default() };
    for _ in 0..enrol::ASKED_MAX {
        assert!(pump.enrol(&question("ada")));
    }
    assert_eq!(refused(&pump), None);
    assert!(pump.enrol(&question("ada")));
    assert!(refused(&pump).is_some_and(|(wait, why)| wait > 0 && why.contains("questions wait")));
    assert!(other.enrol(&question("ada")));
    assert_eq!(refused(&other), None, "another gateway's own room");
    // What is no address is refused for good, and costs the directory nothing.
    assert!(other.enrol(&question("a b")));
    assert!(refused(&other).is_some_and(|(wait, _)| wait == 0));
    let mut asked = 0;
    let often = loop {
        // Answered: the room comes back.
        while bench.asked.try_recv().is_ok() {}
        assert!(pump.enrol(&question("ada")));
        if let Some((wait, why)) = refused(&pump) {
            break (wait, why);
        }
        asked += 1;
    };
    assert!(often.0 > 0 && often.1.contains("too often"), "{often:?}");
    assert_eq!(asked + enrol::ASKED_MAX + 1, enrol::ASKED_IN_RATE_MAX as usize);
    // A second stream of the same gateway has no rate of its own, and a removed workspace no people to ask about.
    let again = bench.pump(&one);
    assert!(again.enrol(&question("ada")));
    assert!(refused(&again).is_some());
    rig.say(workspace, wire::statement::Action::Remove(wire::Remove {})).await.unwrap();
    assert!(pump.enrol(&question("ada")));
    assert!(refused(&pump).is_some_and(|(wait, _)| wait == 0));
    rig.stop().await;
}
