#!/usr/bin/env bash
# Rewrite the lock files from pyproject.toml (`make lock`). Nothing heavy is downloaded: uv reads metadata.
# Pins that still fit stay as they are; `requirements/lock.sh --upgrade` (or `--upgrade-package NAME`)
# moves them. The GPU lock takes the CPU lock's version of a package wherever that fits, so that what the
# tests ran is, as far as possible, what the GPUs run. It needs Python 3.11 and PyPI.
set -euo pipefail
cd "$(dirname "$0")/.."

uv_version=0.13.9
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "uv==$uv_version"

# compile NAME HEADER INPUT-AND-OPTIONS...: resolve into requirements/NAME.lock under the given header.
compile() {
  local lock="requirements/$1.lock" header="$2"
  shift 2
  cat requirements/cpu.lock "$lock" >"$work/out.lock" 2>/dev/null || true # the pins to prefer
  "$work/venv/bin/uv" pip compile --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
    --no-header --no-emit-index-url --no-emit-find-links --output-file "$work/out.lock" "$@" >/dev/null
  { printf '%s\n' "$header" "# Written by requirements/lock.sh; install with --no-deps." && cat "$work/out.lock"; } >"$work/new.lock"
  cp "$work/new.lock" "$lock"
  rm "$work/out.lock"
  echo "$lock: $(grep -c '==' "$lock") packages"
}

compile cpu "# The CPU stack: Linux x86-64, Python 3.11. torch is NOT in this file: install torch==2.13.0 (CPU build)
# first, as \`make install\` does. torchvision, torchaudio and torchcodec are left out on purpose
# (requirements/overrides.txt says why)." \
  pyproject.toml requirements/torch-cpu.in --extra cpu --override requirements/overrides.txt "$@"

compile gpu "# The GPU stack: Linux x86-64, Python 3.11, CUDA build of torch 2.13.0 from PyPI." \
  pyproject.toml requirements/torch-cuda.in --extra gpu "$@"

"$work/venv/bin/python" - >"$work/dev.in" <<'PY'
import tomllib

with open("pyproject.toml", "rb") as file:
    print(*tomllib.load(file)["project"]["optional-dependencies"]["dev"], sep="\n")
PY
compile dev "# The tools that check and test: on top of either stack." \
  - --no-annotate --constraint requirements/cpu.lock --constraint requirements/gpu.lock \
  --override requirements/overrides.txt "$@" <"$work/dev.in"
