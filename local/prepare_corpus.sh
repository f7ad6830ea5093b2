#!/usr/bin/env bash
# Runs rnnt_kd.bin.prepare_corpus in the project's environment; --help says what it takes.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$root/local/path.sh"
exec python -m rnnt_kd.bin.prepare_corpus "$@"
