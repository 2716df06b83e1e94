//! Records: their kinds, who may write which, and the rules that the strict form alone cannot say (FORMAT.md, 5).

use prost::Message as _;

use crate::{
    strict::{self, Malformed, NotStrict, table},
    wire::{self, Outcome, Phase, Role, record::Kind},
};

/// Greatest number of records in a batch.
pub const BATCH_RECORDS_MAX: usize = 4_096;
/// Greatest length of one record in bytes; a call with all its fields and a whole receipt takes under 8 KiB.
pub const RECORD_BYTES_MAX: usize = 65_536;

/// The kinds of record, numbered as the tags of the oneof.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "the kinds are described in record.proto")]
pub enum RecordKind {
    Call = 2,
    AccessChange = 3,
    ToolDefinition = 4,
    GatewayEvent = 5,
    DirectoryEntry = 6,
    LedgerEvent = 7,
    Search = 8,
    Alarm = 9,
    Disposition = 10,
}

impl RecordKind {
    /// All kinds.
    pub const ALL: [Self; 9] = [
        Self::Call,
        Self::AccessChange,
        Self::ToolDefinition,
        Self::GatewayEvent,
        Self::DirectoryEntry,
        Self::LedgerEvent,
        Self::Search,
        Self::Alarm,
        Self::Disposition,
    ];

    /// Name as reports print it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Call => "call",
            Self::AccessChange => "access change",
            Self::ToolDefinition => "tool definition",
            Self::GatewayEvent => "gateway event",
            Self::DirectoryEntry => "directory entry",
            Self::LedgerEvent => "ledger event",
            Self::Search => "search",
            Self::Alarm => "alarm",
            Self::Disposition => "disposition",
        }
    }

    /// The authority table: whether a key of `role` may write this kind, in a workspace or (`reserved`) in the ledger's
    /// own.
    pub fn may_be_written_by(self, role: Role, reserved: bool) -> bool {
        match role {
            Role::Gateway => {
                !reserved && matches!(self, Self::Call | Self::AccessChange | Self::ToolDefinition | Self::GatewayEvent)
            }
            Role::Record => !matches!(self, Self::Call | Self::AccessChange | Self::ToolDefinition),
            _ => false,
        }
    }
}

/// Checks that `bytes` are a record in strict form and says its kind, without decoding it.
///
/// # Errors
/// [`NotStrict`].
pub fn check(bytes: &[u8]) -> Result<RecordKind, NotStrict> {
    // Phase and outcome of a call, as the walk comes by.
    let (mut phase, mut outcome) = (0, 0);
    strict::walk(&table::RECORD, bytes, &mut |message, tag, number| match (message.name, tag) {
        (CALL, CALL_PHASE) => phase = number,
        (CALL, CALL_OUTCOME) => outcome = number,
        _ => {}
    })?;
    let kind = kind(bytes).ok_or_else(|| Malformed::new("Record", 0, "no kind"))?;
    if (phase == Phase::Intent as u64) != (outcome == Outcome::Running as u64) {
        return Err(Malformed::new("Call", 2, "only an intent is running, and an intent is").into());
    }
    Ok(kind)
}

/// Kind of a record that passed [`check`], without another look at its form.
pub fn kind(bytes: &[u8]) -> Option<RecordKind> {
    // Strict: two bytes of version, then the tag of the oneof as one byte, wire type 2.
    let tag = bytes.get(2).map_or(0, |key| key >> 3);
    RecordKind::ALL.into_iter().find(|kind| *kind as u8 == tag)
}

const CALL: &str = "Call";
const CALL_PHASE: u32 = 2;
const CALL_OUTCOME: u32 = 24;
/// Tag 30, wire type 2.
const CALL_RECEIPT_KEY: [u8; 2] = [0xf2, 0x01];

/// Decodes a record after [`check`].
///
/// # Errors
/// [`NotStrict`].
pub fn decode(bytes: &[u8]) -> Result<wire::Record, NotStrict> {
    check(bytes)?;
    strict::decode(&table::RECORD, bytes)
}

/// Strict bytes of a record of this kind.
pub fn encode(kind: Kind) -> Vec<u8> {
    wire::Record { version: crate::FORMAT_VERSION, kind: Some(kind) }.encode_to_vec()
}

