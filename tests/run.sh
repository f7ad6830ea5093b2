#!/usr/bin/env bash
# Set up what the tests need and run them.
#
#   tests/run.sh [--env auto|k2|torch2|espnet|zipformer|none] [pytest options and paths]
#
#   tests/run.sh                          # everything, in the environment that fits this machine
#   tests/run.sh --env torch2             # everything, in the other one
#   tests/run.sh tests/losses -k teacher  # some of it
#   tests/run.sh --env espnet             # tests/with_espnet, with the real package in an environment of its own; zipformer too
# A shell of its own: what others export for theirs (functions, options, a locale, CDPATH) is not for this one.
case $- in *p*) ;; *) exec env -u BASH_ENV -u SHELLOPTS -u BASHOPTS -u CDPATH -u GREP_OPTIONS LC_ALL=C bash -p "${BASH_SOURCE:-$0}" "$@" ;; esac
set -euo pipefail
root=$(readlink -f -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/..")

env=auto
arguments=()
while [ $# -gt 0 ]; do
  case $1 in
    --env) [ $# -ge 2 ] || { echo "error: --env needs a value: auto, k2, torch2, espnet, zipformer, none" >&2; exit 1; }; env=$2; shift 2 ;;
    --help|-h) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) arguments+=("$1"); shift ;;
  esac
done

"$root/local/setup_env.sh" --env "$env"
RNNT_KD_ENV=${env#auto} # two runs may go on side by side
. "$root/local/path.sh"
cd "$root"
case $env in espnet|zipformer) [ ${#arguments[@]} -gt 0 ] || arguments=("tests/with_$env") ;; esac
exec python -m pytest ${arguments[@]+"${arguments[@]}"}
