"""Writes the tables of `smelt_words::english` from those of spaCy's blank English tokenizer.

    python tests/parity/make_word_tables.py spacy_en.json

`spacy_en.json` holds the expressions and special cases of the tokenizer (`oracle_words.py` beside the recorded decisions says how it is
made). Only the classes of characters differ between them and what the Rust code says by itself, so each class is found by asking the
expression about every code point. What the code takes for granted of the expressions is asserted here. The same input gives the same bytes.
"""

import json
import pathlib
import re
import sys
import unicodedata

tables = json.load(open(sys.argv[1], encoding="utf-8"))
out = pathlib.Path(__file__).parent.parent.parent / "stages/words/data"
prefix, suffix, infix, url = (re.compile(tables[name]) for name in ("prefix", "suffix", "infix", "url_match"))
SOURCE = f"From spaCy {tables['spacy']} (Explosion; MIT licence, see LICENSE.spacy), by tests/parity/make_word_tables.py."


def length(match):
    return match.end() - match.start() if match else 0


def cuts(text, at):
    """Whether an infix of one character stands at `at`."""
    return any((m.start(), m.end()) == (at, at + 1) for m in infix.finditer(text))


def ends(text):
    """Whether the last character alone is a suffix."""
    return length(suffix.search(text)) == 1


# one character each, in the order of the bits in `Class`
CLASSES = [
    ("prefix", lambda c: length(prefix.search(c)) == 1),
    ("suffix", lambda c: ends(c)),
    ("infix", lambda c: cuts("a" + c, 1) and cuts(c, 0)),
    ("letter", lambda c: cuts(c + ",a", 1)),
    ("upper", lambda c: ends(c + "A.")),
    ("before_last_dot", lambda c: c != "." and ends(c + ".")),
    ("before_dot", lambda c: cuts(c + ".A", 1)),
    ("after_dot", lambda c: cuts("a." + c, 1)),
    ("top_domain", lambda c: url.match("a." + c + c) is not None),
    ("punctuation", lambda c: unicodedata.category(c)[0] == "P"),
    ("sentence_end", lambda c: c in tables["sentence_ends"]),
]
points = [chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000 and not chr(i).isspace()]
masks = {ord(c): sum(1 << i for i, (_, holds) in enumerate(CLASSES) if holds(c)) for c in points}

# what english.rs says by itself
has = {name: {chr(p) for p, mask in masks.items() if mask >> i & 1} for i, (name, _) in enumerate(CLASSES)}
digits = set("0123456789")
for c in points:
    is_letter = c in has["letter"]
    assert cuts("a," + c, 1) == is_letter and cuts("a-" + c, 1) == is_letter and cuts("a:" + c, 1) == is_letter, hex(ord(c))
    assert cuts(c + "-a", 1) == (is_letter or c in digits) or c in has["infix"], hex(ord(c))
    assert cuts(c + ":a", 1) == (is_letter or c in digits) or c in has["infix"], hex(ord(c))
    assert ends("A" + c + ".") == (c in has["upper"] or c in has["before_last_dot"]) or c == ".", hex(ord(c))
assert [length(prefix.search(x)) for x in ("+1", "+a", "..", "...a", ".", "US$", "C$", "A$", "U$", "……")] == [0, 1, 2, 3, 0, 3, 2, 2, 0, 1]
assert [length(suffix.search(x)) for x in ("1+", "a+", "1..", "a……", "x's", "x’S", "°C.", "C.", "1US$", "a$")] == [1, 0, 2, 2, 2, 2, 1, 0, 3, 0]
assert digits <= has["before_last_dot"] and not digits & (has["letter"] | has["before_dot"])
for cut in ("-", "–", "—", "--", "---", "——", "~", ":", "<", ">", "=", "/"):
    for before, after, is_cut in (("a", "b", True), ("1", "b", True), ("a", "1", False), ("%", "b", False)):
        found = [m.group() for m in infix.finditer(before + cut + after)]
        first = "-" if before == "1" and cut.startswith("--") else cut  # a sign between a digit and a dash comes first
        assert found == ([first] if is_cut else []), (before, cut, after)
for sign in "+-*^":
    assert [cuts(x, 1) for x in (f"1{sign}2", f"1{sign}-", f"a{sign}2")] == [True, True, False]

units = re.search(r"\(\?<=\[0-9\]\)\(\?:(km\|[^)]*)\)\$", tables["suffix"]).group(1).split("|")
currencies = re.search(r"\(\?<=\[0-9\]\)\(\?:(\\\$\|[^)]*)\)\$", tables["suffix"]).group(1).replace("\\", "").split("|")
after_digits = sorted(set(units + currencies))
assert all(length(suffix.search("1" + unit)) == len(unit) for unit in after_digits)

assert all(len(c) == 1 for c in tables["sentence_ends"])
special = {key: pieces for key, pieces in tables["special"].items() if not key.isspace()}
assert all("".join(pieces) == key and not re.search(r"\s", key) for key, pieces in special.items())

rows = []
for point in sorted(masks):
    if rows and rows[-1][1] == point - 1 and rows[-1][2] == masks[point]:
        rows[-1][1] = point
    elif masks[point]:
        rows.append([point, point, masks[point]])
names = " ".join(f"{1 << i:x}={name}" for i, (name, _) in enumerate(CLASSES))
lines = [f"# {SOURCE}", f"# first last classes, hexadecimal; {names}"] + [f"{a:x} {b:x} {mask:x}" for a, b, mask in rows]
(out / "english_classes.txt").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
lines = [SOURCE, "Units and currencies that come off a number; then a special case a line, its pieces between blanks."]
lines += [" ".join(after_digits)] + [" ".join(special[key]) for key in sorted(special)]
(out / "english_special.txt").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
print(len(rows), "ranges,", len(after_digits), "units,", len(special), "special cases")
