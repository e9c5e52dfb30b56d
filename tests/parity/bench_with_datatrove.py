"""How much faster than datatrove one core filters, masks and makes signatures: both sides in one run, on the recorded documents.

    pip install datatrove==0.10.1 spacy==3.8.18 xxhash numpy regex nltk tldextract zstandard
    cargo build --release -p smelt-clean --example clean_rate -p smelt-dedup --example dedup_rate
    python tests/parity/bench_with_datatrove.py FOLDER_WITH_THE_FULL_SETS [FOLDER_WITH_THE_PROGRAMS]

Megabytes of text per second of CPU time. The two sides take turns; of each the best round counts. datatrove reads every n-th document only,
since it needs minutes for all.
"""

import json
import os
import pathlib
import subprocess
import sys
import time

import zstandard
from loguru import logger

logger.remove()
from datatrove.data import Document  # noqa: E402
from datatrove.pipeline.dedup import MinhashDedupSignature  # noqa: E402
from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter  # noqa: E402
from datatrove.pipeline.formatters import PIIFormatter  # noqa: E402

data = pathlib.Path(sys.argv[1])
programs = pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else "target/release/examples")
ROUNDS, EVERY = 3, 16

packed = (data / "filters.jsonl.zst").open("rb")
lines = zstandard.ZstdDecompressor().stream_reader(packed).read().decode().split("\n")
texts = [row["text"] for row in map(json.loads, filter(None, lines)) if not row["made"]]
# spaCy refuses texts of more than a million characters
sample = [text for text in texts[::EVERY] if len(text) < 1_000_000]
megabytes = sum(len(text.encode()) for text in sample) / 1e6
filters = [GopherRepetitionFilter(), GopherQualityFilter(), C4QualityFilter(filter_no_terminal_punct=False), FineWebQualityFilter()]
signatures = MinhashDedupSignature("/tmp/unused-signatures")


def keeps(rule, document):
    answer = rule.filter(document)
    return answer[0] if isinstance(answer, tuple) else answer


def chain(text):
    document = Document(text=text, id="x")
    return all(keeps(rule, document) for rule in filters)


def each(text):
    return [keeps(rule, Document(text=text, id="x")) for rule in filters]


def signature(text):
    shingles = signatures.get_shingles(text)
    return signatures.get_signature(shingles) if shingles.size else None


def peers():
    for what, work in (("chain", chain), ("filters", each), ("signatures", signature), ("pii", PIIFormatter().format)):
        start = time.process_time()
        for text in sample:
            work(text)
        yield what, megabytes / (time.process_time() - start)


def ours():
    for program in ("clean_rate", "dedup_rate"):
        environment = {**os.environ, "SMELT_PARITY_DATA": str(data)}
        said = subprocess.run([programs / program], check=True, capture_output=True, text=True, env=environment).stdout
        for line in said.splitlines():
            row = json.loads(line)
            yield row["what"], row["megabytes_per_second"]


chain(sample[0])  # loads the tables of words
best = {"smelt": {}, "datatrove": {}}
for _ in range(ROUNDS):
    for name, side in (("smelt", ours), ("datatrove", peers)):
        for what, rate in side():
            best[name][what] = max(rate, best[name].get(what, 0))
print(f"{len(texts)} documents; datatrove read {len(sample)} of them, {megabytes:.2f} MB")
print(f"{'MB per CPU second of one core':<32}{'smelt':>10}{'datatrove':>12}{'times':>8}")
for what, rate in best["smelt"].items():
    peer = best["datatrove"].get(what)
    print(f"{what:<32}{rate:>10.1f}" + (f"{peer:>12.2f}{rate / peer:>8.0f}" if peer else ""))
