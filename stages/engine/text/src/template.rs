//! Chat templates, as transformers renders them.
//!
//! A template is Jinja with Python's methods. The engine is minijinja; what transformers adds to Jinja is added here:
//! `tojson` as Python's `json` writes it, `raise_exception`, `strftime_now`, `{% generation %}`, the special tokens by
//! their names, and how Python prints what is no text.

use crate::Error;
use crate::python;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value as Jinja};
use minijinja::{Environment, context};
use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::LazyLock;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    pub content: String,
}

impl Message {
    pub fn new(role: &str, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// `<|bos|>[<|system|>Think step by step.]<|user|>3+4*2-1<|assistant|>...<|eos|>`
pub const CHAT_TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + \
message['content'] }}\
{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}";

/// What a `{% generation %}` block leaves around its text while it is rendered: noncharacters, which no text holds.
const MARKS: [char; 2] = ['\u{fdd0}', '\u{fdd1}'];
/// Work after which a template counts as endless. Qwen3's takes about 100 per message.
const FUEL: u64 = 100_000_000;
const NAME: &str = "chat_template";

#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    /// By their names in tokenizer_config.json: `bos_token`, …; a name without a token is undefined.
    tokens: BTreeMap<String, Jinja>,
    has_marks: bool,
}

/// A chat as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    pub text: String,
    /// Places in `text`, in bytes, that the template itself marks as the model's, by `{% generation %}`; None when it
    /// marks nothing anywhere.
    pub generated: Option<Vec<Range<usize>>>,
}

impl ChatTemplate {
    /// From tokenizer_config.json, where it is one text or a list of named ones, of which `default` is taken.
    pub fn from_config(tokenizer_config: &[u8]) -> Result<Self, Error> {
        let config = read_config(tokenizer_config)?;
        Self::new(named_template(&config)?, special_tokens(&config))
    }

    /// `tokens`: the special tokens by name, as the template knows them.
    pub fn new(source: &str, tokens: BTreeMap<String, Jinja>) -> Result<Self, Error> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| fails(&error, source))?);
        environment.set_fuel(Some(FUEL));
        python::add_to(&mut environment);
        let template = mark_generation(source);
        let has_marks = template != source;
        let added = environment.add_template_owned(NAME, template);
        added.map_err(|error| fails(&error, source))?;
        Ok(Self { environment, source: source.into(), tokens, has_marks })
    }

    /// The text of a chat; with `add_generation_prompt` up to where the assistant would begin.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<Rendered, Error> {
        let own = context! {
            messages => Serde(messages), add_generation_prompt, tools => Jinja::from(()), documents => Jinja::from(())
        };
        let context = minijinja::value::merge_maps([own, Jinja::from(self.tokens.clone())]);
        let template = self.environment.get_template(NAME);
        let text = template.and_then(|template| template.render(context));
        let text = text.map_err(|error| fails(&error, &self.source))?;
        Ok(if self.has_marks { unmark(&text) } else { Rendered { text, generated: None } })
    }
}

fn fails(error: &minijinja::Error, source: &str) -> Error {
    let what = error.detail().map_or_else(|| error.kind().to_string(), |detail| format!("{}: {detail}", error.kind()));
    let line = error.line();
    let text = line.and_then(|line| source.lines().nth(line - 1)).unwrap_or_default().trim();
    let shown: String = text.chars().take(100).collect();
    let dots = if shown.len() < text.len() { "…" } else { "" };
    let place = line.map_or(String::new(), |line| format!(" at line {line}, `{shown}{dots}`"));
    Error::Template { what: format!("{place}: {what}") }
}

/// Marks around the text of every `{% generation %}` block, which stays a scope of its own. Line numbers and the
/// control of white space stay as they are.
fn mark_generation(source: &str) -> String {
    static TAG: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}").expect("the pattern is a regular expression")
    });
    let [begin, end] = MARKS;
    TAG.replace_all(source, |found: &regex::Captures| match found.get(2) {
        None => format!("{{%{} with %}}{{{{ '{begin}' }}}}{{% if true {}%}}", &found[1], &found[3]),
        Some(_) => format!("{{%{} endif %}}{{{{ '{end}' }}}}{{% endwith {}%}}", &found[1], &found[3]),
    })
    .into_owned()
}

/// Takes the marks out and says where they stood.
fn unmark(text: &str) -> Rendered {
    let [begin, end] = MARKS;
    let (mut plain, mut generated, mut open) = (String::with_capacity(text.len()), Vec::new(), None);
    for c in text.chars() {
        if c == begin {
            open = Some(plain.len());
        } else if c == end {
            generated.extend(open.take().map(|start| start..plain.len()));
        } else {
            plain.push(c);
        }
    }
    Rendered { text: plain, generated: Some(generated) }
}

/// Whether a text holds what marks generated text.
pub(crate) fn holds_a_mark(text: &str) -> bool {
    text.contains(MARKS)
}

