//! A gateway-shim on disk, enrolled with a ledger that runs: the built program, never its library.
//!
//! Whoever uses it says what it does by its own sections of the configuration.

use std::{
    path::PathBuf,
    process::{Command, Output},
    time::{SystemTime, UNIX_EPOCH},
};

use custody::id::hex;

use crate::{
    peer::random,
    process::{Home, Process, binary, text, write},
};

/// A gateway-shim on disk, enrolled with a ledger.
pub struct Shim {
    /// Its folder.
    pub dir: PathBuf,
    /// Name of its workspace.
    pub workspace: String,
}

impl Shim {
    /// One with this `[relay]` section.
    pub fn enrol(home: &Home, workspace: &str, relay: &str) -> Self {
        Self::with(home, workspace, &format!("[relay]\n{relay}"))
    }

    /// Makes its keys in a folder beside the ledger's and enrols it, with these sections besides those that all have.
    pub fn with(home: &Home, workspace: &str, sections: &str) -> Self {
        Self::with_variables(home, workspace, sections, &[])
    }

    /// The same, of one whose configuration needs these variables of the environment.
    pub fn with_variables(home: &Home, workspace: &str, sections: &str, variables: &[(&str, &str)]) -> Self {
        let dir = home.dir.join(format!("shim-{workspace}"));
        std::fs::create_dir_all(&dir).expect("a folder beside the ledger's");
        let (id, gateway) = (home.workspace(workspace), hex(&random::<16>()));
        let config = format!(
            "[gateway]\norigin = \"{}\"\nworkspace = \"{id}\"\nid = \"{gateway}\"\nname = \"{workspace}\"\n\
             key = \"gateway.key\"\ntls_key = \"tls.key\"\nenrolment = \"enrolment.json\"\n\
             [ledger]\nendpoint = \"https://localhost:{}\"\n[spool]\ndir = \"state/spool\"\n[fork]\ndir = \"forks\"\n\
             {sections}\n",
            home.origin, home.grpc
        );
        write(&dir.join("shim.toml"), config.as_bytes());
        let shim = Self { dir, workspace: workspace.to_owned() };
        shim.say(&["key", "new", "--key", "gateway.key", "--tls-key", "tls.key"]);
        shim.say(&["request", "--config", "shim.toml", "--out", "request.json"]);
        let file = |name: &str| shim.dir.join(name).to_str().expect("paths of tests are text").to_owned();
        let (request, answer) = (file("request.json"), file("enrolment.json"));
        home.say_as_root(&["gateway", "enrol", &request, "--name", workspace, "--out", &answer]);
        let mut check = Command::new(binary("gateway-shim"));
        check.args(["config", "check", "--config", "shim.toml"]).current_dir(&shim.dir).envs(variables.iter().copied());
        done("gateway-shim config check", &check.output().expect("gateway-shim runs"));
        shim
    }

    /// An access policy beside its configuration in which one member, of this id, may do everything. Gives the value of the header
    /// Authorization with that member's token.
    pub fn with_member(home: &Home, workspace: &str, member: &str) -> String {
        let (id, secret, agent) = (random::<16>(), random::<32>(), "a9".repeat(16));
        let (id, sha256) = (hex(&id), hex(&custody::hash::sha256(&[&secret])));
        let (issued, expires) = (day(-1), day(1));
        let policy = format!(
            "version = 1\n[members.{member}]\n[agents.{agent}]\n[[rules]]\nid = \"all\"\neffect = \"allow\"\n\
             members = [\"{member}\"]\ntools = [\"*\"]\nmethods = [\"*\"]\n[[tokens]]\nid = \"{id}\"\n\
             sha256 = \"{sha256}\"\nmember = \"{member}\"\nagent = \"{agent}\"\nissued_at = {issued}\nexpires_at = {expires}\n"
        );
        Self::policy(home, workspace, &policy);
        format!("Bearer cst_{id}_{}", hex(&secret))
    }

    /// Puts an access policy where the shim of this workspace will look for it.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn policy(home: &Home, workspace: &str, policy: &str) {
        let dir = home.dir.join(format!("shim-{workspace}"));
        std::fs::create_dir_all(&dir).expect("a folder beside the ledger's");
        write(&dir.join("access.toml"), policy.as_bytes());
    }

    /// Runs one command that must succeed.
    pub fn say(&self, args: &[&str]) {
        self.hear(args);
    }

    /// The same, and what it printed.
    pub fn hear(&self, args: &[&str]) -> Output {
        let output = Command::new(binary("gateway-shim")).args(args).current_dir(&self.dir).output();
        let output = output.expect("gateway-shim runs");
        done("gateway-shim", &output);
        output
    }

    /// The command that runs the relay.
    pub fn command(&self) -> Command {
        let mut command = Command::new(binary("gateway-shim"));
        command.args(["relay", "--config", "shim.toml"]).current_dir(&self.dir);
        command
    }

    /// The command that runs the proxy.
    pub fn serving(&self) -> Command {
        let mut command = Command::new(binary("gateway-shim"));
        command.args(["serve", "--config", "shim.toml"]).current_dir(&self.dir);
        command
    }

    /// Starts the relay and waits until it listens.
    pub fn start(&self) -> Process {
        let process = Process::spawn(&mut self.command());
        assert!(process.wait_line("relay listens"), "{}", process.log().join("\n"));
        process
    }
}

/// A time so many days from now, as a policy has it: a token is good around today.
#[expect(clippy::disallowed_methods, reason = "the programs under test go by this machine's clock")]
pub fn day(ahead: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time of today").as_secs();
    let seconds = i64::try_from(now).expect("a time of today") + ahead * 86_400;
    let time = chrono::DateTime::from_timestamp(seconds, 0).expect("a time of today");
    time.format("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// What a command printed, which must have succeeded.
pub fn done(what: &str, output: &Output) -> String {
    let (said, complained) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{what}: {:?}\n{said}{complained}", output.status);
    said
}
