//! C2SP signed notes: checkpoints, cosignatures and verifier keys (c2sp.org/signed-note, tlog-checkpoint, tlog-cosignature).
//!
//! A checkpoint here has exactly three lines of text and no extension. Signature lines of unknown names or keys are
//! ignored, as the specification demands.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ed25519_dalek::SigningKey;

use crate::{
    hash::sha256,
    id::{ObjectHash, RootHash},
    key::{PublicKey, sign_plain},
    strict::Malformed,
};

/// Signature type of a log's own Ed25519 key.
pub const TYPE_LOG: u8 = 0x01;
/// Signature type of an Ed25519 witness with a timestamp.
pub const TYPE_COSIGNATURE: u8 = 0x04;
/// Greatest length of a signed note in bytes: room for 16 signatures of 5 kB, so for post-quantum witnesses.
pub const NOTE_BYTES_MAX: usize = 98_304;
/// Greatest number of signature lines.
pub const SIGNATURES_MAX: usize = 64;

/// What a checkpoint says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Name of the log.
    pub origin: String,
    /// Number of entries.
    pub size: u64,
    /// Root of the log's tree.
    pub root: RootHash,
}

impl Checkpoint {
    /// The text that is signed, with its last newline.
    pub fn text(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, STANDARD.encode(self.root.0))
    }

    /// Hash by which statements name a checkpoint: SHA-256 of its text.
    pub fn hash(&self) -> ObjectHash {
        ObjectHash(sha256(&[self.text().as_bytes()]))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.strip_suffix('\n')?.split('\n');
        let (origin, size, root) = (lines.next()?, lines.next()?, lines.next()?);
        let number: u64 = size.parse().ok()?;
        let root = RootHash::try_from(STANDARD.decode(root).ok()?.as_slice()).ok()?;
        let checkpoint = Self { origin: origin.to_owned(), size: number, root };
        (lines.next().is_none() && checkpoint.text() == text).then_some(checkpoint)
    }
}

/// One signature line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignatureLine {
    /// Name of the key.
    pub name: String,
    /// First 4 bytes of the key's hash.
    pub key_hash: [u8; 4],
    /// What follows the key hash.
    pub signature: Vec<u8>,
}

impl SignatureLine {
    /// The line with its newline.
    pub fn text(&self) -> String {
        format!("— {} {}\n", self.name, STANDARD.encode([&self.key_hash[..], &self.signature].concat()))
    }

    fn parse(line: &str) -> Option<Self> {
        let (name, encoded) = line.strip_prefix("— ")?.split_once(' ')?;
        let bytes = STANDARD.decode(encoded).ok()?;
        let (key_hash, signature) = bytes.split_first_chunk::<4>()?;
        let line = Self { name: name.to_owned(), key_hash: *key_hash, signature: signature.to_vec() };
        (is_name(name) && !signature.is_empty()).then_some(line)
    }
}

/// Whether `name` may name a key: not empty, without space or plus, at most 255 bytes.
pub fn is_name(name: &str) -> bool {
    (1..=255).contains(&name.len()) && !name.chars().any(|c| c.is_whitespace() || c == '+' || c.is_control())
}

/// A checkpoint with its signature lines, none of them verified yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedCheckpoint {
    /// What is signed.
    pub checkpoint: Checkpoint,
    /// By whom, in the order of the note.
    pub signatures: Vec<SignatureLine>,
}

