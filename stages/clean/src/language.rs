//! Which language a text is in, without any download: trigrams, corrected by a vote of the scripts.
//!
//! whatlang's trigrams are right on running text and wrong on manuals that mix Chinese or Japanese with much English:
//! it takes the script of most characters, and one Han character says about as much as four Latin letters. So the
//! scripts vote first, weighted by that, and only texts that no such script wins go to the trigrams.

use whatlang::Lang;

/// The weight of a Han, Kana or Hangul character; a letter of an alphabet has 1.
const WEIGHT: usize = 4;

/// A language as its shortest ISO 639 code, and how sure that is, in [0, 1].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Language {
    pub code: &'static str,
    pub confidence: f64,
}

/// The language of `text`; `None` for a text without letters of a known script.
pub fn identify(text: &str) -> Option<Language> {
    let (mut kana, mut han, mut hangul, mut others) = (0, 0, 0, 0);
    for c in text.chars() {
        match c {
            'a'..='z' | 'A'..='Z' => others += 1,
            '\u{3041}'..='\u{30ff}' | '\u{31f0}'..='\u{31ff}' => kana += 1,
            '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' => han += 1,
            '\u{20000}'..='\u{323af}' => han += 1,
            '\u{1100}'..='\u{11ff}' | '\u{3131}'..='\u{318e}' | '\u{ac00}'..='\u{d7a3}' => hangul += 1,
            c if !c.is_ascii() && c.is_alphabetic() => others += 1,
            _ => {}
        }
    }
    let east = (kana + han + hangul) * WEIGHT;
    if east > others {
        // Japanese mixes Han with at least a tenth of Kana; Korean texts may quote Han, not the other way round.
        let code = if kana * 10 >= kana + han && kana >= hangul {
            "ja"
        } else if hangul > han {
            "ko"
        } else {
            "zh"
        };
        return Some(Language { code, confidence: east as f64 / (east + others) as f64 });
    }
    if others == 0 {
        return None;
    }
    let found = whatlang::detect(text)?;
    Some(Language { code: code(found.lang()), confidence: found.confidence() })
}

/// ISO 639-1 where it has a code, else ISO 639-3.
fn code(lang: Lang) -> &'static str {
    let three = lang.code();
    SHORT.iter().find(|(long, _)| *long == three).map_or(three, |(_, short)| short)
}

/// Every code that [`identify`] can give, sorted.
pub fn codes() -> Vec<&'static str> {
    let mut codes: Vec<&str> = Lang::all().iter().map(|&lang| code(lang)).collect();
    codes.sort_unstable();
    codes.dedup();
    codes
}

#[rustfmt::skip]
const SHORT: [(&str, &str); 70] = [
    ("afr", "af"), ("aka", "ak"), ("amh", "am"), ("ara", "ar"), ("aze", "az"), ("bel", "be"), ("ben", "bn"),
    ("bul", "bg"), ("cat", "ca"), ("ces", "cs"), ("cmn", "zh"), ("cym", "cy"), ("dan", "da"), ("deu", "de"),
    ("ell", "el"), ("eng", "en"), ("epo", "eo"), ("est", "et"), ("fin", "fi"), ("fra", "fr"), ("guj", "gu"),
    ("heb", "he"), ("hin", "hi"), ("hrv", "hr"), ("hun", "hu"), ("hye", "hy"), ("ind", "id"), ("ita", "it"),
    ("jav", "jv"), ("jpn", "ja"), ("kan", "kn"), ("kat", "ka"), ("khm", "km"), ("kor", "ko"), ("lat", "la"),
    ("lav", "lv"), ("lit", "lt"), ("mal", "ml"), ("mar", "mr"), ("mkd", "mk"), ("mya", "my"), ("nep", "ne"),
    ("nld", "nl"), ("nob", "nb"), ("ori", "or"), ("pan", "pa"), ("pes", "fa"), ("pol", "pl"), ("por", "pt"),
    ("ron", "ro"), ("rus", "ru"), ("sin", "si"), ("slk", "sk"), ("slv", "sl"), ("sna", "sn"), ("spa", "es"),
    ("srp", "sr"), ("swe", "sv"), ("tam", "ta"), ("tel", "te"), ("tgl", "tl"), ("tha", "th"), ("tuk", "tk"),
    ("tur", "tr"), ("ukr", "uk"), ("urd", "ur"), ("uzb", "uz"), ("vie", "vi"), ("yid", "yi"),
    ("zul", "zu"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_text_is_told_apart() {
        let code = |text| identify(text).unwrap().code;
        assert_eq!(code("The compiler checks every borrow before the program is allowed to run."), "en");
        assert_eq!(code("Der Übersetzer prüft jede Ausleihe, bevor das Programm laufen darf."), "de");
        assert_eq!(
            code(
                "Компилятор проверяет каждое \
             заимствование до запуска программы."
            ),
            "ru"
        );
        assert_eq!(code("编译器在程序运行之前检查每一次借用。"), "zh");
        assert_eq!(
            code(
                "コンパイラはプログラムを実行する前に、\
             すべての借用を検査します。"
            ),
            "ja"
        );
        assert_eq!(code("컴파일러는 프로그램이 실행되기 전에 모든 대여를 검사한다."), "ko");
    }

    #[test]
    fn much_english_does_not_make_a_japanese_manual_english() {
        let manual = "rsync の --delete オプションは、送信側に存在しない\
                      ファイルを受信側から削除します。\
                      例: rsync -av --delete source/ destination/ を実行する前に \
                      --dry-run で確認してください。";
        assert_eq!(identify(manual).unwrap().code, "ja");
    }

    #[test]
    fn a_text_without_letters_has_no_language() {
        assert_eq!(identify("123 + 456 = 579 …"), None);
        assert_eq!(identify(""), None);
    }

    #[test]
    fn every_language_has_a_short_code() {
        assert_eq!(Lang::all().len(), codes().len());
        assert!(codes().iter().all(|code| code.len() == 2), "{:?}", codes());
    }
}
