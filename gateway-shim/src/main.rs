//! `gateway-shim`: keys, enrolment, configuration, and the two ways to run.
//!
//! Exit codes: 0 drained and all shipped; 1 failed to start or to run; 3 drained, and batches are left in the spool for the
//! next start; 4 the ledger takes nothing more of this gateway; 5 the ledger shows two histories (a fork); 64 usage;
//! 78 the configuration cannot be used.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Parser, Subcommand};
use gateway_shim::{
    config::{Config, RelayConfig, ServeConfig, TEMPLATE},
    durable,
    gateway::{self, Ended, Gateway, OpenError},
    key, relay, serve,
    spool::SpoolError,
    writer::Carried,
};
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};

const EXIT_FAILED: u8 = 1;
const EXIT_UNSHIPPED: u8 = 3;
const EXIT_REFUSED: u8 = 4;
const EXIT_FORK: u8 = 5;
const EXIT_USAGE: u8 = 64;
const EXIT_CONFIG: u8 = 78;

/// Records every tool call that passes, signs it, and ships it to the ledger.
#[derive(Parser)]
#[command(name = "gateway-shim", version, about)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Keys of this gateway.
    Key {
        #[command(subcommand)]
        verb: KeyVerb,
    },
    /// Writes the request that `ledger gateway enrol` takes.
    Request {
        /// Configuration file.
        #[arg(long)]
        config: PathBuf,
        /// Where to write it.
        #[arg(long)]
        out: PathBuf,
    },
    /// Stands in front of MCP servers.
    Serve {
        /// Configuration file.
        #[arg(long)]
        config: PathBuf,
    },
    /// Takes records of other gateways on this machine.
    Relay {
        /// Configuration file.
        #[arg(long)]
        config: PathBuf,
    },
    /// The configuration file.
    Config {
        #[command(subcommand)]
        verb: ConfigVerb,
    },
}

#[derive(Subcommand)]
enum KeyVerb {
    /// Makes the signing key and the TLS key, in new files with mode 0600.
    New {
        /// File of the key that signs batches.
        #[arg(long)]
        key: PathBuf,
        /// File of the TLS key.
        #[arg(long)]
        tls_key: PathBuf,
    },
    /// The key before this one is lost, and a start asks for it: goes on with the key that the configuration names.
    Lost {
        /// Configuration file.
        #[arg(long)]
        config: PathBuf,
    },
}

#[derive(Subcommand)]
enum ConfigVerb {
    /// Prints one with every key: its unit, default, bounds and reason.
    Template,
    /// Says all that is wrong with it and with the files that it names, and the next move.
    Check {
        /// Configuration file.
        #[arg(long)]
        config: PathBuf,
    },
}

/// What went wrong, and the exit code.
struct Failed(u8, String);

impl Failed {
    fn of(code: u8) -> impl Fn(Box<dyn std::error::Error + Send + Sync>) -> Self {
        move |error| {
            let mut text = error.to_string();
            let mut source = error.source();
            while let Some(cause) = source {
                text = format!("{text}: {cause}");
                source = cause.source();
            }
            Self(code, text)
        }
    }
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { EXIT_USAGE } else { 0 };
            return if error.print().is_ok() { ExitCode::from(code) } else { ExitCode::from(EXIT_FAILED) };
        }
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("GATEWAY_SHIM_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().json().with_env_filter(filter).with_writer(std::io::stderr).init();
    match run(cli.verb) {
        Ok(code) => ExitCode::from(code),
        Err(Failed(code, text)) => {
            say(&format!("failed to {text}"));
            ExitCode::from(code)
        }
    }
}

#[expect(clippy::print_stderr, reason = "the command line's own voice")]
fn say(text: &str) {
    eprintln!("gateway-shim: {text}");
}

