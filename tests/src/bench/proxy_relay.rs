//! Relays that do nothing but pass on, for what one more hop costs on this machine: of bytes, and of HTTP on the libraries that
//! the shim uses. Each is a process of its own, as every proxy is.
//!
//! What must hold: a relay of HTTP reads a request whole, asks over a connection that is kept, and reads the answer whole, as
//! the shim does; it looks at nothing.

use std::{
    convert::Infallible,
    io::BufRead as _,
    net::{Ipv4Addr, SocketAddr},
    process::{Child, Command, Stdio},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};

use crate::{Done, print};

/// What is passed on.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Bytes,
    Http,
}

impl Kind {
    pub(crate) const ALL: [Self; 2] = [Self::Bytes, Self::Http];

    /// Name of its arm.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bytes => "plain relay",
            Self::Http => "relay of HTTP",
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Bytes => "relay",
            Self::Http => "relay-http",
        }
    }

    /// What a word of the command line asks for.
    pub(crate) fn of(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.word() == word)
    }
}

/// A relay that runs until its handle is dropped.
pub(crate) struct Relay {
    pub(crate) kind: Kind,
    pub(crate) address: SocketAddr,
    child: Child,
}

impl Drop for Relay {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop((self.child.kill(), self.child.wait()));
    }
}

/// Starts one before a server.
pub(crate) fn start(kind: Kind, to: SocketAddr) -> Done<Relay> {
    let mut command = Command::new(std::env::current_exe()?);
    let mut child = command.args([kind.word(), &to.to_string()]).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    std::io::BufReader::new(child.stdout.take().ok_or("no output")?).read_line(&mut line)?;
    Ok(Relay { kind, address: SocketAddr::from((Ipv4Addr::LOCALHOST, line.trim().parse()?)), child })
}

/// The process that it is. Says its port first.
pub(crate) async fn run(kind: Kind, to: &str) -> Done {
    let to: SocketAddr = to.parse()?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    print(&json!(listener.local_addr()?.port()));
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client = Client::builder(TokioExecutor::new()).build(connector);
    while let Ok((near, _)) = listener.accept().await {
        let client = client.clone();
        tokio::spawn(async move {
            // Either side may end it.
            match kind {
                Kind::Bytes => pass_bytes(near, to).await.ok(),
                Kind::Http => pass_http(near, to, client).await.ok(),
            }
        });
    }
    Ok(())
}

async fn pass_bytes(mut near: TcpStream, to: SocketAddr) -> Done {
    let mut far = TcpStream::connect(to).await?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    tokio::io::copy_bidirectional(&mut near, &mut far).await?;
    Ok(())
}

async fn pass_http(near: TcpStream, to: SocketAddr, client: Client<HttpConnector, Full<Bytes>>) -> Done {
    near.set_nodelay(true)?;
    let pass = |request: Request<Incoming>| {
        let client = client.clone();
        async move { Ok::<_, Infallible>(ask(request, to, &client).await.unwrap_or_else(|_| bad_gateway())) }
    };
    http1::Builder::new().serve_connection(TokioIo::new(near), service_fn(pass)).await?;
    Ok(())
}

async fn ask(
    request: Request<Incoming>,
    to: SocketAddr,
    client: &Client<HttpConnector, Full<Bytes>>,
) -> Done<Response<Full<Bytes>>> {
    let (mut head, body) = request.into_parts();
    head.uri = format!("http://{to}{}", head.uri.path()).parse()?;
    let body = Full::new(body.collect().await?.to_bytes());
    let (head, body) = client.request(Request::from_parts(head, body)).await?.into_parts();
    Ok(Response::from_parts(head, Full::new(body.collect().await?.to_bytes())))
}

fn bad_gateway() -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = hyper::StatusCode::BAD_GATEWAY;
    response
}
