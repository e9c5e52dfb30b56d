#!/bin/sh
# Tokenizer speed beside tiktoken, Hugging Face's tokenizers and the crate bpe, in one run on this machine.
# usage: bench.sh TRAIN_TEXTS ENCODE_TEXTS [bench.py's options]; see bench.py. Python comes from $PYTHON.
set -eu
train=$1
encode=$2
shift 2
here=$(dirname "$0")
cargo build --release -p smelt-text --example encode_rate
cargo build --release -p smelt-tokenize --example train_vocabulary
target=${CARGO_TARGET_DIR:-$here/../../../target}
exec "${PYTHON:-python3}" "$here/bench.py" --programs "$target/release/examples" --train "$train" --encode "$encode" "$@"
