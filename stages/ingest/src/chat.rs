//! Records as conversations, prompts and preferences, in the forms that the field writes them.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use smelt_stage::kinds::{Conversation, Message, Preference, Prompt};
use smelt_verify::Verifier;

use crate::record::{Bad, Place, Record, type_of};

/// The names of the fields, where they are not the usual ones; each may be a path, `reward_model.ground_truth`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Names {
    /// The messages of a chat. Usual: `messages`, `conversations`, `conversation`.
    pub messages: Option<String>,
    /// Who speaks. Usual: `role`, `from`.
    pub role: Option<String>,
    /// What is said. Usual: `content`, `value`.
    pub content: Option<String>,
    /// What is asked. Usual: `prompt`, `question`, `instruction` (with `input`), `problem`, `query`, `input`.
    pub prompt: Option<String>,
    /// What is answered. Usual: `completion`, `response`, `answer`, `output`, `solution`.
    pub completion: Option<String>,
    /// The better answer. Usual: `chosen`.
    pub chosen: Option<String>,
    /// The worse answer. Usual: `rejected`.
    pub rejected: Option<String>,
    /// By how much the better answer is better. Usual: `margin`, or the difference of `score_chosen` and
    /// `score_rejected`.
    pub margin: Option<String>,
    /// The answer that a verifier expects. Usual: `answer`, `final_answer`, `ground_truth`,
    /// `reward_model.ground_truth`, `solution`, `target`.
    pub answer: Option<String>,
    /// The system prompt of a row without a system message. Usual: `system`, `system_prompt`.
    pub system: Option<String>,
}

/// How records become chats.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chat<'a> {
    pub(crate) names: &'a Names,
    /// Further names of speakers, and who they are.
    pub(crate) roles: &'a BTreeMap<String, String>,
    /// What judges an answer, in rows that do not say it.
    pub(crate) verifier: &'a Verifier,
}

/// The roles that a chat can have here.
pub(crate) const ROLES: [&str; 4] = ["system", "user", "assistant", "tool"];

