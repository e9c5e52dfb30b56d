"""How long nothing takes: runs that have nothing to do, and what a stage costs, beside DVC and Snakemake in one run.

    cargo build --release
    python -m venv .venv && .venv/bin/pip install dvc snakemake
    .venv/bin/python tests/parity/bench_with_dvc.py FOLDER

Chains of 10 and of 1,000 stages over one small document: `dedup` for smelt, `cp` for the others. Wall seconds of the
first run, and of a second one that finds all done (the best of three). Then a source of 1 GB that has not changed.
DVC's chain of 1,000 is not run (it takes minutes), and Snakemake cannot build a chain of 1,000: its 1,000 stages do not
read one another.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

folder = pathlib.Path(sys.argv[1]).resolve()
programs = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", "target")).resolve() / "release"
bin = pathlib.Path(sys.executable).parent
environment = {**os.environ, "DVC_NO_ANALYTICS": "1", "PATH": f"{bin}:{os.environ['PATH']}"}


def timed(where, *command):
    before = time.perf_counter()
    said = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True)
    if said.returncode != 0:
        return None, (said.stdout + said.stderr)[-300:]
    return time.perf_counter() - before, ""


def fresh(name):
    where = folder / name
    shutil.rmtree(where, ignore_errors=True)
    where.mkdir(parents=True)
    (where / "text.txt").write_text("A small document about nothing in particular, with a few words more.\n" * 3)
    return where


def smelt(stages):
    where = fresh(f"smelt-{stages}")
    jobs = ["  s0: { stage: ingest, config: { paths: [text.txt] } }"]
    jobs += [f"  s{i}: {{ stage: dedup, input: s{i - 1} }}" for i in range(1, stages)]
    (where / "p.yaml").write_text("name: p\nstore: artifacts\njobs:\n" + "\n".join(jobs) + "\n")
    return where, [programs / "smelt", "run", "p.yaml", "--quiet"]


def dvc(stages):
    where = fresh(f"dvc-{stages}")
    timed(where, "git", "init", "-q")
    timed(where, "dvc", "init", "-q")
    text = "stages:\n"
    for i in range(stages):
        before = "text.txt" if i == 0 else f"f{i - 1}"
        text += f"  s{i}:\n    cmd: cp {before} f{i}\n    deps: [{before}]\n    outs: [f{i}]\n"
    (where / "dvc.yaml").write_text(text)
    return where, ["dvc", "repro", "-q"]


def snakemake(stages):
    where = fresh(f"snakemake-{stages}")
    is_chain = stages < 1000
    wanted = [f"f{stages - 1}"] if is_chain else [f"f{i}" for i in range(stages)]
    text = f"rule all:\n  input: {wanted}\n"
    for i in range(stages):
        before = f"f{i - 1}" if is_chain and i > 0 else "text.txt"
        text += f"rule s{i}:\n  input: '{before}'\n  output: 'f{i}'\n  shell: 'cp {{input}} {{output}}'\n"
    (where / "Snakefile").write_text(text)
    return where, ["snakemake", "-c2", "-q"]


def measure(tool, stages):
    where, command = tool(stages)
    first, error = timed(where, *command)
    if first is None:
        print(f"{tool.__name__:10} {stages:5} stages: {error.strip().splitlines()[-1] if error.strip() else 'failed'}")
        return None
    again = min(timed(where, *command)[0] for _ in range(3))
    print(f"{tool.__name__:10} {stages:5} stages: first {first:8.2f} s, {1000 * first / stages:6.1f} ms a stage; no-op {again:7.3f} s", flush=True)
    return again


ours = {stages: measure(smelt, stages) for stages in (10, 1000)}
for tool, sizes in [(dvc, (10,)), (snakemake, (10, 1000))]:
    for stages in sizes:
        theirs = measure(tool, stages)
        if theirs and ours[stages]:
            print(f"{'':10} smelt's no-op of {stages} is {theirs / ours[stages]:.0f} times as fast")

# A source of 1 GB that is touched: hashed once, then known by size, times and inode.
where = fresh("large")
with open(where / "large.jsonl", "w") as out:
    line = json.dumps({"text": "word " * 2000}) + "\n"
    for _ in range(1_000_000_000 // len(line)):
        out.write(line)
(where / "p.yaml").write_text("name: p\nstore: artifacts\njobs: { raw: { stage: ingest, config: { paths: [large.jsonl], max_documents: 10 } } }\n")
time.sleep(6)  # a file that has just changed is not remembered
plan = [programs / "smelt", "plan", "p.yaml"]
first, second = timed(where, *plan), timed(where, *plan)
print(f"smelt      plan over 1 GB: {first[0]:.2f} s, and again {second[0]:.3f} s {first[1]}{second[1]}")
shutil.rmtree(where)
