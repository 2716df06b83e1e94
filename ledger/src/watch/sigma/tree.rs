//! Plain Sigma rules as trees of the query language: what runs for each record, and what somebody may ask of the past.
//!
//! What must hold: a tree holds of a record exactly when the crate that knows Sigma says so (`tests` compares them over random records);
//! what cannot be said exactly is left to the crate. Sigma knows no capital letters, so texts are wanted in small ones, and compared so.

use std::borrow::Cow;

use custody::query::{Expr, Field, Kind, Test, Text, Want, parse};
use rsigma_parser::{
    ConditionExpr, Detection, DetectionItem, Detections, Modifier, Quantifier, SelectorPattern, SigmaRule, SigmaString,
    SigmaValue, StringPart,
};

use super::super::view::Fields;

/// Numbers from here on are no more exact where the crate compares them.
const EXACT_END: i64 = 1 << 53;

/// A rule that is about one record.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    /// About the ledger's own records, and not those of gateways.
    is_own: bool,
    expr: Expr,
}

impl Tree {
    /// `None`: it cannot be said exactly in our terms.
    pub(super) fn of(rule: &SigmaRule) -> Option<Self> {
        let source = &rule.logsource;
        let service = source.service.as_deref()?;
        if source.category.is_some() || !matches!(service, "gateway" | "ledger") {
            return None;
        }
        let [condition] = rule.detection.conditions.as_slice() else { return None };
        let expr = of_condition(condition, &rule.detection)?.plain();
        Some(Self { is_own: service == "ledger", expr })
    }

    /// Whether a record is as the rule wants.
    pub(super) fn holds(&self, fields: &Fields<'_>) -> bool {
        self.is_own == fields.is_own() && holds(&self.expr, fields)
    }

    /// What it asks.
    #[cfg(test)]
    pub(super) fn expr(&self) -> &Expr {
        &self.expr
    }

    /// The same, whoever wrote the record.
    #[cfg(test)]
    pub(super) fn holds_of(&self, fields: &Fields<'_>) -> bool {
        holds(&self.expr, fields)
    }

    /// The rule as a question; `None`: the past does not say what it asks (labels are those of the server at that time), or the
    /// language has no way to write it. Of texts it asks for small letters alone.
    pub(super) fn question(&self) -> Option<String> {
        let asked = asked(&self.expr);
        let text = asked.to_string();
        let same = parse(&text, 0).is_ok_and(|again| again.plain() == asked);
        (same && !names(&self.expr, Field::Label)).then_some(text)
    }
}

/// As somebody would ask it: a pattern of a tool says where its `/` stands, as every tool's name has one.
fn asked(expr: &Expr) -> Expr {
    let each = |each: &[Expr]| each.iter().map(asked).collect();
    match expr {
        Expr::All(all) => Expr::All(each(all)),
        Expr::Any(any) => Expr::Any(each(any)),
        Expr::Not(expr) => Expr::Not(Box::new(asked(expr))),
        Expr::Test(Test { field: Field::Tool, want: Want::Texts(texts) }) => {
            let wanted = texts.iter().flat_map(|text| match text {
                Text::Pattern(pattern) if !pattern.contains('/') => {
                    let stars = pattern.match_indices('*').map(|(at, _)| at);
                    let parted = stars.map(|at| {
                        let (before, after) = pattern.split_at(at);
                        Text::Pattern(format!("{before}*/{after}"))
                    });
                    parted.collect()
                }
                text => vec![text.clone()],
            });
            Expr::test(Field::Tool, Want::Texts(wanted.collect()))
        }
        Expr::Test(_) => expr.clone(),
    }
}

fn names(expr: &Expr, field: Field) -> bool {
    match expr {
        Expr::All(each) | Expr::Any(each) => each.iter().any(|expr| names(expr, field)),
        Expr::Not(expr) => names(expr, field),
        Expr::Test(test) => test.field == field,
    }
}

fn of_condition(condition: &ConditionExpr, of: &Detections) -> Option<Expr> {
    let each = |each: &[ConditionExpr]| each.iter().map(|one| of_condition(one, of)).collect::<Option<Vec<_>>>();
    match condition {
        ConditionExpr::And(all) => Some(Expr::All(each(all)?)),
        ConditionExpr::Or(any) => Some(Expr::Any(each(any)?)),
        ConditionExpr::Not(one) => Some(Expr::Not(Box::new(of_condition(one, of)?))),
        ConditionExpr::Identifier(name) => of_detection(of.named.get(name)?),
        ConditionExpr::Selector { quantifier, pattern: SelectorPattern::Them } => {
            // In the order of their names: the map has none.
            let mut named: Vec<_> = of.named.iter().filter(|(name, _)| !name.starts_with('_')).collect();
            named.sort_by_key(|(name, _)| *name);
            let each = named.into_iter().map(|(_, detection)| of_detection(detection)).collect::<Option<Vec<_>>>()?;
            match quantifier {
                Quantifier::Any | Quantifier::Count(1) => Some(Expr::Any(each)),
                Quantifier::All => Some(Expr::All(each)),
                Quantifier::Count(_) => None,
            }
        }
        ConditionExpr::Selector { .. } => None,
    }
}