/// Why a record is no chat: rule and words.
type Refusal = (&'static str, String);

impl Chat<'_> {
    pub(crate) fn conversation(self, id: String, mut record: Record) -> Result<Conversation, Bad> {
        let (place, known) = (record.place.clone(), record.known());
        let messages = self.whole(&mut record).map_err(|refusal| refused(&place, &known, refusal))?;
        Ok(Conversation { id, messages, source: place.file, checkpoint: None })
    }

    fn whole(self, record: &mut Record) -> Result<Vec<Message>, Refusal> {
        let messages = match self.messages(record)? {
            Some(messages) => messages,
            None => {
                let question = self.question(record)?;
                let usual = ["completion", "response", "answer", "output", "solution"];
                let Some(answer) = find(record, self.names.completion.as_ref(), &usual) else {
                    return Err(no_fields("neither `messages` nor the `completion` of a prompt"));
                };
                let mut question = question.ok_or_else(|| no_fields("neither `messages` nor a `prompt`"))?;
                question.extend(self.turns(answer, "assistant")?);
                question
            }
        };
        let messages = self.with_system(record, messages);
        let answers = || messages.iter().filter(|m| m.role == "assistant");
        match answers().any(|m| !m.content.trim().is_empty()) {
            true => Ok(messages),
            false => Err(("no_answer", "the assistant says nothing".into())),
        }
    }

    pub(crate) fn prompt(self, id: String, mut record: Record) -> Result<Prompt, Bad> {
        let (place, known) = (record.place.clone(), record.known());
        let (messages, answer, verifier) =
            self.asked(&mut record).map_err(|refusal| refused(&place, &known, refusal))?;
        Ok(Prompt { id, messages, answer, verifier })
    }

    fn asked(self, record: &mut Record) -> Result<(Vec<Message>, String, String), Refusal> {
        let verifier = match record.take("verifier") {
            None | Some(Value::Null) => self.verifier.clone(),
            Some(given) => {
                let text = given.as_str().map_or_else(|| given.to_string(), str::to_owned);
                text.parse::<Verifier>().map_err(|e| ("no_verifier", e.to_string()))?
            }
        };
        let mut messages = match self.question(record)? {
            Some(question) => question,
            None => self.messages(record)?.ok_or_else(|| no_fields("neither `prompt` nor `question`"))?,
        };
        while messages.last().is_some_and(|m| m.role == "assistant") {
            messages.pop();
        }
        #[rustfmt::skip]
        let usual = ["answer", "final_answer", "ground_truth", "reward_model.ground_truth", "solution", "target",
            "completion", "response", "output"];
        let answer = match find(record, self.names.answer.as_ref(), &usual) {
            Some(Value::String(text)) => text,
            Some(Value::Number(number)) => number.to_string(),
            Some(other) => return Err(("no_answer", format!("the answer is {}, expected text", type_of(&other)))),
            None => return Err(no_fields("no `answer`")),
        };
        // GSM8K writes the way to the answer first.
        let answer = answer.rsplit_once("####").map_or(answer.as_str(), |(_, last)| last).trim().to_owned();
        if answer.is_empty() {
            return Err(("no_answer", "the answer is empty".into()));
        }
        let messages = self.with_system(record, messages);
        ends_with_a_question(&messages)?;
        Ok((messages, answer, verifier.to_string()))
    }

    pub(crate) fn preference(self, id: String, mut record: Record) -> Result<Preference, Bad> {
        let (place, known) = (record.place.clone(), record.known());
        let pair = self.pair(&mut record).map_err(|refusal| refused(&place, &known, refusal))?;
        let [chosen, rejected] = [pair.1, pair.2];
        Ok(Preference { id, messages: pair.0, chosen, rejected, margin: pair.3, fault: None })
    }

    fn pair(self, record: &mut Record) -> Result<(Vec<Message>, String, String, Option<f64>), Refusal> {
        let need = "not both of `chosen` and `rejected`";
        let prompt = self.question(record)?;
        let has_prompt = prompt.is_some();
        let mut side = |given: Option<&String>, usual: &str| match find(record, given, &[usual]) {
            Some(value) => self.side(value, has_prompt),
            None => Err(no_fields(need)),
        };
        let (before, chosen) = side(self.names.chosen.as_ref(), "chosen")?;
        let (before_rejected, rejected) = side(self.names.rejected.as_ref(), "rejected")?;
        if before != before_rejected {
            return Err(("different_prompts", "`chosen` and `rejected` answer different messages".into()));
        }
        // Whole chats begin with the prompt; answers alone follow it.
        let is_whole = before.iter().any(|m| m.role == "user");
        let messages = match (prompt, is_whole) {
            (Some(prompt), false) => [prompt, before].concat(),
            (None, false) => match self.messages(record)? {
                Some(messages) => [messages, before].concat(),
                None => return Err(no_fields("neither a `prompt` nor whole chats in `chosen` and `rejected`")),
            },
            (_, true) => before,
        };
        let messages = self.with_system(record, messages);
        ends_with_a_question(&messages)?;
        if chosen.trim().is_empty() || rejected.trim().is_empty() {
            return Err(("no_answer", "one of the two answers is empty".into()));
        }
        if chosen == rejected {
            return Err(("equal_answers", "`chosen` and `rejected` are equal".into()));
        }
        let mut number = |name: &str| find(record, None, &[name]).and_then(|v| v.as_f64());
        let margin = match &self.names.margin {
            Some(name) => number(name),
            None => number("margin").or_else(|| Some(number("score_chosen")? - number("score_rejected")?)),
        };
        Ok((messages, chosen, rejected, margin))
    }

    /// One of two answers, and the messages that stand before it in the same field.
    fn side(self, value: Value, has_prompt: bool) -> Result<(Vec<Message>, String), Refusal> {
        let mut messages = match value {
            Value::String(text) => match transcript(&text).filter(|_| !has_prompt) {
                Some(messages) => messages,
                None => return Ok((Vec::new(), text)),
            },
            other => self.turns(other, "assistant")?,
        };
        match messages.pop() {
            Some(last) if last.role == "assistant" => Ok((messages, last.content)),
            _ => Err(("no_answer", "an answer does not end with the assistant's words".into())),
        }
    }

    /// The messages that a record holds as a list.
    fn messages(self, record: &mut Record) -> Result<Option<Vec<Message>>, Refusal> {
        let usual = ["messages", "conversations", "conversation"];
        find(record, self.names.messages.as_ref(), &usual).map(|value| self.turns(value, "user")).transpose()
    }

    /// What is asked, as messages.
    fn question(self, record: &mut Record) -> Result<Option<Vec<Message>>, Refusal> {
        let usual = ["prompt", "question", "instruction", "problem", "query", "input"];
        let is_alpaca = self.names.prompt.is_none() && record.fields.contains_key("instruction");
        let Some(value) = find(record, self.names.prompt.as_ref(), &usual) else { return Ok(None) };
        let input = if is_alpaca { record.take("input") } else { None };
        let value = match (value, input) {
            (Value::String(asked), Some(Value::String(input))) if !input.trim().is_empty() => {
                format!("{asked}\n\n{input}").into()
            }
            (value, _) => value,
        };
        self.turns(value, "user").map(Some)
    }

    /// A text as one message of `role`, or a list of messages; a list may stand in a text as JSON.
    fn turns(self, value: Value, role: &str) -> Result<Vec<Message>, Refusal> {
        let list = match value {
            Value::String(text) => match serde_json::from_str::<Vec<Value>>(&text) {
                Ok(list) if list.iter().all(Value::is_object) && !list.is_empty() => list,
                _ => return Ok(vec![Message::new(role, text)]),
            },
            Value::Array(list) => list,
            Value::Object(fields) => self.rows(fields),
            other => return Err(("no_messages", format!("{}, expected text or a list of messages", type_of(&other)))),
        };
        if list.is_empty() {
            return Err(("no_messages", "a list without a message".into()));
        }
        list.into_iter().enumerate().map(|(i, message)| self.message(i + 1, message)).collect()
    }

    /// The messages of an object: itself, or one for each place where its fields are lists, as `datasets` once wrote
    /// lists of objects.
    fn rows(self, fields: Map<String, Value>) -> Vec<Value> {
        let length = fields.values().filter_map(Value::as_array).map(Vec::len).max();
        let has_parts = |list: &Vec<Value>| list.iter().any(Value::is_object);
        let Some(length) = length.filter(|_| !fields.values().filter_map(Value::as_array).any(has_parts)) else {
            return vec![fields.into()];
        };
        let at = |i: usize| fields.iter().filter_map(move |(name, list)| Some((name.clone(), list.get(i)?.clone())));
        (0..length).map(|i| at(i).collect::<Map<String, Value>>().into()).collect()
    }

    fn message(self, number: usize, message: Value) -> Result<Message, Refusal> {
        let Value::Object(mut fields) = message else {
            return Err(("no_messages", format!("message {number} is {}, expected an object", type_of(&message))));
        };
        let mut take = |given: Option<&String>, usual: [&str; 2]| match given {
            Some(name) => fields.shift_remove(name),
            None => usual.iter().find_map(|name| fields.shift_remove(*name)),
        };
        let role = take(self.names.role.as_ref(), ["role", "from"]);
        let content = take(self.names.content.as_ref(), ["content", "value"]);
        let has_calls = fields.get("tool_calls").is_some_and(|calls| calls.as_array().is_some_and(|c| !c.is_empty()));
        if has_calls || fields.get("function_call").is_some_and(Value::is_object) {
            return Err(("tool_calls", format!("message {number} calls a tool, which a chat here cannot hold")));
        }
        let Some(Value::String(role)) = role else {
            return Err(("no_role", format!("message {number} does not say who speaks")));
        };
        let known = match role.to_lowercase().as_str() {
            "user" | "human" | "prompter" => Some("user"),
            "assistant" | "gpt" | "chatgpt" | "bot" | "model" => Some("assistant"),
            "system" => Some("system"),
            _ => None,
        };
        let Some(role) = self.roles.get(&role).map(String::as_str).or(known) else {
            return Err(("unknown_role", format!("message {number} is of `{role}`; `roles` can say who that is")));
        };
        match content.and_then(text) {
            Some(content) => Ok(Message::new(role, content)),
            None => Err(("no_content", format!("message {number} is no text"))),
        }
    }

    fn with_system(self, record: &mut Record, mut messages: Vec<Message>) -> Vec<Message> {
        let has_one = messages.first().is_some_and(|m| m.role == "system");
        match find(record, self.names.system.as_ref(), &["system", "system_prompt"]) {
            Some(Value::String(text)) if !has_one && !text.trim().is_empty() => {
                messages.insert(0, Message::new("system", text));
            }
            _ => {}
        }
        messages
    }
}

