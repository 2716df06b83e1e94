//! Our trees and the crate that knows Sigma give the same, over random records.

use custody::{
    id::{Epoch, GatewayId, WorkspaceId},
    query::{Expr, Facts, Place},
    wire,
};

use super::*;
use crate::{rig::rng::Rng, watch::rules};

/// What no shipped rule says: each way to want something that a tree knows, and some that are left to the crate.
const MORE: &str = r#"
title: a
id: a
name: a
level: low
logsource: {product: mcp, service: gateway}
detection:
    one: {tool|startswith: [files/, MAIL/], duration|lt: 5}
    two: {client|contains|all: [claude, Code]}
    three: {has_no: 1}
    condition: one or (two and not one)
---
title: b
id: b
name: b
level: low
logsource: {product: mcp, service: gateway}
detection:
    one: {gap: false, request_bytes|gt: 3, response_bytes|lte: 7}
    two: {server|exists: false}
    three: {label: [Ärger, prod]}
    condition: 1 of them
---
title: c
id: c
name: c
level: low
logsource: {product: mcp, service: ledger}
detection:
    one: [{kind: search, result: OK}, {duration: 4}]
    condition: all of them
---
title: left to the crate
id: d
name: d
level: low
logsource: {product: mcp, service: gateway}
detection:
    one: {tool: 'files/re?d'}
    two: {server|re: '^ma.*'}
    condition: one or two
---
title: e
id: e
name: e
level: low
logsource: {product: mcp, service: gateway}
detection:
    one: {decision: denied}
    condition: one
"#;

fn text() -> String {
    let more = MORE.replace("    three: {has_no: 1}\n", "");
    [&rules::all(None).unwrap(), more.as_str()].join("\n---\n")
}

/// Words that rules ask for, and some beside them.
fn words(collection: &SigmaCollection) -> Vec<String> {
    let mut words =
        vec!["files/read", "FILES/Delete_x", "mail/send", "x", "Claude-Code", "ärger", "ÄRGER", "OK", "\u{212a}"]
            .into_iter()
            .map(str::to_owned)
            .collect::<Vec<_>>();
    let said = format!("{:?}", collection.rules.iter().map(|rule| &rule.detection.named).collect::<Vec<_>>());
    words.extend(said.split('"').skip(1).step_by(2).map(str::to_owned));
    words
}

