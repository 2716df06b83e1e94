//! Directory entries: names of people, readable with that member's key alone (FORMAT.md, 5.4), and the file that opens chosen
//! ones to an auditor (5.7).
//!
//! What must hold: one address has one form, whoever writes it ([`Address`]); an entry opens under the one key that it commits
//! to. XChaCha20-Poly1305 comes with the feature `directory`: no verdict needs it, and a gateway brings addresses only.

use std::{collections::BTreeMap, fmt};

use crate::{
    hash::Use,
    id::{MemberId, WorkspaceId, hex, unhex},
    strict::{self, NotStrict, table},
    wire,
};

#[cfg(any(feature = "directory", test))]
mod sealed;
#[cfg(test)]
mod tests;

#[cfg(any(feature = "directory", test))]
pub use sealed::{Unopened, open, seal};

/// Greatest length in bytes of what is encrypted: the record's limit less the authentication tag.
pub const CONTENTS_BYTES_MAX: usize = 4_096 - 16;
/// Greatest length of an address in bytes: what e-mail allows.
pub const ADDRESS_BYTES_MAX: usize = 320;
/// Greatest length of a name in bytes.
pub const NAME_BYTES_MAX: usize = 256;
/// Greatest length of a group's own name in bytes.
pub const GROUP_BYTES_MAX: usize = 128;
/// Greatest number of groups of one person, over all workspaces.
pub const GROUPS_MAX: usize = 64;

const LABEL: &[u8] = b"custody/v1/directory-entry";

/// Why something about a person is not taken: one clause, without the text itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unfit(pub &'static str);

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Unfit {}

/// By which the organisation knows a person, in the one form that it has.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(String);

/// Not shown: an address stands in no log.
impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Address(not shown)")
    }
}

impl Address {
    /// Normalises what somebody wrote: white space at both ends falls away, and A to Z become a to z, before and after the `@`.
    /// ASCII alone is taken: what Unicode calls the same letter changes from version to version, and two people's ids must not
    /// depend on it, nor on letters that only look alike.
    ///
    /// # Errors
    /// What an address may not be.
    pub fn parse(said: &str) -> Result<Self, Unfit> {
        let bare = said.trim_matches(|letter: char| letter.is_ascii_whitespace());
        if bare.is_empty() {
            return Err(Unfit("the address is empty"));
        }
        if bare.len() > ADDRESS_BYTES_MAX {
            return Err(Unfit("the address has more than 320 bytes"));
        }
        if !bare.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Unfit(
                "the address has white space or a letter beyond ASCII (hint: a domain's ASCII form begins with xn--)",
            ));
        }
        if let Some((local, domain)) = bare.split_once('@')
            && (local.is_empty() || domain.is_empty() || domain.contains('@') || domain.ends_with('.'))
        {
            return Err(Unfit("the address has not one name before and one domain after its @"));
        }
        Ok(Self(bare.to_ascii_lowercase()))
    }

    /// As it stands in an entry.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A person's name as it is kept: without white space at its ends; empty for none.
///
/// # Errors
/// What a name may not be.
pub fn parse_name(said: &str) -> Result<String, Unfit> {
    let name = said.trim();
    if name.len() > NAME_BYTES_MAX {
        return Err(Unfit("the name has more than 256 bytes"));
    }
    if name.chars().any(char::is_control) {
        return Err(Unfit("the name has a control character"));
    }
    Ok(name.to_owned())
}

/// The groups of an entry after one workspace said which ones its are: those of other workspaces stay.
///
/// # Errors
/// What a group may not be, or that there are too many.
pub fn groups_with(
    known: &[String],
    workspace: WorkspaceId,
    said: impl IntoIterator<Item = impl AsRef<str>>,
) -> Result<Vec<String>, Unfit> {
    let own = format!("{workspace}/");
    let mut groups: Vec<String> = known.iter().filter(|group| !group.starts_with(&own)).cloned().collect();
    for group in said {
        let group = group.as_ref();
        if group.is_empty() || group.len() > GROUP_BYTES_MAX || !strict::is_token(group) {
            return Err(Unfit("a group is 1 to 128 of the characters A-Z a-z 0-9 _ . / : @ + -"));
        }
        groups.push(format!("{own}{group}"));
    }
    groups.sort_unstable();
    groups.dedup();
    if groups.len() > GROUPS_MAX { Err(Unfit("the person would be in more than 64 groups")) } else { Ok(groups) }
}

