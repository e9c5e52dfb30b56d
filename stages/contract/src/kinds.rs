//! Kinds as types: what an `Artifact<K>` or a `Port<K>` holds, and the rows of those that are tables.

use crate::rows::Cell;
pub use crate::rows::{Message, Micros};
use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::{cast, interleave};
use arrow::datatypes::{DataType, Field, Float64Type, Schema, SchemaRef};
use smelt_schemas::{Kind, kind};
use std::sync::{Arc, LazyLock};

/// A kind known to this build.
pub trait KindType: Send + Sync + 'static {
    fn kind() -> Kind;
}

/// A kind whose files are Parquet.
pub trait Table: KindType {
    type Row: Clone + Send + 'static;
    /// The promised columns.
    fn schema() -> SchemaRef;
    fn columns(rows: &[Self::Row]) -> Vec<ArrayRef>;
    /// Rows of a batch; `Err` names the first column that is missing, of another type, or null where none may be.
    fn rows(batch: &RecordBatch) -> Result<Vec<Self::Row>, String>;
    /// Columns beyond the promised ones, if rows of this kind carry them.
    fn extra(_row: &Self::Row) -> Option<&Extra> {
        None
    }
    /// A list column of which a few rows are read at a time, in any order: it lies in small pages without a dictionary.
    const RANDOM: Option<&'static str> = None;
    /// About how many bytes a row takes in memory.
    fn weight(_row: &Self::Row) -> usize {
        64
    }
}

/// Some columns of a table as rows of their own: who reads these decodes no others.
pub trait View: Send + 'static + Sized {
    type Of: Table;
    /// Names of the columns.
    const COLUMNS: &'static [&'static str];
    /// As `Table::rows`, of a batch that has these columns alone.
    fn rows(batch: &RecordBatch) -> Result<Vec<Self>, String>;
}

/// The columns that a reader does not know, carried to the writer: one row of a batch.
#[derive(Clone, Debug, Default)]
pub struct Extra(Option<(Arc<RecordBatch>, usize)>);

impl PartialEq for Extra {
    fn eq(&self, other: &Self) -> bool {
        let row = |e: &Self| e.0.as_ref().map(|(batch, i)| batch.slice(*i, 1));
        row(self) == row(other)
    }
}

impl Extra {
    /// Row `row` of columns that a writer adds to those of its kind, such as a turn or an environment beside a sample.
    /// All rows of a file share the columns of its first row that has any.
    pub fn row(columns: &Arc<RecordBatch>, row: usize) -> Self {
        assert!(row < columns.num_rows(), "extra: row {row} of {}", columns.num_rows());
        Self(Some((columns.clone(), row)))
    }

    /// Adds columns to those that rows have; row i of `columns` is for `rows[i]`. A column that is there already is
    /// replaced. An error says why the columns do not fit together.
    pub fn add(rows: Vec<&mut Extra>, columns: &RecordBatch) -> Result<(), String> {
        assert_eq!(rows.len(), columns.num_rows(), "extra: rows and columns");
        let olds: Vec<&Extra> = rows.iter().map(|row| &**row).collect();
        let is_new = |field: &Field| columns.column_by_name(field.name()).is_some();
        let kept: Vec<Field> = Extra::fields(olds.iter().copied()).into_iter().filter(|field| !is_new(field)).collect();
        let mut all: Vec<ArrayRef> = kept.iter().map(|field| Extra::column(&olds, field)).collect();
        all.extend(columns.columns().iter().cloned());
        let new = columns.schema();
        let fields = kept.into_iter().chain(new.fields().iter().map(|field| field.as_ref().clone()));
        let batch = RecordBatch::try_new(Arc::new(Schema::new(fields.collect::<Vec<_>>())), all);
        let batch = Arc::new(batch.map_err(|e| e.to_string())?);
        for (i, row) in rows.into_iter().enumerate() {
            *row = Extra::row(&batch, i);
        }
        Ok(())
    }

    /// The number in a column, as a float; `None` where it is null, no number, or no such column.
    pub fn number(&self, column: &str) -> Option<f64> {
        let (batch, row) = self.0.as_ref()?;
        let cell = batch.column_by_name(column)?.slice(*row, 1);
        if !cell.data_type().is_numeric() || cell.is_null(0) {
            return None;
        }
        let cell = cast(&cell, &DataType::Float64).ok()?;
        cell.as_primitive_opt::<Float64Type>().map(|cell| cell.value(0))
    }