fn of_detection(detection: &Detection) -> Option<Expr> {
    match detection {
        Detection::AllOf(items) if !items.is_empty() => {
            Some(Expr::All(items.iter().map(of_item).collect::<Option<Vec<_>>>()?))
        }
        Detection::AnyOf(each) if !each.is_empty() => {
            Some(Expr::Any(each.iter().map(of_detection).collect::<Option<Vec<_>>>()?))
        }
        _ => None,
    }
}

fn of_item(item: &DetectionItem) -> Option<Expr> {
    let field = Field::named(item.field.name.as_deref()?)?;
    let mut how = item.field.modifiers.clone();
    let all = how.contains(&Modifier::All);
    how.retain(|modifier| *modifier != Modifier::All);
    let wanted = item.values.iter().map(|value| of_value(field, &how, value)).collect::<Option<Vec<_>>>()?;
    match wanted.len() {
        0 => None,
        _ if all => Some(Expr::All(wanted)),
        _ => Some(joined(field, wanted)),
    }
}

/// One of these, as one test where that can be said.
fn joined(field: Field, wanted: Vec<Expr>) -> Expr {
    let texts = wanted.iter().map(|expr| match expr {
        Expr::Test(Test { want: Want::Texts(texts), .. }) => Some(texts.clone()),
        _ => None,
    });
    match texts.collect::<Option<Vec<_>>>() {
        Some(texts) => Expr::test(field, Want::Texts(texts.concat())),
        None => Expr::Any(wanted),
    }
}

fn of_value(field: Field, how: &[Modifier], value: &SigmaValue) -> Option<Expr> {
    let not = |expr: Expr| Expr::Not(Box::new(expr));
    match (value, field.kind(), how) {
        (SigmaValue::Bool(wanted), kind, [Modifier::Exists]) if kind != Kind::Flag => {
            let present = Expr::test(field, Want::Present);
            Some(if *wanted { present } else { not(present) })
        }
        (SigmaValue::Bool(wanted), Kind::Flag, []) => {
            let present = Expr::test(field, Want::Present);
            Some(if *wanted { present } else { not(present) })
        }
        (SigmaValue::String(text), Kind::Text | Kind::Unique, how) => {
            Some(Expr::test(field, Want::Texts(vec![of_text(text, how)?])))
        }
        (SigmaValue::Integer(number), Kind::Duration | Kind::Size | Kind::Number | Kind::Time, how) => {
            let number = u64::try_from(*number).ok().filter(|_| (1..EXACT_END).contains(number))?;
            let range = match how {
                [] => (number, number),
                [Modifier::Gte] => (number, u64::MAX),
                [Modifier::Gt] => (number + 1, u64::MAX),
                [Modifier::Lte] => (0, number),
                [Modifier::Lt] => (0, number - 1),
                _ => return None,
            };
            Some(Expr::test(field, Want::Numbers(vec![range])))
        }
        _ => None,
    }
}

fn of_text(text: &SigmaString, how: &[Modifier]) -> Option<Text> {
    // A star or a question mark is the crate's: its classes of letters are not ours.
    let [StringPart::Plain(text)] = text.parts.as_slice() else { return None };
    let text = text.to_lowercase();
    let pattern = |pattern: String| (!text.contains('*')).then_some(Text::Pattern(pattern));
    match how {
        [] => Some(Text::Exact(text)),
        [Modifier::Contains] => pattern(format!("*{text}*")),
        [Modifier::StartsWith] => pattern(format!("{text}*")),
        [Modifier::EndsWith] => pattern(format!("*{text}")),
        _ => None,
    }
}

/// As [`Expr::matches`], of fields that were laid out once for all rules, and of texts in small letters.
fn holds(expr: &Expr, fields: &Fields<'_>) -> bool {
    match expr {
        Expr::All(all) => all.iter().all(|expr| holds(expr, fields)),
        Expr::Any(any) => any.iter().any(|expr| holds(expr, fields)),
        Expr::Not(expr) => !holds(expr, fields),
        Expr::Test(Test { field, want }) => match want {
            Want::Present => fields.texts(*field).next().is_some() || fields.number(*field).is_some(),
            Want::Texts(wanted) => fields.texts(*field).any(|text| {
                let small = small(text);
                wanted.iter().any(|wanted| wanted.fits(&small))
            }),
            Want::Numbers(ranges) => fields
                .number(*field)
                .is_some_and(|number| ranges.iter().any(|(least, most)| (*least..=*most).contains(&number))),
        },
    }
}

fn small(text: &str) -> Cow<'_, str> {
    if text.bytes().all(|byte| byte.is_ascii() && !byte.is_ascii_uppercase()) {
        Cow::Borrowed(text)
    } else {
        Cow::Owned(text.to_lowercase())
    }
}
