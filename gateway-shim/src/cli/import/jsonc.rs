//! JSON as editors keep it: with comments and a comma behind the last member.

/// The same without them. What stands in a string stays.
pub(super) fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut letters = text.trim_start_matches('\u{feff}').chars().peekable();
    while let Some(letter) = letters.next() {
        match (letter, letters.peek()) {
            ('"', _) => {
                out.push('"');
                while let Some(letter) = letters.next() {
                    out.push(letter);
                    match letter {
                        '\\' => out.extend(letters.next()),
                        '"' => break,
                        _ => {}
                    }
                }
            }
            ('/', Some('/')) => {
                letters.by_ref().take_while(|letter| *letter != '\n').for_each(drop);
                out.push('\n');
            }
            ('/', Some('*')) => {
                letters.next();
                let mut before = ' ';
                letters
                    .by_ref()
                    .take_while(|letter| !(std::mem::replace(&mut before, *letter) == '*' && *letter == '/'))
                    .for_each(drop);
            }
            ('}' | ']', _) => {
                let end = out.trim_end().len();
                if out.get(..end).is_some_and(|out| out.ends_with(',')) {
                    out.truncate(end - 1);
                }
                out.push(letter);
            }
            _ => out.push(letter),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_last_commas_go_and_strings_stay() {
        let text = "\u{feff}{ // one\n \"a//b\": \"c /* d */ \\\" ,}\", /* two\n lines **/ \"e\": [1, 2, ], }";
        let value: serde_json::Value = serde_json::from_str(&plain(text)).unwrap();
        assert_eq!(value, serde_json::json!({ "a//b": "c /* d */ \" ,}", "e": [1, 2] }));
    }

    #[test]
    fn what_is_cut_short_ends() {
        for text in ["\"a", "\"a\\", "/", "/*", "//", "/* *", ",}"] {
            plain(text);
        }
    }
}
