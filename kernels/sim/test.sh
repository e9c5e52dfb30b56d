#!/bin/bash
# Checks the simulator itself: test.sh [FOLDER [--times | --show]]. FOLDER keeps what is built (a temporary
# one otherwise); --times measures what an access costs, --show prints what is reported of the planted faults.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${1:-$(mktemp -d)}
"$here/build.sh" --only "$out" "$here/check"
"${CXX:-g++}" -std=gnu++17 -O1 -Wno-psabi "$here/check/check.cpp" "$out/libcuda.so.1" -Wl,-rpath,"$out" -o "$out/check"
(cd "$out" && ./check "${@:2}")
if [ "$(cd "$out" && SMELT_SIM_DEVICES=0 ./check || true)" != "cuInit(0): error 100" ]; then
  echo "FAILED: without a device cuInit must fail"
  exit 1
fi
if [ $# = 0 ]; then rm -rf "$out"; fi
