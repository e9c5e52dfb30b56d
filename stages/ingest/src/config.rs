//! Which files are read, how, and how much of them.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use smelt_stage::Error;
use smelt_stage::files::{Found, expand};
use smelt_store::Remote;
use smelt_verify::Verifier;

use crate::chat::{Chat, Names, ROLES};
use crate::error::IngestError;
use crate::paths;
use crate::read::{self, Fields, Format, Reading};
use crate::remote::Remotes;
use crate::select::{self, Idle, Limits, Selection};

/// Which files are read, and how much of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Globs: `*` and `?` inside a name, `**` across folders, `{a,b}` for either. `~`, `${NAME}` and `${NAME:-default}`
    /// are filled in. `s3://bucket/…` finds objects, with the credentials that a store has; `https://…` is one file
    /// of a web server, without wildcards; `-` is standard input, for `smelt run --stdin`. Documents are named from
    /// `/./` on, or from the last folder before the first wildcard.
    pub paths: Vec<String>,
    /// What the records become.
    #[serde(default)]
    pub kind: RecordKind,
    /// What the files hold; if not given, their first bytes and the endings of their names decide.
    #[serde(default)]
    pub format: FileFormat,
    /// The field or column that holds a document's text; `a.b` is field `b` of the object `a`.
    #[serde(default = "text_field")]
    pub text_field: String,
    /// The field or column that identifies a record in its file; by default its number. No two records of a file may
    /// have the same.
    #[serde(default)]
    pub id_field: Option<String>,
    /// The other fields or columns of a document to keep in `metadata`; by default all.
    #[serde(default)]
    pub metadata_fields: Option<Vec<String>>,
    /// The names of the fields of chats, where they are not the usual ones.
    #[serde(default)]
    pub fields: Names,
    /// Who the speakers of chats are, where they are not called as usual: `{ customer: user }`. They become `system`,
    /// `user`, `assistant` or `tool`.
    #[serde(default)]
    pub roles: BTreeMap<String, String>,
    /// What judges the answers to prompts that do not say it themselves.
    #[serde(default = "number")]
    pub verifier: BTreeMap<String, Value>,
    /// What happens to records that cannot be read: broken JSON, a missing text, a repeated id.
    #[serde(default)]
    pub bad_records: OnBad,
    /// Largest share of all records that may be dropped because they cannot be read or are no chats, in [0, 1].
    #[serde(default)]
    pub max_bad_share: Option<f64>,
    /// What happens to documents that are not UTF-8.
    #[serde(default)]
    pub invalid_utf8: OnInvalid,
    /// Smallest document, in bytes.
    #[serde(default)]
    pub min_bytes: u64,
    /// Largest document, in bytes.
    #[serde(default)]
    pub max_bytes: Option<u64>,
    /// Largest share of a document's characters that are decimal digits, in [0, 1].
    #[serde(default)]
    pub max_digit_share: Option<f64>,
    /// Bytes of files to take from each glob; a hash of the names chooses the sample.
    #[serde(default)]
    pub per_glob: Option<u64>,
    /// Bytes of text to take in all.
    #[serde(default)]
    pub max_total_bytes: Option<u64>,
    /// Documents or chats to take in all.
    #[serde(default)]
    pub max_documents: Option<u64>,
}

fn number() -> BTreeMap<String, Value> {
    BTreeMap::from([("family".to_owned(), "number".into())])
}

fn text_field() -> String {
    "text".to_owned()
}

/// What records become.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RecordKind {
    /// Texts.
    #[default]
    Documents,
    /// Chats to learn from: `messages`; ShareGPT's `conversations`; `prompt` and `completion`; `question` and `answer`;
    /// `instruction`, `input` and `output`.
    Conversations,
    /// Questions with the answer that a verifier expects: `prompt` or `question`, and `answer`.
    Prompts,
    /// Pairs of answers: `prompt`, `chosen` and `rejected`, each a text or a list of messages; `chosen` and `rejected`
    /// may be whole chats.
    Preferences,
}

/// How files are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FileFormat {
    /// `.jsonl` and `.ndjson` are JSON lines, `.csv` and `.tsv` tables, `.parquet` is Parquet, `.wet` and `.warc` are
    /// WARC, `.html` and `.htm` are pages; of any other name a file whose lines are JSON objects is JSON lines, a JSON
    /// list of objects is records, and anything else is text.
    #[default]
    Auto,
    /// One document per file.
    Text,
    /// One JSON object per line.
    Jsonl,
    /// A JSON list of objects.
    Json,
    /// One record per row, values between commas; the first row names them.
    Csv,
    /// One record per row.
    Parquet,
    /// The pages of a crawl (WARC), or their texts (WET). `url` and `time` are where and when the crawler found them.
    Warc,
    /// One page per file: its main text, without menus and what else surrounds it. `url` and `time` are what the page
    /// says itself; `metadata` has `title`, `author`, `license`, `declared_language` and `charset` where they are
    /// known.
    Html,
}

/// What happens to records that cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnBad {
    /// The job stops at the first one and says where it stands.
    #[default]
    Stop,
    /// They are dropped, each with its rule and place.
    Drop,
}

/// What happens to documents that are not UTF-8.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnInvalid {
    /// They are bad records: `bad_records` decides.
    #[default]
    Error,
    /// They are dropped.
    Drop,
    /// Bad bytes become U+FFFD.
    Replace,
}