fn random_facts(dice: &mut Rng, words: &[String]) -> Facts {
    let mut values: Vec<(Field, String)> = Vec::new();
    let one =
        |dice: &mut Rng, all: &[&'static str]| all[usize::try_from(dice.below(all.len() as u64)).unwrap()].to_owned();
    let kinds = ["call", "search", "tool_definition", "gateway_event", "access_change"];
    values.push((Field::Kind, one(dice, &kinds)));
    values.push((Field::Decision, one(dice, &["allowed", "denied"])));
    values.push((Field::Change, one(dice, &["changed", "vanished"])));
    values.push((Field::Action, one(dice, &["warned", "policy_applied", "member_revoked", "server_crashed"])));
    for field in Field::ALL {
        for _ in 0..dice.below(3) {
            let value = match field.kind() {
                Kind::Text | Kind::Unique => words[usize::try_from(dice.below(words.len() as u64)).unwrap()].clone(),
                _ => [dice.below(9), 49_999_999 + dice.below(3), u64::MAX][usize::try_from(dice.below(3)).unwrap()]
                    .to_string(),
            };
            if field.is_text() || values.iter().all(|(of, _)| of != field) {
                values.push((*field, value));
            }
        }
    }
    Facts::told(values.iter().map(|(field, value)| (*field, value.as_str()))).unwrap()
}

#[test]
fn trees_hold_of_what_the_crate_finds_and_of_nothing_else() {
    let sigma = Sigma::new(&text()).unwrap();
    let words = words(&sigma.collection);
    let mut dice = Rng::for_test("trees");
    let place = Place {
        workspace: WorkspaceId([1; 16]),
        gateway: GatewayId([2; 16]),
        epoch: Epoch([3; 16]),
        position: 1,
        number: 1,
        received_at: 1,
        gap: false,
    };
    let own = wire::Record::default();
    let labels = ["environment:prod".to_owned(), "PROD".to_owned()];
    let ids =
        |found: &[EvaluationResult]| found.iter().map(|of| of.header.rule_id.clone().unwrap()).collect::<Vec<_>>();
    let questions: Vec<Option<Expr>> = sigma
        .plain
        .trees
        .iter()
        .map(|(tree, _)| tree.as_ref()?.question().map(|text| custody::query::parse(&text, 0).unwrap()))
        .collect();
    let mut times: BTreeMap<String, u64> = BTreeMap::new();
    for _ in 0..60_000 {
        let facts = random_facts(&mut dice, &words);
        let own = (dice.below(3) == 0).then_some(&own);
        let labels = if dice.below(2) == 0 { &labels[..] } else { &[] };
        let view = View { place: &place, facts: &facts, own, labels };
        let fields = Fields::of(&view);
        let found = ids(&sigma.plain.find(&fields));
        assert_eq!(found, ids(&sigma.engine.evaluate(&fields)), "{facts:?} {labels:?} {}", own.is_some());
        for id in found {
            *times.entry(id).or_default() += 1;
        }
        // As a question, of text in small letters.
        let small = facts.all_texts().all(|(_, text)| text.to_lowercase() == text) && labels.is_empty();
        for (tree, _) in sigma.plain.trees.iter().filter(|_| small) {
            let Some(tree) = tree else { continue };
            assert_eq!(tree.expr().matches(&facts), tree.holds_of(&fields), "{:?}: {facts:?}", tree.expr());
        }
        // And as it is written for people, of tools as records have them.
        let texts = facts.all_texts().map(|(field, text)| match field {
            Field::Tool => (field, format!("s/{}", text.replace('/', "."))),
            field => (field, text.to_owned()),
        });
        let texts: Vec<(Field, String)> = texts.filter(|_| small).collect();
        let facts = Facts::told(texts.iter().map(|(field, text)| (*field, text.as_str()))).unwrap();
        let view = View { place: &place, facts: &facts, own: None, labels: &[] };
        let fields = Fields::of(&view);
        for ((tree, _), question) in sigma.plain.trees.iter().zip(&questions).filter(|_| small) {
            let (Some(tree), Some(question)) = (tree, question) else { continue };
            assert_eq!(question.matches(&facts), tree.holds_of(&fields), "{question}: {facts:?}");
        }
    }
    let never: Vec<_> =
        sigma.collection.rules.iter().filter_map(|rule| rule.id.clone()).filter(|id| !times.contains_key(id)).collect();
    assert_eq!(never, Vec::<String>::new(), "never held: nothing is known of them");
}

#[test]
fn all_rules_that_ship_have_a_tree_and_all_but_those_of_labels_are_questions() {
    let sigma = Sigma::new(&rules::all(None).unwrap()).unwrap();
    let (mut without, mut unasked) = (Vec::new(), Vec::new());
    for (rule, (tree, _)) in sigma.collection.rules.iter().zip(&sigma.plain.trees) {
        match tree {
            None => without.push(rule.name.clone().unwrap()),
            Some(tree) => unasked.extend(tree.question().is_none().then(|| rule.name.clone().unwrap())),
        }
        let question = tree.as_ref().and_then(Tree::question);
        assert!(question.is_none_or(|text| custody::query::parse(&text, 0).unwrap() != Expr::EVERYTHING));
    }
    assert_eq!(without, Vec::<String>::new());
    assert_eq!(
        unasked,
        ["destructive-in-production", "personal-data-read", "much-is-sent"],
        "labels are of their time"
    );
    let question = sigma.questions("credential-tool-called");
    assert!(question[0].starts_with("kind:call decision:allowed tool:"), "{question:?}");
    assert_eq!(sigma.questions("denied-burst"), ["kind:call decision:denied"]);
    let more = Sigma::new(&text()).unwrap();
    let left = more.plain.trees.iter().filter(|(tree, _)| tree.is_none()).count();
    assert_eq!(left, 1, "a pattern of the crate's own is left to it");
}
