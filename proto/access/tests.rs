//! Patterns fit as their plainest description says.

use super::*;
use crate::testing::Rng;

/// The description itself, slow.
fn plainly(pattern: &[u8], text: &[u8]) -> bool {
    match pattern {
        [] => text.is_empty(),
        [b'*', after @ ..] => (0..=text.len()).any(|at| plainly(after, &text[at..])),
        [wanted, after @ ..] => text.first() == Some(wanted) && plainly(after, &text[1..]),
    }
}

#[test]
fn a_star_stands_for_any_bytes() {
    let mut rng = Rng::for_test("a_star_stands_for_any_bytes");
    let (mut fit, mut not) = (0, 0);
    for _ in 0..50_000 {
        let mut word = |letters: &[u8], most| -> String {
            (0..rng.below(most)).map(|_| char::from(letters[rng.below(letters.len())])).collect()
        };
        let (pattern, text) = (word(b"ab*/", 7), word(b"ab/", 9));
        let expected = plainly(pattern.as_bytes(), text.as_bytes());
        assert_eq!(fits(&pattern, &text), expected, "{pattern} {text}");
        if expected { fit += 1 } else { not += 1 }
    }
    assert!(fit > 1_000 && not > 1_000, "{fit} {not}");
}

#[test]
fn a_pattern_is_of_a_server_and_of_a_name_there() {
    assert!(fits_tool("*", "mail", None) && fits_tool("*", "mail", Some("file:///x")));
    assert!(fits_tool("mail/*", "mail", None) && fits_tool("mail/*", "mail", Some("a/b")));
    assert!(fits_tool("mail/send", "mail", Some("send")));
    // No name of a tool reaches into the server's half, and no server's into the tool's.
    assert!(!fits_tool("mail/send", "mail/send", None) && !fits_tool("*/send", "mail", Some("x/send2")));
    assert!(!fits_tool("mail/send", "mail", None) && !fits_tool("mail/send", "mail2", Some("send")));
    assert!(
        fits_tool("*/delete_*", "mail", Some("delete_all")) && !fits_tool("*/delete_*", "mail", Some("Delete_all"))
    );
}
