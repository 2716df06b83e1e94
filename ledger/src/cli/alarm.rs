//! What somebody made of an alarm: it was true, false or benign; it is suppressed for a while. All of it is on record.

use clap::{Subcommand, ValueEnum};
use custody::{id::hex, wire};

use super::{At, Done, Fault, admin::Ledger, member::Why, output::say};
use crate::{clock, exit::ExitReason};

#[derive(Debug, Subcommand)]
pub(super) enum AlarmCommand {
    /// Say what an alarm was.
    Dispose {
        #[command(flatten)]
        at: At,
        /// Its position in the workspace `ledger`, as `ledger search kind:alarm` shows it.
        position: u64,
        /// What it was.
        #[arg(value_enum)]
        was: Was,
        #[command(flatten)]
        why: Why,
    },
    /// Raise no more alarms of this name about the same entity, for a while.
    Suppress {
        #[command(flatten)]
        at: At,
        /// Its position in the workspace `ledger`, as `ledger search kind:alarm` shows it.
        position: u64,
        /// For how long, as 7d.
        #[arg(long = "for", value_name = "SPAN")]
        span: String,
        #[command(flatten)]
        why: Why,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Was {
    /// Somebody looks at it.
    Acknowledged,
    /// It was what it said.
    True,
    /// It was not what it said.
    False,
    /// It was what it said, and no harm.
    Benign,
}

impl Was {
    fn kind(self) -> wire::DispositionKind {
        match self {
            Self::Acknowledged => wire::DispositionKind::Acknowledged,
            Self::True => wire::DispositionKind::TruePositive,
            Self::False => wire::DispositionKind::FalsePositive,
            Self::Benign => wire::DispositionKind::Benign,
        }
    }
}

pub(super) async fn run(command: AlarmCommand) -> Done {
    let (at, why, mut request) = match command {
        AlarmCommand::Dispose { at, position, was, why } => {
            (at, why, wire::DisposeRequest { position, kind: was.kind() as i32, ..Default::default() })
        }
        AlarmCommand::Suppress { at, position, span, why } => {
            let long = custody::query::span(&span).ok_or_else(|| {
                Fault::new(ExitReason::Usage, format!("--for {span:?} is no span of time\nhint: as 7d or 12h"))
            })?;
            let (kind, until) = (wire::DispositionKind::Suppressed as i32, clock::now_us().saturating_add(long));
            (at, why, wire::DisposeRequest { position, kind, until, because: None })
        }
    };
    request.because = Some(why.because()?);
    Ledger::connect(at.load()?).await?.dispose(request).await?;
    say("it is on record");
    Ok(())
}

/// Whom an alarm is about, and where what caused it stands.
pub(super) fn about(alarm: &wire::Alarm) -> String {
    let ids = [("member", &alarm.member), ("agent", &alarm.agent), ("gateway", &alarm.gateway)];
    let id = ids.into_iter().find_map(|(name, id)| Some(format!("{name}={}", hex(id.as_ref()?))));
    let other = alarm
        .details
        .iter()
        .find_map(|detail| detail.key.strip_prefix("about/").map(|about| about.replacen('/', "=", 1)));
    let positions: Vec<String> = alarm.positions.iter().take(8).map(ToString::to_string).collect();
    let workspace = hex(alarm.workspace.as_deref().unwrap_or_default());
    format!("{} workspace={workspace} positions={}", id.or(other).unwrap_or_default(), positions.join(","))
}

/// Raises the alarms on record once more, and says whether they are the same.
pub(super) async fn replay(at: At) -> Done {
    let mut outcome = None;
    let mut ledger = Ledger::connect(at.load()?).await?;
    ledger.replay(wire::ReplayRequest::default(), |told| outcome = told.outcome.clone()).await?;
    let outcome = outcome.ok_or_else(|| Fault::failure("the replay broke off\nhint: the ledger's log says why"))?;
    say(&format!(
        "{} alarms on record were raised again, byte for byte; {} were not; {} were raised that are not on record; {} are of rules that \
         are not here",
        outcome.same, outcome.not_again, outcome.not_on_record, outcome.of_others
    ));
    if outcome.not_again + outcome.not_on_record > 0 {
        return Err(Fault::failure(format!(
            "the alarms on record are not those of these records and rules (positions in ledger: {:?})\nhint: keep the data folder and \
             report it",
            outcome.positions
        )));
    }
    Ok(())
}
