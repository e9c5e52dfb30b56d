//! Rows that a job leaves out before its first step, each with the rule and the value: a job does not die of one row.

use smelt_stage::kinds::Drops;
use smelt_stage::{Error, Port, Unit};
use std::collections::BTreeMap;

/// A row, or an answer of a conversation, that cannot be used.
#[derive(Clone, Debug, PartialEq)]
pub struct Unusable {
    /// Id of the row.
    pub id: String,
    pub rule: &'static str,
    /// What the rule measured.
    pub value: Option<f64>,
    pub detail: String,
}

impl Unusable {
    pub(crate) fn new(id: &str, rule: &'static str, detail: impl Into<String>) -> Self {
        Self { id: id.into(), rule, value: None, detail: detail.into() }
    }

    pub(crate) fn too_long(id: &str, tokens: usize, positions: usize) -> Self {
        let detail = format!("{tokens} tokens, {positions} positions");
        Self { value: Some(tokens as f64), ..Self::new(id, "too_long", detail) }
    }

    /// Why a chat cannot be used; an error where the cause is not the chat.
    pub(crate) fn of_chat(id: &str, error: smelt_text::Error) -> Result<Self, Error> {
        let rule = match error {
            smelt_text::Error::Nothing => "no_answer",
            smelt_text::Error::Spelled { .. } => "special_token",
            smelt_text::Error::Rewritten { .. } | smelt_text::Error::Template { .. } => "template",
            _ => return Err(smelt_checkpoint::fault(error)),
        };
        Ok(Self::new(id, rule, error.to_string()))
    }
}

/// Writes what was left out, and counts it as read and dropped.
pub fn write_unusable(unit: &mut Unit, port: &Port<Drops>, rows: &[Unusable]) -> Result<(), Error> {
    unit.count_read(rows.len() as u64);
    rows.iter().try_for_each(|row| unit.drop_row(port, &row.id, row.rule, row.value, Some(row.detail.clone())))
}

/// The error when all of `what` (`prompts`) was left out: how often by which rule, and the first of each.
pub fn nothing_left(what: &str, rows: &[Unusable]) -> Error {
    let mut by_rule: BTreeMap<&str, (usize, &Unusable)> = BTreeMap::new();
    for row in rows {
        by_rule.entry(row.rule).or_insert((0, row)).0 += 1;
    }
    let mut by_rule: Vec<_> = by_rule.into_iter().collect();
    by_rule.sort_by_key(|(rule, (count, _))| (usize::MAX - count, *rule));
    let told: Vec<String> = by_rule
        .iter()
        .map(|(rule, (count, first))| format!("{count} {rule} (`{}`: {})", first.id, first.detail))
        .collect();
    let told = if told.is_empty() { String::new() } else { format!(": {}", told.join(", ")) };
    Error::data(format!("not one of {} {what} can be used{told}", rows.len())).hint(match by_rule.first() {
        Some(("too_long", _)) => "shorten the texts, or take a model with more positions",
        Some(("special_token", _)) => "remove the special tokens from the texts",
        Some(("template", _)) => "mend the chat template, or give the rows the form that it expects",
        Some(("unscorable" | "verifier", _)) => "give every prompt an answer that its verifier can read",
        Some(_) => "look at the first rows that are named here",
        None => "the input is empty: look at the job that made it",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_rest_is_told_by_rule() {
        let rows = [
            Unusable::too_long("a", 300, 256),
            Unusable::new("b", "special_token", "x"),
            Unusable::too_long("c", 999, 256),
        ];
        let error = nothing_left("prompts", &rows);
        assert_eq!(
            error.to_string(),
            "not one of 3 prompts can be used: 2 too_long (`a`: 300 tokens, 256 positions), 1 special_token (`b`: x)"
        );
        assert_eq!(error.problem().hint.as_deref(), Some("shorten the texts, or take a model with more positions"));
        assert_eq!(nothing_left("pairs", &[]).to_string(), "not one of 0 pairs can be used");
    }
}
