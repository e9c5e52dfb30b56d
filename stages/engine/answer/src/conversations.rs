//! Conversations as examples with a mask: the assistant's answers and the tokens that end them are learnt.

use smelt_checkpoint::{TextFiles, fault, messages};
use smelt_stage::Error;
use smelt_stage::kinds::Conversation;
use smelt_train::Example;

/// A conversation that cannot be trained on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unusable {
    /// Id of the conversation.
    pub id: String,
    pub rule: &'static str,
    pub detail: String,
}

/// Conversations of at most `limit` tokens as examples, in order; the others, each with its reason.
pub fn examples(
    text: &TextFiles,
    conversations: impl IntoIterator<Item = Result<Conversation, Error>>,
    limit: usize,
) -> Result<(Vec<Example>, Vec<Unusable>), Error> {
    let chat = text.chat()?;
    let (mut examples, mut unusable) = (Vec::new(), Vec::new());
    for row in conversations {
        let row = row?;
        let (rule, detail) = match chat.trained(&messages(&row.messages)) {
            Ok(trained) if trained.ids.len() <= limit => {
                examples.push(Example { ids: trained.ids, mask: trained.mask });
                continue;
            }
            Ok(trained) => ("too_long", format!("{} tokens, {limit} positions", trained.ids.len())),
            Err(error) => {
                let rule = match error {
                    smelt_text::Error::Nothing => "no_answer",
                    smelt_text::Error::Spelled { .. } => "special_token",
                    smelt_text::Error::Prefix { .. } | smelt_text::Error::Template { .. } => "template",
                    _ => return Err(fault(error)),
                };
                (rule, error.to_string())
            }
        };
        unusable.push(Unusable { id: row.id, rule, detail });
    }
    Ok((examples, unusable))
}
