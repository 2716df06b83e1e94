//! Starts, watches and kills the built programs: one [`Home`] is one ledger on disk, one [`Process`] one run of it.
//!
//! What must hold: nothing here sleeps; whoever waits, waits for a line of the log or for the end of the process, with a
//! limit that is generous and only bounds a failure. A process that a test forgets is killed with its handle.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use custody::id::WorkspaceId;
use tempfile::TempDir;

/// Limit of every wait for a process: a start with recovery takes well under a second, on a busy machine a few.
pub const WAIT: Duration = Duration::from_secs(30);
/// Ports are taken below the range that systems give to outgoing connections.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
static NEXT_PORT: AtomicU16 = AtomicU16::new(0);
/// Settings of most tests: segments are cut when a test says so, the fence is read so often that nobody waits for it, and how full
/// this machine's disk is plays no part.
pub const SETTINGS: &str =
    "segment.age_seconds = 86400\nfence.read_seconds = 1\nstore.disk_low_bytes = 0\nstore.disk_full_bytes = 0\n";

/// A built program: from the folder in `CUSTODY_BIN`, else from where this test was built.
pub fn binary(name: &str) -> PathBuf {
    let folder = std::env::var_os("CUSTODY_BIN").map(PathBuf::from).unwrap_or_else(|| {
        let test = std::env::current_exe().expect("this test has a path");
        let folder = test.parent().expect("it lies in a folder");
        if folder.ends_with("deps") { folder.join("..") } else { folder.to_owned() }
    });
    let path = folder.join(name);
    assert!(path.exists(), "{} is not built (hint: cargo build --workspace --bins)", path.display());
    path
}

/// Waits before something is asked or sent again, because whoever answered said how long.
#[expect(
    clippy::disallowed_methods,
    reason = "what is waited for is not here: another process says when to come again"
)]
pub async fn pause(how_long: Duration) {
    tokio::time::sleep(how_long).await;
}

/// What comes soon, or the test fails.
///
/// # Panics
/// When it does not come.
pub fn soon<T>(look: impl Fn() -> Option<T>) -> T {
    let until = std::time::Instant::now() + 2 * WAIT;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(std::time::Instant::now() < until, "what the test waits for does not come");
        std::thread::yield_now();
    }
}

