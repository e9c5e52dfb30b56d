//! Chats as token ids, and which of the tokens are trained.

use crate::{ChatTemplate, Error, Message, Tokenizer};

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
}

impl Chat {
    /// From tokenizer.json and tokenizer_config.json.
    pub fn from_files(tokenizer: &[u8], tokenizer_config: &[u8]) -> Result<Self, Error> {
        let template = ChatTemplate::from_config(tokenizer_config)?;
        let tokenizer = Tokenizer::from_files(tokenizer, tokenizer_config)?;
        Ok(Self { tokenizer, template })
    }

    fn ids(&self, messages: &[Message], add_generation_prompt: bool) -> Result<Vec<u32>, Error> {
        self.tokenizer.encode_rendered(&self.template.render(messages, add_generation_prompt)?)
    }

    fn check(&self, messages: &[Message]) -> Result<(), Error> {
        for (i, message) in messages.iter().enumerate() {
            if let Some(token) = self.tokenizer.spelled(&message.content) {
                return Err(Error::Spelled { message: i, token: token.into() });
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
        let ids = self.ids(messages, false)?;
        let mut mask = vec![false; ids.len()];
        for (i, _) in messages.iter().enumerate().filter(|(_, message)| message.role == "assistant") {
            let (before, after) = (self.ids(&messages[..i], true)?, self.ids(&messages[..=i], false)?);
            if !after.starts_with(&before) || !ids.starts_with(&after) {
                return Err(Error::Prefix { messages: i + 1 });
            }
            mask[before.len()..after.len()].fill(true);
        }
        if mask.iter().any(|&is_trained| is_trained) { Ok(Trained { ids, mask }) } else { Err(Error::Nothing) }
    }

    /// The token that ends an answer: the first special one that the template puts behind it, which need not be the one
    /// that ends a document (`<|im_end|>` and `<|endoftext|>` in Qwen's).
    pub fn stop(&self) -> Result<u32, Error> {
        let probe = self.trained(&[Message::new("user", "a"), Message::new("assistant", "b")]);
        let ids = probe.iter().flat_map(|trained| trained.ids.iter().zip(&trained.mask));
        let mut behind = ids.filter(|&(&id, &is_trained)| is_trained && self.tokenizer.is_special(id));
        behind.next().map_or_else(|| self.tokenizer.eos(), |(&id, _)| Ok(id))
    }
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
        let Trained { ids, mask } = chat.trained(&conversation()).unwrap();
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

    #[test]
    fn a_prompt_is_where_the_training_of_its_answer_begins() {
        let chat = chat();
        let Trained { ids, mask } = chat.trained(&conversation()[..3]).unwrap();
        let prompt = chat.prompt(&conversation()[..2]).unwrap();
        assert_eq!(mask.iter().position(|&is_trained| is_trained), Some(prompt.len()));
        assert_eq!(ids[..prompt.len()], prompt);
        let rendered = chat.template.render(&conversation()[..2], true).unwrap();
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
        let turning = "{% for m in messages|reverse %}{{ m.content }}{% endfor %}";
        let chat = Chat { template: ChatTemplate::new(turning, "", "").unwrap(), ..chat };
        let text = chat.trained(&conversation()[1..3]).unwrap_err().to_string();
        assert!(text.contains("does not build on its own prompts"), "{text}");
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