/// The forensic receipt in a call that passed [`check`].
pub fn receipt(bytes: &[u8]) -> Option<wire::ForensicReceipt> {
    // The two bytes of the field's key: without them there is none, and most calls have none.
    if !bytes.windows(CALL_RECEIPT_KEY.len()).any(|window| window == CALL_RECEIPT_KEY) {
        return None;
    }
    match wire::Record::decode(bytes).ok()?.kind? {
        Kind::Call(call) => call.receipt,
        _ => None,
    }
}

/// The record of the writer, which an epoch's first batch begins with.
pub fn opened(bytes: &[u8]) -> Option<wire::Opened> {
    let wire::Record { kind: Some(Kind::GatewayEvent(event)), .. } = wire::Record::decode(bytes).ok()? else {
        return None;
    };
    match event.event? {
        wire::gateway_event::Event::Opened(opened) => Some(opened),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_never_writes_what_is_the_ledgers() {
        for kind in RecordKind::ALL {
            assert!(!kind.may_be_written_by(Role::Gateway, true), "{kind:?} in the reserved workspace");
            assert!(!kind.may_be_written_by(Role::Head, false));
            let both = kind.may_be_written_by(Role::Gateway, false) && kind.may_be_written_by(Role::Record, false);
            assert_eq!(both, kind == RecordKind::GatewayEvent, "{kind:?}");
        }
    }

    #[test]
    fn phase_and_outcome_agree() {
        let call = |phase: Phase, outcome: Outcome| {
            encode(Kind::Call(wire::Call {
                phase: phase as i32,
                mode: 1,
                decision: 1,
                outcome: outcome as i32,
                ..Default::default()
            }))
        };
        assert_eq!(check(&call(Phase::Intent, Outcome::Running)), Ok(RecordKind::Call));
        assert_eq!(check(&call(Phase::Complete, Outcome::Ok)), Ok(RecordKind::Call));
        assert!(check(&call(Phase::Intent, Outcome::Ok)).is_err());
        assert!(check(&call(Phase::Complete, Outcome::Running)).is_err());
    }

    #[test]
    fn a_receipt_is_found_wherever_there_is_one() {
        let mut rng = crate::testing::Rng::for_test("a_receipt_is_found_wherever_there_is_one");
        let mut found = 0;
        for _ in 0..5_000 {
            let bytes = crate::testing::generate(&mut rng, &table::RECORD);
            let expected = match wire::Record::decode(bytes.as_slice()).unwrap().kind.unwrap() {
                Kind::Call(call) => call.receipt,
                _ => None,
            };
            found += usize::from(expected.is_some());
            assert_eq!(receipt(&bytes), expected);
        }
        assert!(found > 50);
    }

    #[test]
    fn the_check_agrees_with_the_decoded_record() {
        let mut rng = crate::testing::Rng::for_test("the_check_agrees_with_the_decoded_record");
        let (mut coherent, mut not) = (0, 0);
        for _ in 0..20_000 {
            let bytes = crate::testing::generate(&mut rng, &table::RECORD);
            let kind = wire::Record::decode(bytes.as_slice()).unwrap().kind.unwrap();
            let agrees = match &kind {
                Kind::Call(call) => (call.phase() == Phase::Intent) == (call.outcome() == Outcome::Running),
                _ => true,
            };
            let expected = match kind {
                Kind::Call(_) => RecordKind::Call,
                Kind::AccessChange(_) => RecordKind::AccessChange,
                Kind::ToolDefinition(_) => RecordKind::ToolDefinition,
                Kind::GatewayEvent(_) => RecordKind::GatewayEvent,
                Kind::DirectoryEntry(_) => RecordKind::DirectoryEntry,
                Kind::LedgerEvent(_) => RecordKind::LedgerEvent,
                Kind::Search(_) => RecordKind::Search,
                Kind::Alarm(_) => RecordKind::Alarm,
                Kind::Disposition(_) => RecordKind::Disposition,
            };
            assert_eq!(check(&bytes).ok(), agrees.then_some(expected));
            if agrees { coherent += 1 } else { not += 1 }
        }
        assert!(coherent > 100 && not > 100);
    }
}
