#!/bin/bash
# Builds OUT/libcuda.so.1, the simulated driver with the kernels of kernels/cu, and a simulated NCCL and cuBLASLt for
# it, OUT/libnccl.so.2 and OUT/libcublasLt.so.13: for machines without a GPU.
#
#   build.sh OUT [SOURCES]       files of the folder SOURCES replace those of the same name of kernels/cu
#   build.sh --only OUT SOURCES  kernels of SOURCES alone; headers come from kernels/cu as well
#
# When a file changed, every source is preprocessed, and compiled if the result differs from what was compiled before:
# objects are kept in OUT/objects by the hash of their input. CXX is the compiler (g++). At most two run at once.
set -euo pipefail

only=0
if [ "${1:-}" = --only ]; then only=1; shift; fi
if [ $# -lt 1 ]; then echo "usage: build.sh [--only] OUT [SOURCES]" >&2; exit 2; fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cxx=${CXX:-g++}
if ! command -v "${cxx%% *}" >/dev/null; then
  echo "error: no C++ compiler \`$cxx\`" >&2
  echo "hint: install g++ (12 or later) or name one in CXX" >&2
  exit 1
fi
mkdir -p "$1/objects"
out=$(cd "$1" && pwd)
sources=${2:+$(cd "$2" && pwd)}

# One folder with all sources, so that a replaced header is found by the sources that are not replaced.
rm -rf "$out/cu" "$out/sim"
mkdir "$out/cu"
ln -s "$here" "$out/sim"
for file in "$here"/../cu/*; do
  if [ $only = 0 ] || [[ $file != *.cu ]]; then ln -s "$file" "$out/cu/"; fi
done
if [ -n "$sources" ]; then
  for file in "$sources"/*.cu "$sources"/*.cuh; do
    if [ -e "$file" ]; then ln -sf "$file" "$out/cu/"; fi
  done
fi

# Nothing to do when no file changed since the last time.
version=$("$cxx" --version | head -1)
signature=$({ stat -L -c '%n %y %s' "$out"/cu/* "$here"/*; echo "$version"; } | sha256sum)
built=$(cat "$out/objects/signature" 2>/dev/null || true)
if [ -e "$out/libcuda.so.1" ] && [ "$signature" = "$built" ]; then exit 0; fi
rm -f "$out/objects/signature"

common=(-std=gnu++17 -O2 -march=x86-64-v2 -g1 -fPIC -fvisibility=hidden -ffp-contract=off -DSMELT_SIM -Wall
  -Wno-unknown-pragmas -Wno-psabi)
watched=(-fsanitize=thread,alignment --param tsan-distinguish-volatile=1 -Wno-unused-function -Wno-unused-variable
  -Wno-unused-but-set-variable)
if "$cxx" --param tsan-instrument-func-entry-exit=0 -x c++ -fsyntax-only /dev/null 2>/dev/null; then
  watched+=(--param tsan-instrument-func-entry-exit=0)
fi

# A kernel source may be called like one of the simulator.
name_of() {
  local name
  name=$(basename "${1%.*}")
  if [[ $1 == *.cpp ]]; then name="sim_$name"; fi
  echo "$name"
}

# Preprocesses a source and appends the registration of its kernels.
preprocess() {
  local file=$1 name=$2 text="$out/objects/$2.ii"
  "$cxx" "${common[@]}" -DSMELT_SHARED_SECTION="\"smelt_shared_$name\"" -E -x c++ "$file" -o "$text"
  if [[ $file != *.cu ]]; then return; fi
  local start="__start_smelt_shared_$name" stop="__stop_smelt_shared_$name"
  {
    echo "extern \"C\" __attribute__((weak, visibility(\"hidden\"))) u8 $start[], $stop[];"
    tr '\n' ' ' <"$text" | grep -oE 'sim::kernel<\([^;{}]*\)> +[A-Za-z_][A-Za-z0-9_]* *\(' |
      sed -E 's/^sim::kernel<(.*)> +([A-Za-z_][A-Za-z0-9_]*) *\($/\2 \1/' | sort -u | while read -r kernel threads; do
        echo "static sim::Registration register_$kernel(\"$kernel\", $threads," \
          "&sim::Caller<decltype($kernel)>::call<&$kernel>, sim::Caller<decltype($kernel)>::SIZES, $start, $stop);"
      done
  } >"$text.tail"
  cat "$text.tail" >>"$text"
  rm "$text.tail"
}

# Compiles an object unless one of the same input is there.
compile() {
  local file=$1 name flags
  name=$(name_of "$file")
  preprocess "$file" "$name"
  flags=("${common[@]}")
  if [[ $file == *.cu ]]; then flags+=("${watched[@]}"); fi
  local hash object
  hash=$({ cat "$out/objects/$name.ii"; echo "${flags[@]} $version"; } | sha256sum | cut -c1-24)
  object="$out/objects/$name.$hash.o"
  if [ ! -e "$object" ]; then
    "$cxx" "${flags[@]}" -x c++ -fpreprocessed -c "$out/objects/$name.ii" -o "$object.part"
    mv "$object.part" "$object"
  fi
  echo "$object" >"$out/objects/$name.object"
}

files=()
for file in "$here"/*.cpp; do
  if [[ $file != */nccl.cpp && $file != */cublaslt.cpp ]]; then files+=("$file"); fi
done
for file in "$out"/cu/*.cu; do
  if [ -e "$file" ]; then files+=("$file"); fi
done
running=0
failed=0
for file in "${files[@]}" "$here/nccl.cpp" "$here/cublaslt.cpp"; do
  if [ $running = 2 ]; then
    wait -n || failed=1
    running=1
  fi
  compile "$file" &
  running=$((running + 1))
done
while [ $running -gt 0 ]; do
  wait -n || failed=1
  running=$((running - 1))
done
if [ $failed = 1 ]; then exit 1; fi

objects=()
for file in "${files[@]}"; do
  name=$(name_of "$file")
  objects+=("$(cat "$out/objects/$name.object")")
done
# Link only when something changed, so that the library's date tells.
list=$(printf '%s\n' "${objects[@]}")
if [ ! -e "$out/libcuda.so.1" ] || [ "$list" != "$(cat "$out/objects/linked" 2>/dev/null)" ]; then
  "$cxx" -shared -Wl,-soname,libcuda.so.1 -Wl,-Bsymbolic -Wl,-z,defs "${objects[@]}" -ldl -lpthread \
    -o "$out/libcuda.so.1.part"
  mv "$out/libcuda.so.1.part" "$out/libcuda.so.1"
  echo "$list" >"$out/objects/linked"
  find "$out/objects" -name '*.o' -mtime +7 -delete
fi
# A library that stands beside the driver.
link_beside() {
  local object library=$2
  object=$(cat "$out/objects/sim_$1.object")
  if [ -e "$out/$library" ] && [ "$object" = "$(cat "$out/objects/linked-$1" 2>/dev/null)" ]; then return; fi
  "$cxx" -shared -Wl,-soname,"$library" -Wl,-Bsymbolic -Wl,-z,defs -Wl,-rpath,'$ORIGIN' "$object" "$out/libcuda.so.1" \
    -lpthread -o "$out/$library.part"
  mv "$out/$library.part" "$out/$library"
  echo "$object" >"$out/objects/linked-$1"
}
link_beside nccl libnccl.so.2
link_beside cublaslt libcublasLt.so.13
echo "$signature" >"$out/objects/signature"
