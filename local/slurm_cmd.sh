#!/usr/bin/env bash
# Run a command, or an array of jobs, with Slurm's sbatch, and wait for it: --cmd local/slurm_cmd.sh of run.sh.
#
#   local/slurm_cmd.sh [--max-jobs-run N] [--gpu G] [--mem M] [--num-threads T] [--option value] ... [JOB=1:N] LOG COMMAND [WORD ...]
#
# --gpu G is sbatch's --gres gpu:G, --num-threads its --cpus-per-task; every other option, such as --mem, --time,
# --partition or --account, is given to sbatch as it is.  What each job does is local/run_cmd.sh's: so are its log, its
# status and how COMMAND is read.  Files must be the same on all machines.  What Slurm itself says of a job is in
# LOG's folder, in slurm/.  Ended by Ctrl-C, SIGTERM or the death of run.sh, it cancels its jobs.
# A shell of its own: what others export for theirs (functions, options, a locale, CDPATH) is not for this one.
case $- in *p*) ;; *) exec env -u BASH_ENV -u SHELLOPTS -u BASHOPTS -u CDPATH -u GREP_OPTIONS LC_ALL=C bash -p "${BASH_SOURCE:-$0}" "$@" ;; esac
set -euo pipefail
here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
. "$here/parse_options.sh"
usage() { sed -n '2,10s/^# \{0,1\}//p' "$0"; }

name= first= last= most= options=()
while [ $# -gt 0 ]; do
  if [[ $1 =~ ^(-h|--help)$ ]]; then usage; exit 0
  elif [[ $1 == --* ]]; then
    [ $# -ge 2 ] || die "slurm_cmd.sh: $1 needs a value"
    case $1 in
      --max-jobs-run) most=%$2 ;;
      --gpu) [ "$2" = 0 ] || options+=(--gres "gpu:$2") ;;
      --num-threads) options+=(--cpus-per-task "$2") ;;
      *) options+=("$1" "$2") ;;
    esac
    shift 2
  elif [[ -z $name && $1 =~ ^([A-Za-z_][A-Za-z0-9_]*)=([0-9]+)(:([0-9]+))?$ ]]; then
    name=${BASH_REMATCH[1]} first=${BASH_REMATCH[2]} last=${BASH_REMATCH[4]:-${BASH_REMATCH[2]}}
    shift
  else break; fi
done
[ $# -ge 2 ] || { usage >&2; exit 1; }
log=$1 array=() count=1
[ -z "$name" ] || { array=(--array "$first-$last$most") count=$((last - first + 1)); }
[ "$count" = 1 ] || [[ $log == *"$name"* ]] || die "slurm_cmd.sh: one log, $log, for $count jobs; expected $name in its name"
command -v sbatch >/dev/null || die "slurm_cmd.sh: there is no sbatch on PATH; expected Slurm's; leave out --cmd to run on this machine"
folder=$(dirname -- "$log")/slurm
mkdir -p "$folder" || die "$folder: cannot be made; see the line above"

# One job: run_cmd.sh with JOB=<its number>.
script=$(printf '%q ' exec "$here/run_cmd.sh")${name:+"$name=\$SLURM_ARRAY_TASK_ID "}$(printf '%q ' "$@")
base=$(basename -- "$log" .log) id=
output=$folder/${base//"${name:-/}"/}${name:+%a}.%j.out
exec 7< <(exec sbatch --parsable --wait --job-name "$base" --chdir "$PWD" --output "$output" \
  ${array[@]+"${array[@]}"} ${options[@]+"${options[@]}"} <<<"#!/usr/bin/env bash
$script")
sbatch=$!
stop() { trap '' INT TERM HUP; [ -z "$id" ] || scancel "$id"; kill "$sbatch" 2>/dev/null; exit 143; }
trap stop INT TERM HUP
IFS=';' read -r id _ <&7 || true # a number, and the cluster's name where there are several
status=0
wait "$sbatch" || status=$?
[ "$status" != 0 ] || exit 0
[ -n "$id" ] || die "slurm_cmd.sh: sbatch took no job ($log); see the line above"
where=${name:+${log//"$name"/*}}
die "slurm_cmd.sh: Slurm's job $id failed (status $status), log is in ${where:-$log}, Slurm's own in $folder"
