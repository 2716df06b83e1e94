//! The gRPC port before anything of a request is read: who may say nothing, how much may be said, and how often at one time.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use custody::{
    key,
    wire::{self, Role, admin_client::AdminClient, ingest_client::IngestClient},
};
use custody_tests::{
    peer::{ANSWER, Door, Gateway},
    process::{Home, SETTINGS},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Status,
    body::Body,
    codegen::{Service, http},
    transport::Channel,
};

/// Brings whatever a client says to another method.
#[derive(Clone)]
struct To(Channel, &'static str);

type Answer = Result<http::Response<Body>, tonic::transport::Error>;

impl Service<http::Request<Body>> for To {
    type Response = http::Response<Body>;
    type Error = tonic::transport::Error;
    type Future = Pin<Box<dyn Future<Output = Answer> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        *request.uri_mut() = http::Uri::from_static(self.1);
        Box::pin(self.0.call(request))
    }
}

/// What is answered to a request of which nothing ever comes but its head.
async fn answered(door: &Door, port: u16, method: &'static str) -> Status {
    let (_open, messages) = mpsc::channel(1);
    let mut client = IngestClient::new(To(door.channel(port).await.unwrap(), method));
    let answer = tokio::time::timeout(ANSWER, client.submit(ReceiverStream::new(messages)));
    answer.await.expect("it waits for the request").unwrap_err()
}

const SUBMIT: &str = "/custody.v1.Ingest/Submit";
const METHODS: [&str; 7] = [
    "/custody.v1.Admin/Status",
    "/custody.v1.Admin/PrepareStatement",
    "/custody.v1.Admin/SubmitStatement",
    "/custody.v1.Admin/ListStatements",
    "/custody.v1.Admin/IssueCertificate",
    "/custody.v1.Admin/Cut",
    "/custody.v1.Admin/Acknowledge",
];

#[tokio::test(flavor = "multi_thread")]
async fn of_whoever_may_not_come_nothing_is_read() {
    let home = Home::new("door", SETTINGS);
    let _process = home.start();
    let gateway = Gateway::enrol(&home, home.workspace("payments"));
    for method in METHODS {
        let status = answered(&gateway.door, home.grpc, method).await;
        assert_eq!(status.code(), Code::PermissionDenied, "{method}: {status:?}");
    }
    let key_id = key::public(&gateway.key).id(Role::Gateway).to_string();
    home.say_as_root(&["key", "revoke", &key_id, "--workspace", "payments"]);
    // Its certificate is good for weeks.
    let status = answered(&gateway.door, home.grpc, SUBMIT).await;
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    assert!(status.message().contains("revoked"), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_administrator_says_as_much_as_the_longest_statement_takes() {
    let home = Home::new("long", SETTINGS);
    let _process = home.start();
    let file = |name: &str| std::fs::read_to_string(home.dir.join("tls").join(name)).unwrap();
    let (certificate, tls_key, authority) = (file("admin.pem"), file("admin.key"), file("authority.pem"));
    let door = Door { certificate, tls_key, authority };
    let mut admin = AdminClient::new(door.channel(home.grpc).await.unwrap());
    for (bytes, code) in [(65_535, Code::FailedPrecondition), (100_000, Code::OutOfRange)] {
        let request = wire::SubmitStatementRequest { statement: vec![1; bytes].into() };
        let status = admin.submit_statement(request).await.unwrap_err();
        assert_eq!(status.code(), code, "{bytes} bytes: {status:?}");
    }
    admin.status(wire::StatusRequest {}).await.unwrap();
}

/// As the ledger says in its first frame (RFC 9113, 6.5).
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_has_few_streams() {
    let home = Home::new("streams-of-one", "listen.plaintext_loopback = true\n");
    home.configure(&format!("{SETTINGS}listen.plaintext_loopback = true\n"));
    let _process = home.start();
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", home.grpc)).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(head[3], 4, "the first frame is that of the settings");
    let mut settings = vec![0; usize::from(u16::from_be_bytes([head[1], head[2]]))];
    stream.read_exact(&mut settings).await.unwrap();
    let most = settings.chunks(6).find(|setting| setting[..2] == [0, 3]).expect("a bound is said");
    assert_eq!(most[2..], 64_u32.to_be_bytes());
}
