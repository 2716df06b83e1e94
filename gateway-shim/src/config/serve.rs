//! `[serve]`: the one endpoint through which a workspace's members reach its MCP servers.
//!
//! What must hold: no member speaks to it over a network in plaintext.

use std::{net::SocketAddr, path::PathBuf};

use serde::Deserialize;

use super::Check;

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
    /// Names under which clients may call, besides those of loopback.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// KiB, 1 to 65,536: a longer request is refused, because its envelope is read in memory.
    #[serde(default = "request_kib_max")]
    pub request_kib_max: usize,
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
        check.range("serve.request_kib_max", self.request_kib_max, 1, 65_536);
    }

    pub(super) fn paths(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let optional = [&mut self.certificate, &mut self.key, &mut self.organisation];
        [&mut self.dir, &mut self.access].into_iter().chain(optional.into_iter().flatten())
    }
}
