# Sourced by every script, from any folder, and by users, in bash or zsh: which Python, and the environment it needs.
#
#   RNNT_KD_ENV   k2, torch2 or none; default: the environment that was set up last, else the Python that is active.

rnnt_kd_root=$(readlink -f -- "$(dirname -- "${BASH_SOURCE:-$0}")/..")
[ -r "$rnnt_kd_root/local/path.sh" ] || { echo "error: local/path.sh: this shell does not say where the file is; source it in bash or zsh" >&2; return 1; }
if [ -z "${RNNT_KD_ENV:-}" ]; then
  RNNT_KD_ENV=none
  [ -r "$rnnt_kd_root/.venv/current" ] && RNNT_KD_ENV=$(cat "$rnnt_kd_root/.venv/current")
fi
export RNNT_KD_ENV
if [ "$RNNT_KD_ENV" != none ]; then # complete as it is: what others export for their Python hides nothing of it
  export PATH="$rnnt_kd_root/.venv/$RNNT_KD_ENV/bin:$PATH"
  unset PYTHONHOME PYTHONINSPECT PYTHONOPTIMIZE PYTHONWARNINGS
fi
export PYTHONPATH="$rnnt_kd_root/plugin:$rnnt_kd_root/packages/engine:$rnnt_kd_root${PYTHONPATH:+:$PYTHONPATH}"
export HOME=${HOME:-~} # libraries ask for it, and a user of a container may have no entry that names one
export PYTHONUNBUFFERED=1 PYTHONUTF8=1 PYTHONIOENCODING=utf-8:surrogateescape
# One thread a process, whatever others export: jobs run side by side (--nj), and results are the same everywhere.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
# The MKL inside torch 1.13.1 takes its slowest path on AMD processors unless told otherwise.
if [ "$RNNT_KD_ENV" = k2 ] && grep -q -m 1 AuthenticAMD /proc/cpuinfo 2>/dev/null; then
  export MKL_DEBUG_CPU_TYPE=5
fi
