//! Finds the rules, or limits, that could apply to a request, among many thousands of them.
//!
//! There are two ways to find them: by who asks, and by what is asked for. The shorter of the two lists is walked, in the
//! policy's order, and whoever walks it still asks of each whether it applies. What must hold: both lists have every one that
//! applies.

use std::collections::HashMap;

use custody::{access, id::MemberId};

use super::policy::Scope;

/// The places of scopes in their order, by what they name.
#[derive(Debug, Default)]
pub(super) struct Index {
    everyone: Vec<u32>,
    by_member: HashMap<MemberId, Vec<u32>>,
    by_group: HashMap<String, Vec<u32>>,
    by_server: HashMap<String, AtServer>,
    /// With a pattern in the server's half of a pattern.
    at_any: Vec<u32>,
}

#[derive(Debug, Default)]
struct AtServer {
    by_name: HashMap<String, Vec<u32>>,
    /// With a pattern in the name's half.
    patterns: Vec<u32>,
}

impl Index {
    pub(super) fn new<'a>(scopes: impl Iterator<Item = &'a Scope>) -> Self {
        let mut index = Self::default();
        for (place, scope) in (0..).zip(scopes) {
            if scope.members.is_empty() && scope.groups.is_empty() {
                index.everyone.push(place);
            }
            for member in &scope.members {
                push(index.by_member.entry(*member).or_default(), place);
            }
            for group in &scope.groups {
                push(index.by_group.entry(group.clone()).or_default(), place);
            }
            for tool in &scope.tools {
                let (server, name) = access::halves(tool);
                if server.contains('*') {
                    push(&mut index.at_any, place);
                    continue;
                }
                let there = index.by_server.entry(server.to_owned()).or_default();
                push(
                    if name.contains('*') {
                        &mut there.patterns
                    } else {
                        there.by_name.entry(name.to_owned()).or_default()
                    },
                    place,
                );
            }
        }
        index
    }

    /// Those that could apply to a request of this member for this name.
    pub(super) fn find<'a>(
        &'a self,
        member: &MemberId,
        groups: &[String],
        server: &str,
        name: Option<&str>,
    ) -> Walk<'a> {
        let mut of = Walk::default();
        of.push(&self.at_any);
        if let Some(there) = self.by_server.get(server) {
            of.push(&there.patterns);
            there.by_name.get(name.unwrap_or_default()).into_iter().for_each(|places| of.push(places));
        }
        let by = self.of(member, groups);
        if by.length < of.length { by } else { of }
    }

    /// Those that could be of this member.
    pub(super) fn of<'a>(&'a self, member: &MemberId, groups: &[String]) -> Walk<'a> {
        let mut by = Walk::default();
        by.push(&self.everyone);
        self.by_member.get(member).into_iter().for_each(|places| by.push(places));
        groups.iter().filter_map(|group| self.by_group.get(group)).for_each(|places| by.push(places));
        by
    }
}

/// One scope may name the same thing twice.
fn push(places: &mut Vec<u32>, place: u32) {
    if places.last() != Some(&place) {
        places.push(place);
    }
}

/// Walks several ascending lists as one, each place once.
#[derive(Debug, Default)]
pub(super) struct Walk<'a> {
    lists: Vec<&'a [u32]>,
    length: usize,
}

impl<'a> Walk<'a> {
    fn push(&mut self, list: &'a [u32]) {
        if !list.is_empty() {
            self.lists.push(list);
            self.length += list.len();
        }
    }
}

impl Iterator for Walk<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let least = *self.lists.iter().filter_map(|list| list.first()).min()?;
        for list in &mut self.lists {
            if let [first, rest @ ..] = list
                && *first == least
            {
                *list = rest;
            }
        }
        usize::try_from(least).ok()
    }
}
