//! From the items of a file to the rows of the ports.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use smelt_stage::files::Found;
use smelt_stage::kinds::{Conversation, Document, Message, Preference, Prompt};
use smelt_stage::{Error, Unit};

use crate::Outputs;
use crate::config::{Config, OnBad, OnInvalid, RecordKind};
use crate::parts::Part;
use crate::read::{self, Bad, Item, Place, Raw, Record};
use crate::tally::Tally;

/// What is left of the limits over all documents.
pub(crate) struct Budget {
    documents: AtomicU64,
    bytes: AtomicU64,
}

impl Budget {
    pub(crate) fn new(config: &Config) -> Self {
        let limit = |limit: Option<u64>| AtomicU64::new(limit.unwrap_or(u64::MAX));
        Budget { documents: limit(config.max_documents), bytes: limit(config.max_total_bytes) }
    }

    /// Takes room for a document; false when there is none.
    fn take(&self, bytes: u64) -> bool {
        let take = |left: &AtomicU64, n: u64| {
            left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(n)).is_ok()
        };
        take(&self.documents, 1) && take(&self.bytes, bytes)
    }
}

/// What a record becomes.
enum Row {
    Document(Raw),
    Conversation(Conversation),
    Prompt(Prompt),
    Preference(Preference),
}

impl Row {
    fn bytes(&self) -> usize {
        let chat = |messages: &[Message]| messages.iter().map(|m| m.content.len()).sum::<usize>();
        match self {
            Self::Document(raw) => raw.text.len(),
            Self::Conversation(row) => chat(&row.messages),
            Self::Prompt(row) => chat(&row.messages) + row.answer.len(),
            Self::Preference(row) => chat(&row.messages) + row.chosen.len() + row.rejected.len(),
        }
    }

    fn keep(self, out: &Outputs, unit: &mut Unit, source: &str) -> Result<(), Error> {
        match self {
            Self::Document(raw) => unit.keep(&out.documents, document(raw, source)),
            Self::Conversation(row) => unit.keep(&out.conversations, row),
            Self::Prompt(row) => unit.keep(&out.prompts, row),
            Self::Preference(row) => unit.keep(&out.preferences, row),
        }
    }
}

/// Reads one file, or a part of it. Ends early, without an error, when there is no room for more documents.
pub(crate) fn read_file(
    config: &Config,
    (file, part): (&Found, Option<&Part>),
    budget: &Budget,
    out: &Outputs,
    unit: &mut Unit,
    tally: &mut Tally,
) -> Result<(), Error> {
    let verifier = config.verifier()?;
    let mut ids = Ids::default();
    let opened = match part {
        Some(part) => read::open_part(&file.name, &file.path, config.reading(), part)?,
        None => read::open(&file.name, &file.path, config.reading())?,
    };
    tally.left_out(&file.name, opened.left_out);
    for outcome in opened.items {
        let row = match outcome? {
            Err(bad) => Err(bad),
            Ok(Item::Whole(text)) if config.kind == RecordKind::Documents => {
                Ok(Row::Document(Raw { id: file.name.clone(), text, ..Raw::default() }))
            }
            Ok(Item::LeftOut(left_out)) => {
                unit.count_read(1);
                tally.no_text(&left_out);
                unit.drop_row(&out.drops, &left_out.id, left_out.rule, left_out.value, Some(left_out.note))?;
                continue;
            }
            Ok(Item::Whole(_)) => {
                let told = format!("`{}` is a text: it holds no {}", file.name, config.kind.name());
                let hint = Some("chats are read from JSON, CSV and Parquet".to_owned());
                Err(Bad { id: file.name.clone(), rule: "not_supported", value: None, at: None, told, hint })
            }
            Ok(Item::Record(record)) => match config.kind {
                RecordKind::Documents => document_of(config, record, &mut ids),
                _ => match chat(config, &verifier, record, &mut ids)? {
                    Ok(row) => Ok(row),
                    Err(refused) => {
                        tally.bad(&refused);
                        drop_bad(refused, out, unit)?;
                        continue;
                    }
                },
            },
        };
        match row {
            Err(bad) => {
                let is_dropped = bad.rule == "invalid_utf8" && config.invalid_utf8 == OnInvalid::Drop;
                if config.bad_records == OnBad::Stop && !is_dropped {
                    return Err(bad.stop().into());
                }
                tally.bad(&bad);
                drop_bad(bad, out, unit)?;
            }
            Ok(Row::Document(raw)) if config.fault(&raw.text).is_some() => {
                let (rule, value) = config.fault(&raw.text).expect("it has one");
                unit.count_read(1);
                unit.drop_row(&out.drops, &raw.id, rule, Some(value), None)?;
            }
            Ok(row) if budget.take(row.bytes() as u64) => {
                if let Row::Document(raw) = &row {
                    tally.time(raw);
                }
                unit.count_read(1);
                row.keep(out, unit, &file.name)?;
            }
            Ok(_) => return Ok(()),
        }
    }
    Ok(())
}

