//! Questions as people write them, hostile ones, and random ones against their own text.

use super::*;
use crate::testing::Rng;

const NOW: u64 = 1_772_323_200_000_000;

fn printed(text: &str) -> String {
    parse(text, NOW).map_or_else(|fault| fault.drawn(text), |expr| expr.to_string())
}

#[test]
fn questions_mean_what_they_say() {
    for (text, means) in [
        ("", ""),
        ("tool:github/* -outcome:ok decision:denied", "tool:github/* -outcome:ok decision:denied"),
        ("tool:create_issue", "tool:*/create_issue"),
        ("duration:>2s", "duration:2000001us.."),
        ("duration:2s..3s", "duration:2000000us..3000000us"),
        ("duration:<1.5ms,>=1h", "duration:..1499us,3600000000us.."),
        ("response_bytes:<=1MiB", "response_bytes:..1048576B"),
        ("since:24h", "at:2026-02-28T00:00:00.000000Z.."),
        ("until:2026-02-01", "at:..2026-01-31T23:59:59.999999Z"),
        ("received:2026-02-01", "received:2026-02-01T00:00:00.000000Z..2026-02-01T23:59:59.999999Z"),
        ("received:1h", "received:2026-02-28T23:00:00.000000Z.."),
        ("at:2026-02-01T10:00..2026-02-01T10:05Z", "at:2026-02-01T10:00:00.000000Z..2026-02-01T10:05:59.999999Z"),
        ("outcome:(ok timeout)", "outcome:ok,timeout"),
        ("outcome:ok,timeout phase:complete", "outcome:ok,timeout phase:complete"),
        ("has:receipt gap:true -from_server:true gap:false", "has:receipt gap:true -from_server:true -gap:true"),
        ("has:(receipt trace)", "has:receipt | has:trace"),
        ("a:b", "the question names a field that there is not"),
        ("member:\"Ann \\\"A\\\" Lee\"", "member:\"Ann \\\"A\\\" Lee\""),
        ("server:a OR server:b server:c", "server:a | (server:b server:c)"),
        ("NOT (server:a | server:b) AND server:c", "-(server:a | server:b) server:c"),
        ("- server:a", "-server:a"),
        ("error_code:-32602,-1", "error_code:\"-32602\",\"-1\""),
        ("error_code:(-32602 -1)", "error_code:\"-32602\",\"-1\""),
        ("client:digest:*", "client:digest:*"),
        ("call:17", "call:17..17"),
    ] {
        let found = printed(text);
        assert!(
            found == means || found.contains("names a field") && means.contains("names a field"),
            "{text}: {found}"
        );
    }
}

#[test]
fn what_is_no_question_is_told_where_and_what_to_do() {
    let drawn: Vec<String> = [
        "outcom:ok",
        "outcome:okay",
        "duration:2",
        "duration:3s..2s",
        "since:yesterday",
        "server:a)",
        "(server:a",
        "server:",
        "server: a",
        "server:\"a",
        "| server:a",
        "server:a |",
        "trace:ab*",
        "gap:maybe",
        "has:thing",
        "outcome:(ok -timeout)",
        "-",
    ]
    .map(printed)
    .to_vec();
    insta::assert_snapshot!(drawn.join("\n\n"));
}

#[test]
fn a_question_has_bounds() {
    let deep = "(".repeat(DEPTH_MAX + 2) + "server:a" + &")".repeat(DEPTH_MAX + 2);
    assert!(printed(&deep).contains("groups within groups"));
    assert!(printed(&"-".repeat(1_000)).contains("groups within groups"));
    let many = format!("server:{}", vec!["a"; CLAUSES_MAX + 1].join(","));
    assert!(printed(&many).contains("more than 256 values"));
    assert!(parse(&format!("server:{}", vec!["a"; CLAUSES_MAX].join(",")), NOW).is_ok());
    assert!(printed(&"x".repeat(TEXT_BYTES_MAX + 1)).contains("longer than 4096 bytes"));
}

#[test]
fn names_are_known_and_replaced() {
    let id = "ab".repeat(16);
    let expr = parse(&format!("member:alice,{id} -owner:bob workspace:payments tool:x"), NOW).unwrap();
    let found = [(Field::Workspace, "payments"), (Field::Member, "alice"), (Field::Owner, "bob")];
    assert_eq!(names(&expr), found.map(|(field, name)| (field, name.to_owned())));
    let ids = |field: Field, name: &str| match (field, name) {
        (Field::Member, "alice") => vec!["11".repeat(16), "22".repeat(16)],
        (Field::Workspace, _) => vec!["33".repeat(16)],
        _ => Vec::new(),
    };
    let replaced = with_ids(&expr, &ids).to_string();
    let expected = format!(
        "member:{},{},{id} -owner:\"\" workspace:{} tool:*/x",
        "11".repeat(16),
        "22".repeat(16),
        "33".repeat(16)
    );
    assert_eq!(replaced, expected);
    assert_eq!(names(&parse(&replaced, 0).unwrap()), []);
}