    fn of_batch(batch: &RecordBatch, known: &Schema) -> Option<Arc<RecordBatch>> {
        let others: Vec<usize> = (0..batch.num_columns())
            .filter(|&i| known.field_with_name(batch.schema().field(i).name()).is_err())
            .collect();
        if others.is_empty() { None } else { batch.project(&others).ok().map(Arc::new) }
    }

    /// The columns that `rows` carry: those of the first row that has any. They are null in rows that lack them.
    pub(crate) fn fields<'a>(rows: impl Iterator<Item = &'a Extra>) -> Vec<Field> {
        let first = rows.filter_map(|e| e.0.as_ref()).next();
        let fields =
            first.map(|(batch, _)| batch.schema().fields().iter().map(|f| f.as_ref().clone()).collect::<Vec<_>>());
        fields.unwrap_or_default().into_iter().map(|f| f.with_nullable(true)).collect()
    }

    pub(crate) fn column(rows: &[&Extra], field: &Field) -> ArrayRef {
        let nothing = arrow::array::new_null_array(field.data_type(), 1);
        let mut batches: Vec<&Arc<RecordBatch>> = Vec::new();
        let mut places = Vec::with_capacity(rows.len());
        for Extra(row) in rows {
            let found = row
                .as_ref()
                .filter(|(b, _)| b.column_by_name(field.name()).is_some_and(|c| c.data_type() == field.data_type()));
            places.push(match found {
                None => (0, 0),
                Some((batch, i)) => {
                    let known = batches.iter().rposition(|b| Arc::ptr_eq(b, batch)).unwrap_or_else(|| {
                        batches.push(batch);
                        batches.len() - 1
                    });
                    (known + 1, *i)
                }
            });
        }
        let mut arrays: Vec<&dyn Array> = vec![&nothing];
        arrays.extend(batches.iter().filter_map(|b| b.column_by_name(field.name())).map(|c| c as &dyn Array));
        interleave(&arrays, &places).unwrap_or_else(|_| arrow::array::new_null_array(field.data_type(), rows.len()))
    }
}

