//! `gateway-shim`, the program: its command line, and the life of one that serves. What exit codes mean stands in `cli.rs`.

use std::{process::ExitCode, time::Duration};

use gateway_shim::{
    access::{ChangeError, Engine},
    cli::{self, At, EXIT_CONFIG, EXIT_FAILED, EXIT_FORK, EXIT_REFUSED, EXIT_UNSHIPPED, Failed, Verb},
    config::{Config, ServeConfig},
    control, files,
    gateway::{Ended, Gateway},
    metrics, relay, serve,
    server::{guard, stage},
};
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};

fn main() -> ExitCode {
    let verb = match cli::parse() {
        Ok(verb) => verb,
        Err(code) => return ExitCode::from(code),
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("GATEWAY_SHIM_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().json().with_env_filter(filter).with_writer(std::io::stderr).init();
    let done = match verb {
        // Without a runtime: a process of one thread.
        Verb::Become { plan, command } => Ok(stage::become_server(&plan, &command)),
        Verb::Guard => guard::guard().map_err(|error| Failed::of(EXIT_FAILED, &error)),
        Verb::Serve(at) => in_runtime(serving(at)),
        Verb::Relay(at) => in_runtime(relaying(at)),
        Verb::Said(said) => in_runtime(cli::run(said)),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(Failed { code, text }) => {
            cli::say(&format!("failed to {text}"));
            ExitCode::from(code)
        }
    }
}

async fn serving(at: At) -> cli::Done {
    let config = at.load()?;
    let serving = config.serve.clone().ok_or_else(|| Failed::missing("serve"))?;
    live(config, WayIn::Serve(Box::new(serving))).await
}

async fn relaying(at: At) -> cli::Done {
    let config = at.load()?;
    config.relay.as_ref().ok_or_else(|| Failed::missing("relay"))?;
    live(config, WayIn::Relay).await
}

fn in_runtime(life: impl Future<Output = cli::Done>) -> cli::Done {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failed::of(EXIT_FAILED, &error))?;
    let code = runtime.block_on(life);
    // Whatever still waits for a connection is of no use any more.
    runtime.shutdown_timeout(Duration::from_secs(1));
    code
}

/// What the configuration says of a way in.
enum WayIn {
    Serve(Box<ServeConfig>),
    Relay,
}

/// A way in whose address is taken.
enum Port {
    Serve(TcpListener, Box<ServeConfig>),
    Relay(relay::Port),
}

impl Port {
    async fn take(way_in: WayIn, config: &Config) -> Result<Self, Failed> {
        match way_in {
            WayIn::Serve(serving) => {
                let listener = TcpListener::bind(serving.listen).await;
                let named = |why| {
                    let hint = "hint: does one run there already? serve.listen names the address";
                    Failed::new(EXIT_FAILED, format!("listen on {}: {why}; {hint}", serving.listen))
                };
                Ok(Self::Serve(listener.map_err(named)?, serving))
            }
            WayIn::Relay => {
                let port = relay::Port::bind(config).await;
                port.map(Self::Relay).map_err(|why| Failed::new(EXIT_FAILED, why))
            }
        }
    }
}

/// Open, serve until a signal or an end, drain, say how it went.
async fn live(config: Config, way_in: WayIn) -> cli::Done {
    // From here on: whoever sees it listen may ask it to end.
    let terminated = signal(SignalKind::terminate()).map_err(|error| Failed::of(EXIT_FAILED, &error))?;
    let interrupted = signal(SignalKind::interrupt()).map_err(|error| Failed::of(EXIT_FAILED, &error))?;
    // Before anything is written: all that can be refused, and the ports.
    cli::files(&config)?;
    files::ensure(files::needed(&config)).map_err(|why| Failed::new(EXIT_FAILED, why))?;
    let port = Port::take(way_in, &config).await?;
    let socket = control::Socket::bind(&config).map_err(|why| Failed::new(EXIT_FAILED, why))?;
    let metrics = metrics::Port::bind(&config).await.map_err(|why| Failed::new(EXIT_FAILED, why))?;
    let gateway = Gateway::open(&config)?;
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(stop_on_signal(gateway.clone(), terminated, interrupted, stop));
    let until = |mut stopped: watch::Receiver<bool>| async move {
        // A sender that is gone stops as well.
        drop(stopped.wait_for(|stopped| *stopped).await);
    };
    let wait = Duration::from_secs(config.gateway.drain_s);
    let served = match &port {
        Port::Serve(_, serving) => {
            let engine = open_access(serving, &gateway).await?;
            let front = serve::Front::new(gateway.clone(), engine.access(), (**serving).clone(), &config.servers)?;
            Some((engine, front))
        }
        Port::Relay(_) => None,
    };
    let processes = served.as_ref().map(|(_, front)| front.processes().clone()).unwrap_or_default();
    let (engine, catalog) = served.as_ref().map(|(engine, front)| (engine.clone(), front.catalog().clone())).unzip();
    let controlled = control::Controlled::new(gateway.clone(), config.clone(), processes, engine, catalog);
    // Both answer until the end of the drain, so that somebody may see how that goes.
    let looked_at = metrics.map(|port| tokio::spawn(port.serve(controlled.clone())));
    let control = tokio::spawn(socket.serve(controlled));
    match (port, served) {
        (Port::Serve(listener, _), Some((engine, front))) => {
            let served = serve::serve(front, listener, until(stopped), wait).await;
            engine.keep_counts().await;
            served.map_err(|error| Failed::of(EXIT_FAILED, &error))?;
        }
        (Port::Relay(port), _) => {
            let served = port.serve(gateway.clone(), until(stopped), wait).await;
            served.map_err(|error| Failed::of(EXIT_FAILED, &*error))?;
        }
        // The one comes with the other.
        (Port::Serve(..), None) => {}
    }
    let code = drain(&gateway).await;
    control.abort();
    looked_at.iter().for_each(tokio::task::JoinHandle::abort);
    code
}

/// Puts in force what was, and completes a change that a crash cut short.
async fn open_access(serving: &ServeConfig, gateway: &Gateway) -> Result<Engine, Failed> {
    let opened = Engine::open(serving.policies(), gateway.clone()).await;
    let engine = opened.map_err(|why| {
        let code = if matches!(why, ChangeError::Refused(_)) { EXIT_CONFIG } else { EXIT_FAILED };
        Failed::new(code, format!("put the access policy in force: {why}"))
    })?;
    if let Some(provider) = &serving.identity_provider {
        engine.trust((**provider).clone()).await?;
    }
    if let Some(differs) = engine.differs().await {
        tracing::warn!("{differs}");
    }
    Ok(engine)
}

async fn drain(gateway: &Gateway) -> cli::Done {
    let drained = gateway.drain().await;
    if let Some(ended) = gateway.has_ended() {
        return Err(match ended {
            Ended::Fork => Failed::new(
                EXIT_FORK,
                "go on: the ledger shows two histories; hint: keep the proof and ask its operator",
            ),
            Ended::Refused(why) => Failed::new(EXIT_REFUSED, format!("ship: the ledger refuses this gateway: {why}")),
            Ended::Disk(why) => Failed::new(EXIT_FAILED, why),
        });
    }
    match drained {
        Ok(drained) => {
            tracing::info!(unfinished = drained.unfinished, unshipped = drained.unshipped, "drained");
            Ok(if drained.unshipped == 0 { 0 } else { EXIT_UNSHIPPED })
        }
        Err(refused) => Err(Failed::of(EXIT_FAILED, &refused)),
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
