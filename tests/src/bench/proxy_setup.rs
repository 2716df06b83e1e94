//! The shims of the proxy's bench: the real programs, enrolled with a real ledger, one for each arm; and `mcp-proxy`, another
//! proxy for MCP, which records nothing, where it is installed.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
};

use custody::id::hex;
use custody_tests::{
    peer::random,
    process::{Home, Process, free_port, write},
    shim::{Shim, day},
};

use crate::Done;

/// Members of the shim whose members are revoked, one after the other; enough for a p99.
pub(crate) const REVOKED: usize = 100;
/// The agent of all tokens.
const AGENT: &str = "a9000000000000000000000000000001";

/// A member of the policy, with one token.
pub(crate) struct Member {
    pub(crate) id: String,
    token_id: String,
    secret: [u8; 32],
}

impl Member {
    pub(crate) fn new() -> Self {
        Self { id: hex(&random::<16>()), token_id: hex(&random::<16>()), secret: random::<32>() }
    }

    pub(crate) fn token(&self) -> String {
        format!("cst_{}_{}", self.token_id, hex(&self.secret))
    }
}

/// One running shim.
pub(crate) struct Running {
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    pub(crate) members: Vec<Member>,
    pub(crate) dir: PathBuf,
    _process: Process,
}

impl Running {
    /// Whose calls are measured: the last member that the policy names.
    pub(crate) fn token(&self) -> String {
        self.members.last().map(Member::token).unwrap_or_default()
    }
}

/// What runs until this is dropped: the shims before their ledger.
pub(crate) struct Setup {
    pub(crate) shims: Vec<Running>,
    pub(crate) revoking: Running,
    /// Where another proxy listens, if one is installed.
    pub(crate) other: Option<SocketAddr>,
    _other: Option<Process>,
    _ledger: Process,
    _home: Home,
}

/// An access policy of so many members, who may call so many tools.
pub(crate) fn policy(members: &[Member], tools: usize) -> String {
    let (issued, expires) = (day(-1), day(30));
    let mut text = format!("version = 1\n[agents.{AGENT}]\n");
    for member in members {
        text += &format!("[members.{}]\nkind = \"person\"\ngroups = [\"all\"]\n", member.id);
    }
    text += "[servers.fixed]\n";
    for tool in 0..tools {
        // What is called stands behind all others.
        let names = match tool + 1 == tools {
            true => "\"fixed/echo\", \"fixed/stream\"".to_owned(),
            false => format!("\"fixed/tool-{tool}\""),
        };
        text +=
            &format!("[[rules]]\nid = \"rule-{tool}\"\neffect = \"allow\"\ngroups = [\"all\"]\ntools = [{names}]\n");
    }
    for member in members {
        let digest = hex(&custody::hash::sha256(&[&member.secret]));
        text += &format!(
            "[[tokens]]
id = \"{}\"
sha256 = \"{digest}\"
member = \"{}\"
agent = \"{AGENT}\"
issued_at = {issued}
expires_at = {expires}
",
            member.token_id, member.id
        );
    }
    text
}

/// One shim before the fixed server; `away`: its ledger cannot be reached.
fn shim(
    home: &Home,
    upstream: SocketAddr,
    (name, mode, members, tools, away): (&'static str, &str, usize, usize, bool),
) -> Done<Running> {
    let port = free_port();
    let sections = format!(
        "[relay]\nsocket = \"relay.sock\"\n[serve]\nlisten = \"127.0.0.1:{port}\"\n[servers.fixed]\n\
         url = \"http://{upstream}/mcp\"\nmode = \"{mode}\""
    );
    let workspace = format!("arm-{port}");
    let dir = home.dir.join(format!("shim-{workspace}"));
    let members: Vec<Member> = (0..members).map(|_| Member::new()).collect();
    std::fs::create_dir_all(&dir)?;
    write(&dir.join("access.toml"), policy(&members, tools).as_bytes());
    let shim = Shim::with(home, &workspace, &sections);
    if away {
        let config = std::fs::read_to_string(shim.dir.join("shim.toml"))?;
        let nobody = format!("localhost:{}", free_port());
        write(&shim.dir.join("shim.toml"), config.replace(&format!("localhost:{}", home.grpc), &nobody).as_bytes());
    }
    let process = Process::spawn(&mut shim.serving());
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    Ok(Running { name, address, members, dir: shim.dir, _process: process })
}

/// The program in `CUSTODY_MCP_PROXY`, before the fixed server.
fn other(folder: &Path, upstream: SocketAddr) -> Option<(SocketAddr, Process)> {
    let program = PathBuf::from(std::env::var_os("CUSTODY_MCP_PROXY")?);
    if !program.exists() {
        return None;
    }
    let port = free_port();
    let config = folder.join("mcp-proxy.toml");
    let text = format!(
        "[proxy]\nname = \"bench\"\n[proxy.listen]\nhost = \"127.0.0.1\"\nport = {port}\n[[backends]]\nname = \"fixed\"\n\
         transport = \"http\"\nurl = \"http://{upstream}/mcp\"\n[observability]\nlog_level = \"error\"\n"
    );
    write(&config, text.as_bytes());
    let process = Process::spawn(Command::new(program).arg("--config").arg(&config));
    Some((SocketAddr::from((Ipv4Addr::LOCALHOST, port)), process))
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
        let shims = arms.into_iter().map(|arm| shim(&home, upstream, arm)).collect::<Done<_>>()?;
        let revoking = shim(&home, upstream, ("shim, strict", "strict", REVOKED + 1, 10, false))?;
        let (other, process) = other(folder, upstream).unzip();
        Ok(Self { shims, revoking, other, _other: process, _ledger: ledger, _home: home })
    }
}
