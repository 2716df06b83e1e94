//! A record as rules and detectors see it.
//!
//! What must hold: an event follows from the record, its place and the labels that the access policy gave its server before; nothing
//! in it depends on when or where it is looked at. Its fields have the names of the query language, so that a rule's selection can be
//! asked as a question.

use std::{borrow::Cow, collections::HashMap, sync::LazyLock};

use custody::{
    query::{Facts, Field, Kind, Place},
    wire::{self, Phase},
};
use rsigma_eval::{Event as SigmaEvent, EventValue};
use serde_json::Value;

/// One record.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    /// Where it stands.
    pub place: &'a Place,
    /// What it says.
    pub facts: &'a Facts,
    /// The record itself, where it is one of the ledger's own; detectors of calls do without.
    pub own: Option<&'a wire::Record>,
    /// Labels of its server, as of the newest access change before it.
    pub labels: &'a [String],
}

impl<'a> Event<'a> {
    /// The first text of a field.
    pub fn text(&self, field: Field) -> Option<&'a str> {
        self.facts.texts(field).next()
    }

    /// Whether it is a call that is to be counted: an outcome, or a call's only record.
    pub fn is_counted_call(&self) -> bool {
        self.facts.call_phase().is_some_and(|(_, phase)| phase != Phase::Intent)
    }

    /// `gateway` for what gateways sign, `ledger` for the ledger's own records.
    fn service(&self) -> &'static str {
        if self.own.is_some() { "ledger" } else { "gateway" }
    }
}

/// Number of fields.
const FIELDS: usize = Field::ALL.len();

/// An event with its texts by field: rules ask for a hundred fields of each record.
pub(super) struct Fields<'a> {
    event: &'a Event<'a>,
    first: [Option<&'a str>; FIELDS],
    /// Of those that have more than one.
    more: Vec<(Field, &'a str)>,
}

fn named(path: &str) -> Option<Field> {
    static BY_NAME: LazyLock<HashMap<&'static str, Field>> =
        LazyLock::new(|| Field::ALL.iter().map(|field| (field.name(), *field)).collect());
    BY_NAME.get(path).copied()
}

impl<'a> Fields<'a> {
    pub(super) fn of(event: &'a Event<'a>) -> Self {
        let mut fields = Self { event, first: [None; FIELDS], more: Vec::new() };
        let labels = event.labels.iter().map(|label| (Field::Label, label.as_str()));
        for (field, text) in event.facts.all_texts().chain(labels) {
            match fields.first.get_mut(field as usize) {
                Some(first @ None) => *first = Some(text),
                _ => fields.more.push((field, text)),
            }
        }
        fields
    }

    fn of_field(&self, field: Field) -> Option<EventValue<'_>> {
        match field.kind() {
            Kind::Text | Kind::Unique => {
                let first = self.first.get(field as usize).copied().flatten()?;
                if self.more.is_empty() {
                    return Some(EventValue::Str(Cow::Borrowed(first)));
                }
                let more = self.more.iter().filter(|(of, _)| *of == field).map(|(_, text)| *text);
                many(std::iter::once(first).chain(more).collect())
            }
            Kind::Flag => Some(EventValue::Bool(self.event.facts.number(field).is_some())),
            Kind::Duration | Kind::Size | Kind::Number | Kind::Time => {
                let number = self.event.facts.number(field)?;
                Some(EventValue::Int(i64::try_from(number).unwrap_or(i64::MAX)))
            }
        }
    }
}

fn many(mut texts: Vec<&str>) -> Option<EventValue<'_>> {
    match texts.len() {
        0 => None,
        1 => texts.pop().map(|text| EventValue::Str(Cow::Borrowed(text))),
        _ => Some(EventValue::Array(texts.into_iter().map(|text| EventValue::Str(Cow::Borrowed(text))).collect())),
    }
}

impl SigmaEvent for Fields<'_> {
    fn get_field(&self, path: &str) -> Option<EventValue<'_>> {
        match path {
            "product" => Some(EventValue::Str(Cow::Borrowed("mcp"))),
            "service" => Some(EventValue::Str(Cow::Borrowed(self.event.service()))),
            path => self.of_field(named(path)?),
        }
    }

    fn any_string_value(&self, pred: &dyn Fn(&str) -> bool) -> bool {
        self.event.facts.all_texts().any(|(_, text)| pred(text))
    }

    fn all_string_values(&self) -> Vec<Cow<'_, str>> {
        self.event.facts.all_texts().map(|(_, text)| Cow::Borrowed(text)).collect()
    }

    /// What a correlation keeps of it: where it stands, and no more.
    fn to_json(&self) -> Value {
        serde_json::json!({ "id": self.event.place.position.to_string() })
    }
}