fn word(rng: &mut Rng) -> String {
    let letters = ['a', 'B', '7', '_', ' ', '"', '\\', ':', '-', '(', ')', ',', '|', 'é', '\t'];
    (0..1 + rng.below(6)).map(|_| letters[rng.index(letters.len())]).collect()
}

fn pattern(rng: &mut Rng) -> String {
    let letters = ['a', 'B', '7', '_', ':', '-', '*', '/'];
    (0..1 + rng.below(6)).map(|_| letters[rng.index(letters.len())]).chain(['*', '/']).collect()
}

fn random(rng: &mut Rng, depth: u64) -> Expr {
    let kind = if depth == 0 { 3 } else { rng.below(4) };
    match kind {
        0 => Expr::All((0..rng.below(4)).map(|_| random(rng, depth - 1)).collect()),
        1 => Expr::Any((0..rng.below(4)).map(|_| random(rng, depth - 1)).collect()),
        2 => Expr::Not(Box::new(random(rng, depth - 1))),
        _ => {
            let field = Field::ALL[rng.index(Field::ALL.len())];
            let free = [Field::Member, Field::Client, Field::Rule, Field::Label, Field::Ticket];
            match field.kind() {
                _ if rng.one_in(4) => Expr::test(field, Want::Present),
                Kind::Flag => Expr::test(field, Want::Present),
                Kind::Text | Kind::Unique => {
                    let texts = (0..1 + rng.below(3)).map(|_| match rng.one_in(3) {
                        true => Text::Pattern(pattern(rng)),
                        false => Text::Exact(word(rng)),
                    });
                    let texts = texts.collect();
                    Expr::test(free[rng.index(5)], Want::Texts(texts))
                }
                _ => {
                    let most = if field.kind() == Kind::Time { NOW * 2 } else { u64::MAX };
                    let ranges = (0..1 + rng.below(3)).map(|_| {
                        let (a, b) = (rng.below(most), rng.below(most));
                        let end = if rng.one_in(3) { u64::MAX } else { a.max(b) };
                        (if rng.one_in(3) { 0 } else { a.min(b) }, end)
                    });
                    Expr::test(field, Want::Numbers(ranges.collect()))
                }
            }
        }
    }
}

#[test]
fn the_text_of_a_question_reads_as_it() {
    let mut rng = Rng::for_test("the_text_of_a_question_reads_as_it");
    for _ in 0..20_000 {
        let expr = random(&mut rng, 4);
        let text = expr.to_string();
        if text.len() <= TEXT_BYTES_MAX {
            match parse(&text, NOW) {
                Ok(again) => assert_eq!(again.plain(), expr.plain(), "{text}"),
                Err(fault) => panic!("{}", fault.drawn(&text)),
            }
        }
    }
}

#[test]
fn whatever_is_asked_is_answered_or_pointed_at() {
    let mut rng = Rng::for_test("whatever_is_asked_is_answered_or_pointed_at");
    let parts = [
        "(",
        ")",
        ",",
        "|",
        "\"",
        "-",
        ":",
        "..",
        ">",
        "<=",
        "*",
        " ",
        "OR",
        "AND",
        "NOT",
        "server:",
        "at:",
        "duration:",
        "has:",
        "since:",
        "2s",
        "2026-01-01",
        "T10:00",
        "é",
        "\u{0}",
        "\u{202e}",
        "x",
        "tool:",
        "gap:",
        "\\",
        "99999999999999999999",
    ];
    for _ in 0..200_000 {
        let text: String = (0..rng.below(12)).map(|_| parts[rng.index(parts.len())]).collect();
        match parse(&text, rng.next()) {
            Ok(expr) => drop(expr.to_string()),
            Err(fault) => {
                assert!(
                    fault.start <= fault.end && text.is_char_boundary(fault.start) && text.is_char_boundary(fault.end)
                );
                assert!(!fault.why.is_empty() && !fault.hint.is_empty() && fault.drawn(&text).contains('^'));
            }
        }
    }
}

/// `docs/QUERY.md` lists the fields as the code has them.
#[test]
fn the_manual_lists_the_fields() {
    let kind = |field: &Field| match field.kind() {
        Kind::Text => "text",
        Kind::Unique => "id, found whole alone",
        Kind::Duration => "time span",
        Kind::Size => "size",
        Kind::Number => "number",
        Kind::Time => "time",
        Kind::Flag => "true, false",
    };
    let row = |field: &Field| format!("| `{}` | {} | {} |", field.name(), kind(field), field.about());
    let rows: Vec<String> = Field::ALL.iter().map(row).collect();
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/QUERY.md");
    let manual = std::fs::read_to_string(path).unwrap();
    let (_, listed) = manual.split_once("| --- | --- | --- |\n").unwrap();
    let listed: Vec<&str> = listed.lines().filter(|line| line.starts_with('|')).collect();
    assert_eq!(listed, rows, "the table should be:\n{}", rows.join("\n"));
}