impl SignedCheckpoint {
    /// Reads a signed note.
    ///
    /// # Errors
    /// [`Malformed`] for anything but three lines of text, an empty line and 1 to 64 signature lines.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let fault = |rule| Malformed::new("checkpoint", 0, rule);
        if bytes.len() > NOTE_BYTES_MAX {
            return Err(fault("too long"));
        }
        let note = std::str::from_utf8(bytes).map_err(|_| fault("not UTF-8"))?;
        let (text, lines) = note.rsplit_once("\n\n").ok_or_else(|| fault("no empty line before the signatures"))?;
        let checkpoint = Checkpoint::parse(&format!("{text}\n")).ok_or_else(|| fault("not three lines of text"))?;
        if !is_name(&checkpoint.origin) {
            return Err(fault("the origin is no name"));
        }
        let lines = lines.strip_suffix('\n').ok_or_else(|| fault("no newline at the end"))?;
        let signatures: Option<Vec<_>> =
            lines.split('\n').take(SIGNATURES_MAX.saturating_add(1)).map(SignatureLine::parse).collect();
        let signatures = signatures.ok_or_else(|| fault("a signature line is malformed"))?;
        if signatures.len() > SIGNATURES_MAX {
            return Err(fault("too many signatures"));
        }
        Ok(Self { checkpoint, signatures })
    }

    /// The note's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut note = self.checkpoint.text();
        note.push('\n');
        for line in &self.signatures {
            note.push_str(&line.text());
        }
        note.into_bytes()
    }

    /// Whether the log itself signed with `key`.
    pub fn is_signed_by(&self, key: PublicKey) -> bool {
        let hash = note_key_hash(&self.checkpoint.origin, TYPE_LOG, key);
        let text = self.checkpoint.text();
        let of_log = |line: &&SignatureLine| line.name == self.checkpoint.origin && line.key_hash == hash;
        self.signatures.iter().filter(of_log).any(|line| key.verifies_plain(text.as_bytes(), &line.signature))
    }

    /// Time in seconds at which the witness of this name and key cosigned; `None` if it did not.
    pub fn cosigned_at(&self, name: &str, key: PublicKey) -> Option<u64> {
        self.signatures.iter().find_map(|line| cosignature_time(&self.checkpoint, line, name, key))
    }
}

/// Time in seconds of a valid cosignature line by the witness of this name and key.
pub fn cosignature_time(checkpoint: &Checkpoint, line: &SignatureLine, name: &str, key: PublicKey) -> Option<u64> {
    if line.name != name || line.key_hash != note_key_hash(name, TYPE_COSIGNATURE, key) {
        return None;
    }
    let (time, signature) = line.signature.split_first_chunk::<8>()?;
    let time = u64::from_be_bytes(*time);
    key.verifies_plain(cosigned_message(checkpoint, time).as_bytes(), signature).then_some(time)
}

fn cosigned_message(checkpoint: &Checkpoint, time: u64) -> String {
    format!("cosignature/v1\ntime {time}\n{}", checkpoint.text())
}

/// Signs a checkpoint as the log.
pub fn sign_checkpoint(checkpoint: Checkpoint, key: &SigningKey) -> SignedCheckpoint {
    let public = crate::key::public(key);
    let signature = sign_plain(key, checkpoint.text().as_bytes()).to_vec();
    let key_hash = note_key_hash(&checkpoint.origin, TYPE_LOG, public);
    let line = SignatureLine { name: checkpoint.origin.clone(), key_hash, signature };
    SignedCheckpoint { checkpoint, signatures: vec![line] }
}

/// Signs a checkpoint as the witness `name` at `time` in seconds.
pub fn cosign(checkpoint: &Checkpoint, name: &str, key: &SigningKey, time: u64) -> SignatureLine {
    let signature = sign_plain(key, cosigned_message(checkpoint, time).as_bytes());
    let key_hash = note_key_hash(name, TYPE_COSIGNATURE, crate::key::public(key));
    SignatureLine { name: name.to_owned(), key_hash, signature: [&time.to_be_bytes()[..], &signature].concat() }
}

/// Key hash of a note's signature line: the first 4 bytes of SHA-256 over name, newline, type and public key.
pub fn note_key_hash(name: &str, kind: u8, key: PublicKey) -> [u8; 4] {
    let [a, b, c, d, ..] = sha256(&[name.as_bytes(), b"\n", &[kind], &key.to_bytes()]);
    [a, b, c, d]
}

