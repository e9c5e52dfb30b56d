#!/usr/bin/env bash
# Everything that a GPU can show of smelt, for a machine that has a GPU and no Rust: correctness first, then times, then
# the same products and attention in PyTorch where it is installed.
#
#   run.sh PROGRAM [FOLDER]    PROGRAM: target/release/smelt-bench, built elsewhere; FOLDER: for the results
set -uo pipefail
program=${1:?usage: run.sh PROGRAM [FOLDER]}
folder=${2:-${OUT:-.}}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$folder"
"$program" gpu --out "$folder/results.json" --seconds "${SECONDS_AT_MOST:-480}"
ended=$?
# small shapes under NVIDIA's own checks, where they are installed
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    timeout 120 compute-sanitizer --tool $tool --error-exitcode 9 "$program" --gpu-part operations_right --small \
      >"$folder/$tool.log" 2>&1
    said=$?
    echo "compute-sanitizer $tool ended with $said; see $folder/$tool.log"
    if [ $said = 9 ]; then ended=9; fi
  done
else
  echo "compute-sanitizer is not installed: not checked by it"
fi
if python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
  python3 "$here/bench_torch.py" "$folder/torch.json"
else
  echo "PyTorch with CUDA is not installed: nothing to compare with"
fi
exit $ended
