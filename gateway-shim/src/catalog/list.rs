//! The answer to a list request, read strictly: which elements it has and where, and the same answer without some of them.
//! Pure.
//!
//! What must hold: what is kept is kept byte for byte, and of the rest nothing is left; an answer that is not read for certain
//! is refused, never passed as it is, because it might hold what a member may not see.

use std::ops::Range;

use bytes::Bytes;
use serde_json::value::RawValue;

use super::json::{Unreadable, canonical, elements, members, place, text, value};

/// Elements of one page: a member's client reads all of them, and so does whoever looks for a changed one.
pub const ELEMENTS_MAX: usize = 4_096;
/// Bytes of one tool's definition, in canonical form: a schema of some hundred fields takes a tenth of it.
pub const DEFINITION_BYTES_MAX: usize = 256 << 10;

/// What is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `tools/list`
    Tools,
    /// `prompts/list`
    Prompts,
    /// `resources/list`
    Resources,
    /// `resources/templates/list`
    Templates,
}

impl Kind {
    /// Of the request's method.
    pub fn of(method: &str) -> Option<Self> {
        Some(match method {
            "tools/list" => Self::Tools,
            "prompts/list" => Self::Prompts,
            "resources/list" => Self::Resources,
            "resources/templates/list" => Self::Templates,
            _ => return None,
        })
    }

    /// Those that a notification says have changed.
    pub fn changed_by(method: &str) -> &'static [Self] {
        match method {
            "notifications/tools/list_changed" => &[Self::Tools],
            "notifications/prompts/list_changed" => &[Self::Prompts],
            "notifications/resources/list_changed" => &[Self::Resources, Self::Templates],
            _ => &[],
        }
    }

    /// Of the request that uses what is listed, as rules name it.
    pub fn used_by(self) -> &'static str {
        match self {
            Self::Tools => "tools/call",
            Self::Prompts => "prompts/get",
            Self::Resources | Self::Templates => "resources/read",
        }
    }

    fn key(self) -> &'static str {
        match self {
            Self::Tools => "tools",
            Self::Prompts => "prompts",
            Self::Resources => "resources",
            Self::Templates => "resourceTemplates",
        }
    }

    fn name_key(self) -> &'static str {
        match self {
            Self::Tools | Self::Prompts => "name",
            Self::Resources => "uri",
            Self::Templates => "uriTemplate",
        }
    }
}

/// One thing that is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    /// The name by which it is used: of a tool or prompt; the URI of a resource; a template's pattern of URIs.
    pub name: String,
    /// Of a tool: SHA-256 of the canonical form of its definition.
    pub digest: Option<[u8; 32]>,
    place: Range<usize>,
}

/// Who may be given an answer again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everybody.
    Public,
    /// Whoever asks with the same credential.
    Private,
}

/// An answer that lists something.
#[derive(Clone, Debug)]
pub struct List {
    /// As it came, without what stood around the message.
    bytes: Bytes,
    /// In its order.
    pub elements: Vec<Element>,
    /// There is another page.
    pub next_cursor: Option<String>,
    /// Milliseconds for which the server holds it to be fresh; none, if it says nothing.
    pub ttl_ms: Option<u64>,
    /// As the server says; private, if it says nothing.
    pub scope: Scope,
    result: Range<usize>,
    scope_place: Option<Range<usize>>,
    ttl_place: Option<Range<usize>>,
}

/// What answers a list request.
#[derive(Clone, Debug)]
pub enum Answer {
    /// A list.
    List(Box<List>),
    /// An error, or a question before the list: no element is in it.
    Other,
}