macro_rules! kind_types {
    ($($(#[$doc:meta])* $name:ident = $kind:ident;)*) => { $(
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name;
        impl KindType for $name {
            fn kind() -> Kind { kind::$kind() }
        }
    )* };
}

kind_types! {
    Documents = documents; Drops = drops; Clusters = clusters; Tokens = tokens; Conversations = conversations;
    Prompts = prompts; Samples = samples; Preferences = preferences; Scores = scores; Hits = hits; Metrics = metrics;
    /// Files: `tokenizer.json`, `tokenizer_config.json`.
    Tokenizer = tokenizer;
    /// Files: `classifier.json`, `weights.f32`.
    Classifier = classifier;
    /// Files: `config.json`, safetensors, tokenizer and chat template.
    Checkpoint = checkpoint;
    /// Files: a trainer's state.
    State = state;
}

macro_rules! tables {
    ($(
        $(#[$doc:meta])* $kind:ident, $row:ident { $($(#[$fdoc:meta])* $field:ident : $ty:ty),* $(,)? }
        $(extra $extra:ident)? $(random $random:literal)? weight $weight:expr;
    )*) => { $(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $row { $($(#[$fdoc])* pub $field: $ty,)* $(pub $extra: Extra,)? }
        impl Table for $kind {
            type Row = $row;
            $(const RANDOM: Option<&'static str> = Some($random);)?
            fn schema() -> SchemaRef {
                static SCHEMA: LazyLock<SchemaRef> =
                    LazyLock::new(|| Arc::new($kind::kind().schema().expect("every table kind has a schema")));
                SCHEMA.clone()
            }
            fn columns(rows: &[$row]) -> Vec<ArrayRef> {
                vec![$(<$ty as Cell>::column(rows.iter().map(|r| &r.$field))),*]
            }
            fn rows(batch: &RecordBatch) -> Result<Vec<$row>, String> {
                $(let mut $field = column::<$ty>(batch, stringify!($field), &Self::schema())?.into_iter();)*
                $(let $extra = Extra::of_batch(batch, &Self::schema());)?
                let row = |_i: usize| Some($row {
                    $($field: $field.next()?,)*
                    $($extra: Extra($extra.clone().map(|b| (b, _i))),)?
                });
                (0..batch.num_rows()).map(row).collect::<Option<_>>().ok_or_else(|| "columns differ in length".into())
            }
            $(fn extra(row: &$row) -> Option<&Extra> { Some(&row.$extra) })?
            fn weight(row: &$row) -> usize { let weight: fn(&$row) -> usize = $weight; 64 + weight(row) }
        }
    )* };
}

/// The cells of a column, which is null everywhere if it is optional and not there.
pub(crate) fn column<C: Cell>(batch: &RecordBatch, name: &str, schema: &Schema) -> Result<Vec<C>, String> {
    let field = schema.field_with_name(name).map_err(|e| e.to_string())?;
    match batch.column_by_name(name) {
        Some(found) => C::read(found).ok_or_else(|| match found.null_count() {
            0 => format!("column `{name}` has type {}, expected {}", found.data_type(), field.data_type()),
            n => format!("column `{name}` has {n} nulls, expected none"),
        }),
        // An optional column that the file lacks is null everywhere.
        None if field.is_nullable() => C::read(&arrow::array::new_null_array(field.data_type(), batch.num_rows()))
            .ok_or_else(|| format!("column `{name}` is missing")),
        None => Err(format!("column `{name}` is missing")),
    }
}

tables! {
    Documents, Document {
        id: String, text: String, source: String, url: Option<String>, language: Option<String>, time: Option<Micros>,
        /// A JSON object.
        metadata: Option<String>,
    } extra extra weight |r| r.text.len();
    Drops, Drop { id: String, rule: String, value: Option<f64>, detail: Option<String> } weight |_| 0;
    Clusters, ClusterRow {
        /// Place of the document that stays among all that were read, from 0.
        cluster: u64,
        /// Id of the document.
        document: String,
        stays: bool,
        /// Id of the document that stays, for which this one goes.
        leader: Option<String>,
        rule: Option<String>,
        /// To the leader, in [0, 1]; null where the texts are equal.
        similarity: Option<f64>,
        /// Documents of the cluster.
        size: u64,
    } weight |r| r.document.len();
    Tokens, TokenRow {
        /// Id of the document.
        document: String,
        source: String,
        language: Option<String>,
        /// Length of its text in bytes.
        bytes: u64,
        ids: Vec<u32>,
    } random "ids" weight |r| 4 * r.ids.len();
    Conversations, Conversation {
        id: String, messages: Vec<Message>, source: String,
        /// Digest of the model that wrote the answer.
        checkpoint: Option<String>,
    } weight |r| r.messages.iter().map(|m| m.content.len()).sum();
    Prompts, Prompt {
        id: String, messages: Vec<Message>, answer: String,
        /// JSON, as `smelt-verify` reads it.
        verifier: String,
    } weight |r| r.messages.iter().map(|m| m.content.len()).sum();
    Samples, Sample {
        /// Id of the prompt.
        prompt: String,
        /// 0, 1, … of one prompt.
        sample: u32,
        completion: String, ids: Vec<u32>,
        /// Of each id, by the model that drew it.
        logp: Vec<f32>,
        /// The rule's reward, plus what a reward model added; null where the prompt cannot be scored.
        reward: Option<f64>,
        /// `stop` or `length`.
        finish: String,
    } extra extra weight |r| r.completion.len() + 8 * r.ids.len();
    Preferences, Preference {
        id: String, messages: Vec<Message>, chosen: String, rejected: String, margin: Option<f64>,
        /// What is wrong with `rejected`.
        fault: Option<String>,
    } weight |r| r.chosen.len() + r.rejected.len();
    Scores, Score {
        model: String, benchmark: String, metric: String, value: f64, standard_error: Option<f64>, n: u64,
    } weight |_| 0;
    Hits, Hit {
        /// Id of the document.
        document: String,
        benchmark: String,
        /// Id of the problem.
        problem: String,
        /// `question`, `answer`, `chosen`, `rejected` or `text`.
        field: String,
        /// The first one of the field that was found, as folded words.
        ngram: String,
        /// How many n-grams of the field were found.
        ngrams: u64,
        /// Share of the field's words that they cover, in (0, 1].
        covered: f64,
    } weight |r| r.document.len() + r.problem.len() + r.ngram.len();
    Metrics, Metric { step: u64, name: String, value: f64 } weight |_| 0;
}

macro_rules! views {
    ($($(#[$doc:meta])* $view:ident of $kind:ident { $($field:ident : $ty:ty),* $(,)? })*) => { $(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $view { $(pub $field: $ty),* }
        impl View for $view {
            type Of = $kind;
            const COLUMNS: &'static [&'static str] = &[$(stringify!($field)),*];
            fn rows(batch: &RecordBatch) -> Result<Vec<Self>, String> {
                $(let mut $field = column::<$ty>(batch, stringify!($field), &$kind::schema())?.into_iter();)*
                let row = |_| Some($view { $($field: $field.next()?),* });
                (0..batch.num_rows()).map(row).collect::<Option<_>>().ok_or_else(|| "columns differ in length".into())
            }
        }
    )* };
}

views! {
    /// A document without what is only passed on: time, metadata, columns of other stages.
    DocumentText of Documents {
        id: String, text: String, source: String, url: Option<String>, language: Option<String>,
    }
    /// Where the tokens of a document come from, and the tokens.
    SourceTokens of Tokens { source: String, language: Option<String>, ids: Vec<u32> }
}

impl Document {
    /// A document with nothing but a text and where it comes from.
    pub fn new(id: impl Into<String>, text: impl Into<String>, source: impl Into<String>) -> Self {
        let (id, text, source) = (id.into(), text.into(), source.into());
        Self { id, text, source, url: None, language: None, time: None, metadata: None, extra: Extra::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Int32Array, StringArray};

    #[test]
    fn rows_survive_columns() {
        let chat = vec![Message::new("user", "1+1"), Message::new("assistant", "2")];
        let rows = vec![
            Conversation { id: "a".into(), messages: chat, source: "s".into(), checkpoint: None },
            Conversation { id: "b".into(), messages: vec![], source: "s".into(), checkpoint: Some("c".into()) },
        ];
        let batch = RecordBatch::try_new(Conversations::schema(), Conversations::columns(&rows)).unwrap();
        assert_eq!(Conversations::rows(&batch).unwrap(), rows);
        let rows = vec![TokenRow {
            document: "a".into(),
            source: "s".into(),
            language: Some("de".into()),
            bytes: 3,
            ids: vec![1, 2],
        }];
        let batch = RecordBatch::try_new(Tokens::schema(), Tokens::columns(&rows)).unwrap();
        assert_eq!(Tokens::rows(&batch).unwrap(), rows);
        let mut document = Document::new("a", "text", "s");
        document.time = Some(Micros(5));
        let batch =
            RecordBatch::try_new(Documents::schema(), Documents::columns(std::slice::from_ref(&document))).unwrap();
        assert_eq!(Documents::rows(&batch).unwrap(), [document]);
    }

    #[test]
    fn a_column_that_is_missing_or_of_another_type_is_named() {
        let ids = Arc::new(StringArray::from(vec!["a"])) as ArrayRef;
        let batch = RecordBatch::try_from_iter([("id", ids.clone())]).unwrap();
        assert_eq!(Documents::rows(&batch).unwrap_err(), "column `text` is missing");
        let numbers = Arc::new(Int32Array::from(vec![1])) as ArrayRef;
        let batch = RecordBatch::try_from_iter([("id", ids.clone()), ("text", numbers)]).unwrap();
        assert_eq!(Documents::rows(&batch).unwrap_err(), "column `text` has type Int32, expected Utf8");
        let nulls = Arc::new(StringArray::from(vec![None::<&str>])) as ArrayRef;
        let batch = RecordBatch::try_from_iter([("id", ids), ("text", nulls)]).unwrap();
        assert_eq!(Documents::rows(&batch).unwrap_err(), "column `text` has 1 nulls, expected none");
    }

    #[test]
    fn a_view_reads_its_columns_alone() {
        let text = |s: &str| Arc::new(StringArray::from(vec![s])) as ArrayRef;
        let wrong = Arc::new(Int32Array::from(vec![1])) as ArrayRef;
        let columns = [("id", text("a")), ("text", text("b")), ("source", text("c")), ("metadata", wrong.clone())];
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        assert_eq!(Documents::rows(&batch).unwrap_err(), "column `metadata` has type Int32, expected Utf8");
        let expected = DocumentText { id: "a".into(), text: "b".into(), source: "c".into(), url: None, language: None };
        assert_eq!(DocumentText::rows(&batch).unwrap(), [expected]);
        let batch = RecordBatch::try_from_iter([("id", text("a")), ("text", wrong)]).unwrap();
        assert_eq!(DocumentText::rows(&batch).unwrap_err(), "column `text` has type Int32, expected Utf8");
    }

    /// What reinforcement needs to replay what a sampler did.
    #[test]
    fn a_writer_may_add_columns_to_samples() {
        let turns = Arc::new(Int32Array::from(vec![0, 1])) as ArrayRef;
        let columns = Arc::new(RecordBatch::try_from_iter_with_nullable([("turn", turns, true)]).unwrap());
        let sample = |row| Sample {
            prompt: "p".into(),
            sample: 0,
            completion: "7".into(),
            ids: vec![7],
            logp: vec![-0.5],
            reward: Some(1.0),
            finish: "stop".into(),
            extra: Extra::row(&columns, row),
        };
        let rows = vec![sample(0), sample(1)];
        let extras: Vec<&Extra> = rows.iter().map(|row| &row.extra).collect();
        let fields = Extra::fields(extras.iter().copied());
        let all: Vec<Field> =
            Samples::schema().fields().iter().map(|f| f.as_ref().clone()).chain(fields.iter().cloned()).collect();
        let mut written = Samples::columns(&rows);
        written.extend(fields.iter().map(|field| Extra::column(&extras, field)));
        let batch = RecordBatch::try_new(Arc::new(Schema::new(all)), written).unwrap();
        assert_eq!(Samples::rows(&batch).unwrap(), rows);
        assert!(Samples::kind().schema().is_some_and(|s| s.field_with_name("turn").is_err()), "no reader needs it");
    }

    #[test]
    fn a_stage_adds_columns_beside_those_that_are_there() {
        let ints = |values: Vec<Option<i32>>| Arc::new(Int32Array::from(values)) as ArrayRef;
        let batch = |columns: Vec<(&str, ArrayRef)>| {
            let columns = columns.into_iter().map(|(name, column)| (name, column, true));
            RecordBatch::try_from_iter_with_nullable(columns).unwrap()
        };
        let old = Arc::new(batch(vec![("a", ints(vec![Some(1), Some(2)])), ("b", ints(vec![Some(3), Some(4)]))]));
        let mut rows = [Extra::row(&old, 1), Extra::default(), Extra::row(&old, 0)];
        let new = batch(vec![("b", ints(vec![Some(7), Some(8), None]))]);
        Extra::add(rows.iter_mut().collect(), &new).unwrap();
        let rows: Vec<&Extra> = rows.iter().collect();
        let fields = Extra::fields(rows.iter().copied());
        assert_eq!([0, 1, 2].map(|i| rows[i].number("a")), [Some(2.0), None, Some(1.0)]);
        assert_eq!((rows[1].number("b"), rows[1].number("c")), (Some(8.0), None));
        let found: Vec<(&str, ArrayRef)> =
            fields.iter().map(|f| (f.name().as_str(), Extra::column(&rows, f))).collect();
        let expected = [("a", ints(vec![Some(2), None, Some(1)])), ("b", ints(vec![Some(7), Some(8), None]))];
        assert_eq!(found.len(), 2);
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!((found.0, found.1.as_ref()), (expected.0, expected.1.as_ref()));
        }
    }

    #[test]
    fn columns_that_a_stage_does_not_know_are_carried_along() {
        let text = |s: &str| Arc::new(StringArray::from(vec![s, s])) as ArrayRef;
        let quality = Arc::new(Int32Array::from(vec![7, 8])) as ArrayRef;
        let batch = RecordBatch::try_from_iter([
            ("id", text("a")),
            ("text", text("b")),
            ("source", text("c")),
            ("quality", quality),
        ])
        .unwrap();
        let rows = Documents::rows(&batch).unwrap();
        let mut extras: Vec<&Extra> = rows.iter().rev().map(|r| &r.extra).collect();
        let none = Extra::default();
        extras.push(&none);
        let fields = Extra::fields(extras.iter().copied());
        assert_eq!(fields.len(), 1);
        let column = Extra::column(&extras, &fields[0]);
        assert_eq!(column.as_ref(), &Int32Array::from(vec![Some(8), Some(7), None]) as &dyn Array);
    }
}
