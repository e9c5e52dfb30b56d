#!/usr/bin/env bash
# Fetches NVIDIA's run-time compiler and disassembler from PyPI (95 MB) into the user's cache, once, and prints the
# folder for SMELT_CUDA_HOME. Neither a GPU nor CUDA is needed. It is CUDA 13.0, which drivers from 580 on run.
set -euo pipefail
cache="${XDG_CACHE_HOME:-$HOME/.cache}/smelt"
home="$cache/nvrtc-13.0.88"
if [ ! -e "$home/lib/libnvrtc.so.13" ]; then
  mkdir -p "$cache"
  work=$(mktemp -d --tmpdir="$cache")
  trap 'rm -rf "$work"' EXIT
  python3 -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: -d "$work/wheels" \
    nvidia-cuda-nvrtc==13.0.88 nvidia-cuda-nvdisasm==13.2.86 >&2
  for wheel in "$work"/wheels/*.whl; do
    python3 -m zipfile -e "$wheel" "$work/out"
  done
  chmod +x "$work"/out/nvidia/cu13/bin/*
  rm -f "$work"/out/nvidia/cu13/lib/*.alt.so*
  # whoever comes second finds the folder of the first, which is the same
  mv -T "$work/out/nvidia/cu13" "$home" 2>/dev/null || [ -e "$home/lib/libnvrtc.so.13" ]
fi
echo "$home"
