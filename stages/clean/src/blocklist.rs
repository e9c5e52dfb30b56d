//! Documents whose URL is on a blocklist: domains, single URLs, words.
//!
//! The rules are those of FineWeb's first step (Penedo et al. 2024, section 3.1) as datatrove has them; the lists are
//! the user's, for example those of the University of Toulouse (UT1). A document without a URL breaks none.

use std::collections::BTreeSet;
use std::path::PathBuf;

use aho_corasick::AhoCorasick;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smelt_stage::files::{Found, Memory, expand, hash};
use smelt_stage::{Error, Source};

use crate::Dropped;

/// What is blocked. Each of the lists may be empty.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Blocklist {
    /// Domains, with all that are below them.
    pub domains: Vec<String>,
    /// Text files with a domain or a URL on each line, such as the files `domains` and `urls` of UT1; `#` begins a
    /// comment. They are part of the job's fingerprint. `~` and `${NAME}` are filled in.
    pub files: Vec<String>,
    /// Single URLs; `https://` and `www.` may be left out.
    pub urls: Vec<String>,
    /// Words of which one is enough; words of a URL are runs of letters and digits.
    pub words: Vec<String>,
    /// Words of which `soft_limit` different ones are enough.
    pub soft_words: Vec<String>,
    /// See `soft_words`.
    #[schemars(range(min = 1))]
    pub soft_limit: Limit,
    /// Letters and digits that may stand anywhere in the URL, whatever marks are between them.
    pub subwords: Vec<String>,
}

/// How many soft words are too many; 2, as in FineWeb.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Limit(pub usize);

impl Default for Limit {
    fn default() -> Self {
        Limit(2)
    }
}

impl Blocklist {
    pub fn is_empty(&self) -> bool {
        *self == Blocklist { soft_limit: self.soft_limit, ..Blocklist::default() }
    }

    /// Checks the fields, and says what the files hold.
    pub(crate) fn resolve(&self) -> Result<Vec<Source>, Error> {
        if self.soft_limit.0 == 0 {
            return Err(Error::config("/blocklist/soft_limit", "0 soft words are in every URL, expected 1 or more"));
        }
        for (field, words) in [("words", &self.words), ("soft_words", &self.soft_words), ("subwords", &self.subwords)] {
            for (i, word) in words.iter().enumerate() {
                if word.is_empty() || !word.chars().all(char::is_alphanumeric) {
                    let what = format!("`{word}` is no word of a URL, expected letters and digits");
                    return Err(Error::config(&format!("/blocklist/{field}/{i}"), what));
                }
            }
        }
        let found = self.found()?;
        Ok(Memory::of_user().sources(&found)?)
    }

    fn found(&self) -> Result<Vec<Found>, Error> {
        let file = |(i, path): (usize, &String)| {
            let expanded = expand(path, |name| std::env::var(name).ok())?;
            let meta = std::fs::metadata(&expanded).ok().filter(std::fs::Metadata::is_file).ok_or_else(|| {
                let what = format!("there is no file `{expanded}`");
                Error::config(&format!("/blocklist/files/{i}"), what).hint("relative paths begin where `smelt` runs")
            })?;
            Ok(Found { name: path.clone(), path: PathBuf::from(expanded), bytes: meta.len() })
        };
        self.files.iter().enumerate().map(file).collect()
    }