/// Reads the message that answers a list request.
///
/// # Errors
/// [`Unreadable`]: then it must not go on.
pub fn read(kind: Kind, message: &Bytes) -> Result<Answer, Unreadable> {
    let whole = std::str::from_utf8(message).map_err(|_| Unreadable("it is not UTF-8"))?;
    let envelope = members(whole)?;
    let Some(result) = value(&envelope, "result")? else {
        return match value(&envelope, "error")? {
            Some(_) => Ok(Answer::Other),
            None => Err(Unreadable("it is no answer")),
        };
    };
    let inner = members(result.get())?;
    let Some(array) = value(&inner, kind.key())? else {
        let asks = value(&inner, "resultType")?.map(text).transpose()?;
        return match asks.as_deref() {
            Some("input_required") => Ok(Answer::Other),
            _ => Err(Unreadable("it holds no list of what was asked for")),
        };
    };
    let found = elements(array.get())?;
    if found.len() > ELEMENTS_MAX {
        return Err(Unreadable("it lists more than 4,096 on one page"));
    }
    let of = |part: &RawValue| place(whole, part.get()).ok_or(Unreadable("it has no place in its message"));
    let elements =
        found.into_iter().map(|found| element(kind, found, of(found)?)).collect::<Result<Vec<_>, Unreadable>>()?;
    let mut names: Vec<&str> = elements.iter().map(|element: &Element| element.name.as_str()).collect();
    names.sort_unstable();
    if kind == Kind::Tools && names.windows(2).any(|pair| matches!(pair, [a, b] if a == b)) {
        return Err(Unreadable("two tools that it lists have the same name"));
    }
    let (scope, ttl) = (value(&inner, "cacheScope")?, value(&inner, "ttlMs")?);
    let next = value(&inner, "nextCursor")?.filter(|cursor| cursor.get() != "null");
    Ok(Answer::List(Box::new(List {
        elements,
        next_cursor: next.map(text).transpose()?,
        ttl_ms: ttl.and_then(|ttl| serde_json::from_str(ttl.get()).ok()),
        scope: if scope.is_some_and(|scope| scope.get() == "\"public\"") { Scope::Public } else { Scope::Private },
        result: of(result)?,
        scope_place: scope.map(of).transpose()?,
        ttl_place: ttl.map(of).transpose()?,
        bytes: message.clone(),
    })))
}

fn element(kind: Kind, found: &RawValue, place: Range<usize>) -> Result<Element, Unreadable> {
    let inner = members(found.get())?;
    let name = value(&inner, kind.name_key())?.ok_or(Unreadable("something that it lists has no name"))?;
    let digest = match kind {
        Kind::Tools => Some(digest(found.get())?),
        _ => None,
    };
    Ok(Element { name: text(name)?, digest, place })
}

/// Digest of a tool's definition.
fn digest(definition: &str) -> Result<[u8; 32], Unreadable> {
    let form = canonical(definition)?;
    match form.len() <= DEFINITION_BYTES_MAX {
        true => Ok(custody::hash::sha256(&[form.as_bytes()])),
        false => Err(Unreadable("a definition in it is longer than 256 KiB")),
    }
}

/// What is put in place of a part of a text.
struct Edit<'a>(Range<usize>, &'a str);

impl List {
    /// The definition of an element, as it was listed.
    pub fn definition(&self, element: &Element) -> &str {
        self.part(element.place.clone())
    }

    /// The message without the elements that are not kept. If it is `private`, whatever the server said of who may be given
    /// it again becomes `"cacheScope":"private"`; and it is fresh for `ttl_ms`, if the server gave it some time and that
    /// is given here.
    pub fn view(&self, keep: impl Fn(&Element) -> bool, private: bool, ttl_ms: Option<u64>) -> Bytes {
        let ttl = ttl_ms.map(|ttl| ttl.to_string()).unwrap_or_default();
        let mut edits = self.removals(keep);
        if let (Some(place), false) = (&self.ttl_place, ttl.is_empty()) {
            edits.push(Edit(place.clone(), &ttl));
        }
        if private {
            edits.push(match &self.scope_place {
                Some(place) => Edit(place.clone(), "\"private\""),
                // The result is an object with at least the list in it.
                None => Edit(self.result.end - 1..self.result.end - 1, ",\"cacheScope\":\"private\""),
            });
        }
        edits.sort_by_key(|Edit(place, _)| place.start);
        self.edited(0..self.bytes.len(), &edits)
    }

