#!/usr/bin/env bash
# Prints the path of a headless Chromium, installing Debian's if this is Debian and we are root. Else says why not.
set -euo pipefail
for name in chromium-headless-shell chromium chromium-browser google-chrome; do
  if found="$(command -v "$name")"; then
    echo "$found"
    exit 0
  fi
done
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "no Chromium, and it cannot be installed here (not root, or no apt-get): install chromium" >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
(apt-get update -q && apt-get install -q -y --no-install-recommends chromium-headless-shell) >&2
command -v chromium-headless-shell
