#!/usr/bin/env bash
# Everything that needs a GPU, in one command of at most eight minutes: tests, losses, training steps, sparse products.
#
#   tests/gpu.sh [--wheels DIR] [options of benchmark.gpu: --json FILE, --shapes FILE, --parts SOME, --device cpu]
#
# For a machine without network whose Python has torch (and Triton): with --wheels the other packages are unpacked from
# the wheels in DIR, which pip download makes elsewhere, into .gpu_packages here; nothing is installed. Each part has its
# time limit, and one that fails stops no other. All figures are in FILE [gpu.json].
set -euo pipefail
root=$(readlink -f -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/..")
python=${PYTHON:-python3}
packages=$root/.gpu_packages arguments=()
while [ $# -gt 0 ]; do
  case $1 in
    --help|-h) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 0 ;;
    --wheels)
      [ $# -ge 2 ] && [ -d "$2" ] || { echo "error: --wheels: '${2-}' is no folder; expected one of .whl files" >&2; exit 1; }
      "$python" -m pip install --quiet --no-index --no-deps --upgrade --target "$packages" "$2"/*.whl
      shift 2 ;;
    *) arguments+=("$1"); shift ;;
  esac
done
cd "$root"
export PYTHONPATH=$root/plugin:$root/packages/engine:$root:$packages
exec "$python" -m benchmark.gpu ${arguments[@]+"${arguments[@]}"}
