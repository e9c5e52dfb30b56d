#!/usr/bin/env bash
# Compiles every kernel into FOLDER, so that a build embeds them and needs no compiler where it runs:
#
#   kernels/make-cubins.sh cubins && SMELT_CUBIN_DIR=$PWD/cubins cargo build --release
set -euo pipefail
folder=${1:?usage: make-cubins.sh FOLDER}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export SMELT_CUDA_HOME
SMELT_CUDA_HOME=$("$here/get-nvrtc.sh")
cargo run -q --release --manifest-path "$here/Cargo.toml" --example cubins -- "$folder"