fn run(verb: Verb) -> Result<u8, Failed> {
    match verb {
        Verb::Key { verb: KeyVerb::New { key, tls_key } } => {
            key::create(&key, &tls_key).map_err(|error| Failed::of(EXIT_FAILED)(Box::new(error)))?;
            say(&format!("made {} and {}; keep both secret", key.display(), tls_key.display()));
            Ok(0)
        }
        Verb::Key { verb: KeyVerb::Lost { config } } => lost(&read(&config)?),
        Verb::Request { config, out } => request(&read(&config)?, &out),
        Verb::Config { verb: ConfigVerb::Template } => {
            let printed = std::io::stdout().write_all(TEMPLATE.as_bytes());
            printed.map_err(|error| Failed::of(EXIT_FAILED)(Box::new(error)))?;
            Ok(0)
        }
        Verb::Config { verb: ConfigVerb::Check { config } } => {
            let config = read(&config)?;
            check(&config)?;
            for warning in config.warnings() {
                say(&format!("warning: {warning}"));
            }
            say("the configuration can be used");
            Ok(0)
        }
        Verb::Serve { config } => in_runtime(live(read(&config)?, Way::Serve)),
        Verb::Relay { config } => in_runtime(live(read(&config)?, Way::Relay)),
    }
}

/// Looks at every file that a start reads.
fn check(config: &Config) -> Result<(), Failed> {
    gateway::check(config).map_err(not_open)?;
    serve::check(config).map_err(|faults| Failed::of(EXIT_CONFIG)(Box::new(faults)))
}

fn not_open(error: OpenError) -> Failed {
    let code = match &error {
        OpenError::Config(_)
        | OpenError::Key(_)
        | OpenError::Spool(SpoolError::OfAnother(_) | SpoolError::OtherKey(..) | SpoolError::Newer) => EXIT_CONFIG,
        OpenError::Spool(_) | OpenError::Chain(_) => EXIT_FAILED,
    };
    Failed::of(code)(Box::new(error))
}

fn read(path: &Path) -> Result<Config, Failed> {
    Config::read(path).map_err(|faults| Failed::of(EXIT_CONFIG)(Box::new(faults)))
}

fn request(config: &Config, out: &Path) -> Result<u8, Failed> {
    let failed = |error: key::KeyError| Failed::of(EXIT_FAILED)(Box::new(error));
    let signing = key::read_signing(&config.gateway.key).map_err(failed)?;
    let tls = key::read_secret(&config.gateway.tls_key).map_err(failed)?;
    let request = key::enrolment_request(&config.name(), &config.gateway.name, &signing, &tls).map_err(failed)?;
    let mut json = serde_json::to_vec_pretty(&request).map_err(|error| Failed::of(EXIT_FAILED)(Box::new(error)))?;
    json.push(b'\n');
    durable::create_new(out, &json, false).map_err(|error| not_written(out, &error))?;
    say(&format!(
        "wrote {}; hint: ledger gateway enrol takes it, and answers with {}",
        out.display(),
        config.gateway.enrolment.display()
    ));
    Ok(0)
}

/// Goes on without a key that is lost, and says what became of what waited for it.
fn lost(config: &Config) -> Result<u8, Failed> {
    match gateway::go_on_without_key(config).map_err(not_open)? {
        Some(Carried { old_epoch, old_key, epoch, records, unfinished }) => say(&format!(
            "epoch {old_epoch} of the key {old_key} stays unended; epoch {epoch} of gateway.key goes on behind it, with \
             {records} records and {unfinished} calls that waited there; hint: start the gateway, which ships them, and \
             keep what was printed here: it has their new names"
        )),
        None => say("no epoch in the spool waits for another key; nothing was changed; hint: start the gateway"),
    }
    Ok(0)
}

fn not_written(path: &Path, error: &std::io::Error) -> Failed {
    let path = path.display();
    Failed(
        EXIT_FAILED,
        match error.kind() {
            std::io::ErrorKind::AlreadyExists => {
                format!("write {path}: there is a file of this name; hint: another name, or move it away")
            }
            _ => format!("write {path}: {error}"),
        },
    )
}

fn in_runtime(life: impl Future<Output = Result<u8, Failed>>) -> Result<u8, Failed> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failed::of(EXIT_FAILED)(Box::new(error)))?;
    let code = runtime.block_on(life);
    // Whatever still waits for a connection is of no use any more.
    runtime.shutdown_timeout(Duration::from_secs(1));
    code
}

enum Way {
    Serve,
    Relay,
}

/// What the configuration says of a way in.
enum WayIn {
    Serve(ServeConfig),
    Relay(RelayConfig),
}