/// A port of the loopback address that nobody listens on.
pub fn free_port() -> u16 {
    let width = PORTS.end - PORTS.start;
    let process = u16::try_from(std::process::id() % u32::from(width)).expect("below the width");
    for _ in 0..width {
        let step = NEXT_PORT.fetch_add(1, Ordering::Relaxed);
        // Tests that run at the same time in other processes begin somewhere else.
        let port = PORTS.start + (process.wrapping_mul(37).wrapping_add(step)) % width;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between {} and {}", PORTS.start, PORTS.end);
}

/// Writes a file of a test.
pub fn write(path: &Path, bytes: &[u8]) {
    let mut file = File::create(path).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
    file.write_all(bytes).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
}

/// A ledger on disk.
pub struct Home {
    /// Its folder.
    pub dir: PathBuf,
    /// Name of its log.
    pub origin: String,
    /// gRPC port.
    pub grpc: u16,
    /// HTTP port.
    pub http: u16,
    /// Port of those who ask.
    pub ask: u16,
    _kept: Option<TempDir>,
}

impl Home {
    /// Makes a ledger in a new temporary folder with `ledger init`; `settings` are TOML lines such as
    /// `segment.leaves_max = 40`.
    pub fn new(name: &str, settings: &str) -> Self {
        let folder =
            tempfile::Builder::new().prefix(&format!("custody-{name}-")).tempdir().expect("a temporary folder");
        let mut home = Self::at(&folder.path().join("ledger"), settings);
        home._kept = Some(folder);
        home
    }

    /// Makes a ledger in `dir`, which must not exist.
    pub fn at(dir: &Path, settings: &str) -> Self {
        let origin = "custody.test/e2e".to_owned();
        let mut init = Command::new(binary("ledger"));
        init.arg("init").arg("--dir").arg(dir).args(["--origin", &origin]);
        let made = init.output().expect("ledger init runs");
        assert!(made.status.success(), "ledger init: {}", String::from_utf8_lossy(&made.stderr));
        let home =
            Self { dir: dir.to_owned(), origin, grpc: free_port(), http: free_port(), ask: free_port(), _kept: None };
        home.configure(settings);
        home
    }

    /// The same ledger's files, copied to another folder, with ports of their own.
    pub fn copy(&self, dir: &Path, settings: &str) -> Self {
        copy_folder(&self.dir, dir);
        let home = Self {
            dir: dir.to_owned(),
            origin: self.origin.clone(),
            grpc: free_port(),
            http: free_port(),
            ask: free_port(),
            _kept: None,
        };
        home.configure(settings);
        home
    }

    /// Settings with which a copy shares this ledger's fence and archive.
    pub fn shared(&self) -> String {
        let (fence, archive) = (self.dir.join("fence").display().to_string(), self.archive().display().to_string());
        format!("fence.folder = {fence:?}\narchive.folder = {archive:?}\n")
    }

    /// Puts `settings` and the ports into the configuration.
    pub fn configure(&self, settings: &str) {
        let path = self.config();
        let text = std::fs::read_to_string(&path).expect("init wrote a configuration");
        let mut config: toml::Table = toml::from_str(&text).expect("it is TOML");
        let ports = format!(
            "listen.grpc = \"127.0.0.1:{0}\"\nlisten.http = \"127.0.0.1:{1}\"\nlisten.ask = \"127.0.0.1:{2}\"\n\
             admin.url = \"https://localhost:{0}\"\nask.ask_url = \"https://localhost:{2}\"\n",
            self.grpc, self.http, self.ask
        );
        let read = |text: &str| toml::from_str::<toml::Table>(text).expect("settings are TOML");
        for (section, values) in read(&ports).into_iter().chain(read(settings)) {
            match (config.get_mut(&section), values) {
                (Some(toml::Value::Table(known)), toml::Value::Table(values)) => known.extend(values),
                (_, values) => drop(config.insert(section, values)),
            }
        }
        write(&path, toml::to_string(&config).expect("it stays TOML").as_bytes());
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.dir.join("ledger.toml")
    }

    /// The root key, which `init` leaves beside the ledger.
    pub fn root_key(&self) -> PathBuf {
        self.dir.join("root/root.key")
    }

    /// The archive's folder.
    pub fn archive(&self) -> PathBuf {
        self.dir.join("archive")
    }

    /// The audit policy.
    pub fn policy(&self) -> PathBuf {
        self.dir.join("policy.json")
    }

    /// Runs one command of the command line against this ledger.
    pub fn try_say(&self, args: &[&str]) -> Output {
        let mut command = Command::new(binary("ledger"));
        command.args(args).arg("--config").arg(self.config()).current_dir(&self.dir);
        command.output().expect("the ledger's command runs")
    }

    /// Runs one command that must succeed; what it printed.
    pub fn say(&self, args: &[&str]) -> String {
        let done = self.try_say(args);
        let (said, complained) = (text(&done.stdout), text(&done.stderr));
        assert!(done.status.success(), "ledger {args:?}: {:?}\n{said}{complained}", done.status);
        said
    }

    /// Runs one command that must fail with this code; what it complained of.
    pub fn refuses(&self, args: &[&str], code: i32) -> String {
        let done = self.try_say(args);
        let complained = text(&done.stderr);
        assert_eq!(done.status.code(), Some(code), "ledger {args:?}: {}{complained}", text(&done.stdout));
        complained
    }

    /// `ledger cut` that nothing can archive: it gives up soon, with code 1; what it complained of.
    pub fn cut_in_vain(&self) -> String {
        self.configure("admin.timeout_seconds = 1\n");
        let complained = self.refuses(&["cut"], 1);
        self.configure("admin.timeout_seconds = 60\n");
        complained
    }

    /// A command that the root signs.
    pub fn say_as_root(&self, args: &[&str]) -> String {
        let key = self.root_key();
        let key = key.to_str().expect("paths of tests are text");
        self.say(&[args, &["--root-key", key]].concat())
    }

    /// `ledger status --json`.
    pub fn status(&self) -> serde_json::Value {
        serde_json::from_str(&self.say(&["status", "--json"])).expect("the status is JSON")
    }

    /// Whether an alarm of this name stands.
    pub fn alarm_stands(&self, name: &str) -> bool {
        let status = self.status();
        let alarms = status["alarms"].as_array().expect("the status has alarms");
        alarms.iter().filter_map(serde_json::Value::as_str).any(|alarm| alarm.starts_with(name))
    }

    /// Has the root create a workspace.
    pub fn workspace(&self, name: &str) -> WorkspaceId {
        let said = self.say_as_root(&["workspace", "add", name]);
        let id = said.lines().find_map(|line| line.split_once("has the id ")).map(|(_, id)| id.trim());
        id.and_then(WorkspaceId::from_hex).unwrap_or_else(|| panic!("no id in {said}"))
    }

    /// Waits until what `ledger status` says fits, with a limit.
    pub async fn status_when(&self, what: &str, fits: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        let waited = tokio::time::timeout(WAIT, async {
            loop {
                let status = self.status();
                if fits(&status) {
                    return status;
                }
                // The ledger looks at disk and fence once a second; asking costs it microseconds.
                pause(Duration::from_millis(100)).await;
            }
        });
        waited.await.unwrap_or_else(|_| panic!("not within {WAIT:?}: {what}\n{:#}", self.status()))
    }

    /// Starts `ledger serve` and waits until it serves.
    pub fn start(&self) -> Process {
        let process = self.spawn(&[]);
        assert!(process.wait_serving(), "the ledger ended at its start:\n{}", process.log().join("\n"));
        process
    }

    /// Starts `ledger serve` with these variables, without waiting.
    pub fn spawn(&self, variables: &[(&str, &str)]) -> Process {
        let mut command = Command::new(binary("ledger"));
        command.arg("serve").arg("--config").arg(self.config()).current_dir(&self.dir);
        Process::spawn(command.envs(variables.iter().copied()))
    }
}

/// Runs a command of the ledger's that needs none to run, and must succeed; what it printed.
pub fn offline(args: &[&str]) -> String {
    let done = Command::new(binary("ledger")).args(args).output().expect("the ledger's command runs");
    assert!(done.status.success(), "ledger {args:?}: {}", text(&done.stderr));
    text(&done.stdout)
}

/// Ends a process with SIGTERM, after which nothing may be left to do.
pub fn end(process: &Process) {
    process.terminate();
    assert_eq!(process.wait_end().code(), Some(0), "{}", process.log().join("\n"));
}

/// A program under `strace`, which looks on from aside, so that the program stays this test's own child; `None` where it cannot
/// run and somebody has said that this is known. That it cannot is no reason to pass.
#[expect(clippy::print_stdout, reason = "what was not checked is told")]
pub fn traced(trace: &Path, program: &str) -> Option<Command> {
    let tried = Command::new("strace").args(["-f", "-e", "trace=fsync", "true"]).output();
    if !tried.is_ok_and(|tried| tried.status.success()) {
        let skipped = std::env::var("CUSTODY_NO_STRACE").is_ok_and(|set| set == "1");
        println!("NOT CHECKED: strace cannot run here, so nothing shows that the sync comes before the answer");
        assert!(skipped, "strace is missing or may not trace (hint: apt-get install strace, or CUSTODY_NO_STRACE=1)");
        return None;
    }
    let calls = "trace=fdatasync,fsync,write,writev,pwrite64,sendto,sendmsg,openat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat";
    let mut command = Command::new("strace");
    command.args(["-D", "-f", "-yy", "-e", calls, "-s", "0", "-o"]).arg(trace).arg(binary(program));
    Some(command)
}

/// A number from the environment, by which a long test is made longer or replayed.
pub fn variable(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

/// A key of the ledger's that `init` left unsealed: PKCS #8, whose last field is the secret.
pub fn unsealed_key(path: &Path) -> ed25519_dalek::SigningKey {
    use base64::Engine as _;
    let text = std::fs::read_to_string(path).expect("init wrote a key");
    let body: String = text.lines().filter(|line| !line.starts_with("-----")).collect();
    let der = base64::engine::general_purpose::STANDARD.decode(body).expect("PEM");
    let secret = der.get(16..48).expect("a key of Ed25519").try_into().expect("32 bytes");
    ed25519_dalek::SigningKey::from_bytes(&secret)
}

/// Copies a folder with all that is in it.
pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder of the copy");
    for file in std::fs::read_dir(from).expect("a folder to copy") {
        let file = file.expect("a file to copy");
        let target = to.join(file.file_name());
        match file.file_type().expect("its type").is_dir() {
            true => copy_folder(&file.path(), &target),
            false => drop(std::fs::copy(file.path(), target).expect("a file of the copy")),
        }
    }
}

/// Bytes that a program printed.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[derive(Default)]
struct Log {
    lines: Vec<String>,
    ended: bool,
}

/// A running program.
pub struct Process {
    child: Mutex<Child>,
    log: Arc<(Mutex<Log>, Condvar)>,
}

impl Process {
    /// Starts a command whose standard error is its log.
    pub fn spawn(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|why| panic!("{command:?}: {why}"));
        let lines = BufReader::new(child.stderr.take().expect("it was asked for"));
        let log = Arc::new((Mutex::new(Log::default()), Condvar::new()));
        let shared = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in lines.lines() {
                let Ok(line) = line else { break };
                shared.0.lock().unwrap_or_else(PoisonError::into_inner).lines.push(line);
                shared.1.notify_all();
            }
            shared.0.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
            shared.1.notify_all();
        });
        Self { child: Mutex::new(child), log }
    }

    /// What it logged so far.
    pub fn log(&self) -> Vec<String> {
        self.log.0.lock().unwrap_or_else(PoisonError::into_inner).lines.clone()
    }

    /// Waits for a line with `words` in it; `false` if the process ended without one.
    pub fn wait_line(&self, words: &str) -> bool {
        let found = |log: &Log| log.lines.iter().any(|line| line.contains(words));
        let log = self.log.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.log.1.wait_timeout_while(log, WAIT, |log| !log.ended && !found(log));
        let (log, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        assert!(!timeout.timed_out(), "no line with {words:?} within {WAIT:?}:\n{}", log.lines.join("\n"));
        found(&log)
    }

    /// Waits until the ledger serves; `false` if it ended before.
    pub fn wait_serving(&self) -> bool {
        self.wait_line("\"serving\"")
    }

    /// Waits for its end.
    pub fn wait_end(&self) -> ExitStatus {
        let log = self.log.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.log.1.wait_timeout_while(log, WAIT, |log| !log.ended);
        let (log, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        assert!(!timeout.timed_out(), "still running after {WAIT:?}:\n{}", log.lines.join("\n"));
        drop(log);
        self.child.lock().unwrap_or_else(PoisonError::into_inner).wait().expect("it can be waited for")
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.lock().unwrap_or_else(PoisonError::into_inner).id()
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&self) {
        self.child.lock().unwrap_or_else(PoisonError::into_inner).kill().expect("it can be killed");
        self.wait_end();
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        let done = Command::new("kill").args(["-TERM", &self.id().to_string()]).status();
        assert!(done.expect("kill runs").success(), "it is not there any more");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        // It may have ended already.
        if child.kill().is_ok() {
            child.wait().ok();
        }
    }
}
