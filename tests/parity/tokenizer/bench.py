"""Tokenizer speed beside the Python packages: training of a vocabulary, and encoding with it.

usage: bench.py --programs TARGET/release/examples --train TEXTS --encode TEXTS [--pattern gpt2] [--vocabulary 32768]

Files of texts have NUL between the texts. Both vocabularies must be equal, merges included, and so must the ids of all
encoders; the script fails where they are not. Encoding is measured on one thread, per second of its own time; training
on all cores, with the memory of the whole process. Needs: pip install tokenizers tiktoken
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

GPT2 = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
CL100K = r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
DEEPSEEK_V3 = [
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
]
# tiktoken knows one expression alone, so DeepSeek-V3's three are not compared with it
ONE_EXPRESSION = {"gpt2": GPT2, "cl100k": CL100K}


def texts_of(path):
    return Path(path).read_bytes().decode().split("\0")


def report(what, **figures):
    print(json.dumps({"what": what, **figures}, ensure_ascii=False), flush=True)


def program(command, **environment):
    """Runs a program; returns its JSON lines, and seconds and memory of its process."""
    start = time.time()
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, **environment}) as process:
        out = process.stdout.read().decode()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = status
    if status:
        sys.exit(f"{command[0]} failed")
    figures = {"seconds": round(time.time() - start, 2), "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2), "megabytes": usage.ru_maxrss // 1024}
    return [json.loads(line) for line in out.splitlines()], figures


def train_by_library(path, vocabulary, pattern, out):
    """Runs in a process of its own."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    if pattern == "gpt2":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    else:
        parts = DEEPSEEK_V3 if pattern == "deepseek_v3" else [ONE_EXPRESSION[pattern]]
        splits = [pre_tokenizers.Split(Regex(part), "isolated") for part in parts]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, min_frequency=2, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts_of(path), trainer)
    tokenizer.save(out)


def characters():
    """Bytes by the characters that stand for them."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{chr(b): b for b in printable}, **{chr(256 + i): b for i, b in enumerate(others)}}


def digest(ids):
    value = 0xCBF29CE484222325
    for i in ids:
        value = ((value ^ i) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return f"{value:016x}"


def encode_by_packages(tokenizer, texts, pattern):
    import tiktoken
    from tokenizers import Tokenizer

    def measure(what, texts, encode):
        best, ids = float("inf"), []
        for _ in range(2):
            start = time.thread_time()
            ids = [encode(text) for text in texts]
            best = min(best, time.thread_time() - start)
        megabytes = sum(len(text.encode()) for text in texts) / 1e6
        flat = [i for one in ids for i in one]
        report(what, megabytes=megabytes, megabytes_per_second=megabytes / best, tokens=len(flat), digest=digest(flat))
        return digest(flat)

    found = {}
    if pattern in ONE_EXPRESSION:
        byte_of = characters()
        vocabulary = json.loads(Path(tokenizer).read_text())["model"]["vocab"]
        special = "<|endoftext|>"
        ranks = {bytes(byte_of[c] for c in token): i for token, i in vocabulary.items() if token != special}
        encoding = tiktoken.Encoding("bench", pat_str=ONE_EXPRESSION[pattern], mergeable_ranks=ranks, special_tokens={})
        found["all"] = measure("tiktoken", texts, encoding.encode_ordinary)
    library = Tokenizer.from_file(tokenizer)
    library.encode_special_tokens = True
    few = texts[: -(-len(texts) // 8)]
    found["few"] = measure("HF tokenizers, an eighth of the texts", few, lambda text: library.encode(text, add_special_tokens=False).ids)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", required=True)
    parser.add_argument("--train", required=True)
    parser.add_argument("--encode", required=True)
    parser.add_argument("--pattern", default="gpt2", choices=["gpt2", "cl100k", "deepseek_v3"])
    parser.add_argument("--vocabulary", type=int, default=32768)
    parser.add_argument("--out", default="bench-tokenizer")
    parser.add_argument("--train-by-library", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args()
    out = Path(a.out)
    out.mkdir(parents=True, exist_ok=True)
    ours, theirs = str(out / "ours.json"), str(out / "theirs.json")
    if a.train_by_library:
        return train_by_library(a.train, a.vocabulary, a.pattern, theirs)

    threads = os.cpu_count()
    lines, process = program([f"{a.programs}/train_vocabulary", a.train, str(a.vocabulary), a.pattern, str(threads), ours])
    report("train: smelt", **process, **{k: v for k, v in lines[0].items() if k in ("tokens", "cut", "forgotten")})
    _, process = program([sys.executable, __file__, *sys.argv[1:], "--train-by-library"])
    report("train: HF tokenizers", **process)
    models = [json.loads(Path(path).read_text())["model"] for path in (ours, theirs)]
    if any(models[0][field] != models[1][field] for field in ("vocab", "merges")):
        sys.exit("the vocabularies differ")

    texts = texts_of(a.encode)
    lines, _ = program([f"{a.programs}/encode_rate", ours, a.encode])
    for line in lines:
        report(**line)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    found = encode_by_packages(ours, texts, a.pattern)
    same = lines[0]["digest"] == lines[1]["digest"] == found.get("all", lines[0]["digest"]) and lines[2]["digest"] == found["few"]
    if not same:
        sys.exit("the ids differ")
    rates = {line["what"]: line["megabytes_per_second"] for line in lines}
    report("ratio to the crate bpe", ratio=rates["smelt"] / rates["crate bpe, our pieces"])


if __name__ == "__main__":
    main()
