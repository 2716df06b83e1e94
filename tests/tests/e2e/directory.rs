//! People: one id in all workspaces, over the gateways' streams; names that an administrator sees and an auditor is shown, each
//! time on record; erasures that outlast restarts, old backups and holds; and no name in any file that is not meant to have it.

use std::{path::Path, process::Command};

use custody::{
    id::MemberId,
    wire::{EnrolMember, from_gateway, member_enrolled::Answer},
};
use custody_tests::{
    canary::{nowhere, unpack},
    oracle::check_all,
    peer::{ANSWER, Gateway, Heard, Session, ship},
    process::{Home, SETTINGS, binary, end, text, write},
    shown::{records, word},
};

/// Asks the ledger who somebody is.
async fn say(session: &Session, number: u64, name: &str, address: &str, groups: &[&str]) {
    let groups = groups.iter().map(|group| (*group).to_owned()).collect();
    let asked = EnrolMember { number, name: name.into(), address: address.into(), groups, ..Default::default() };
    session.say(from_gateway::Message::EnrolMember(asked)).await.unwrap();
}

/// The answer to that.
async fn told(gateway: &mut Gateway, session: &mut Session, number: u64) -> Result<MemberId, String> {
    let answer = tokio::time::timeout(ANSWER, async {
        loop {
            if let Heard::Member(told) = gateway.hear(session).await.unwrap() {
                assert_eq!(told.number, number);
                return told.answer.unwrap();
            }
        }
    });
    match answer.await.unwrap() {
        Answer::Member(member) => Ok(MemberId::try_from(member.as_ref()).unwrap()),
        Answer::Refusal(refusal) => Err(refusal.detail),
    }
}

/// Runs the verifier; its code and what it printed.
fn names(home: &Home, disclosure: &Path) -> (Option<i32>, String) {
    let mut command = Command::new(binary("verifier"));
    command.arg("names").arg(home.archive()).arg("--policy").arg(home.policy());
    let done = command.arg("--disclosure").arg(disclosure).output().unwrap();
    (done.status.code(), text(&done.stdout) + &text(&done.stderr))
}

/// Actions and outcomes of the ledger's own records, as the verifier shows them.
fn on_record(home: &Home) -> Vec<(String, String)> {
    let record = |shown: &serde_json::Value| (word(shown, "action").to_owned(), word(shown, "outcome").to_owned());
    let of_members = |(action, _): &(String, String)| action.starts_with("member.");
    records(home, "ledger").iter().map(record).filter(of_members).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_person_has_one_id_in_two_workspaces_and_names_stay_where_they_belong() {
    let home = Home::new("people", SETTINGS);
    let process = home.start();
    let (mut one, mut two) =
        (Gateway::enrol(&home, home.workspace("payments")), Gateway::enrol(&home, home.workspace("search")));
    let (mut first, mut second) = (one.connect(home.grpc).await.unwrap(), two.connect(home.grpc).await.unwrap());
    // At once, from both.
    say(&first, 1, "Ada Canary-Zwölf", "ada.canary@example.com", &["dev"]).await;
    say(&second, 7, "", " Ada.Canary@EXAMPLE.com", &["ops"]).await;
    let ada = told(&mut one, &mut first, 1).await.unwrap();
    assert_eq!(told(&mut two, &mut second, 7).await.unwrap(), ada);
    say(&first, 2, "Eve Canary-Zwölf", "eve.canary@example.com", &[]).await;
    let eve = told(&mut one, &mut first, 2).await.unwrap();
    assert_ne!(eve, ada);
    say(&first, 3, "", "no address", &[]).await;
    assert!(told(&mut one, &mut first, 3).await.unwrap_err().contains("white space"));
    ship(&mut one, &mut first, 1).await;
    ship(&mut two, &mut second, 1).await;

    let person = home.dir.join("person");
    write(&person, b"ADA.canary@example.com\n");
    let person_path = person.to_str().unwrap();
    let shown = home.say(&["member", "show", "--person", person_path, "--reason", "support"]);
    for words in ["Ada Canary-Zwölf", "ada.canary@example.com", "payments/dev search/ops", "known"] {
        assert!(shown.contains(words), "{words} is not in\n{shown}");
    }
    assert!(!home.say(&["member", "list"]).contains("Canary"));
    let by_hand = home.say(&["member", "add", "--person", person_path]);
    assert!(by_hand.contains(&ada.to_string()), "{by_hand}");
    std::fs::remove_file(&person).unwrap();

    // Removing a workspace removes no record and no entry.
    home.say_as_root(&["workspace", "remove", "search"]);
    say(&first, 4, "", "ada.canary@example.com", &["dev"]).await;
    assert_eq!(told(&mut one, &mut first, 4).await.unwrap(), ada);
    assert!(home.say(&["member", "show", &ada.to_string()]).contains("search/ops"));

    // An auditor opens whom the file is about, and nobody else.
    let file = home.dir.join("ada.names");
    let path = file.to_str().unwrap();
    home.say(&["member", "disclose", &ada.to_string(), "--out", path, "--reason", "audit", "--ticket", "A-1"]);
    home.say(&["cut"]);
    let (code, said) = names(&home, &file);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("Ada Canary-Zwölf <ada.canary@example.com>") && !said.contains("Eve"), "{said}");
    assert!(said.contains(&format!("{eve}  not disclosed")), "{said}");
    // Another key opens nothing, and is named.
    let forged = std::fs::read_to_string(&file).unwrap();
    let (before, key) = forged.trim_end().rsplit_once(' ').unwrap();
    let other = home.dir.join("forged.names");
    write(&other, format!("{before} {}\n", key.chars().rev().collect::<String>()).as_bytes());
    let (code, said) = names(&home, &other);
    assert!(code == Some(1) && said.contains("commits to another key"), "{code:?} {said}");
    let seen: Vec<String> = on_record(&home).into_iter().map(|(action, _)| action).collect();
    let expected = ["member.enrol", "member.enrol", "member.enrol", "member.show", "member.show", "member.disclose"];
    assert_eq!(seen, expected);

    end(&process);
    assert!(!process.log().iter().any(|line| line.to_lowercase().contains("canary")), "a name is in the log");
    std::fs::remove_file(&file).unwrap();
    unpack(&home.archive(), &home.dir.join("unpacked"));
    let names = ["ada.canary@example.com", "eve.canary@example.com", "Canary-Zwölf"];
    nowhere(&home.dir, &names.map(str::as_bytes));
    check_all(&home, &home.policy(), &[&one, &two]);
}