fn ends_with_a_question(messages: &[Message]) -> Result<(), Refusal> {
    match messages.last() {
        Some(last) if last.role == "assistant" || last.role == "system" => {
            Err(("no_question", "the prompt does not end with a question".into()))
        }
        Some(last) if !last.content.trim().is_empty() => Ok(()),
        _ => Err(("no_question", "the question is empty".into())),
    }
}

/// A message's text; of a list of parts, as multimodal chats have it, the texts if there is nothing else.
fn text(content: Value) -> Option<String> {
    match content {
        Value::String(text) => Some(text),
        Value::Array(parts) => parts
            .iter()
            .map(|part| match part.get("type").and_then(Value::as_str) {
                Some("text") | None => part.get("text").and_then(Value::as_str).or_else(|| part.as_str()),
                Some(_) => None,
            })
            .collect(),
        _ => None,
    }
}

/// The turns of a dialogue in one text, as Anthropic's HH data has it.
fn transcript(text: &str) -> Option<Vec<Message>> {
    let speakers = [("\n\nHuman:", "user"), ("\n\nAssistant:", "assistant")];
    let text = format!("\n\n{}", text.trim_start());
    let mut starts: Vec<(usize, usize, &str)> = speakers
        .iter()
        .flat_map(|(mark, role)| text.match_indices(mark).map(|(at, mark)| (at, at + mark.len(), *role)))
        .collect();
    starts.sort_unstable();
    if starts.first()?.0 != 0 || starts[0].2 != "user" {
        return None;
    }
    let ends = starts.iter().skip(1).map(|start| start.0).chain([text.len()]);
    Some(starts.iter().zip(ends).map(|(&(_, from, role), to)| Message::new(role, text[from..to].trim())).collect())
}

/// The value of the field that the config names, or of the first usual one that is there.
fn find(record: &mut Record, given: Option<&String>, usual: &[&str]) -> Option<Value> {
    let found = match given {
        Some(name) => record.take(name),
        None => usual.iter().find_map(|name| record.take(name).filter(|value| !value.is_null())),
    };
    found.filter(|value| !value.is_null())
}

fn no_fields(need: &str) -> Refusal {
    (NO_FIELDS, need.into())
}

const NO_FIELDS: &str = "no_fields";

fn refused(place: &Place, known: &str, (rule, what): Refusal) -> Bad {
    match rule {
        NO_FIELDS => place.bad(rule, format!("{what}; the record has {known}, and `fields` can name others")),
        _ => place.bad(rule, what),
    }
}
