#!/usr/bin/env bash
# Word error rates of one decoding.
#
#   local/score.sh [--baseline-decode-dir DIR] [--test-set NAME] [--replications N] [--seed N] DATA_DIR DECODE_DIR
#
# DATA_DIR is the Kaldi data directory that was decoded (its text and utt2spk are read), DECODE_DIR
# holds recogs-<test set>.txt.  Writes errs-<test set>.txt, wer-<test set>.txt and wer-<test set>.json there.
set -euo pipefail

usage() { sed -n '2,/^set /s/^# \{0,1\}//p' "$0" | sed '/^set /d'; }

options=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --*)
      [ $# -ge 2 ] || { echo "error: $1 needs a value" >&2; exit 1; }
      options+=("$1" "$2"); shift 2 ;;
    *) break ;;
  esac
done
[ $# = 2 ] || { usage >&2; exit 1; }

. "$(dirname "${BASH_SOURCE[0]}")/path.sh"
exec python -m rnnt_kd.bin.score ${options[@]+"${options[@]}"} --data-dir "$1" --decode-dir "$2"