/// tokenizer_config.json with `template` as its chat template.
pub fn with_chat_template(tokenizer_config: &[u8], template: &str) -> Result<Vec<u8>, Error> {
    with_fields(tokenizer_config, [("chat_template", template.into())])
}

/// tokenizer_config.json with other values for some fields.
pub fn with_fields<'a>(
    tokenizer_config: &[u8],
    fields: impl IntoIterator<Item = (&'a str, Value)>,
) -> Result<Vec<u8>, Error> {
    let mut config = read_config(tokenizer_config)?;
    config.extend(fields.into_iter().map(|(name, value)| (name.to_owned(), value)));
    let mut bytes = serde_json::to_vec_pretty(&config).map_err(|source| Error::Config { source })?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// tokenizer_config.json with the special tokens of special_tokens_map.json that it does not name itself.
pub fn with_special_tokens_map(tokenizer_config: &[u8], map: &[u8]) -> Result<Vec<u8>, Error> {
    let (config, map) = (read_config(tokenizer_config)?, read_config(map)?);
    let missing: Vec<(&str, Value)> = map
        .iter()
        .filter(|(name, _)| !config.contains_key(*name))
        .map(|(name, value)| (name.as_str(), value.clone()))
        .collect();
    if missing.is_empty() { Ok(tokenizer_config.to_vec()) } else { with_fields(tokenizer_config, missing) }
}

/// Whether tokenizer_config.json holds a chat template, of whatever form.
pub fn has_chat_template(tokenizer_config: &[u8]) -> Result<bool, Error> {
    Ok(read_config(tokenizer_config)?.get("chat_template").is_some_and(|template| !template.is_null()))
}

fn named_template(config: &Map<String, Value>) -> Result<&str, Error> {
    match config.get("chat_template") {
        Some(Value::String(template)) => Ok(template),
        Some(Value::Array(templates)) => {
            let named: Vec<(&str, &str)> = templates
                .iter()
                .filter_map(|entry| Some((entry.get("name")?.as_str()?, entry.get("template")?.as_str()?)))
                .collect();
            let default = named.iter().find(|(name, _)| *name == "default");
            default.map(|(_, template)| *template).ok_or_else(|| {
                let names: Vec<String> = named.iter().map(|(name, _)| format!("`{name}`")).collect();
                Error::Template { what: format!(": none of the templates {} is named `default`", names.join(", ")) }
            })
        }
        None | Some(Value::Null) => Err(Error::NoTemplate),
        Some(other) => Err(Error::Template { what: format!(": it is neither a text nor a list, but {other}") }),
    }
}

/// Every special token that has a name: `bos_token`, `pad_token`, …, and those of models with more of them.
fn special_tokens(config: &Map<String, Value>) -> BTreeMap<String, Jinja> {
    let mut tokens = BTreeMap::new();
    for more in ["extra_special_tokens", "model_specific_special_tokens"] {
        if let Some(Value::Object(named)) = config.get(more) {
            tokens.extend(named.keys().filter_map(|name| Some((name.clone(), named_token(named, name)?.into()))));
        }
    }
    let names = config.keys().filter(|name| name.ends_with("_token"));
    tokens.extend(names.filter_map(|name| Some((name.clone(), named_token(config, name)?.into()))));
    if let Some(Value::Array(additional)) = config.get("additional_special_tokens") {
        let texts: Vec<String> = additional.iter().filter_map(token_text).collect();
        tokens.insert("additional_special_tokens".into(), texts.into());
    }
    tokens
}

/// A token stands in tokenizer_config.json as text, or as an object with its text in it.
pub(crate) fn named_token(config: &Map<String, Value>, name: &str) -> Option<String> {
    token_text(config.get(name)?)
}

fn token_text(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
}

pub(crate) fn read_config(tokenizer_config: &[u8]) -> Result<Map<String, Value>, Error> {
    serde_json::from_slice(tokenizer_config).map_err(|source| Error::Config { source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(template: &str, content: &str) -> Result<String, Error> {
        let tokens = BTreeMap::from([("pad_token".to_owned(), Jinja::from("<pad>"))]);
        let template = ChatTemplate::new(template, tokens)?;
        Ok(template.render(&[Message::new("user", content)], false)?.text)
    }

    /// Right values are Python's, by jinja2 3.1 with the settings of transformers 5.
    #[test]
    fn a_template_speaks_python() {
        let cases = [
            ("{{ messages[0].content.split('</a>')[-1].lstrip('\\n') }}", "x</a>\n\ny", "y"),
            ("{{ messages[0].content.startswith('x') }}{{ none }}{{ 1 == 1.0 }}", "xy", "TrueNoneTrue"),
            ("{{ messages[0]['content'][::-1] }}{{ messages[0].content[1:-1] }}", "abc", "cbab"),
            ("{{ messages[0].content.removeprefix('ab').removesuffix('e') }}", "abcde", "cd"),
            ("{{ messages[0].content.rsplit('-', 1)[0] }}{{ 'a-b'.partition('-')[2] }}", "1-2-3", "1-2b"),
            ("{{ ['a', 1, true, none] }}{{ {'k': 'it\\'s'} }}", "", "['a', 1, True, None]{'k': \"it's\"}"),
            ("{{ messages[0] | tojson }}", "<é>\"", "{\"role\": \"user\", \"content\": \"<é>\\\"\"}"),
            ("{{ {'a': [1, {}]} | tojson(indent=2) }}", "", "{\n  \"a\": [\n    1,\n    {}\n  ]\n}"),
            ("{{ {'b': 1, 'a': 2.0} | tojson(sort_keys=true, separators=(',', ':')) }}", "", "{\"a\":2.0,\"b\":1}"),
            ("{{ 'é' | tojson(ensure_ascii=true) }}", "", "\"\\u00e9\""),
            ("{% for c in 'abc' %}{% if c == 'b' %}{% continue %}{% endif %}{{ c }}{% endfor %}", "", "ac"),
            ("{% set n = namespace(x=1) %}{% for c in 'ab' %}{% set n.x = n.x + 1 %}{% endfor %}{{ n.x }}", "", "3"),
            ("{{ pad_token }}{{ bos_token is defined }}{{ tools is none }}{{ bos_token }}", "", "<pad>FalseTrue"),
            ("{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}", "hi", "role=user;content=hi;"),
            ("{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m(messages[0].content) }}", "hi", "<hi>"),
            ("{{ messages | map(attribute='role') | join('+') }}{{ 'A b'.title() }}", "", "userA B"),
            ("  {% if true %}\nx\n  {% endif %}\ny\n", "", "x\ny"),
        ];
        for (template, content, expected) in cases {
            assert_eq!(rendered(template, content).unwrap(), expected, "{template}");
        }
    }

    #[test]
    fn the_date_of_a_template_can_be_fixed() {
        // the environment of a test process is shared, so the clock itself is tested
        assert_eq!(python::strftime(1_721_995_200, "%d %b %Y").unwrap(), "26 Jul 2024");
        assert!(python::strftime(0, "%Q").is_err());
        assert!(!rendered("{{ strftime_now('%Y-%m-%d') }}", "").unwrap().contains('%'));
    }

    #[test]
    fn generation_blocks_say_what_is_the_models() {
        let source = "{% for m in messages -%}\n {{ m.role }}: {% generation -%} \n{{ m.content }}.\n\
                      {%- endgeneration %}\n!{% endfor %}";
        let template = ChatTemplate::new(source, BTreeMap::new()).unwrap();
        let Rendered { text, generated } =
            template.render(&[Message::new("a", "é"), Message::new("b", "")], false).unwrap();
        assert_eq!(text, "a: é.!b: .!");
        let texts: Vec<&str> = generated.unwrap().into_iter().map(|span| &text[span]).collect();
        assert_eq!(texts, ["é.", "."]);
    }

    #[test]
    fn an_error_shows_template_line_and_reason() {
        let text = |template| rendered(template, "x").unwrap_err().to_string();
        assert_eq!(
            text("a\n{{ messages[0].content.frob() }}"),
            "the chat template fails at line 2, `{{ messages[0].content.frob() }}`: unknown method: string has no \
             method named frob"
        );
        assert_eq!(
            text("{{ raise_exception('roles must alternate') }}"),
            "the chat template fails at line 1, `{{ raise_exception('roles must alternate') }}`: invalid operation: \
             roles must alternate"
        );
        assert!(text("\n{% if %}").starts_with("the chat template fails at line 2, `{% if %}`: syntax error: "));
        assert!(
            text("{% for i in range(99999) %}{% for j in range(99999) %}{{ j }}{% endfor %}{% endfor %}")
                .contains("ran out of fuel")
        );
        let config = |template: Value| {
            let config = serde_json::json!({ "chat_template": template });
            ChatTemplate::from_config(config.to_string().as_bytes()).map(drop).map_err(|error| error.to_string())
        };
        let named =
            |name: &str| serde_json::json!([{ "name": name, "template": "x" }, { "name": "b", "template": "" }]);
        config(named("default")).unwrap();
        assert_eq!(
            config(named("a")).unwrap_err(),
            "the chat template fails: none of the templates `a`, `b` is named `default`"
        );
        assert_eq!(config(7.into()).unwrap_err(), "the chat template fails: it is neither a text nor a list, but 7");
        assert_eq!(config(Value::Null).unwrap_err(), "the checkpoint has no chat template");
    }

    #[test]
    fn tokens_of_the_map_fill_what_the_config_leaves_open() {
        let filled = with_special_tokens_map(
            br#"{"eos_token": "<e>"}"#,
            br#"{"eos_token": "<f>", "bos_token": {"content": "<b>"}}"#,
        );
        let config = read_config(&filled.unwrap()).unwrap();
        assert_eq!(named_token(&config, "eos_token").as_deref(), Some("<e>"));
        assert_eq!(named_token(&config, "bos_token").as_deref(), Some("<b>"));
        assert_eq!(with_special_tokens_map(b"{ }", b"{}").unwrap(), b"{ }");
    }
}