fn drop_bad(bad: Bad, out: &Outputs, unit: &mut Unit) -> Result<(), Error> {
    unit.count_read(1);
    unit.drop_row(&out.drops, &bad.id, bad.rule, bad.value, Some(bad.told))
}

fn document_of(config: &Config, record: Record, ids: &mut Ids) -> Result<Row, Bad> {
    let place = record.place.clone();
    let raw = record.document(config.reading().fields)?;
    ids.check(config, &raw.id, &place)?;
    Ok(Row::Document(raw))
}

/// The outer error stops the job, or is what `bad_records` decides about; the inner one says why a record that was read
/// is no chat.
fn chat(
    config: &Config,
    verifier: &smelt_verify::Verifier,
    mut record: Record,
    ids: &mut Ids,
) -> Result<Result<Row, Bad>, Error> {
    let chat = config.chat(verifier);
    let place = record.place.clone();
    let id = match record.id(config.id_field.as_deref()).and_then(|id| ids.check(config, &id, &place).map(|()| id)) {
        Ok(id) => id,
        Err(bad) if config.bad_records == OnBad::Stop => return Err(bad.stop().into()),
        Err(bad) => return Ok(Err(bad)),
    };
    Ok(match config.kind {
        RecordKind::Prompts => chat.prompt(id, record).map(Row::Prompt),
        RecordKind::Preferences => chat.preference(id, record).map(Row::Preference),
        _ => chat.conversation(id, record).map(Row::Conversation),
    })
}

/// The ids of one file, each with where it stands; their hashes, because there may be millions.
#[derive(Default)]
struct Ids(HashMap<[u8; 16], u64>);

impl Ids {
    /// Refuses an id that an earlier record has. Numbers of records cannot repeat.
    fn check(&mut self, config: &Config, id: &str, place: &Place) -> Result<(), Bad> {
        let Some(field) = &config.id_field else { return Ok(()) };
        let mut key = [0; 16];
        key.copy_from_slice(&blake3::hash(id.as_bytes()).as_bytes()[..16]);
        match self.0.insert(key, place.at) {
            None => Ok(()),
            Some(first) => {
                self.0.insert(key, first);
                let own = id.rsplit_once('#').map_or(id, |(_, own)| own);
                let what = format!("the `{field}` `{own}` is that of {} {first} as well", place.unit);
                let bad = place.bad("duplicate_id", what);
                Err(bad.hint("choose a field without repeats, or leave `id_field` out to number records"))
            }
        }
    }
}

fn document(raw: Raw, source: &str) -> Document {
    let mut document = Document::new(raw.id, raw.text, source);
    document.url = raw.url;
    document.language = raw.language;
    document.time = raw.time;
    document.metadata = raw.metadata;
    document
}