    /// Reads the files, which must be those that the job was planned with.
    pub(crate) fn read(&self, planned: &[Source]) -> Result<Lists, Error> {
        let mut text = String::new();
        for (i, file) in self.found()?.iter().enumerate() {
            if Some(&hash(file)?) != planned.get(i) {
                let what = format!("`{}` is not what it was when the job was planned", file.name);
                return Err(Error::data(what).hint("run the pipeline again"));
            }
            let bytes =
                std::fs::read(&file.path).map_err(|e| Error::data(format!("cannot read `{}`: {e}", file.name)))?;
            for (number, line) in bytes.split(|&b| b == b'\n').enumerate() {
                let line = std::str::from_utf8(line).map_err(|_| {
                    Error::data(format!("`{}` line {}: not UTF-8", file.name, number + 1))
                        .hint("convert the file: `iconv -f latin1 -t utf-8`")
                })?;
                add(&mut text, line.split('#').next().unwrap_or_default());
            }
        }
        self.domains.iter().chain(&self.urls).for_each(|entry| add(&mut text, entry));
        let lower = |words: &[String]| words.iter().map(|word| word.to_lowercase()).collect::<BTreeSet<_>>();
        let subwords: Vec<String> = lower(&self.subwords).into_iter().collect();
        let subwords = match subwords.is_empty() {
            true => None,
            false => {
                Some(AhoCorasick::new(&subwords).map_err(|e| Error::config("/blocklist/subwords", e.to_string()))?)
            }
        };
        Ok(Lists {
            entries: Entries::new(text)?,
            words: lower(&self.words),
            soft_words: lower(&self.soft_words),
            soft_limit: self.soft_limit.0,
            subwords,
        })
    }
}

/// An entry as it is compared, and a line feed.
fn add(text: &mut String, entry: &str) {
    let start = text.len();
    text.push_str(plain(&entry.trim().to_lowercase()));
    if text.len() > start {
        text.push('\n');
    }
}

/// A URL without its scheme, `www.`, and a slash at the end.
fn plain(address: &str) -> &str {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    rest.strip_prefix("www.").unwrap_or(rest).trim_end_matches('/')
}

/// The lists, ready to be searched.
#[derive(Debug)]
pub(crate) struct Lists {
    entries: Entries,
    words: BTreeSet<String>,
    soft_words: BTreeSet<String>,
    soft_limit: usize,
    subwords: Option<AhoCorasick>,
}

impl Lists {
    /// Why a document of this URL is dropped.
    pub(crate) fn judge(&self, url: &str) -> Result<(), Dropped> {
        let dropped = |rule: &str, value, detail: &str| {
            Err(Dropped { rule: rule.into(), value, detail: Some(detail.to_owned()) })
        };
        let lower = url.to_lowercase();
        let address = plain(&lower);
        let place = address.split(['?', '#']).next().unwrap_or_default().trim_end_matches('/');
        let host = place.split('/').next().unwrap_or_default();
        let host = host.rsplit('@').next().unwrap_or_default().split(':').next().unwrap_or_default();
        let mut domain = Some(host);
        while let Some(name) = domain.filter(|name| !name.is_empty()) {
            if self.entries.has(name) {
                return dropped("url_domain", None, name);
            }
            domain = name.split_once('.').map(|(_, above)| above);
        }
        if let Some(page) = [address, place].into_iter().find(|page| page.contains('/') && self.entries.has(page)) {
            return dropped("url", None, page);
        }
        let words: BTreeSet<&str> = address.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).collect();
        if let Some(word) = words.iter().find(|word| self.words.contains(**word)) {
            return dropped("url_word", None, word);
        }
        let soft: Vec<&str> = words.iter().copied().filter(|word| self.soft_words.contains(*word)).collect();
        if soft.len() >= self.soft_limit {
            return dropped("url_soft_words", Some(soft.len() as f64), &soft.join(", "));
        }
        if let Some(subwords) = &self.subwords {
            let letters: String = address.chars().filter(|c| c.is_alphanumeric()).collect();
            if let Some(found) = subwords.find(&letters) {
                return dropped("url_subword", None, &letters[found.range()]);
            }
        }
        Ok(())
    }
}

/// Lines of a text, found by their content: four bytes each beside the text itself, since lists have millions.
#[derive(Debug)]
struct Entries {
    text: String,
    /// Where each line begins, in the order of their contents.
    starts: Vec<u32>,
}

impl Entries {
    fn new(text: String) -> Result<Self, Error> {
        if u32::try_from(text.len()).is_err() {
            let what = format!("the lists have {} bytes, expected at most 4 GiB", text.len());
            return Err(Error::data(what));
        }
        let mut starts = Vec::new();
        let mut at = 0;
        for line in text.split_inclusive('\n') {
            starts.push(at as u32);
            at += line.len();
        }
        let mut entries = Self { text, starts: Vec::new() };
        starts.sort_unstable_by(|&a, &b| entries.line(a).cmp(entries.line(b)));
        entries.starts = starts;
        Ok(entries)
    }

