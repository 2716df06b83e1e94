//! What is wrong with a policy is named with its place and the next move, and no text that may be somebody's name is repeated.

use super::*;

fn faults(text: &str, organisation: Option<&str>) -> Vec<String> {
    Access::of(text, organisation).map(drop).unwrap_err().0
}

#[test]
fn every_fault_is_named_with_the_next_move() {
    let token = OneTimeToken::random();
    let base = policy_text(STAFF, &token_text(&token, ALICE, ""));
    let cases = [
        (base.replace("version = 1", "version = 2"), "version is 2; hint"),
        (base.replace("version = 1", "version = 1\ncolour = 3"), "line 2: unknown field `colour`"),
        (base.replace("version = 1", "version = 1\ntoken_days_max = 367"), "token_days_max; hint: 1 to 366"),
        (
            base.replace("version = 1", "version = 1\ntoken_days_max = 29"),
            "lives longer than token_days_max = 29; hint",
        ),
        (base.replace(&format!("[members.{BOB}]"), "[members.Bob]"), "members, line 4: it is not 32"),
        (
            base.replace("[\"staff\"]\n[members", "[\"staff\", \"Böb\"]\n[members"),
            &*format!("members.{ALICE}.groups; hint"),
        ),
        (base.replace("groups = [\"staff\"]\n[m", "kind = \"service\"\n[m"), "is a service without owner; hint"),
        (
            base.replace("groups = [\"staff\"]\n[m", &format!("owner = \"{BOB}\"\n[m")),
            "is a person and has an owner; hint",
        ),
        (base.replace("groups = [\"staff\"]\n[m", "subject = \"bob@example.org\"\n[m"), "subject is no digest; hint"),
        (
            base.replace("id = \"staff\"", "id = \"shim/staff\""),
            "rules: the id of the 1st is no token, or begins with shim/",
        ),
        (base.replace("groups = [\"staff\"]\nt", "t"), "rules.staff applies to nobody; hint"),
        (
            base.replace("groups = [\"staff\"]\nt", "everyone = true\ngroups = [\"a\"]\nt"),
            "names everyone and some besides",
        ),
        (base.replace("mail/*", "mail"), "rules.staff.tools: the 1st is no pattern; hint"),
        (base.replace("[\"mail/*\"]", "[\"*\"]\nmethods = []"), "rules.staff.methods; hint"),
        (
            base.replace("groups = [\"staff\"]\nt", "members = [\"c0000000000000000000000000000001\"]\nt"),
            "who is no member; hint",
        ),
        (format!("{base}{STAFF}"), "rules.staff stands twice; hint"),
        (format!("{base}[[limits]]\nid = \"none\"\neveryone = true\n"), "limits.none limits nothing"),
        (
            format!("{base}[[limits]]\nid = \"staff\"\neveryone = true\ncalls_per_day = 1\n"),
            "limits.staff stands twice",
        ),
        (format!("{base}[servers.\"a/b\"]\n"), "servers, line"),
        (format!("{base}{}", token_text(&token, ALICE, "")), "stands twice; hint: take one away"),
        (base.replace(&format!("[agents.{AGENT}]"), ""), "which is no agent; hint"),
    ];
    for (text, expected) in cases {
        assert_ne!(text, base, "{expected}");
        let found = faults(&text, None).join("\n");
        assert!(found.contains(expected), "{expected}: {found}");
        assert!(!found.contains("Böb") && !found.contains("Bob") && !found.contains("example.org"), "{found}");
    }
    let allowing = "version = 1\n[[rules]]\nid = \"o\"\neffect = \"allow\"\neveryone = true\ntools = [\"*\"]\n";
    assert!(faults(&base, Some(allowing))[0].starts_with("organisation policy: a rule allows; hint"));
    let more = format!("version = 1\n[agents.{AGENT}]\n");
    assert!(faults(&base, Some(&more))[0].contains("it holds more than rules; hint"));
}

#[test]
fn all_faults_are_found_at_once_and_values_are_not_repeated() {
    let text =
        format!("{}[servers.x]\nowner = \"Jörg Müller\"\n[servers.y]\nenvironment = \"a b\"\n", policy_text("", ""));
    let found = faults(&text, None);
    assert_eq!(found.len(), 2);
    let wrong_type = policy_text("", "").replace("version = 1", "version = \"Jörg Müller\"");
    let found = [found, faults(&wrong_type, None)].concat().join("\n");
    assert!(!found.contains("Jörg") && found.contains("servers.x.owner") && found.contains("line 1"), "{found}");
}

#[test]
fn the_template_has_every_key_and_can_be_used() {
    assert!(Access::of(policy::TEMPLATE, None).is_ok());
    // A line that begins with `#` and a letter, a bracket or the like is a key; text has a space there.
    let keys = policy::TEMPLATE.lines().map(|line| match line.strip_prefix('#') {
        Some(key) if !key.starts_with(' ') => key,
        _ => line,
    });
    let text = keys.collect::<Vec<_>>().join("\n") + "\n[members.fedcba9876543210fedcba9876543210]\n";
    let access = Access::of(&text, None).unwrap_or_else(|faults| panic!("{faults}"));
    assert_eq!(access.now().policy.tokens.len(), 1);
}

#[test]
fn what_should_not_stay_so_is_said() {
    let service = "5e000000000000000000000000000001";
    let tokens = [
        token_text(&OneTimeToken::random(), ALICE, ""),
        token_text(&OneTimeToken::random(), service, "revoked = true"),
    ];
    let text = policy_text(&format!("[members.{service}]\nkind = \"service\"\nowner = \"{BOB}\""), &tokens.concat());
    let warnings = |text: &str, now| Policy::parse(text, None).unwrap().warnings(now);
    assert_eq!(warnings(&text, NOW), Vec::<String>::new());
    let revoked = text.replace(&format!("[members.{BOB}]"), &format!("[members.{BOB}]\nrevoked = true"));
    let said = warnings(&revoked, NOW + 5 * policy::DAY_US);
    assert!(said[0].contains(service) && said[1].contains(ALICE) && said.len() == 2, "{said:?}");
}
