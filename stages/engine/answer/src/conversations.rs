//! Conversations as examples with a mask: the assistant's answers and the tokens that end them are learnt.

use crate::Unusable;
use smelt_checkpoint::{TextFiles, messages};
use smelt_stage::Error;
use smelt_stage::kinds::Conversation;
use smelt_train::Example;

/// What can be learnt from conversations, and what cannot.
#[derive(Clone, Debug, Default)]
pub struct Examples {
    pub examples: Vec<Example>,
    /// Whole conversations that are left out.
    pub unusable: Vec<Unusable>,
    /// Single answers that stand in an example without being learnt, `<conversation>#<message>`: the template writes
    /// them otherwise in a longer chat, as Qwen3's does with old thoughts.
    pub untrained_answers: Vec<Unusable>,
    /// Conversations with answers whose thoughts the template does not write.
    pub without_thoughts: Vec<String>,
}

/// Conversations of at most `limit` tokens as examples, in order.
pub fn examples(
    text: &TextFiles,
    conversations: impl IntoIterator<Item = Result<Conversation, Error>>,
    limit: usize,
) -> Result<Examples, Error> {
    let chat = text.chat()?;
    let mut out = Examples::default();
    for row in conversations {
        let row = row?;
        match chat.trained(&messages(&row.messages)) {
            Ok(trained) if trained.ids.len() <= limit => {
                out.examples.push(Example { ids: trained.ids, mask: trained.mask });
                out.untrained_answers.extend(trained.left_out.iter().map(|at| {
                    let id = format!("{}#{at}", row.id);
                    Unusable::new(&id, "rewritten_answer", "in the whole chat the template writes it otherwise")
                }));
                out.without_thoughts.extend((!trained.without_thoughts.is_empty()).then(|| row.id.clone()));
            }
            Ok(trained) => out.unusable.push(Unusable::too_long(&row.id, trained.ids.len(), limit)),
            Err(error) => out.unusable.push(Unusable::of_chat(&row.id, error)?),
        }
    }
    Ok(out)
}