    fn line(&self, start: u32) -> &str {
        let rest = &self.text[start as usize..];
        &rest[..memchr::memchr(b'\n', rest.as_bytes()).unwrap_or(rest.len())]
    }

    fn has(&self, entry: &str) -> bool {
        self.starts.binary_search_by(|&start| self.line(start).cmp(entry)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(list: &Blocklist, url: &str) -> Option<(String, String)> {
        let dropped = list.read(&list.resolve().unwrap()).unwrap().judge(url).err()?;
        Some((dropped.rule, dropped.detail.unwrap()))
    }

    fn of(rule: &str, detail: &str) -> Option<(String, String)> {
        Some((rule.into(), detail.into()))
    }

    #[test]
    fn domains_cover_what_is_below_them_and_nothing_beside() {
        let list = Blocklist { domains: vec!["Bad.example".into(), "co.uk.example".into()], ..Blocklist::default() };
        for url in
            ["https://bad.example", "http://www.BAD.example:80/x", "https://u:p@a.b.bad.example/?q", "bad.example/"]
        {
            assert_eq!(rule(&list, url), of("url_domain", "bad.example"), "{url}");
        }
        for url in ["https://notbad.example", "https://bad.example.org", "https://example", "https://x/bad.example", ""]
        {
            assert_eq!(rule(&list, url), None, "{url}");
        }
    }

    #[test]
    fn files_hold_domains_and_pages() {
        let folder = std::env::temp_dir().join(format!("smelt-blocklist-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("list");
        std::fs::write(&path, "# a list\nbad.example\r\n\nhttps://www.fine.example/bad/page/ # one page\n").unwrap();
        let list = Blocklist { files: vec![path.display().to_string()], ..Blocklist::default() };
        assert_eq!(rule(&list, "https://x.bad.example/"), of("url_domain", "bad.example"));
        assert_eq!(rule(&list, "http://fine.example/bad/page?x=1#y"), of("url", "fine.example/bad/page"));
        assert_eq!(rule(&list, "http://fine.example/bad"), None);
        let planned = list.resolve().unwrap();
        std::fs::write(&path, "other.example").unwrap();
        let changed = list.read(&planned).unwrap_err().to_string();
        assert_eq!(changed, format!("`{}` is not what it was when the job was planned", path.display()));
        std::fs::write(&path, b"caf\xe9.example").unwrap();
        let bad = list.read(&list.resolve().unwrap()).unwrap_err().to_string();
        assert_eq!(bad, format!("`{}` line 1: not UTF-8", path.display()));
        std::fs::remove_dir_all(&folder).unwrap();
        let missing = list.resolve().unwrap_err().to_string();
        assert!(missing.ends_with(&format!("there is no file `{}`", path.display())), "{missing}");
    }

    #[test]
    fn words_count_whole_and_subwords_anywhere() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let list = Blocklist {
            words: words(&["casino"]),
            soft_words: words(&["free", "win", "bonus"]),
            subwords: words(&["pillz"]),
            ..Blocklist::default()
        };
        assert_eq!(rule(&list, "https://a.example/Casino-night"), of("url_word", "casino"));
        assert_eq!(rule(&list, "https://a.example/casinos"), None);
        assert_eq!(rule(&list, "https://a.example/free"), None);
        assert_eq!(rule(&list, "https://win.example/free/free"), of("url_soft_words", "free, win"));
        assert_eq!(rule(&list, "https://a.example/cheap-pi_llz4u"), of("url_subword", "pillz"));
        assert!(!list.is_empty() && Blocklist::default().is_empty());
    }

    #[test]
    fn what_is_no_word_is_refused() {
        let list = Blocklist { words: vec!["two words".into()], ..Blocklist::default() };
        let told = list.resolve().unwrap_err().to_string();
        assert!(told.contains("`two words` is no word of a URL, expected letters and digits"), "{told}");
        let none = Blocklist { soft_limit: Limit(0), ..Blocklist::default() };
        assert!(none.resolve().unwrap_err().to_string().contains("expected 1 or more"));
    }
}
