//! Mutations of real messages over the two parsers of what hostile clients and servers send.
//!
//! No input may panic; a message that is taken says the same when it is written by a JSON library, so that no other reader
//! sees another one; a stream's pieces are the stream, byte for byte, wherever it is cut. A fixed number of inputs in the
//! normal tests; `CUSTODY_FUZZ_SECONDS` for long runs, `CUSTODY_SEED` to repeat one. The seed is printed.

use std::time::{Duration, Instant};

use serde_json::{Value, value::RawValue};

use super::{
    envelope::{self, Message},
    sse,
};
use crate::testing::Dice;

/// Inputs of a normal run, for each parser.
const INPUTS: u64 = 20_000;

/// Messages as clients and servers of both eras send them.
const MESSAGES: [&str; 14] = [
    r#"{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{"roots":{"listChanged":true}},"clientInfo":{"name":"c","version":"1.0"}}}"#,
    r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#,
    r#"{"jsonrpc":"2.0","id":"a-1","method":"tools/call","params":{"name":"echo","arguments":{"message":"hi"},"_meta":{"progressToken":7,"traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}}}"#,
    r#"{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"x","_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{"name":"n","version":"v"},"io.modelcontextprotocol/clientCapabilities":{}}}}"#,
    r#"{"jsonrpc":"2.0","id":3,"method":"server/discover","params":{}}"#,
    r#"{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"\u00e4\ud83d\ude00"}],"isError":true}}"#,
    r#"{"jsonrpc":"2.0","id":1,"result":{"resultType":"input_required","requestState":"s"}}"#,
    r#"{"jsonrpc":"2.0","id":1.5e3,"result":{"resultType":"task"}}"#,
    r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"m"}}"#,
    r#"{"jsonrpc":"2.0","id":9,"error":{"code":9999999999,"message":"m","data":[[[[]]]]}}"#,
    r#"{"jsonrpc":"2.0","id":77,"method":"sampling/createMessage","params":{"messages":[]}}"#,
    r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"p","progress":1}}"#,
    r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"a-1","reason":"r"}}"#,
    r#"[{"jsonrpc":"2.0","id":1,"method":"ping"},{"jsonrpc":"2.0","id":2,"method":"ping"}]"#,
];

const STREAMS: [&str; 4] = [
    "id: 1\ndata:\n\nevent: message\ndata: {\"jsonrpc\":\"2.0\",\"id\":9,\"method\":\"sampling/createMessage\"}\n\n",
    ": ping - 2026\r\n\r\ndata: {\"a\":1,\r\ndata: \"b\":2}\r\n\r\nretry: 10\r\n\r\n",
    "data: x\r\rdata\r\rdata:y\r\r",
    "\u{feff}data: first\n\ndata: cut",
];

/// What mutations like to put in.
const PARTS: [&str; 22] = [
    "\"id\":",
    "null",
    "\"method\":\"ping\"",
    ",",
    ":",
    "{",
    "}",
    "[",
    "]",
    "\\u0000",
    "\\ud800",
    "1e999",
    "-0",
    "\"jsonrpc\":\"2.0\"",
    "\n",
    "\r",
    "\r\n",
    "\n\n",
    "data: ",
    "data:",
    "id",
    "\u{feff}",
];

fn mutated(dice: &mut Dice, corpus: &[&str]) -> Vec<u8> {
    let mut index = |length: usize| usize::try_from(dice.below(length.max(1) as u64)).unwrap();
    let mut bytes = corpus[index(corpus.len())].as_bytes().to_vec();
    for _ in 0..=index(4) {
        let (at, to) = (index(bytes.len()), index(bytes.len()));
        match index(8) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << index(8),
            1 => bytes.truncate(at),
            2 => drop(bytes.drain(at.min(to)..at.max(to))),
            3 => {
                let again = bytes[at.min(to)..at.max(to)].to_vec();
                drop(bytes.splice(at..at, again));
            }
            4 => {
                let other = corpus[index(corpus.len())].as_bytes();
                let (from, end) = (index(other.len()), index(other.len()));
                drop(bytes.splice(at..at, other[from.min(end)..from.max(end)].iter().copied()));
            }
            5 => {
                // Deep, or long.
                let (part, times) = (PARTS[index(PARTS.len())], index(300));
                drop(bytes.splice(at..at, part.repeat(times).into_bytes()));
            }
            _ => {
                let part = PARTS[index(PARTS.len())].bytes();
                drop(bytes.splice(at..at, part));
            }
        }
    }
    bytes
}

