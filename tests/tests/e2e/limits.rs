//! Every limit of intake at a tiny value: what whoever reaches it is told, and that another gateway goes on. (Batches and
//! bytes in flight are limits of flow control, which no answer shows: `ledger/src/ingest/tests.rs`.) And the clock, whose
//! jumps no limit may turn into a loss.

use custody::wire::{self, ingest_client::IngestClient};
use custody_tests::{
    oracle::check_all,
    peer::{Fault, Gateway, Heard, Session},
    process::{Home, SETTINGS, WAIT, pause, write},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

fn home(name: &str, settings: &str) -> Home {
    Home::new(name, &(SETTINGS.to_owned() + settings))
}

/// Sends a batch and hears that it must come again, and why.
async fn pushed_back(gateway: &mut Gateway, session: &mut Session, calls: u64) -> wire::Pushback {
    let bytes = gateway.sign(gateway.header(), &gateway.records(calls));
    session.send(bytes).await.unwrap();
    loop {
        match gateway.hear(session).await.unwrap() {
            Heard::Pushback(pushback) => {
                assert!(pushback.retry_after_ms > 0, "{pushback:?}");
                return pushback;
            }
            heard => assert!(!matches!(heard, Heard::Receipt(1..) | Heard::Rejection(_)), "{heard:?}"),
        }
    }
}

/// Sends a batch again until it is taken.
async fn taken_at_last(gateway: &mut Gateway, session: &mut Session) {
    let bytes = gateway.batch(1);
    let taken = tokio::time::timeout(WAIT, async {
        while !gateway.waiting.is_empty() {
            session.send(bytes.clone()).await.unwrap();
            while matches!(gateway.hear(session).await.unwrap(), Heard::Archived(_) | Heard::Statement) {}
        }
    });
    taken.await.expect("it is taken at last");
}

/// Connects, again and again while there are too many streams.
async fn connect_at_last(gateway: &mut Gateway, home: &Home) -> Session {
    let connected = tokio::time::timeout(WAIT, async {
        loop {
            match gateway.connect(home.grpc).await {
                Ok(session) => return session,
                Err(Fault::Refused(status)) if status.code() == Code::ResourceExhausted => {}
                Err(why) => panic!("{why:?}"),
            }
        }
    });
    connected.await.expect("a stream is free at last")
}

#[tokio::test(flavor = "multi_thread")]
async fn of_too_many_streams_the_last_is_refused_until_one_ends() {
    let home = home("streams", "ingest.streams_max = 2\n");
    let _process = home.start();
    let workspace = home.workspace("payments");
    let mut gateways: Vec<Gateway> = (0..3).map(|_| Gateway::enrol(&home, workspace)).collect();
    let mut one = gateways[0].connect(home.grpc).await.unwrap();
    let two = gateways[1].connect(home.grpc).await.unwrap();
    match gateways[2].connect(home.grpc).await {
        Err(Fault::Refused(status)) => assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}"),
        other => panic!("{:?}", other.err()),
    }
    gateways[0].ship_one(&mut one, 1).await;
    drop(two);
    let mut three = connect_at_last(&mut gateways[2], &home).await;
    gateways[2].ship_one(&mut three, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_opens_streams_and_says_nothing_locks_out_itself_alone() {
    let home = home("silent", "ingest.streams_max = 8\n");
    let _process = home.start();
    let workspace = home.workspace("payments");
    let (hostile, mut good) = (Gateway::enrol(&home, workspace), Gateway::enrol(&home, workspace));
    let mut waiting = Vec::new();
    for _ in 0..6 {
        let channel = hostile.door.channel(home.grpc).await.unwrap();
        waiting.push(tokio::spawn(async move {
            // Nothing is ever said, and the stream is not ended either.
            let (_outgoing, messages) = mpsc::channel::<wire::FromGateway>(1);
            let answer = IngestClient::new(channel).submit(ReceiverStream::new(messages)).await;
            answer.err().map(|status| status.code())
        }));
    }
    let mut session = good.connect(home.grpc).await.unwrap();
    good.ship_one(&mut session, 1).await;
    let mut codes = Vec::new();
    for task in waiting {
        codes.push(task.await.unwrap().unwrap());
    }
    let counted = |code: Code| codes.iter().filter(|found| **found == code).count();
    assert_eq!((counted(Code::ResourceExhausted), counted(Code::InvalidArgument)), (2, 4), "{codes:?}");
    good.ship_one(&mut session, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_comes_again_ends_its_older_streams_at_once() {
    let home = home("again", "");
    let _process = home.start();
    let mut gateway = Gateway::enrol(&home, home.workspace("payments"));
    let mut older = Vec::new();
    // More than a gateway may have; none of the older ones says anything more.
    for _ in 0..8 {
        older.push(connect_at_last(&mut gateway, &home).await);
    }
    let mut newest = older.pop().unwrap();
    for mut session in older {
        let ended = loop {
            if let Err(why) = gateway.hear(&mut session).await {
                break why;
            }
        };
        assert!(matches!(ended, Fault::Gone(_)), "{ended:?}");
    }
    gateway.ship_one(&mut newest, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_without_a_message_is_closed_and_one_with_heartbeats_is_not() {
    let home = home("idle", "ingest.idle_seconds_max = 10\n");
    let _process = home.start();
    let workspace = home.workspace("payments");
    let (mut idle, mut good) = (Gateway::enrol(&home, workspace), Gateway::enrol(&home, workspace));
    let mut silent = idle.connect(home.grpc).await.unwrap();
    let mut session = good.connect(home.grpc).await.unwrap();
    let ended = async {
        loop {
            if let Err(why) = idle.hear(&mut silent).await {
                return why;
            }
        }
    };
    let beating = async {
        loop {
            good.ship_one(&mut session, 0).await;
            pause(std::time::Duration::from_secs(1)).await;
        }
    };
    let ended = tokio::select! {
        ended = ended => ended,
        () = beating => unreachable!("it goes on for ever"),
    };
    assert!(matches!(&ended, Fault::Gone(why) if why.contains("ended")), "{ended:?}");
    good.ship_one(&mut session, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workspace_over_its_rate_waits_and_no_other_does() {
    let home = home("rate", "ingest.records_per_second_max = 1\n");
    let _process = home.start();
    let (mut fast, mut good) =
        (Gateway::enrol(&home, home.workspace("payments")), Gateway::enrol(&home, home.workspace("research")));
    let mut session = fast.connect(home.grpc).await.unwrap();
    // More than ten seconds' worth in one batch: it passes, or it would never.
    fast.ship_one(&mut session, 20).await;
    for calls in [1, 0] {
        let pushback = pushed_back(&mut fast, &mut session, calls).await;
        assert!(pushback.detail.contains("rate") && pushback.retry_after_ms <= 10_000, "{pushback:?}");
    }
    let mut other = good.connect(home.grpc).await.unwrap();
    good.ship_one(&mut other, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workspace_over_its_room_waits_for_the_archive_and_no_other_does() {
    let home = home("room", "ingest.disk_bytes_max = 2000\n");
    let _process = home.start();
    let (mut full, mut good) =
        (Gateway::enrol(&home, home.workspace("payments")), Gateway::enrol(&home, home.workspace("research")));
    let mut session = full.connect(home.grpc).await.unwrap();
    full.ship_one(&mut session, 100).await;
    let pushback = pushed_back(&mut full, &mut session, 1).await;
    assert!(pushback.detail.contains("room"), "{pushback:?}");
    let mut other = good.connect(home.grpc).await.unwrap();
    good.ship_one(&mut other, 1).await;
    home.say(&["cut"]);
    taken_at_last(&mut full, &mut session).await;
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::disallowed_methods, reason = "a folder of the test is moved away and back, nothing is written")]
async fn a_workspace_that_waits_for_the_archive_leaves_the_others_their_share() {
    let home = home("share", "segment.leaves_max = 1\npublish.unarchived_segments_max = 40\n");
    let _process = home.start();
    let (mut busy, mut good) =
        (Gateway::enrol(&home, home.workspace("payments")), Gateway::enrol(&home, home.workspace("research")));
    let (mut session, mut other) = (busy.connect(home.grpc).await.unwrap(), good.connect(home.grpc).await.unwrap());
    home.say(&["cut"]);
    let away = home.archive().with_extension("away");
    std::fs::rename(home.archive(), &away).unwrap();
    write(&home.archive(), b"");
    // A quarter may wait, and the one that is on its way.
    for _ in 0..11 {
        busy.ship_one(&mut session, 1).await;
    }
    let pushback = pushed_back(&mut busy, &mut session, 1).await;
    assert!(pushback.detail.contains("of the workspace"), "{pushback:?}");
    for _ in 0..5 {
        good.ship_one(&mut other, 1).await;
    }
    std::fs::remove_file(home.archive()).unwrap();
    std::fs::rename(&away, home.archive()).unwrap();
    home.say(&["cut"]);
    taken_at_last(&mut busy, &mut session).await;
    home.say(&["cut"]);
    check_all(&home, &home.policy(), &[&busy, &good]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_is_an_alarm_and_a_record_and_the_archive_verifies() {
    let home = home("clock", "");
    let shift = home.dir.join("clock-shift");
    let process = home.spawn(&[("CUSTODY_CLOCK_SHIFT", shift.to_str().unwrap())]);
    assert!(process.wait_serving(), "{}", process.log().join("\n"));
    let mut gateway = Gateway::enrol(&home, home.workspace("payments"));
    let mut session = gateway.connect(home.grpc).await.unwrap();
    gateway.ship_one(&mut session, 2).await;
    // Two days back, within a segment.
    write(&shift, b"-172800000000");
    assert!(process.wait_line("clock-jumped"), "{}", process.log().join("\n"));
    assert!(home.alarm_stands("clock-jumped"));
    gateway.ship_one(&mut session, 2).await;
    home.say(&["cut"]);
    gateway.ship_one(&mut session, 2).await;
    home.say(&["cut"]);
    let times: Vec<u64> = gateway.acknowledged.iter().map(|batch| batch.received_at).collect();
    assert!(times[0] > times[1], "the clock went back: {times:?}");
    check_all(&home, &home.policy(), &[&gateway]);
    let workspaces = home.status()["workspaces"].as_array().unwrap().clone();
    let own = workspaces.iter().find(|workspace| workspace["name"] == "ledger").unwrap();
    home.say(&["cut"]);
    let range = format!("ledger/0..{}", own["positions"]);
    let mut show = std::process::Command::new(custody_tests::process::binary("verifier"));
    show.arg("show").arg(home.archive()).args([range.as_str(), "--json", "--policy"]).arg(home.policy());
    let show = show.output().unwrap();
    assert!(String::from_utf8_lossy(&show.stdout).contains("clock.jump"), "{show:?}");
}
