//! Chats as token ids, and which of the tokens are trained.

use crate::template::holds_a_mark;
use crate::{ChatTemplate, Error, Message, Rendered, Tokenizer};
use std::ops::Range;

/// A tokenizer and a template: how one checkpoint speaks.
#[derive(Debug)]
pub struct Chat {
    pub tokenizer: Tokenizer,
    pub template: ChatTemplate,
}

/// A conversation to learn from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trained {
    pub ids: Vec<u32>,
    /// True for the assistant's answers and the token that ends each.
    pub mask: Vec<bool>,
    /// Places of the assistant's messages that stand in the ids but are not trained: a model that is asked would not
    /// write them as they stand there.
    pub left_out: Vec<usize>,
    /// Places of the assistant's messages whose thoughts (`<think>…</think>`) the template does not write: they are
    /// not learnt.
    pub without_thoughts: Vec<usize>,
}

/// What an answer is, in the probe that finds out how a template ends it: no template writes this by itself.
const PROBE: &str = "Qx7vK";

impl Chat {
    /// From tokenizer.json and tokenizer_config.json.
    pub fn from_files(tokenizer: &[u8], tokenizer_config: &[u8]) -> Result<Self, Error> {
        let template = ChatTemplate::from_config(tokenizer_config)?;
        let tokenizer = Tokenizer::from_files(tokenizer, tokenizer_config)?;
        Ok(Self { tokenizer, template })
    }

    /// The ids of a chat, whatever it spells: as transformers' `apply_chat_template` gives them.
    pub fn ids(&self, messages: &[Message], add_generation_prompt: bool) -> Result<Vec<u32>, Error> {
        self.tokenizer.encode_rendered(&self.template.render(messages, add_generation_prompt)?.text)
    }

    fn check(&self, messages: &[Message]) -> Result<(), Error> {
        for (i, message) in messages.iter().enumerate() {
            if let Some(token) = self.tokenizer.spelled(&message.content) {
                return Err(Error::Spelled { message: i, token: token.into() });
            }
            if holds_a_mark(&message.content) {
                return Err(Error::Spelled { message: i, token: "U+FDD0 or U+FDD1".into() });
            }
        }
        Ok(())
    }

    /// What generation starts from: the messages and the head of the assistant's answer.
    pub fn prompt(&self, messages: &[Message]) -> Result<Vec<u32>, Error> {
        self.check(messages)?;
        self.ids(messages, true)
    }

    /// A conversation with the mask of what is trained.
    pub fn trained(&self, messages: &[Message]) -> Result<Trained, Error> {
        self.check(messages)?;
        let Rendered { text, generated } = self.template.render(messages, false)?;
        let mut left_out = Vec::new();
        let (ids, mask) = match generated {
            Some(spans) => self.marked(&text, &spans)?,
            None => {
                let ids = self.tokenizer.encode_rendered(&text)?;
                let mask = self.by_prefixes(messages, &ids, &mut left_out)?;
                (ids, mask)
            }
        };
        if !mask.contains(&true) {
            return Err(match left_out.first() {
                Some(&message) => Error::Rewritten { message },
                None => Error::Nothing,
            });
        }
        let mut without_thoughts: Vec<usize> =
            (0..messages.len()).filter(|&i| lacks_thoughts(&messages[i], &text)).collect();
        without_thoughts.retain(|i| !left_out.contains(i));
        Ok(Trained { ids, mask, left_out, without_thoughts })
    }

    /// A token is trained when a part of it is marked.
    fn marked(&self, text: &str, spans: &[Range<usize>]) -> Result<(Vec<u32>, Vec<bool>), Error> {
        let is_marked = |place: Range<usize>| spans.iter().any(|span| place.start < span.end && span.start < place.end);
        let placed = self.tokenizer.encode_with_places(text)?.into_iter();
        Ok(placed.map(|(id, place)| (id, is_marked(place))).unzip())
    }

