//! Arguments that fit, that do not, and schemas that ask for more than may be given.

use serde_json::{Map, json};

use super::*;

fn check(schema: &Value, arguments: &str) -> Result<(), Misfit> {
    Schemas::default().check([0; 32], &schema.to_string(), Some(arguments))
}

#[test]
fn a_misfit_names_its_place_in_the_schema_and_no_word_of_the_arguments() {
    let schema = json!({
        "type": "object",
        "properties": {"count": {"type": "integer", "minimum": 1}, "to": {"$ref": "#/$defs/to"}},
        "required": ["count"],
        "additionalProperties": false,
        "$defs": {"to": {"type": "string", "pattern": "^[a-z]+@(?!evil)[a-z.]+$"}},
    });
    assert_eq!(check(&schema, r#"{"count": 3, "to": "a@b.c"}"#), Ok(()));
    for (arguments, place) in [
        (r#"{"count":"canary"}"#, "/properties/count/type"),
        (r#"{"count":0}"#, "/properties/count/minimum"),
        (r#"{"count":1,"to":"a@evil.c"}"#, "/$defs/to/pattern"),
        (r#"{"count":1,"canary":1}"#, "/additionalProperties"),
        ("{}", "/required"),
        (r#""canary""#, "/type"),
    ] {
        let misfit = check(&schema, arguments).unwrap_err();
        assert_eq!(misfit, Misfit::At(place.to_owned()), "{arguments}");
        assert!(!misfit.to_string().contains("canary"));
    }
    assert_eq!(Schemas::default().check([0; 32], &schema.to_string(), None), Err(Misfit::At("/required".into())));
    assert_eq!(Schemas::default().check([0; 32], r#"{"type":"object"}"#, None), Ok(()));
    assert_eq!(check(&json!(false), "{}"), Err(Misfit::At("/".into())));
}

/// Two readers might take two different values: the one that fits, and the other.
#[test]
fn arguments_that_may_be_read_in_two_ways_do_not_fit() {
    let schema = json!({"properties": {"a": {"const": 1}}});
    for arguments in [r#"{"a":2,"a":1}"#, r#"{"x":{"a":2,"\u0061":1}}"#, r#"{"a":1e999}"#, "{"] {
        assert!(matches!(check(&schema, arguments), Err(Misfit::Unreadable(_))), "{arguments}");
    }
}

#[test]
fn nothing_is_fetched_and_what_is_no_schema_fits_nothing() {
    let file = std::env::current_dir().unwrap().join("Cargo.toml");
    for schema in [
        json!({"$ref": "https://127.0.0.1:1/schema.json"}),
        json!({"$ref": format!("file://{}", file.display())}),
        json!({"properties": {"a": {"$ref": "other.json#/a"}}}),
        json!({"$ref": "#/nowhere"}),
        json!({"$ref": "#nowhere"}),
        json!({"$schema": "https://127.0.0.1:1/meta"}),
        json!({"type": 7}),
        json!({"properties": {"a": {"pattern": "("}}}),
        json!({"properties": {"a": {"$id": "https://example.com/a", "$ref": "#/b"}}, "b": true}),
        json!([]),
    ] {
        assert!(matches!(check(&schema, "{}"), Err(Misfit::Schema(_))), "{schema}");
    }
    assert_eq!(check(&json!({"$ref": "#a", "$defs": {"x": {"$anchor": "a", "type": "object"}}}), "{}"), Ok(()));
    let metaschema = json!({"$schema": "http://json-schema.org/draft-07/schema#", "definitions": {"a": {"type": "object"}},
        "allOf": [{"$ref": "#/definitions/a"}]});
    assert_eq!(check(&metaschema, "{}"), Ok(()));
}

/// Each of these would be looked at for longer than anybody waits.
#[test]
fn a_schema_takes_no_endless_time() {
    let mut defs = Map::new();
    for level in 0..60 {
        let next = json!({"$ref": format!("#/$defs/d{}", level + 1)});
        defs.insert(format!("d{level}"), json!({"anyOf": [next.clone(), next]}));
    }
    defs.insert("d60".into(), json!({"type": "integer"}));
    let doubling = json!({"$ref": "#/$defs/d0", "$defs": defs});
    assert_eq!(check(&doubling, "{}"), Err(Misfit::TooMuch));
    let twofold = json!({"properties": {"a": {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}}, "type": "object"});
    let deep = |depth: usize| format!("{}7{}", r#"{"a":"#.repeat(depth), "}".repeat(depth));
    assert_eq!(check(&twofold, &deep(40)), Err(Misfit::TooMuch));
    assert!(matches!(check(&twofold, &deep(3)), Err(Misfit::At(_))));
    let circle = json!({"allOf": [{"$ref": "#"}]});
    assert!(check(&circle, "{}").is_err());
    let pattern = json!({"properties": {"a": {"pattern": "^(?=(a+)+$)(a|aa)+\\1$"}}});
    assert!(check(&pattern, &format!(r#"{{"a":"{}b"}}"#, "a".repeat(60))).is_err());
    let long = format!(r#"{{"a":"{}"}}"#, "x".repeat(ARGUMENTS_BYTES_MAX));
    assert_eq!(check(&json!({}), &long), Err(Misfit::TooMuch));
    let huge = json!({"description": "x".repeat(SCHEMA_BYTES_MAX)});
    assert!(matches!(check(&huge, "{}"), Err(Misfit::Schema(_))));
    // What people write is not too much: a tree, and an expression.
    let tree = json!({"type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#"}}}});
    let wide = format!(r#"{{"children":[{}]}}"#, vec![r#"{"children":[{},{}]}"#; 500].join(","));
    assert_eq!(check(&tree, &wide), Ok(()));
    let expression = json!({"$ref": "#/$defs/e", "$defs": {"e": {"anyOf": [
        {"type": "string"},
        {"type": "object", "properties": {"and": {"type": "array", "items": {"$ref": "#/$defs/e"}}}, "required": ["and"]},
        {"type": "object", "properties": {"not": {"$ref": "#/$defs/e"}}, "required": ["not"]},
    ]}}});
    assert_eq!(check(&expression, r#"{"and":["a",{"not":{"and":["b",{"not":"c"}]}}]}"#), Ok(()));
}

#[test]
fn schemas_are_kept_and_the_oldest_go() {
    let schemas = Schemas::default();
    for number in 0..=COMPILED_MAX as u64 {
        let mut digest = [0; 32];
        digest[..8].copy_from_slice(&number.to_be_bytes());
        assert_eq!(schemas.check(digest, "true", Some("{}")), Ok(()));
        // What is compiled is known by its digest.
        assert_eq!(schemas.check(digest, "false", Some("{}")), Ok(()));
    }
    assert_eq!(schemas.0.lock().unwrap().by_digest.len(), COMPILED_MAX);
    assert!(schemas.check([0; 32], "false", Some("{}")).is_err());
}
