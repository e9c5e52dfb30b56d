"""What ingest, clean, dedup and tokenize take for a large corpus, end to end, beside what the disk gives.

    cargo build --release
    python tests/parity/bench_corpus.py FOLDER [MEGABYTES [RECORDED]]

Writes a corpus into FOLDER (JSON lines, 1,000 MB unless said otherwise, files of 50 MB), runs a pipeline over it, and
prints for each job its seconds, its rate over the bytes of the corpus and its peak memory. Documents are drawn from a
seed: 5 to 60 sentences of the documents of RECORDED (`filters.jsonl` or `filters.jsonl.zst`; the small set beside this
file if it is not given), in the language of the first one. One of ten is an earlier document with a few sentences
changed. The rate of the disk is what `cp` of the corpus and a `sync` take in the same run; a pipeline reads the
corpus twice (its hash and its documents) and each stage writes what it keeps.
"""

import json
import os
import pathlib
import random
import re
import subprocess
import sys
import time

FILE_BYTES = 50_000_000
folder = pathlib.Path(sys.argv[1])
megabytes = int(sys.argv[2]) if len(sys.argv) > 2 else 1000
recorded = pathlib.Path(sys.argv[3]) if len(sys.argv) > 3 else pathlib.Path(__file__).parent / "data/filters.jsonl"
programs = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", "target")) / "release"

PIPELINE = """\
name: corpus
store: artifacts
jobs:
  raw: { stage: ingest, config: { paths: ["corpus/*.jsonl"] } }
  clean: { stage: clean, input: raw, config: { preset: fineweb } }
  unique: { stage: dedup, input: clean, config: { transitive: true, exact: false, by_script: false, keeps: published } }
  tokens: { stage: tokenize, input: unique, config: { vocabulary: 32768 } }
"""


def sentences():
    """The sentences of the recorded documents, by language."""
    if recorded.suffix == ".zst":
        text = subprocess.run(["zstd", "-dc", recorded], capture_output=True, check=True).stdout.decode()
    else:
        text = recorded.read_text()
    found = {}
    for line in filter(None, text.split("\n")):
        document = json.loads(line)
        if document.get("made"):
            continue
        pieces = re.findall(r"[^.!?。！？\n]+[.!?。！？]+", document["text"])
        found.setdefault(document.get("lang", "en"), []).extend(p.strip() for p in pieces if 20 < len(p) < 400)
    return {language: pieces for language, pieces in found.items() if len(pieces) >= 200}


def write_corpus(into):
    draw = random.Random(1)
    by_language = sentences()
    languages = list(by_language)
    weights = [sum(map(len, by_language[language])) for language in languages]
    into.mkdir(parents=True)
    written, number, earlier = 0, 0, []
    while written < megabytes * 1_000_000:
        size = 0
        with open(into / f"{number:04}.jsonl", "w", encoding="utf-8") as out:
            while size < FILE_BYTES:
                if earlier and draw.random() < 0.1:
                    text = list(draw.choice(earlier))
                    for _ in range(draw.randint(0, 3)):
                        text[draw.randrange(len(text))] = draw.choice(text)
                else:
                    pieces = by_language[draw.choices(languages, weights)[0]]
                    text = draw.choices(pieces, k=draw.randint(5, 60))
                    if draw.random() < 0.05:
                        earlier.append(text)
                breaks = [draw.choices("\n ", [1, 3])[0] for _ in text]
                line = "".join(a + b for a, b in zip(text, breaks)).strip()
                size += out.write(json.dumps({"id": f"{number}-{size}", "text": line}, ensure_ascii=False) + "\n")
        written += (into / f"{number:04}.jsonl").stat().st_size
        number += 1


def timed(*command, **options):
    before = time.time()
    subprocess.run(command, check=True, **options)
    return time.time() - before


corpus = folder / "corpus"
if not corpus.exists():
    write_corpus(corpus)
size = sum(file.stat().st_size for file in corpus.iterdir()) / 1e6
subprocess.run(["rm", "-rf", folder / "copy", folder / "artifacts"], check=True)
copied = timed("sh", "-c", "cp -r corpus copy && sync copy/*", cwd=folder)
subprocess.run(["rm", "-rf", folder / "copy"], check=True)
print(f"corpus: {size:.0f} MB in {len(list(corpus.iterdir()))} files; the disk copies {size / copied:.0f} MB/s")

(folder / "corpus.yaml").write_text(PIPELINE)
smelt = (programs / "smelt").resolve()
whole = timed(smelt, "run", "corpus.yaml", cwd=folder, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
query = "SELECT job, seconds, peak_memory_bytes, bytes FROM smelt.jobs"
answer = subprocess.run([smelt, "sql", "--format", "json", query], cwd=folder, capture_output=True, check=True)
for row in json.loads(answer.stdout):
    rate, memory = size / row["seconds"], row["peak_memory_bytes"] / 1e6
    print(f"{row['job']:8} {row['seconds']:7.1f} s  {rate:6.1f} MB/s  peak {memory:6.0f} MB  wrote {row['bytes'] / 1e6:6.0f} MB")
print(f"in all   {whole:7.1f} s  {size / whole:6.1f} MB/s, {whole / copied:.0f} times what the disk takes to copy it")
