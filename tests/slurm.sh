#!/usr/bin/env bash
# Stages 1 to 4 and 6 as jobs of Slurm, and trainings in two processes by srun: the files are those of a run without it.
#
#   tests/slurm.sh [FOLDER]      FOLDER (default: a temporary one, removed): data, both experiments and Slurm's logs
#
# Slurm is one of our own, with two nodes that are both this machine: munged, slurmctld and slurmd, in FOLDER, for root
# alone, no cgroups.  Where the programs are missing, Debian's slurm-wlm is installed and removed again; where that cannot
# be, one line says so and the exit status is 0.  It takes some minutes; not part of the tests in CI.
set -euo pipefail
root=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/..
cd "$root"
skip() { echo "tests/slurm.sh: skipped: $*"; exit 0; }
fail() { echo "tests/slurm.sh: FAILED: $*" >&2; exit 1; }
programs() { command -v munged slurmctld slurmd sbatch srun scancel >/dev/null; }

[ "$(id -u)" = 0 ] || skip "Slurm's daemons need root"
PATH=$PATH:/usr/sbin
keep=${1:-} installed=()
folder=$(readlink -m -- "${keep:-$(mktemp -d)}")
take_down() {
  status=$?
  trap - EXIT
  [ ! -e "$folder/slurm.conf" ] || scancel --user root 2>/dev/null || true
  for name in node1 node2 slurmctld munged; do
    [ ! -s "$folder/$name.pid" ] || kill "$(cat "$folder/$name.pid")" 2>/dev/null || true
  done
  [ ${#installed[@]} = 0 ] || apt-get purge -y -qq "${installed[@]}" >"$folder/purge.log" 2>&1 || true
  [ -n "$keep" ] || [ $status != 0 ] || rm -rf -- "$folder"
  [ $status = 0 ] || echo "tests/slurm.sh: logs are in $folder" >&2
  exit $status
}
trap take_down EXIT
trap 'exit 130' INT TERM HUP
mkdir -p "$folder/state"
chmod 755 "$folder" # munge's socket must be reachable
if ! programs; then
  command -v apt-get >/dev/null || skip "there is no Slurm and no apt-get to install it"
  apt-get update -qq >"$folder/install.log" 2>&1 || true
  read -rd '' -a new < <(apt-get install -s slurm-wlm munge 2>/dev/null | sed -n 's/^Inst \([^ ]*\).*/\1/p') || true
  [ ${#new[@]} != 0 ] || skip "there is no Slurm, and apt-get knows no slurm-wlm"
  installed=("${new[@]}")
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq slurm-wlm munge >>"$folder/install.log" 2>&1 && programs ||
    skip "there is no Slurm, and slurm-wlm cannot be installed: $(tail -n 1 "$folder/install.log")"
fi

#--- a Slurm of our own -----------------------------------------------------------------------------
export SLURM_CONF=$folder/slurm.conf
cat >"$SLURM_CONF" <<END
ClusterName=test
SlurmctldHost=localhost
SlurmctldPort=26817
AuthInfo=socket=$folder/munge.socket
SlurmUser=root
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
MpiDefault=none
NodeName=node1 NodeHostname=localhost NodeAddr=127.0.0.1 Port=26818 CPUs=4 RealMemory=4000
NodeName=node2 NodeHostname=localhost NodeAddr=127.0.0.1 Port=26819 CPUs=4 RealMemory=4000
PartitionName=all Nodes=node1,node2 Default=YES State=UP
END
(umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")
munged --socket "$folder/munge.socket" --key-file "$folder/munge.key" --pid-file "$folder/munged.pid" \
  --log-file "$folder/munged.log" --seed-file "$folder/munged.seed" --num-threads 10
slurmctld
for node in node1 node2; do slurmd -N $node; done
for ((second = 0; second < 60; second++)); do
  [ "$(sinfo --noheader --format %D --states idle 2>/dev/null)" != 2 ] || break
  sleep 1
done
[ "$(sinfo --noheader --format %D --states idle)" = 2 ] || fail "Slurm's two nodes are not idle: $(sinfo --noheader | head -n 1)"
export MASTER_ADDR=127.0.0.1 GLOO_SOCKET_IFNAME=lo # the names of its nodes lead nowhere

#--- the same twice ---------------------------------------------------------------------------------
recipe() { ./run.sh --preset smoke --data-dir "$folder/data" --exp-dir "$folder/$1" --device cpu --nj 2 "${@:2}"; }
here() { recipe here "$@"; }
there() { recipe there --nj 3 --decode-nj 3 "$@"; } # the files do not depend on how many share the work
cmd="local/slurm_cmd.sh --mem 1G"
train=(-m rnnt_kd.bin.train --experiment egs/synth/conf/experiments/default.yaml --config egs/synth/conf/smoke.yaml
  --system small_kd --device cpu)
. local/path.sh
here --stop-stage 2
here --stage 3 --stop-stage 4 --nproc 2
python "${train[@]}" --exp-dir "$folder/here" --nproc 2
here --stage 6 --stop-stage 6

there --stop-stage 2 --cmd "$cmd"
there --stage 3 --stop-stage 3 --num-nodes 2 --cmd "$cmd --nodes 2 --ntasks-per-node 1"
there --stage 4 --stop-stage 4 --num-nodes 2 --cmd "$cmd"
srun --nodes 2 --ntasks 2 python "${train[@]}" --exp-dir "$folder/there"
there --stage 6 --stop-stage 6 --cmd "$cmd"
[ "$(find "$folder/there" -name 'features.train.*.log' | wc -l)" -ge 2 ] || fail "the features of train are one job"

content() { # cuts name their features by absolute paths
  case $2 in *.jsonl.gz) zcat "$folder/$1/$2" | sed "s:$folder/$1/:FOLDER/:g" ;; *) cat "$folder/$1/$2" ;; esac
}
count=0
while read -r file; do
  cmp <(content here "$file") <(content there "$file") || fail "$file is another one"
  count=$((count + 1))
done < <(cd "$folder/here" && find . -type f -not -path '*/log/*' \( -name '*.jsonl.gz' -o -name '*.lca' -o -name '*.safetensors' -o -path '*/kd_cache/*' -o -name 'recogs*' \) | sort)
[ "$count" -ge 10 ] || fail "only $count files to compare"

#--- failures and ends ------------------------------------------------------------------------------
! $cmd JOB=1:2 "$folder/fails.JOB.log" exit '$((JOB - 1))' 2>"$folder/said" || fail "a job that fails passes"
grep -q "failed (status 1), log is in $folder/fails" "$folder/said" || fail "it says $(cat "$folder/said")"
grep -q "Ended (code 1)" "$folder/fails.2.log" && grep -q "Ended (code 0)" "$folder/fails.1.log" || fail "its logs say otherwise"
$cmd "$folder/long.log" sleep 600 2>/dev/null &
long=$!
for ((second = 0; second < 60; second++)); do [ ! -s "$folder/long.log" ] || break; sleep 1; done
kill "$long"
wait "$long" || true
for ((second = 0; second < 60; second++)); do [ -n "$(squeue --noheader)" ] || break; sleep 1; done
[ -z "$(squeue --noheader)" ] || fail "a job goes on after its slurm_cmd.sh was ended"
echo "tests/slurm.sh: all is well: $count files are the same"