    /// An answer is what its message adds behind the prompt that generation would start from, up to the token that ends
    /// it. One that stands in the whole chat otherwise is left out.
    fn by_prefixes(&self, messages: &[Message], ids: &[u32], left_out: &mut Vec<usize>) -> Result<Vec<bool>, Error> {
        let mut mask = vec![false; ids.len()];
        let mut stop = None;
        for (i, _) in messages.iter().enumerate().filter(|(_, message)| message.role == "assistant") {
            // a template may refuse a beginning of a chat that it takes as a whole
            let (Ok(before), Ok(after)) = (self.ids(&messages[..i], true), self.ids(&messages[..=i], false)) else {
                left_out.push(i);
                continue;
            };
            if !after.starts_with(&before) || !ids.starts_with(&after) {
                left_out.push(i);
                continue;
            }
            let stop = *stop.get_or_insert(self.stop()?);
            let answer = before.len()..after.len();
            let end = answer.clone().rev().find(|&place| ids[place] == stop).map_or(answer.end, |place| place + 1);
            mask[answer.start..end].fill(true);
        }
        Ok(mask)
    }

    /// The token that ends an answer: the first special one that the template puts behind it, which need not be the one
    /// that ends a document (`<|im_end|>` and `<|endoftext|>` in Qwen's).
    pub fn stop(&self) -> Result<u32, Error> {
        let chat = [Message::new("user", "a"), Message::new("assistant", PROBE)];
        let behind = |text: &str| self.tokenizer.first_special(&text[text.rfind(PROBE)? + PROBE.len()..]);
        let found = self.template.render(&chat, false).ok().and_then(|rendered| behind(&rendered.text));
        found.map_or_else(|| self.tokenizer.eos(), Ok)
    }
}

