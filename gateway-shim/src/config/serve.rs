//! `[serve]`: the one endpoint through which a workspace's members reach its MCP servers.
//!
//! What must hold: no member speaks to it over a network in plaintext.

use std::{net::SocketAddr, path::PathBuf};

use serde::Deserialize;

use super::Check;
use crate::access::{IdentityProvider, Paths};

/// `[serve]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServeConfig {
    /// Address and port; without `certificate` and `key` loopback alone.
    pub listen: SocketAddr,
    /// PEM file with the certificate that members see, and what stands between it and their authority.
    pub certificate: Option<PathBuf>,
    /// PEM file of its key.
    pub key: Option<PathBuf>,
    /// Folder of what is in force, of pins, and of the control socket.
    #[serde(default = "dir")]
    pub dir: PathBuf,
    /// The workspace's access policy: the file that is under version control.
    #[serde(default = "access")]
    pub access: PathBuf,
    /// The organisation's denies, which stand above it.
    pub organisation: Option<PathBuf>,
    /// An identity provider whose word on members is taken besides tokens.
    pub identity_provider: Option<Box<IdentityProvider>>,
    /// Names under which clients may call, besides those of loopback.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// Loopback address and port of `/metrics`; without it there is none.
    pub metrics: Option<SocketAddr>,
    /// KiB, 1 to 65,536: a longer request is refused, because its envelope is read in memory.
    #[serde(default = "request_kib_max")]
    pub request_kib_max: usize,
    /// 16 to 16,384: connections of members at a time.
    #[serde(default = "connections_max")]
    pub connections_max: usize,
    /// Of these that carry requests or streams of one member, 1 to 16,384.
    #[serde(default = "member_connections_max")]
    pub member_connections_max: usize,
    /// 16 to 16,384: requests that are open at the servers at a time, each with a connection to its server.
    #[serde(default = "calls_open_max")]
    pub calls_open_max: usize,
    /// Of these for one member, 1 to 16,384.
    #[serde(default = "member_calls_open_max")]
    pub member_calls_open_max: usize,
}

fn dir() -> PathBuf {
    "state".into()
}

fn access() -> PathBuf {
    "access.toml".into()
}

fn request_kib_max() -> usize {
    4_096
}

fn connections_max() -> usize {
    512
}

fn member_connections_max() -> usize {
    64
}

fn calls_open_max() -> usize {
    512
}

fn member_calls_open_max() -> usize {
    128
}

impl ServeConfig {
    pub(super) fn check(&self, check: &mut Check) {
        let both = self.certificate.is_some() == self.key.is_some();
        check.that(both, || "serve needs both of certificate and key, or none".into());
        check.that(self.listen.ip().is_loopback() || self.certificate.is_some(), || {
            "serve.listen is not on loopback, and there is no TLS; hint: serve.certificate and serve.key, or 127.0.0.1".into()
        });
        for host in &self.hosts {
            let bare =
                !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.:[]".contains(&byte));
            let named =
                || "serve.hosts holds what is no name of a host; hint: a name or an address without port".into();
            check.that(bare, named);
        }
        for fault in self.identity_provider.iter().flat_map(|provider| provider.faults()) {
            check.that(false, || fault);
        }
        let inside = self.metrics.is_none_or(|metrics| metrics.ip().is_loopback());
        check
            .that(inside, || "serve.metrics is not on loopback; hint: 127.0.0.1, and a scraper on this machine".into());
        check.range("serve.request_kib_max", self.request_kib_max, 1, 65_536);
        check.range("serve.connections_max", self.connections_max, 16, 16_384);
        check.range("serve.member_connections_max", self.member_connections_max, 1, 16_384);
        check.range("serve.calls_open_max", self.calls_open_max, 16, 16_384);
        check.range("serve.member_calls_open_max", self.member_calls_open_max, 1, 16_384);
    }

    /// Where the access policies are.
    pub fn policies(&self) -> Paths {
        let (dir, workspace) = (self.dir.clone(), self.access.clone());
        Paths { dir, workspace, organisation: self.organisation.clone() }
    }

    pub(super) fn paths(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let optional = [&mut self.certificate, &mut self.key, &mut self.organisation].into_iter().flatten();
        let provider = self.identity_provider.as_mut();
        let of_provider = provider.map(|provider| [&mut provider.jwks_file, &mut provider.ca]);
        let of_provider = of_provider.into_iter().flatten().flatten();
        [&mut self.dir, &mut self.access].into_iter().chain(optional).chain(of_provider)
    }
}
