//! Who has which address and name: in memory only, and by hashes, so that it needs the same room for each member and a copy of
//! the process's memory shows nobody's name.

use std::collections::{BTreeSet, HashMap};

use custody::{directory::Address, hash::sha256, id::MemberId, wire::DirectoryContents};

use crate::keys;

/// Hash of an address or a name under a key of this process.
type Hidden = [u8; 32];

/// At most [`crate::vault::MEMBERS_MAX`] members: 48 bytes for an address and as many for a name, and what maps need beside
/// them, under 100 MiB together.
pub(super) struct Index {
    key: [u8; 32],
    addresses: HashMap<Hidden, MemberId>,
    /// Several people may have one name.
    names: BTreeSet<(Hidden, MemberId)>,
}

impl Index {
    pub(super) fn new() -> Self {
        Self { key: keys::random(), addresses: HashMap::new(), names: BTreeSet::new() }
    }

    fn hidden(&self, what: u8, text: &str) -> Hidden {
        sha256(&[&self.key, &[what], text.as_bytes()])
    }

    fn address(&self, address: &str) -> Hidden {
        self.hidden(0, address)
    }

    /// Names are found whatever their capitals.
    fn name(&self, name: &str) -> Hidden {
        self.hidden(1, &name.to_lowercase())
    }

    pub(super) fn with_address(&self, address: &Address) -> Option<MemberId> {
        self.addresses.get(&self.address(address.as_str())).copied()
    }

    pub(super) fn with_name(&self, name: &str) -> Vec<MemberId> {
        let name = self.name(name);
        let named = self.names.range((name, MemberId::ZERO)..).take_while(|(of, _)| *of == name);
        named.map(|(_, member)| *member).collect()
    }

    /// What a member's entry says now; `false` if somebody else has the address, who keeps it.
    pub(super) fn insert(&mut self, member: MemberId, contents: &DirectoryContents) -> bool {
        if !contents.name.is_empty() {
            let name = self.name(&contents.name);
            self.names.insert((name, member));
        }
        if contents.address.is_empty() {
            return true;
        }
        let address = self.address(&contents.address);
        *self.addresses.entry(address).or_insert(member) == member
    }

    /// What a member's entry said before.
    pub(super) fn remove(&mut self, member: MemberId, contents: &DirectoryContents) {
        let name = self.name(&contents.name);
        self.names.remove(&(name, member));
        let address = self.address(&contents.address);
        if self.addresses.get(&address) == Some(&member) {
            self.addresses.remove(&address);
        }
    }
}
