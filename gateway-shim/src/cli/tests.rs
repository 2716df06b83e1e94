//! The command line: what is parsed, and what is refused.

use clap::CommandFactory as _;

use super::*;

fn line(words: &[&str]) -> Result<Line, clap::Error> {
    Line::try_parse_from([&["gateway-shim"], words].concat())
}

#[test]
fn the_command_line_is_sound() {
    Line::command().debug_assert();
    line(&["serve", "--config", "c"]).unwrap();
    line(&["relay", "--config", "c"]).unwrap();
    line(&["key", "new", "--key", "a", "--tls-key", "b"]).unwrap();
    line(&["request", "--config", "c", "--out", "o"]).unwrap();
    line(&["status", "--config", "c", "--json"]).unwrap();
    for wrong in [&["serve"][..], &["unknown"], &["status", "--json", "--json"], &[]] {
        let why = line(wrong).unwrap_err();
        assert!(why.use_stderr(), "{wrong:?}");
    }
    assert!(!line(&["--help"]).unwrap_err().use_stderr());
}