impl Config {
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.paths.is_empty() {
            return Err(
                Error::config("/paths", "no paths are given").hint("name files or globs, such as `docs/**/*.md`")
            );
        }
        for (field, share) in [("max_digit_share", self.max_digit_share), ("max_bad_share", self.max_bad_share)] {
            if let Some(share) = share.filter(|share| !(0.0..=1.0).contains(share)) {
                return Err(Error::config(&format!("/{field}"), format!("{share} is no share, expected 0 to 1")));
            }
        }
        if self.max_bad_share.is_some() && self.bad_records == OnBad::Stop && self.kind == RecordKind::Documents {
            return Err(Error::config(
                "/max_bad_share",
                "a share of bad records has no use when the first one stops the job",
            )
            .hint("set `bad_records: drop`"));
        }
        for (name, role) in &self.roles {
            if !ROLES.contains(&role.as_str()) {
                let what = format!("`{name}` is said to be `{role}`, expected one of {}", ROLES.join(", "));
                return Err(Error::config(&format!("/roles/{name}"), what));
            }
        }
        self.verifier()?;
        if self.kind != RecordKind::Documents {
            let limits = [
                ("min_bytes", self.min_bytes > 0),
                ("max_bytes", self.max_bytes.is_some()),
                ("max_digit_share", self.max_digit_share.is_some()),
                ("metadata_fields", self.metadata_fields.is_some()),
            ];
            if let Some((field, _)) = limits.iter().find(|(_, is_set)| *is_set) {
                let what = format!("`{field}` is for documents, and this job reads {}", self.kind.name());
                return Err(Error::config(&format!("/{field}"), what));
            }
            if let FileFormat::Text | FileFormat::Html | FileFormat::Warc = self.format {
                let what = format!("texts and pages hold no {}", self.kind.name());
                return Err(Error::config("/format", what).hint("chats are read from JSON, CSV and Parquet"));
            }
        }
        Ok(())
    }

    /// What judges the answers of prompts.
    pub(crate) fn verifier(&self) -> Result<Verifier, Error> {
        let text = serde_json::to_string(&self.verifier).map_err(|e| Error::config("/verifier", e.to_string()))?;
        text.parse::<Verifier>().map_err(|e| Error::in_config("/verifier", &e))
    }

    pub(crate) fn chat<'a>(&'a self, verifier: &'a Verifier) -> Chat<'a> {
        Chat { names: &self.fields, roles: &self.roles, verifier }
    }

    pub(crate) fn reading(&self) -> Reading<'_> {
        Reading {
            format: match self.format {
                FileFormat::Auto => None,
                FileFormat::Text => Some(Format::Text),
                FileFormat::Jsonl => Some(Format::Lines),
                FileFormat::Json => Some(Format::List),
                FileFormat::Csv => Some(Format::Csv(b',')),
                FileFormat::Parquet => Some(Format::Parquet),
                FileFormat::Warc => Some(Format::Warc),
                FileFormat::Html => Some(Format::Html),
            },
            fields: Fields {
                text: &self.text_field,
                id: self.id_field.as_deref(),
                metadata: self.metadata_fields.as_deref(),
            },
            replace: self.invalid_utf8 == OnInvalid::Replace,
            only_records: self.kind != RecordKind::Documents,
        }
    }

    /// Whether a file is one document of the same size, so that limits apply without reading it all.
    pub(crate) fn is_plain(&self, file: &Found, remotes: &Remotes) -> bool {
        let is_local = remotes.version(file).is_none();
        self.kind == RecordKind::Documents && is_local && read::is_plain(&file.path, &file.name, self.reading())
    }

    /// The files to read, sorted by name.
    pub(crate) fn select(&self) -> Result<Selection, IngestError> {
        let (mut globs, mut idle, mut dead) = (Vec::new(), Vec::new(), Vec::new());
        let mut remotes = Remotes::default();
        for path in &self.paths {
            let pattern = expand(path, |name| std::env::var(name).ok())?;
            let matches = match Remote::is_address(&pattern) {
                true => remotes.matches(&pattern)?,
                false => paths::matches(&pattern)?,
            };
            dead.extend(matches.dead);
            match matches.files.is_empty() {
                true => idle.push(Idle { glob: path.clone(), hint: matches.hint }),
                false => globs.push((path.clone(), matches.files)),
            }
        }
        let limits = Limits {
            min_bytes: self.min_bytes,
            max_bytes: self.max_bytes,
            per_glob: self.per_glob,
            max_total_bytes: self.max_total_bytes,
            max_documents: self.max_documents,
        };
        let selection = select::select(globs, &limits, |file| self.is_plain(file, &remotes))?;
        Ok(Selection { idle, dead, remotes, ..selection })
    }

    /// Why a document is left out although it was read: rule and value.
    pub(crate) fn fault(&self, text: &str) -> Option<(&'static str, f64)> {
        let bytes = text.len() as u64;
        if bytes < self.min_bytes {
            return Some(("too_small", bytes as f64));
        }
        if self.max_bytes.is_some_and(|max| bytes > max) {
            return Some(("too_large", bytes as f64));
        }
        let limit = self.max_digit_share?;
        let (digits, all) = text.chars().fold((0u64, 0u64), |(d, n), c| (d + u64::from(c.is_ascii_digit()), n + 1));
        let share = digits as f64 / all.max(1) as f64;
        (share > limit).then_some(("digits", share))
    }
}

impl RecordKind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Documents => "documents",
            Self::Conversations => "conversations",
            Self::Prompts => "prompts",
            Self::Preferences => "preferences",
        }
    }
}
