//! Which known tool a new one looks like, found without comparing it with each: a server may list thousands. Pure.
//!
//! What must hold: what is found is what `alike` finds. Two folds are one character apart exactly if one is the other without
//! a character, or both are the same without the one at the same place.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher as _, RandomState},
};

use super::{DIGEST_MARK, Pin, alike, fold_digest};

/// The first two names of a server: one of them may be the new tool's own.
type Two = [Option<String>; 2];

/// Names by server.
#[derive(Default)]
struct Names(BTreeMap<String, Two>);

impl Names {
    fn add(&mut self, server: &str, key: &str) {
        let two = match self.0.get_mut(server) {
            Some(two) => two,
            None => self.0.entry(server.to_owned()).or_default(),
        };
        let key = key.to_owned();
        match two {
            [Some(first), _] if *first == key => {}
            [Some(first), second] if *first < key => {
                if second.as_ref().is_none_or(|second| key < *second) {
                    *second = Some(key);
                }
            }
            [first, second] => *second = first.replace(key),
        }
    }

    /// Of several, one of the same server; whether it is, its server, and its name.
    fn find(&self, server: &str, key: &str) -> Option<(bool, &str, &str)> {
        // The same name on another server is no look-alike: rules, and the endpoint for all servers, tell them apart.
        let other = |two: &Two| two.iter().flatten().any(|name| name != key);
        let own = self.0.get_key_value(server).filter(|(_, two)| other(two));
        let (of, two) = own.or_else(|| self.0.iter().find(|(_, two)| other(two)))?;
        let name = two.iter().flatten().find(|name| *name != key)?;
        Some((of != server, of, name))
    }
}

/// How a fold is looked for, besides by itself.
#[derive(Hash)]
enum Without<'a> {
    /// Itself, by whoever has a character more.
    Nothing(&'a str),
    /// By whoever has a character less.
    One(&'a str),
    /// By whoever has another one at this place.
    At(usize, &'a str),
}

/// All that is known.
#[derive(Default)]
pub(super) struct Likeness {
    /// By the fold's digest.
    same: HashMap<String, Names>,
    folds: Vec<(String, Names)>,
    /// Hashes of how folds are looked for, in order, with the fold's place: some hundred for each name.
    near: Vec<(u64, u32)>,
    hash: RandomState,
}

/// A fold without each of its characters, and where that stood.
fn shortened(fold: &str) -> impl Iterator<Item = (usize, String)> + '_ {
    fold.char_indices().enumerate().map(|(place, (at, letter))| {
        let mut rest = fold.to_owned();
        rest.replace_range(at..at + letter.len_utf8(), "");
        (place, rest)
    })
}

impl Likeness {
    pub(super) fn of<'a>(known: impl Iterator<Item = (&'a String, &'a String, &'a Pin)>) -> Self {
        let mut likeness = Self::default();
        let mut places = HashMap::new();
        for (server, key, pin) in known {
            let Some(fold) = pin.fold.as_deref() else { continue };
            if key.starts_with(DIGEST_MARK) {
                likeness.same.entry(fold.to_owned()).or_default().add(server, key);
                continue;
            }
            likeness.add_same(server, key, fold);
            if fold.chars().count() >= alike::LENGTH_MIN {
                let place = *places.entry(fold).or_insert_with(|| likeness.add_near(fold));
                likeness.folds[place].1.add(server, key);
            }
        }
        likeness.near.sort_unstable();
        likeness
    }

    /// A name that only one of the same fold looks like.
    pub(super) fn add_same(&mut self, server: &str, key: &str, fold: &str) {
        self.same.entry(fold_digest(fold)).or_default().add(server, key);
    }

    /// Gives its place among the folds.
    fn add_near(&mut self, fold: &str) -> usize {
        let place = self.folds.len();
        self.folds.push((fold.to_owned(), Names::default()));
        // Beyond any number of tools that is kept.
        let of = u32::try_from(place).unwrap_or(u32::MAX);
        self.near.push((self.hash.hash_one(Without::Nothing(fold)), of));
        for (at, rest) in shortened(fold) {
            self.near.push((self.hash.hash_one(Without::One(&rest)), of));
            self.near.push((self.hash.hash_one(Without::At(at, &rest)), of));
        }
        place
    }

    fn looks<'a>(&'a self, how: Without<'_>) -> impl Iterator<Item = &'a (String, Names)> + use<'a> {
        let hash = self.hash.hash_one(how);
        let from = self.near.partition_point(|(other, _)| *other < hash);
        let found = self.near[from..].iter().take_while(move |(other, _)| *other == hash);
        found.filter_map(|(_, of)| self.folds.get(*of as usize))
    }

    /// The known tool that a new one looks like: rather one of the same fold than one that is a character apart.
    pub(super) fn find(&self, server: &str, key: &str, fold: &str) -> Option<String> {
        if let Some((.., name)) = self.same.get(&fold_digest(fold)).and_then(|names| names.find(server, key)) {
            return Some(name.to_owned());
        }
        let around = shortened(fold)
            .flat_map(|(at, rest)| self.looks(Without::Nothing(&rest)).chain(self.looks(Without::At(at, &rest))));
        let near = self.looks(Without::One(fold)).chain(around).filter(|(other, _)| alike::alike(fold, other));
        near.filter_map(|(_, names)| names.find(server, key)).min().map(|(.., name)| name.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Dice, seed};

    /// Against all comparisons, over names that are often alike.
    #[test]
    fn what_is_found_is_what_comparing_with_each_finds() {
        let seed = seed();
        let mut dice = Dice::new(seed);
        let name = |dice: &mut Dice| {
            let letters = (0..5 + dice.below(4)).map(|_| b"ab_A"[usize::try_from(dice.below(4)).unwrap()]);
            String::from_utf8(letters.collect()).unwrap()
        };
        let pin = |name: &str| Pin { fold: alike::fold(name), ..Pin::default() };
        let known: Vec<(String, String, Pin)> = (0..300)
            .map(|number| (["s", "t", "u"][number % 3].to_owned(), name(&mut dice)))
            .map(|(server, name)| (server, name.clone(), pin(&name)))
            .collect();
        let likeness = Likeness::of(known.iter().map(|(server, name, pin)| (server, name, pin)));
        let mut found = [0, 0];
        for _ in 0..1_000 {
            let new = name(&mut dice);
            let Some(fold) = alike::fold(&new) else { continue };
            let of = |same: bool| {
                let is = |other: &str| (other == fold) == same && alike::alike(&fold, other);
                let others = known.iter().filter(|(_, name, pin)| *name != new && pin.fold.as_deref().is_some_and(is));
                others.map(|(server, name, _)| (server != "t", server, name)).min()
            };
            let expected = of(true).or_else(|| of(false)).map(|(.., name)| name.clone());
            found[usize::from(expected.is_some())] += 1;
            assert_eq!(likeness.find("t", &new, &fold), expected, "{new}, SEED={seed}");
        }
        assert!(found[1] > 100, "{found:?}, SEED={seed}");
    }
}
