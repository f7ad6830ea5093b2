#!/usr/bin/env bash
# Run a command, or an array of jobs, on this machine, as Kaldi's run.pl does.
#
#   local/run_cmd.sh [--max-jobs-run N] [--gpu G] [--mem M] ... [JOB=1:N] LOG COMMAND [WORD ...]
#
# --help says more.  Without --cmd, run.sh does the same itself, --nj jobs at a time.
# A shell of its own: what others export for theirs (functions, options, a locale, CDPATH) is not for this one.
case $- in *p*) ;; *) exec env -u BASH_ENV -u SHELLOPTS -u BASHOPTS -u CDPATH -u GREP_OPTIONS LC_ALL=C bash -p "${BASH_SOURCE:-$0}" "$@" ;; esac
set -euo pipefail
. "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/path.sh"
exec python -m rnnt_kd.bin.run_cmd "$@"