/// A way in whose address is taken.
enum Port {
    Serve(TcpListener, ServeConfig),
    Relay(relay::Port),
}

fn missing(section: &str) -> Failed {
    let text = format!(
        "use the configuration: it has no [{section}]; hint: gateway-shim config template has the section with every key"
    );
    Failed(EXIT_CONFIG, text)
}

/// Open, serve until a signal or an end, drain, say how it went.
async fn live(config: Config, way: Way) -> Result<u8, Failed> {
    // From here on: whoever sees it listen may ask it to end.
    let terminated = signal(SignalKind::terminate()).map_err(|error| Failed::of(EXIT_FAILED)(Box::new(error)))?;
    let interrupted = signal(SignalKind::interrupt()).map_err(|error| Failed::of(EXIT_FAILED)(Box::new(error)))?;
    // Before anything is written: all that can be refused, and the port.
    let way_in = match way {
        Way::Serve => WayIn::Serve(config.serve.clone().ok_or_else(|| missing("serve"))?),
        Way::Relay => WayIn::Relay(config.relay.clone().ok_or_else(|| missing("relay"))?),
    };
    check(&config)?;
    let failed = |why: String| Failed(EXIT_FAILED, why);
    let port = match way_in {
        WayIn::Serve(serving) => {
            let listener = TcpListener::bind(serving.listen).await;
            let named = |why| {
                failed(format!(
                    "listen on {}: {why}; hint: does one run there already? serve.listen names the address",
                    serving.listen
                ))
            };
            Port::Serve(listener.map_err(named)?, serving)
        }
        WayIn::Relay(relaying) => Port::Relay(relay::Port::bind(&relaying).await.map_err(failed)?),
    };
    let gateway = Gateway::open(&config).map_err(not_open)?;
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(stop_on_signal(gateway.clone(), terminated, interrupted, stop));
    let wait = Duration::from_secs(config.gateway.drain_s);
    let until = async move {
        let mut stopped = stopped;
        // A sender that is gone stops as well.
        drop(stopped.wait_for(|stopped| *stopped).await);
    };
    match port {
        Port::Serve(listener, serving) => {
            let access = serve::access(&serving).map_err(|faults| Failed::of(EXIT_CONFIG)(Box::new(faults)))?;
            let front = serve::Front::new(gateway.clone(), access, serving, &config.servers);
            let front = front.map_err(|faults| Failed::of(EXIT_CONFIG)(Box::new(faults)))?;
            serve::serve(front, listener, until, wait)
                .await
                .map_err(|error| Failed::of(EXIT_FAILED)(Box::new(error)))?;
        }
        Port::Relay(port) => port.serve(gateway.clone(), until, wait).await.map_err(Failed::of(EXIT_FAILED))?,
    }
    drain(&gateway).await
}

async fn drain(gateway: &Gateway) -> Result<u8, Failed> {
    let drained = gateway.drain().await;
    if let Some(ended) = gateway.has_ended() {
        return Err(match ended {
            Ended::Fork => {
                Failed(EXIT_FORK, "go on: the ledger shows two histories; keep the proof and ask its operator".into())
            }
            Ended::Refused(why) => Failed(EXIT_REFUSED, format!("ship: the ledger refuses this gateway: {why}")),
            Ended::Disk(why) => Failed(EXIT_FAILED, why),
        });
    }
    match drained {
        Ok(drained) => {
            tracing::info!(unfinished = drained.unfinished, unshipped = drained.unshipped, "drained");
            Ok(if drained.unshipped == 0 { 0 } else { EXIT_UNSHIPPED })
        }
        Err(refused) => Err(Failed(EXIT_FAILED, refused.to_string())),
    }
}

/// SIGTERM and SIGINT drain; so does a gateway that ended by itself.
async fn stop_on_signal(gateway: Gateway, mut terminated: Signal, mut interrupted: Signal, stop: watch::Sender<bool>) {
    tokio::select! {
        _ = terminated.recv() => tracing::info!("SIGTERM: draining"),
        _ = interrupted.recv() => tracing::info!("SIGINT: draining"),
        ended = gateway.ended() => tracing::error!(why = %ended, "the gateway ended by itself"),
    }
    stop.send_replace(true);
}