/// What the field `key_commitment` holds: XChaCha20-Poly1305 alone lets one ciphertext open under two keys, and then two
/// auditors could be shown two names.
pub fn key_commitment(origin: &str, member: MemberId, key: &[u8; 32]) -> [u8; 32] {
    Use::MemberKey.hasher().string(origin.as_bytes()).fixed(&member.0).fixed(key).finish()
}

/// What is authenticated beside the ciphertext: an entry is of this log, member and revision, or does not open.
pub fn associated_data(origin: &str, member: MemberId, revision: u64) -> Vec<u8> {
    let length = u32::try_from(origin.len()).unwrap_or(u32::MAX).to_be_bytes();
    [LABEL, &[0], &length, origin.as_bytes(), &member.0, &revision.to_be_bytes()].concat()
}

/// Reads what was decrypted.
///
/// # Errors
/// Why it is not in strict form.
pub fn parse_contents(bytes: &[u8]) -> Result<wire::DirectoryContents, NotStrict> {
    strict::decode(&table::DIRECTORY_CONTENTS, bytes)
}

/// Whether contents in strict form are as a writer makes them: each person, name and group in its one form.
pub fn contents_in_form(contents: &wire::DirectoryContents) -> bool {
    let group = |group: &String| {
        let named = group.split_once('/').filter(|(workspace, _)| WorkspaceId::from_hex(workspace).is_some());
        named.is_some_and(|(_, name)| (1..=GROUP_BYTES_MAX).contains(&name.len()) && strict::is_token(name))
    };
    Address::parse(&contents.address).is_ok_and(|address| address.0 == contents.address)
        && parse_name(&contents.name).is_ok_and(|name| name == contents.name)
        && contents.groups.iter().all(group)
        && contents.groups.is_sorted_by(|before, after| before < after)
}

/// First line of a disclosure file.
const DISCLOSURE: &str = "custody/v1/names";
/// Greatest number of members that one file opens.
pub const DISCLOSED_MAX: usize = 10_000;
/// Greatest length of a disclosure file in bytes: its lines have at most 127 each, but for two.
pub const DISCLOSURE_BYTES_MAX: usize = 2 << 20;

/// What opens chosen members' entries to whoever has the archive (5.7).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disclosure {
    /// Name of the log.
    pub origin: String,
    /// The members.
    pub members: BTreeMap<MemberId, Disclosed>,
}

/// One member of a disclosure.
#[derive(Clone, PartialEq, Eq)]
pub struct Disclosed {
    /// Newest revision when it was made.
    pub revision: u64,
    /// The member's key.
    pub key: [u8; 32],
}

/// The key is not shown.
impl fmt::Debug for Disclosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disclosed").field("revision", &self.revision).finish_non_exhaustive()
    }
}

impl Disclosure {
    /// The file's text.
    pub fn to_text(&self) -> String {
        let mut text = format!("{DISCLOSURE}\n{}\n", self.origin);
        for (member, of) in &self.members {
            text.push_str(&format!("{member} {} {}\n", of.revision, hex(&of.key)));
        }
        text
    }

    /// Reads a file.
    ///
    /// # Errors
    /// What is wrong with it; no part of it is in the words.
    pub fn parse(bytes: &[u8]) -> Result<Self, Unfit> {
        if bytes.len() > DISCLOSURE_BYTES_MAX {
            return Err(Unfit("it has more than 2 MiB"));
        }
        let text = std::str::from_utf8(bytes).ok().and_then(|text| text.strip_suffix('\n'));
        let mut lines = text.ok_or(Unfit("it is not text whose last line ends"))?.split('\n');
        if lines.next() != Some(DISCLOSURE) {
            return Err(Unfit("its first line is not custody/v1/names"));
        }
        let origin = lines.next().filter(|origin| !origin.is_empty()).ok_or(Unfit("it names no log"))?.to_owned();
        let mut members = BTreeMap::new();
        for line in lines {
            let (member, of) = disclosed(line).ok_or(Unfit("a line is not member, revision and key"))?;
            if members.last_key_value().is_some_and(|(last, _)| *last >= member) {
                return Err(Unfit("its members do not ascend"));
            }
            members.insert(member, of);
        }
        if members.is_empty() || members.len() > DISCLOSED_MAX {
            return Err(Unfit("it has no member, or more than 10,000"));
        }
        Ok(Self { origin, members })
    }
}

fn disclosed(line: &str) -> Option<(MemberId, Disclosed)> {
    let mut words = line.split(' ');
    let member = MemberId::from_hex(words.next()?)?;
    let revision = crate::archive::number(words.next()?)?;
    let key = unhex(words.next()?)?.try_into().ok()?;
    words.next().is_none().then_some((member, Disclosed { revision, key }))
}