    /// The same as the answer to another request, whose id is given as it was spelt.
    pub fn answer(&self, view: &Bytes, raw_id: &str) -> Bytes {
        // What is behind the result's start has changed its length, what is before it and behind its end has not.
        let end = view.len() - (self.bytes.len() - self.result.end);
        let result = view.get(self.result.start..end).unwrap_or_default();
        [b"{\"jsonrpc\":\"2.0\",\"id\":", raw_id.as_bytes(), b",\"result\":", result, b"}"].concat().into()
    }

    /// Bytes that it takes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether it lists nothing.
    pub fn is_empty(&self) -> bool {
        self.elements.is_empty()
    }

    /// Each element that goes, with the comma that parted it from its neighbour and the white space around that.
    fn removals(&self, keep: impl Fn(&Element) -> bool) -> Vec<Edit<'static>> {
        let mut removals = Vec::new();
        // Where the last kept element ends, or the array's own beginning.
        let mut kept_any = false;
        for (number, element) in self.elements.iter().enumerate() {
            let goes = !keep(element);
            if goes && kept_any {
                let before = number.checked_sub(1).and_then(|before| self.elements.get(before));
                let start = before.map_or(element.place.start, |before| before.place.end);
                removals.push(Edit(start..element.place.end, ""));
            } else if goes {
                let after = self.elements.get(number + 1);
                let end = after.map_or(element.place.end, |after| after.place.start);
                removals.push(Edit(element.place.start..end, ""));
            }
            kept_any |= !goes;
        }
        removals
    }

    /// Edits stand in their order and do not overlap.
    fn edited(&self, whole: Range<usize>, edits: &[Edit<'_>]) -> Bytes {
        let mut out = Vec::with_capacity(whole.len() + 32);
        let mut at = whole.start;
        for Edit(place, text) in edits {
            out.extend_from_slice(self.bytes.get(at..place.start).unwrap_or_default());
            out.extend_from_slice(text.as_bytes());
            at = place.end;
        }
        out.extend_from_slice(self.bytes.get(at..whole.end).unwrap_or_default());
        out.into()
    }

    fn part(&self, place: Range<usize>) -> &str {
        self.bytes.get(place).and_then(|part| std::str::from_utf8(part).ok()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::{Dice, seed};

    fn list(kind: Kind, text: &str) -> List {
        match read(kind, &Bytes::copy_from_slice(text.as_bytes())).unwrap() {
            Answer::List(list) => *list,
            Answer::Other => panic!("{text}"),
        }
    }

    fn refused(text: &str) -> String {
        read(Kind::Tools, &Bytes::copy_from_slice(text.as_bytes())).unwrap_err().to_string()
    }

    /// White space as a server may put it anywhere.
    fn space(dice: &mut Dice) -> &'static str {
        ["", "", " ", "\n\t", "\r\n  "][dice.below(5) as usize]
    }

    fn any_tool(dice: &mut Dice, number: u64) -> String {
        let name = ["a", "b", "c\\u00e4", "d\\\"]}", "e"][dice.below(5) as usize];
        let (s, t) = (space(dice), space(dice));
        let more =
            [r#""description":"x],{","#, "", r#""inputSchema":{"a":[1,{"b":1.0e2}],"c":{}},"#][dice.below(3) as usize];
        format!("{{{s}{more}\"name\":{t}\"{name}{number}\"{s}}}")
    }

    /// An answer of the modern era or the one before, and the names in it.
    fn any_answer(dice: &mut Dice) -> String {
        let count = dice.below(5);
        let tools: Vec<String> =
            (0..count).map(|number| format!("{}{}{}", space(dice), any_tool(dice, number), space(dice))).collect();
        let before = ["", r#""title":"\\u007d","#, r#""_meta":{"cacheScope":"x"},"#][dice.below(3) as usize];
        let after = [
            "",
            r#","ttlMs" : 5"#,
            r#","cacheScope" :  "public""#,
            r#", "nextCursor":"n","cacheScope":"private","ttlMs":9"#,
        ];
        let after = after[dice.below(4) as usize];
        let (s, t) = (space(dice), space(dice));
        let list = format!("[{s}{}{t}]", tools.join(","));
        let result = format!("{{{s}{before}{t}\"tools\"{s}:{list}{after}{t}}}");
        match dice.below(2) {
            0 => format!("{{\"jsonrpc\":\"2.0\",{s}\"id\":7,\"result\":{result}{s}}}"),
            _ => format!("{t}{{\"result\":{result},\"id\":7,\"jsonrpc\":\"2.0\"}}{t}"),
        }
    }

    /// With everything kept every byte is; with a part of it the rest is what a JSON library would take out.
    #[test]
    fn what_is_kept_is_kept_byte_for_byte_and_the_rest_is_gone() {
        let seed = seed();
        let mut dice = Dice::new(seed);
        for round in 0..3_000 {
            let text = any_answer(&mut dice);
            let list = list(Kind::Tools, &text);
            assert_eq!(list.view(|_| true, false, None), text, "SEED={seed}, round {round}");
            let mask = dice.next();
            let place = |element: &Element| list.elements.iter().position(|other| other == element).unwrap();
            let keep = |element: &Element| mask >> place(element) & 1 == 1;
            let view = list.view(keep, false, None);
            let mut expected: Value = serde_json::from_str(&text).unwrap();
            let mut number = 0;
            expected["result"]["tools"].as_array_mut().unwrap().retain(|_| {
                number += 1;
                mask >> (number - 1) & 1 == 1
            });
            let seen: Value =
                serde_json::from_slice(&view).unwrap_or_else(|_| panic!("SEED={seed}: {text} -> {view:?}"));
            assert_eq!(seen, expected, "SEED={seed}: {text} -> {view:?}");
            for element in list.elements.iter().filter(|element| keep(element)) {
                let found = String::from_utf8_lossy(&view).contains(list.definition(element));
                assert!(found, "SEED={seed}: {text} -> {view:?}");
            }
            let private = list.view(keep, true, Some(3));
            let seen: Value = serde_json::from_slice(&private).unwrap();
            expected["result"]["cacheScope"] = json!("private");
            if expected["result"].get("ttlMs").is_some() {
                expected["result"]["ttlMs"] = json!(3);
            }
            assert_eq!(seen, expected, "SEED={seed}: {text} -> {private:?}");
            let answer: Value = serde_json::from_slice(&list.answer(&private, "\"x\"")).unwrap();
            assert_eq!(answer, json!({"jsonrpc": "2.0", "id": "x", "result": expected["result"]}), "SEED={seed}");
        }
    }

    #[test]
    fn the_bytes_around_what_goes_stay() {
        let list = list(Kind::Tools, r#"{"result":{"tools":[ {"name":"a"} ,  {"name":"b"},{"name":"c"} ], "x": 1.0}}"#);
        let view = |kept: &str| list.view(|element| kept.contains(&element.name), false, None);
        assert_eq!(view("ab"), r#"{"result":{"tools":[ {"name":"a"} ,  {"name":"b"} ], "x": 1.0}}"#);
        assert_eq!(view("b"), r#"{"result":{"tools":[ {"name":"b"} ], "x": 1.0}}"#);
        assert_eq!(view("ac"), r#"{"result":{"tools":[ {"name":"a"},{"name":"c"} ], "x": 1.0}}"#);
        assert_eq!(view(""), r#"{"result":{"tools":[  ], "x": 1.0}}"#);
    }

    #[test]
    fn every_kind_is_known_by_what_its_use_names() {
        let prompts = list(Kind::Prompts, r#"{"result":{"prompts":[{"name":"p"}]}}"#);
        let resources = list(Kind::Resources, r#"{"result":{"resources":[{"name":"r","uri":"file:///r"}]}}"#);
        let templates = list(Kind::Templates, r#"{"result":{"resourceTemplates":[{"uriTemplate":"file:///{x}"}]}}"#);
        let name = |list: &List| list.elements[0].name.clone();
        assert_eq!([name(&prompts), name(&resources), name(&templates)], ["p", "file:///r", "file:///{x}"]);
        assert_eq!(prompts.elements[0].digest, None);
    }

    #[test]
    fn a_definition_has_the_digest_of_its_meaning() {
        let of = |tool: &str| list(Kind::Tools, &format!(r#"{{"result":{{"tools":[{tool}]}}}}"#)).elements[0].digest;
        let one = of(r#"{"name":"a","description":"d","inputSchema":{"type":"object","a":1}}"#);
        assert_eq!(of(r#"{ "inputSchema":{"a":1, "type":"object"},"description":"\u0064", "name":"a"}"#), one);
        for other in [
            r#"{"name":"b","description":"d","inputSchema":{"type":"object","a":1}}"#,
            r#"{"name":"a","description":"d ","inputSchema":{"type":"object","a":1}}"#,
            r#"{"name":"a","description":"d","inputSchema":{"type":"object","a":1.0}}"#,
            r#"{"name":"a","description":"d","inputSchema":{"type":"object","a":1},"annotations":{"readOnlyHint":true}}"#,
            r#"{"name":"a","description":"d","inputSchema":{"type":"object","a":1},"outputSchema":{}}"#,
            r#"{"name":"a","description":"d","inputSchema":{"type":"object","a":1},"_meta":{"x":1}}"#,
        ] {
            assert_ne!(of(other), one, "{other}");
        }
        // As anybody can compute it: printf '{"name":"a"}' | sha256sum
        let plain = "d9d719b27480b55cd4918020e7473e716ed3569c8adafe926cf9b10b4f8ef064";
        assert_eq!(custody::id::hex(&of(r#"{ "name" : "a" }"#).unwrap()), plain);
    }

    #[test]
    fn what_is_not_read_for_certain_is_refused() {
        for (text, says) in [
            (r#"{"result":{"tools":[],"tools":[{"name":"a"}]}}"#, "twice"),
            (r#"{"result":{"tools":[]},"result":{"tools":[{"name":"a"}]}}"#, "twice"),
            (r#"{"result":{"tools":[{"name":"a","name":"b"}]}}"#, "twice"),
            (r#"{"result":{"tools":[{"name":"a","inputSchema":{"x":1,"x":2}}]}}"#, "twice"),
            (r#"{"result":{"tools":[],"Tools":[{"name":"a"}]}}"#, "but for the case"),
            (r#"{"result":{"tools":[{"name":"a","Name":"b"}]}}"#, "but for the case"),
            (r#"{"result":{"tools":[{"title":"a"}]}}"#, "has no name"),
            (r#"{"result":{"tools":[{"name":"a"},{"name":"b"},{"name":"a","title":"t"}]}}"#, "the same name"),
            (r#"{"result":{"tools":[{"name":7}]}}"#, "not JSON"),
            (r#"{"result":{"tools":["a"]}}"#, "not JSON"),
            (r#"{"result":{"tools":{}}}"#, "not JSON"),
            (r#"{"result":{}}"#, "no list"),
            (r#"{"result":{"resultType":"task"}}"#, "no list"),
            (r#"{"method":"x"}"#, "no answer"),
            (r#"[{"result":{"tools":[]}}]"#, "not JSON"),
            ("event: x", "not JSON"),
            (r#"{"result":{"tools":[],"nextCursor":7}}"#, "not JSON"),
        ] {
            assert!(refused(text).contains(says), "{text}: {}", refused(text));
        }
        let many = vec![r#"{"name":"a"}"#; ELEMENTS_MAX + 1].join(",");
        assert!(refused(&format!(r#"{{"result":{{"tools":[{many}]}}}}"#)).contains("4,096"));
        let long = "x".repeat(DEFINITION_BYTES_MAX);
        assert!(refused(&format!(r#"{{"result":{{"tools":[{{"name":"{long}"}}]}}}}"#)).contains("256 KiB"));
        for other in [r#"{"error":{"code":1,"message":"m"}}"#, r#"{"result":{"resultType":"input_required"}}"#] {
            assert!(matches!(read(Kind::Tools, &Bytes::from_static(other.as_bytes())), Ok(Answer::Other)), "{other}");
        }
    }
}
