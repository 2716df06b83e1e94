//! Which names look alike. Pure.
//!
//! Two names look alike when they are not the same and either
//! - their *folds* are the same, or
//! - both folds have 6 characters or more, and one becomes the other by one character that is put in, left out, or another.
//!
//! The fold of a name: the skeleton of UTS #39 (what looks the same in any script becomes the same, for example Cyrillic
//! and Latin `a`), in lower case; of that only letters and digits, so that `-`, `_`, `.`, `/`, `:`, white space, accents and
//! what is not seen part no names; and of those `1` and `i` are `l`, `2` is `z`, `5` is `s`, `8` is `b` (that `0` is `o`
//! says the skeleton); once more, until nothing changes. A name without a letter or digit, and one of more than 256 characters, looks like no other.

use std::cmp::Ordering;

use unicode_security::skeleton;

/// Characters of a fold from which on one character makes no difference: among shorter names it often is all of the
/// difference that people want (`get`, `set`).
pub const LENGTH_MIN: usize = 6;
/// Characters of a name that is folded, in a time that grows with them: twice what the protocol allows.
const CHARACTERS_MAX: usize = 256;
/// Rounds until nothing changes: two are enough for every character that there is.
const ROUNDS_MAX: usize = 4;

/// The fold of a name, if it has one.
pub fn fold(name: &str) -> Option<String> {
    if name.chars().count() > CHARACTERS_MAX {
        return None;
    }
    let mut fold = once(name);
    for _ in 0..ROUNDS_MAX {
        let again = once(&fold);
        if again == fold {
            break;
        }
        fold = again;
    }
    (!fold.is_empty()).then_some(fold)
}

fn once(name: &str) -> String {
    let lower: String = name.chars().flat_map(char::to_lowercase).collect();
    let seen = skeleton(&lower).flat_map(char::to_lowercase);
    seen.filter(|letter| letter.is_alphanumeric())
        .map(|letter| match letter {
            '1' | 'i' => 'l',
            '2' => 'z',
            '5' => 's',
            '8' => 'b',
            other => other,
        })
        .collect()
}

/// Whether two folds are of names that look alike, if they are of different names.
pub fn alike(one: &str, other: &str) -> bool {
    one == other || is_one_apart(one, other)
}

/// Whether one character makes the difference, in names that are long enough.
fn is_one_apart(one: &str, other: &str) -> bool {
    let (of_one, of_other) = (one.chars().count(), other.chars().count());
    if of_one.min(of_other) < LENGTH_MIN || of_one.abs_diff(of_other) > 1 {
        return false;
    }
    let (mut rest_one, mut rest_other) = (one.chars(), other.chars());
    let (mut at_one, mut at_other) = (one, other);
    while let (Some(a), Some(b)) = (rest_one.next(), rest_other.next())
        && a == b
    {
        (at_one, at_other) = (rest_one.as_str(), rest_other.as_str());
    }
    let behind = |rest: &str| {
        let mut rest = rest.chars();
        rest.next();
        rest.as_str().to_owned()
    };
    match of_one.cmp(&of_other) {
        Ordering::Equal => behind(at_one) == behind(at_other),
        Ordering::Less => at_one == behind(at_other),
        Ordering::Greater => behind(at_one) == at_other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn are(one: &str, other: &str) -> bool {
        let (a, b) = (fold(one).unwrap(), fold(other).unwrap());
        assert_eq!(alike(&a, &b), alike(&b, &a));
        alike(&a, &b)
    }

    #[test]
    fn names_that_people_take_for_one_another_look_alike() {
        for (one, other) in [
            ("read_file", "Read_File"),
            ("read_file", "readFile"),
            ("read_file", "read-file"),
            ("read_file", "read.file"),
            ("read_file", "re\u{200b}ad_file"),
            ("login", "log1n"),
            ("get", "gеt"),
            ("tool", "t00l"),
            ("list", "1ist"),
            ("lIst", "llst"),
            ("search", "ѕеаrсһ"),
            ("modern", "rnodern"),
            ("base5", "bases"),
            ("read_file", "ｒｅａｄ_ｆｉｌｅ"),
            ("send_email", "send_emails"),
            ("send_email", "sendemai"),
            ("send_email", "send_emall"),
            ("delete", "delet"),
        ] {
            let short = one == "delete";
            assert_eq!(are(one, other), !short, "{one} {other}");
        }
    }

    #[test]
    fn names_that_differ_do_not() {
        for (one, other) in [
            ("get", "set"),
            ("read_file", "write_file"),
            ("list_files", "list_files_2x"),
            ("echo", "echo2"),
            ("a", "b"),
        ] {
            assert!(!are(one, other), "{one} {other}");
        }
        assert_eq!((fold("-._"), fold(&"x".repeat(CHARACTERS_MAX + 1))), (None, None));
    }

    /// What is folded is folded: else two names might look alike to one and not to another.
    #[test]
    fn a_fold_is_its_own() {
        for code in (0..0x2_0000_u32).filter_map(char::from_u32) {
            let Some(fold) = fold(&code.to_string()) else { continue };
            assert_eq!(super::fold(&fold).unwrap(), fold, "{code:?}");
        }
    }
}