/// A verifier key in text form: `name+hash+base64(type, key)`.
pub fn verifier_key(name: &str, kind: u8, key: PublicKey) -> String {
    let hash = crate::id::hex(&note_key_hash(name, kind, key));
    format!("{name}+{hash}+{}", STANDARD.encode([&[kind][..], &key.to_bytes()].concat()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note() -> (SigningKey, SignedCheckpoint) {
        let key = SigningKey::from_bytes(&[7; 32]);
        let checkpoint = Checkpoint { origin: "log.example/a".into(), size: 3, root: RootHash([9; 32]) };
        let signed = sign_checkpoint(checkpoint, &key);
        (key, signed)
    }

    #[test]
    fn a_note_is_read_as_it_was_written_and_only_so() {
        let (key, signed) = note();
        let bytes = signed.to_bytes();
        assert_eq!(SignedCheckpoint::parse(&bytes).unwrap(), signed);
        assert!(signed.is_signed_by(crate::key::public(&key)));
        for cut in 0..bytes.len() {
            assert!(SignedCheckpoint::parse(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn a_cosignature_counts_for_its_own_witness_alone() {
        let (_, mut signed) = note();
        let (one, other) = (SigningKey::from_bytes(&[1; 32]), SigningKey::from_bytes(&[2; 32]));
        signed.signatures.push(cosign(&signed.checkpoint, "w.example", &one, 1_700_000_000));
        assert_eq!(signed.cosigned_at("w.example", crate::key::public(&one)), Some(1_700_000_000));
        assert_eq!(signed.cosigned_at("w.example", crate::key::public(&other)), None);
        assert_eq!(signed.cosigned_at("v.example", crate::key::public(&one)), None);
    }

    #[test]
    fn another_implementation_reads_the_same_note() {
        let (key, signed) = note();
        let vkey = verifier_key(&signed.checkpoint.origin, TYPE_LOG, crate::key::public(&key));
        let verifier = signed_note::StandardVerifier::new(&vkey).unwrap();
        let note = signed_note::Note::from_bytes(&signed.to_bytes()).unwrap();
        let (good, unknown) = note.verify(&signed_note::VerifierList::new(vec![Box::new(verifier)])).unwrap();
        assert_eq!((good.len(), unknown.len()), (1, 0));
    }

    /// Whether another implementation takes the whole for a note, and its text for a checkpoint without extension.
    fn others_accept(bytes: &[u8]) -> bool {
        let Ok(note) = signed_note::Note::from_bytes(bytes) else { return false };
        // DEL and the controls above it may stand in a name there, and may not here.
        let controls = String::from_utf8_lossy(bytes).chars().any(|c| c.is_control() && c != '\n');
        let text = tlog_tiles::Checkpoint::from_bytes(note.text()).ok().filter(|_| !controls);
        // An origin is the name of the log's key here.
        text.is_some_and(|text| text.extension().is_empty() && signed_note::is_key_name_valid(text.origin()))
    }

    #[test]
    fn other_implementations_accept_and_refuse_the_same_notes() {
        let mut rng = crate::testing::Rng::for_test("other_implementations_accept_and_refuse_the_same_notes");
        let (_, mut signed) = note();
        for witness in 1..4 {
            let line = cosign(&signed.checkpoint, &format!("w{witness}.example"), &SigningKey::from_bytes(&[1; 32]), 5);
            signed.signatures.push(line);
        }
        let bytes = signed.to_bytes();
        let (mut accepted, mut refused) = (0, 0);
        for _ in 0..crate::testing::number("CUSTODY_QUESTIONS").unwrap_or(60_000) {
            let mut other = bytes.clone();
            crate::fuzz_tests::mutate(&mut rng, &mut other, &[]);
            let ours = SignedCheckpoint::parse(&other);
            let text = String::from_utf8_lossy(&other);
            assert_eq!(ours.is_ok(), others_accept(&other), "{ours:?}: {text}");
            match ours {
                Ok(_) => accepted += 1,
                Err(_) => refused += 1,
            }
        }
        println!("{accepted} accepted, {refused} refused");
        assert!(accepted > 1_000 && refused > 1_000);
    }

    #[test]
    fn a_number_has_one_form() {
        let text = String::from_utf8(note().1.to_bytes()).unwrap();
        for size in ["+3", "03", "3 ", " 3", "0x3", "", "-3", "18446744073709551616"] {
            let other = text.replacen("\n3\n", &format!("\n{size}\n"), 1);
            assert!(SignedCheckpoint::parse(other.as_bytes()).is_err(), "{size:?}");
        }
        for size in ["0", "30", "18446744073709551615"] {
            let other = text.replacen("\n3\n", &format!("\n{size}\n"), 1);
            assert!(SignedCheckpoint::parse(other.as_bytes()).is_ok(), "{size:?}");
        }
        let extended = text.replacen("=\n\n", "=\nan extension\n\n", 1);
        assert!(extended != text && SignedCheckpoint::parse(extended.as_bytes()).is_err());
    }

    #[test]
    fn a_note_has_at_most_64_signature_lines() {
        let (_, mut signed) = note();
        let line = signed.signatures[0].clone();
        signed.signatures = vec![line; SIGNATURES_MAX];
        assert_eq!(SignedCheckpoint::parse(&signed.to_bytes()).as_ref(), Ok(&signed));
        signed.signatures.push(signed.signatures[0].clone());
        assert!(SignedCheckpoint::parse(&signed.to_bytes()).is_err());
        let long = [&note().1.to_bytes()[..], &vec![b'a'; NOTE_BYTES_MAX]].concat();
        assert!(SignedCheckpoint::parse(&long).is_err());
    }
}