/// Whether an answer has thoughts that `text`, the whole chat, does not hold.
fn lacks_thoughts(message: &Message, text: &str) -> bool {
    let thoughts = message.content.split_once("</think>").map(|(before, _)| before.rsplit("<think>").next());
    let thoughts = thoughts.flatten().map(str::trim);
    message.role == "assistant" && thoughts.is_some_and(|thoughts| !thoughts.is_empty() && !text.contains(thoughts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::template::{CHAT_TEMPLATE, with_chat_template};
    use crate::tokenizer::SPECIAL;
    use serde_json::json;

    /// Bytes as tokens, the special ones first.
    fn tokenizer() -> Vec<u8> {
        let mut vocabulary = serde_json::Map::new();
        SPECIAL.iter().for_each(|token| drop(vocabulary.insert(token.to_string(), vocabulary.len().into())));
        // GPT-2's alphabet: printable bytes as themselves, the others from U+0100
        let mut next = 256;
        for byte in 0..=255u8 {
            let is_plain = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
            let letter = if is_plain { byte.into() } else { (next, next += 1).0 };
            let letter = char::from_u32(letter).unwrap();
            vocabulary.insert(letter.to_string(), vocabulary.len().into());
        }
        let added: Vec<_> = SPECIAL
            .iter()
            .enumerate()
            .map(|(id, token)| {
                json!({ "id": id, "content": token, "special": true, "single_word": false, "lstrip": false,
                    "rstrip": false,
                    "normalized": false })
            })
            .collect();
        let level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
        let file = json!({ "version": "1.0", "added_tokens": added, "normalizer": null, "pre_tokenizer": level,
            "post_processor": null, "decoder": level, "truncation": null, "padding": null,
            "model": { "type": "BPE", "vocab": vocabulary, "merges": [] } });
        serde_json::to_vec(&file).unwrap()
    }

    fn chat() -> Chat {
        let config =
            with_chat_template(br#"{"bos_token": "<|bos|>", "eos_token": {"content": "<|eos|>"}}"#, CHAT_TEMPLATE);
        Chat::from_files(&tokenizer(), &config.unwrap()).unwrap()
    }

    fn conversation() -> Vec<Message> {
        let turns =
            [("system", "Think."), ("user", "1+2"), ("assistant", "3"), ("user", "why?"), ("assistant", "1+2=3 é")];
        turns.iter().map(|(role, content)| Message::new(role, *content)).collect()
    }

    #[test]
    fn every_assistants_span_is_its_answer_and_the_stop_token() {
        let chat = chat();
        let Trained { ids, mask, .. } = chat.trained(&conversation()).unwrap();
        let mut spans: Vec<Vec<u32>> = Vec::new();
        for i in 0..ids.len() {
            if mask[i] && !mask[i - 1] {
                spans.push(Vec::new());
            }
            if mask[i] {
                spans.last_mut().unwrap().push(ids[i]);
            }
        }
        assert_eq!(spans.len(), 2);
        for (span, answer) in spans.iter().zip(["3", "1+2=3 é"]) {
            assert_eq!(span.last(), Some(&chat.stop().unwrap()));
            assert_eq!(chat.tokenizer.decode(span).unwrap(), answer);
        }
    }

    #[test]
    fn an_answer_ends_with_what_its_template_puts_behind_it() {
        let template = "{% for m in messages %}{{ '<|user|>' + m.content + '<|pad|>\n' }}{% endfor %}{% if \
        add_generation_prompt %}{{ '<|user|>' }}{% endif %}";
        let config = with_chat_template(br#"{"bos_token": null, "eos_token": "<|eos|>"}"#, template).unwrap();
        let chat = Chat::from_files(&tokenizer(), &config).unwrap();
        assert_eq!((chat.stop().unwrap(), chat.tokenizer.eos().unwrap()), (2, 1));
        assert_eq!(
            chat.tokenizer.bos().unwrap(),
            1,
            "without a token of its own, a document begins behind another's end"
        );
        let config = with_chat_template(br#"{"eos_token": "<|eos|>"}"#, "{{ messages[0].content }}").unwrap();
        let chat = Chat::from_files(&tokenizer(), &config).unwrap();
        assert_eq!(chat.stop().unwrap(), 1, "a template that cannot be trained says nothing");
    }

    fn speaking(template: &str) -> Chat {
        let config = with_chat_template(br#"{"bos_token": "<|bos|>", "eos_token": "<|eos|>"}"#, template).unwrap();
        Chat::from_files(&tokenizer(), &config).unwrap()
    }

    /// What is trained, as text, special tokens included.
    fn learnt(chat: &Chat, trained: &Trained) -> String {
        let kept = trained.ids.iter().zip(&trained.mask).filter(|&(_, &is_trained)| is_trained);
        let special = |id| chat.tokenizer.special_text(id).map(str::to_owned);
        kept.map(|(&id, _)| special(id).unwrap_or_else(|| chat.tokenizer.decode(&[id]).unwrap())).collect()
    }

    /// As Qwen3's does with thoughts, this template writes only the last answer in full.
    #[test]
    fn answers_that_history_rewrites_are_left_out_by_their_places() {
        let chat = speaking(
            "{% for m in messages %}{{ '<|' + m.role + '|>' }}{% if m.role == 'assistant' %}\
             {{ m.content if loop.last else m.content[:1] }}{{ eos_token + '\n' }}{% else %}{{ m.content }}{% endif %}\
             {% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}",
        );
        let talk = [("user", "a"), ("assistant", "long"), ("user", "b"), ("assistant", "whole")];
        let talk = talk.map(|(role, content)| Message::new(role, content));
        let trained = chat.trained(&talk).unwrap();
        assert_eq!((learnt(&chat, &trained), trained.left_out), ("whole<|eos|>".into(), vec![1]));
        let trained = chat.trained(&talk[..2]).unwrap();
        assert_eq!((learnt(&chat, &trained), trained.left_out), ("long<|eos|>".into(), vec![]));
    }

    #[test]
    fn generation_marks_decide_what_is_learnt() {
        let chat = speaking(
            "{% for m in messages %}{{ '<|' + m.role + '|>' }}{% if m.role == 'assistant' %}{% generation %}\
             {{ m.content + eos_token }}{% endgeneration %}{{ '\n' }}{% else %}{{ m.content }}{% endif %}{% endfor %}",
        );
        let trained = chat.trained(&conversation()).unwrap();
        assert_eq!(learnt(&chat, &trained), "3<|eos|>1+2=3 é<|eos|>".replace('é', "\u{fffd}\u{fffd}"));
        assert!(chat.trained(&[Message::new("user", "\u{fdd0}")]).unwrap_err().to_string().contains("U+FDD0"));
    }

    #[test]
    fn thoughts_that_a_template_leaves_out_are_told() {
        let chat = speaking(
            "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content.split('</think>')[-1] }}{% endfor %}\
             {% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}",
        );
        let talk = [Message::new("user", "a"), Message::new("assistant", "<think>\nhm\n</think>ok")];
        assert_eq!(chat.trained(&talk).unwrap().without_thoughts, [1]);
        assert_eq!(speaking(CHAT_TEMPLATE).trained(&talk).unwrap().without_thoughts, [0usize; 0]);
    }

    #[test]
    fn a_tokenizer_is_known_by_what_makes_its_ids() {
        let mut file: serde_json::Map<_, _> = serde_json::from_slice(&tokenizer()).unwrap();
        let digest = |file: &serde_json::Map<_, _>| Tokenizer::digest(&serde_json::to_vec(file).unwrap()).unwrap();
        let before = digest(&file);
        file.insert("padding".into(), json!({ "direction": "Left" }));
        let model = file.remove("model").unwrap();
        file.insert("model".into(), model);
        assert_eq!(digest(&file), before);
        file["model"]["vocab"]["zz"] = 999.into();
        assert_ne!(digest(&file), before);
    }

    #[test]
    fn a_prompt_is_where_the_training_of_its_answer_begins() {
        let chat = chat();
        let Trained { ids, mask, .. } = chat.trained(&conversation()[..3]).unwrap();
        let prompt = chat.prompt(&conversation()[..2]).unwrap();
        assert_eq!(mask.iter().position(|&is_trained| is_trained), Some(prompt.len()));
        assert_eq!(ids[..prompt.len()], prompt);
        let rendered = chat.template.render(&conversation()[..2], true).unwrap().text;
        assert_eq!(rendered, "<|bos|><|system|>Think.<|user|>1+2<|assistant|>");
        assert_eq!(prompt[..2], [0, 3]);
    }

    #[test]
    fn what_cannot_be_trained_is_an_error() {
        let chat = chat();
        let text = chat.trained(&conversation()[..2]).unwrap_err().to_string();
        assert!(text.contains("no assistant's answer"), "{text}");
        let text = chat.prompt(&[Message::new("user", "a<|eos|>b")]).unwrap_err().to_string();
        assert!(text.starts_with("message 0 spells the special token `<|eos|>`"), "{text}");
        let chat = speaking("{% for m in messages|reverse %}{{ m.content }}{% endfor %}");
        let text = chat.trained(&conversation()[1..3]).unwrap_err().to_string();
        assert_eq!(text, "no answer can be trained: the chat template writes message 1 otherwise than a model would");
        assert!(matches!(ChatTemplate::from_config(b"{}"), Err(Error::NoTemplate)));
    }

    #[test]
    fn plain_text_has_no_special_tokens_and_comes_back() {
        let tokenizer = Tokenizer::from_bytes(&tokenizer()).unwrap();
        let text = "a <|eos|> ü\n";
        let ids = tokenizer.encode(text).unwrap();
        assert!(ids.iter().all(|&id| id as usize >= SPECIAL.len()));
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        assert_eq!(tokenizer.encode_rendered("<|eos|>").unwrap(), [1]);
        assert_eq!((tokenizer.bos().unwrap(), tokenizer.pad().unwrap(), tokenizer.vocabulary()), (0, 2, 265));
    }
}