/// Runs `check` on mutations of `corpus`: so many, or for so long.
fn fuzz(name: &str, corpus: &[&str], check: impl Fn(&[u8], &mut Dice)) {
    let variable = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = variable("CUSTODY_SEED").unwrap_or(1);
    let seconds = variable("CUSTODY_FUZZ_SECONDS");
    println!("{name}: CUSTODY_SEED={seed}");
    for whole in corpus {
        check(whole.as_bytes(), &mut Dice::new(seed));
    }
    let began = Instant::now();
    for input in 0.. {
        match seconds {
            Some(seconds) if began.elapsed() < Duration::from_secs(seconds) => {}
            None if input < INPUTS => {}
            _ => break,
        }
        let mut dice = Dice::new(seed ^ (input << 20));
        let bytes = mutated(&mut dice, corpus);
        let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(&bytes, &mut dice)));
        if let Err(panic) = checked {
            println!("{name}: CUSTODY_SEED={seed}, input {input}: {:?}", String::from_utf8_lossy(&bytes));
            std::panic::resume_unwind(panic);
        }
    }
}

fn check_message(bytes: &[u8], _: &mut Dice) {
    let message = match envelope::parse(bytes) {
        Ok(message) => message,
        Err(malformed) => {
            let id = malformed.raw_id.unwrap_or_else(|| "null".into());
            let answer = format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"message":"{}"}}}}"#, malformed.text);
            serde_json::from_str::<Value>(&answer).expect("an answer of our own is JSON");
            return;
        }
    };
    // One JSON object, and what was read of it is what any other reader sees.
    serde_json::from_slice::<&RawValue>(bytes).expect("what is taken is JSON");
    // Numbers and surrogates that this library cannot hold are forwarded as they are, where nothing is read.
    let Ok(value) = serde_json::from_slice::<Value>(bytes) else { return };
    assert_eq!(value["jsonrpc"], "2.0");
    let again = serde_json::to_vec(&value).unwrap();
    match message {
        Message::Request(request) => {
            assert_eq!(value["method"], request.method);
            assert_eq!(serde_json::from_str::<Value>(&request.raw_id).unwrap(), value["id"]);
            assert!(value["id"].is_string() || value["id"].is_number());
            if let Some(tool) = request.name.as_ref().filter(|_| request.method == "tools/call") {
                assert_eq!(
                    (value["params"]["name"].as_str(), request.method.as_str()),
                    (Some(tool.as_str()), "tools/call")
                );
            }
            assert!(request.method != "tools/call" || request.name.is_some() || !value["params"]["name"].is_string());
            let Ok(Message::Request(same)) = envelope::parse(&again) else { panic!("another reader sees no request") };
            assert_eq!((&same.id, &same.name, &same.method), (&request.id, &request.name, &request.method));
            // The refusal that carries the id back is JSON, whatever the id.
            let refusal = format!(r#"{{"jsonrpc":"2.0","id":{},"error":{{}}}}"#, request.raw_id);
            serde_json::from_str::<Value>(&refusal).expect("an answer of our own is JSON");
        }
        Message::Notification { method, .. } => {
            assert_eq!(value["method"], method);
            assert!(value.get("id").is_none(), "a request passes as a notification");
        }
        Message::Answer { ending, .. } => {
            assert!(value.get("method").is_none(), "a request passes as an answer");
            assert_eq!(ending.response_bytes, bytes.len() as u64);
        }
    }
}

fn read(chunks: &[&[u8]]) -> (Vec<u8>, Vec<Vec<u8>>) {
    let mut reader = sse::Reader::default();
    let mut pieces: Vec<sse::Piece> = chunks.iter().flat_map(|chunk| reader.push(chunk)).collect();
    pieces.extend(reader.rest());
    let events = pieces.iter().filter_map(|piece| piece.data.clone()).collect();
    (pieces.into_iter().flat_map(|piece| piece.raw).collect(), events)
}

fn check_stream(bytes: &[u8], dice: &mut Dice) {
    let (raw, events) = read(&[bytes]);
    assert_eq!(raw, bytes, "what passes is not what came");
    assert!(events.iter().map(Vec::len).sum::<usize>() <= bytes.len());
    let at = usize::try_from(dice.below(bytes.len().max(1) as u64)).unwrap();
    let cut = read(&[&bytes[..at], &bytes[at..]]);
    assert_eq!(cut, (raw, events), "cut at {at} it says something else");
    for event in cut.1 {
        check_message(&event, dice);
    }
}

#[test]
fn no_message_is_read_as_another() {
    fuzz("message", &MESSAGES, check_message);
}

#[test]
fn no_stream_is_changed_or_read_in_two_ways() {
    fuzz("stream", &STREAMS, check_stream);
}
