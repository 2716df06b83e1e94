//! A record as rules and detectors see it.
//!
//! What must hold: a view follows from the record, its place and the labels that the access policy gave its server before; nothing
//! in it depends on when or where it is looked at. Its fields have the names of the query language, so that a rule's selection can be
//! asked as a question.

use std::{borrow::Cow, collections::HashMap, sync::LazyLock};

use custody::{
    query::{Facts, Field, Kind, Place},
    wire::{self, Phase},
};
use rsigma_eval::EventValue;
use serde_json::Value;

/// One record.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Where it stands.
    pub place: &'a Place,
    /// What it says.
    pub facts: &'a Facts,
    /// The record itself, where it is one of the ledger's own; detectors of calls do without.
    pub own: Option<&'a wire::Record>,
    /// Labels of its server, as of the newest access change before it.
    pub labels: &'a [String],
}

impl<'a> View<'a> {
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

/// A view with its texts by field: rules ask for a hundred fields of each record.
pub(super) struct Fields<'a> {
    view: &'a View<'a>,
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
    pub(super) fn of(view: &'a View<'a>) -> Self {
        let mut fields = Self { view, first: [None; FIELDS], more: Vec::new() };
        let labels = view.labels.iter().map(|label| (Field::Label, label.as_str()));
        for (field, text) in view.facts.all_texts().chain(labels) {
            match fields.first.get_mut(field as usize) {
                Some(first @ None) => *first = Some(text),
                _ => fields.more.push((field, text)),
            }
        }
        fields
    }

    /// Whether it is one of the ledger's own records.
    pub(super) fn is_own(&self) -> bool {
        self.view.own.is_some()
    }

    /// Texts of a field, labels of its server among them.
    pub(super) fn texts(&self, field: Field) -> impl Iterator<Item = &'a str> {
        let first = self.first.get(field as usize).copied().flatten();
        first.into_iter().chain(self.more.iter().filter(move |(of, _)| *of == field).map(|(_, text)| *text))
    }

    /// Number of a field, or that a flag holds.
    pub(super) fn number(&self, field: Field) -> Option<u64> {
        self.view.facts.number(field)
    }

    fn of_field(&self, field: Field) -> Option<EventValue<'_>> {
        match field.kind() {
            Kind::Text | Kind::Unique => many(self.texts(field).collect()),
            Kind::Flag => Some(EventValue::Bool(self.number(field).is_some())),
            Kind::Duration | Kind::Size | Kind::Number | Kind::Time => {
                let number = self.number(field)?;
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

impl rsigma_eval::Event for Fields<'_> {
    fn get_field(&self, path: &str) -> Option<EventValue<'_>> {
        match path {
            "product" => Some(EventValue::Str(Cow::Borrowed("mcp"))),
            "service" => Some(EventValue::Str(Cow::Borrowed(self.view.service()))),
            path => self.of_field(named(path)?),
        }
    }

    fn any_string_value(&self, pred: &dyn Fn(&str) -> bool) -> bool {
        self.view.facts.all_texts().any(|(_, text)| pred(text))
    }

    fn all_string_values(&self) -> Vec<Cow<'_, str>> {
        self.view.facts.all_texts().map(|(_, text)| Cow::Borrowed(text)).collect()
    }

    /// What a correlation keeps of it: where it stands, and no more.
    fn to_json(&self) -> Value {
        serde_json::json!({ "id": self.view.place.position.to_string() })
    }
}
