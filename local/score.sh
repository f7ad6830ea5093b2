#!/usr/bin/env bash
# Word error rates of one decoding, with 95 % interval and paired test against another.
#
#   local/score.sh [options] DATA_DIR [LANG_OR_GRAPH_DIR] DECODE_DIR
#   local/score.sh [options] DATA_DIR [LANG_OR_GRAPH_DIR] HYP_FILE
#
# DATA_DIR is the Kaldi data directory that was decoded (its text and utt2spk are read).  DECODE_DIR holds
# recogs-<test set>.txt, HYP_FILE the hypotheses of any recogniser: Kaldi's text ("<id> words"), icefall's recogs
# or NIST's trn ("words (<id>)").
#
#   --baseline-decode-dir DIR_OR_FILE   the same test set, decoded by the system to compare with
#   --test-set NAME                     which recogs file (default: the only one; of a HYP_FILE, DATA_DIR's name)
#   --replications N, --seed N          of the bootstrap (default: 10000, 0)
#   --ignore-events                     words in brackets, such as <unk> and [noise], do not count
#   --cmd CMD, LANG_OR_GRAPH_DIR        as Kaldi's scripts give them; not needed here
#
# %CER stands beside %WER for Chinese, Japanese, Korean, Thai, Lao, Khmer and Burmese.  Fewer than 20 utterances, or one
# speaker alone, have no interval and no p-value; a test set without words has insertions and no rate.
#
# Writes to DECODE_DIR, or to HYP_FILE.score: errs-<test set>.txt, wer-<test set>.txt, wer-<test set>.json, and in
# Kaldi's form wer_0_0.0 and scoring_kaldi/{best_wer,wer_details/{per_utt,per_spk,ops}}.
# A shell of its own: what others export for theirs (functions, options, a locale, CDPATH) is not for this one.
case $- in *p*) ;; *) exec env -u BASH_ENV -u SHELLOPTS -u BASHOPTS -u CDPATH -u GREP_OPTIONS LC_ALL=C bash -p "${BASH_SOURCE:-$0}" "$@" ;; esac
set -euo pipefail

usage() { sed -n '2,/^# A shell/s/^# \{0,1\}//p' "$0" | sed '$d'; }

options=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --ignore-events) options+=("$1"); shift ;;
    --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
    --*)
      [ $# -ge 2 ] || { echo "error: $1 needs a value" >&2; exit 1; }
      [ "$1" = --cmd ] || options+=("$1" "$2")
      shift 2 ;;
    *) break ;;
  esac
done
[ $# = 2 ] || [ $# = 3 ] || { usage >&2; exit 1; }

. "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/path.sh"
exec python -m rnnt_kd.bin.score ${options[@]+"${options[@]}"} --data-dir "$1" --decode-dir "${!#}"