#[expect(clippy::disallowed_methods, reason = "the store is put aside, as an operator may")]
#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_outlasts_restarts_and_old_copies_of_the_vault_and_waits_for_holds() {
    let home = Home::new("erased", SETTINGS);
    let process = home.start();
    let workspace = home.workspace("payments");
    let mut gateway = Gateway::enrol(&home, workspace);
    let mut session = gateway.connect(home.grpc).await.unwrap();
    say(&session, 1, "Ada", "ada@example.com", &[]).await;
    let ada = told(&mut gateway, &mut session, 1).await.unwrap();
    say(&session, 2, "Eve", "eve@example.com", &[]).await;
    let eve = told(&mut gateway, &mut session, 2).await.unwrap();
    let (ada_id, eve_id) = (ada.to_string(), eve.to_string());
    let file = home.dir.join("both.names");
    home.say(&["member", "disclose", &ada_id, &eve_id, "--out", file.to_str().unwrap()]);
    let copy = home.dir.join("vault.copy");
    home.say(&["vault", "backup", "--out", copy.to_str().unwrap()]);

    let held = home.say_as_root(&["hold", "set", "--workspace", "payments", "--since", "2020-01-01T00:00:00Z"]);
    assert!(held.contains("hold "), "{held}");
    let refused = home.refuses(&["member", "erase", &ada_id], 1);
    assert!(refused.contains("1 legal hold stands") && refused.contains("hint:"), "{refused}");
    assert!(home.say(&["member", "show", &ada_id]).contains("ada@example.com"));
    home.refuses(&["member", "erase", &ada_id, "--force"], 64);
    let erase = ["member", "erase", &ada_id, "--force", "--reason", "gdpr", "--ticket", "G-17"];
    let erased = home.say(&erase);
    assert!(erased.contains("in the archive"), "{erased}");
    assert!(home.say(&erase).contains("already erased"));
    let shown = home.say(&["member", "show", &ada_id]);
    assert!(shown.contains("erased") && !shown.contains("ada@"), "{shown}");
    let person = home.dir.join("person");
    write(&person, b"ada@example.com\n");
    home.refuses(&["member", "show", "--person", person.to_str().unwrap()], 1);
    assert!(!home.refuses(&["member", "show", "ada@example.com"], 64).contains("ada@"), "an address is no argument");
    // Who has the address now is somebody else.
    say(&session, 3, "Ada", "ada@example.com", &[]).await;
    let other = told(&mut gateway, &mut session, 3).await.unwrap();
    assert_ne!(other, ada);
    end(&process);

    // The vault is lost, and its copy is from before the erasure; and even the store may be gone.
    let vault = home.dir.join("vault/members.vault");
    let restore = ["vault", "restore", copy.to_str().unwrap()];
    assert!(home.refuses(&restore, 1).contains("already"), "a vault that is there stays");
    std::fs::remove_file(&vault).unwrap();
    let store = home.dir.join("data/store");
    std::fs::rename(&store, home.dir.join("aside")).unwrap();
    let said = home.say(&restore);
    assert!(said.contains("keys of 1 member") && said.contains("left out 1 "), "{said}");
    assert!(!std::fs::read_to_string(&vault).unwrap().contains(&ada_id));
    std::fs::remove_dir_all(&store).ok();
    std::fs::rename(home.dir.join("aside"), &store).unwrap();

    let process = home.start();
    let listed = home.say(&["member", "list", "--names"]);
    let line = |id: &str| listed.lines().find(|line| line.starts_with(id)).unwrap_or_default().to_owned();
    assert!(line(&ada_id).contains("erased"), "{listed}");
    assert!(line(&eve_id).contains("eve@example.com"), "{listed}");
    // Its key came after the copy: that is no erasure, and is not called one.
    assert!(line(&other.to_string()).contains("key not available"), "{listed}");
    home.say(&["cut"]);
    let record = on_record(&home);
    let of = |action: &str, outcome: &str| (action.to_owned(), outcome.to_owned());
    assert!(record.contains(&of("member.erase", "legal_hold")) && record.contains(&of("member.erase", "ok")));
    assert!(record.contains(&of("member.list", "ok")), "{record:?}");
    // What was disclosed stays so: the archive says that she was erased, and the file has her key.
    let (code, said) = names(&home, &file);
    assert!(code == Some(0) && said.contains("  erased "), "{said}");
    end(&process);
    check_all(&home, &home.policy(), &[&gateway]);
}
