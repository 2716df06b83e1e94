//! The shims of the proxy's bench: the real programs, enrolled with a real ledger, one for each arm.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
};

use custody::id::hex;
use custody_tests::{
    peer::random,
    process::{Home, Process, free_port, write},
    shim::Shim,
};

use crate::Done;

/// A member of the policy, with one token.
struct Member {
    id: String,
    token_id: String,
    secret: [u8; 32],
}

impl Member {
    fn new() -> Self {
        Self { id: hex(&random::<16>()), token_id: hex(&random::<16>()), secret: random::<32>() }
    }

    fn token(&self) -> String {
        format!("cst_{}_{}", self.token_id, hex(&self.secret))
    }
}

/// One running shim.
pub(crate) struct Running {
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    pub(crate) token: String,
    _process: Process,
}

/// What runs until this is dropped: the shims before their ledger.
pub(crate) struct Setup {
    pub(crate) shims: Vec<Running>,
    _ledger: Process,
    _home: Home,
}

/// An access policy of so many members, who may call so many tools.
fn policy(members: &[Member], tools: usize) -> String {
    let mut text = String::from("version = 1\n");
    for member in members {
        text += &format!("[members.{}]\nkind = \"person\"\ngroups = [\"all\"]\n", member.id);
    }
    text += "[servers.fixed]\n";
    for tool in 0..tools {
        let name = if tool + 1 == tools { "fixed/echo".to_owned() } else { format!("fixed/tool-{tool}") };
        text +=
            &format!("[[rules]]\nid = \"rule-{tool}\"\neffect = \"allow\"\ngroups = [\"all\"]\ntools = [\"{name}\"]\n");
    }
    for member in members {
        let digest = hex(&custody::hash::sha256(&[&member.secret]));
        text += &format!(
            "[[tokens]]\nid = \"{}\"\nsha256 = \"{digest}\"\nmember = \"{}\"\nissued_at = 2026-01-01T00:00:00Z\nexpires_at = 2036-01-01T00:00:00Z\n",
            member.token_id, member.id
        );
    }
    text
}

impl Setup {
    pub(crate) fn new(folder: &Path, upstream: SocketAddr) -> Done<Self> {
        let home = Home::at(&folder.join("ledger"), "");
        let ledger = home.start();
        let arms = [
            ("shim, relaxed", "relaxed", 10, 10, false),
            ("shim, strict", "strict", 10, 10, false),
            ("shim, strict, ledger away", "strict", 10, 10, true),
            ("shim, relaxed, 10,000 members, 1,000 tools", "relaxed", 10_000, 1_000, false),
        ];
        let mut shims = Vec::new();
        for (which, (name, mode, members, tools, away)) in arms.into_iter().enumerate() {
            let port = free_port();
            let sections = format!(
                "[serve]\nlisten = \"127.0.0.1:{port}\"\n[servers.fixed]\nurl = \"http://{upstream}/mcp\"\nmode = \"{mode}\""
            );
            let shim = Shim::with(&home, &format!("arm-{which}"), &sections);
            let members: Vec<Member> = (0..members).map(|_| Member::new()).collect();
            write(&shim.dir.join("access.toml"), policy(&members, tools).as_bytes());
            if away {
                let config = std::fs::read_to_string(shim.dir.join("shim.toml"))?;
                let nobody = format!("localhost:{}", free_port());
                write(
                    &shim.dir.join("shim.toml"),
                    config.replace(&format!("localhost:{}", home.grpc), &nobody).as_bytes(),
                );
            }
            let mut command = shim.serving();
            let process = Process::spawn(&mut command);
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            let token = members.last().map(Member::token).ok_or("no member")?;
            shims.push(Running { name, address, token, _process: process });
        }
        Ok(Self { shims, _ledger: ledger, _home: home })
    }
}
