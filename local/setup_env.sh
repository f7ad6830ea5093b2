#!/usr/bin/env bash
# Make the Python environment a recipe runs in: .venv/k2 or .venv/torch2 below the checkout.
#
#   local/setup_env.sh [--env auto|k2|torch2|espnet|zipformer|none]
#
#   k2      CPython 3.10, torch 1.13.1, torchaudio 0.13.1, k2 1.23.4: everything from the package index
#   torch2  CPython >= 3.11, torch 2.x; k2 where the index has a wheel that imports, else the torch backend
#   espnet, zipformer   CPython 3.12 with that package, for the tests of our plug-in (tests/run.sh)
#   none    the Python that is active; only looks whether the packages are there
#   auto    k2 where a Python 3.10 is found and no GPU is present, else torch2
#
# Versions are pinned in requirements/*.txt.  A second run finds the environment finished and
# touches no network.  The environment made last is named in .venv/current, which local/path.sh reads.  An environment
# whose pins have changed is kept until its successor is whole.
# A shell of its own: what others export for theirs (functions, options, a locale, CDPATH) is not for this one.
case $- in *p*) ;; *) exec env -u BASH_ENV -u SHELLOPTS -u BASHOPTS -u CDPATH -u GREP_OPTIONS LC_ALL=C bash -p "${BASH_SOURCE:-$0}" "$@" ;; esac
set -euo pipefail
root=$(readlink -f -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/..")
. "$root/local/parse_options.sh"
home=${HOME:-~}

env=auto
while [ $# -gt 0 ]; do
  case $1 in
    --env) [ $# -ge 2 ] || die "--env needs a value: auto, k2, torch2, espnet, zipformer, none"; env=$2; shift 2 ;;
    --help|-h) sed -n '2,15s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) die "unknown option '$1'; expected one of: --env --help" ;;
  esac
done

# version_of PYTHON -> "3.10" if it runs, else nothing
version_of() { "$1" -I -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true; }

# find_python VERSION ... -> the first interpreter of one of these versions
find_python() {
  local version candidate
  for version in "$@"; do
    for candidate in "python$version" python3 \
        "${PYENV_ROOT:-$home/.pyenv}"/versions/"$version".*/bin/python \
        "$(command -v uv >/dev/null 2>&1 && uv python find --no-python-downloads "$version" 2>/dev/null || true)" \
        "${CONDA_PREFIX:-/nonexistent}"/bin/python \
        "$home"/miniconda3/envs/*/bin/python "$home"/anaconda3/envs/*/bin/python; do
      [ -n "$candidate" ] || continue
      candidate=$(command -v "$candidate" 2>/dev/null) || continue
      if [ "$(version_of "$candidate")" = "$version" ]; then echo "$candidate"; return 0; fi
    done
  done
  return 1
}

current_pythons="3.11 3.12 3.13 3.14"
case $env in
  auto)
    if has_gpu; then
      env=torch2; echo "environment: torch2, because there is a GPU (--env changes this)"
    elif [ -x "$root/.venv/k2/bin/python" ] || find_python 3.10 >/dev/null; then
      env=k2; echo "environment: k2, because Python 3.10 is here and no GPU (--env changes this)"
    else
      env=torch2; echo "environment: torch2, because no Python 3.10 was found (--env changes this)"
    fi ;;
  k2|torch2|espnet|zipformer|none) echo "environment: $env, as asked" ;;
  *) die "--env: '$env'; expected one of: auto, k2, torch2, none (or espnet, zipformer: tests)" ;;
esac

if [ "$env" = none ]; then
  missing=$(PYTHONPATH=$root/plugin${PYTHONPATH:+:$PYTHONPATH} python - <<'PY'
import importlib.util
from rnnt_kd.bin.entry import EXTRAS
needed = {"torch", *EXTRAS["recipe"].split()} - {"espeakng_loader"}  # speech is made for the corpus synth only
print(" ".join(name for name in sorted(needed) if importlib.util.find_spec(name) is None))
PY
  ) || die "--env none: no python on PATH; expected an active environment; activate it, or use --env auto"
  [ -z "$missing" ] || die "--env none: $(command -v python) lacks: $missing; install them (pip install -e '.[recipe]') or use --env auto"
  exit 0
fi

# What others export for their Python and pip is not for this one.
unset PYTHONHOME PYTHONPATH PYTHONINSPECT PYTHONOPTIMIZE PYTHONWARNINGS PIP_TARGET PIP_PREFIX PIP_NO_DEPS
export PIP_USER=0
venv=$root/.venv/$env new=$root/.venv/.$env.new old=$root/.venv/.$env.old
wanted=$(cd "$root/requirements" && cat "$env"*.txt | cksum) # the order is that of LC_ALL=C
finished() { [ -x "$1/bin/python" ] && [ "$(cat "$1/.finished" 2>/dev/null)" = "$wanted" ]; }
use() {
  echo "environment: $venv is ready"
  case $env in espnet|zipformer) exit 0 ;; esac # not what the recipe runs in
  [ "$(cat "$root/.venv/current" 2>/dev/null)" != "$env" ] || exit 0
  if echo "$env" >"$root/.venv/.current.$$" && mv -f "$root/.venv/.current.$$" "$root/.venv/current"; then exit 0; fi
  die "$root/.venv/current: cannot be written; see the line above"
}
! finished "$venv" || use

if [ "$env" = k2 ]; then
  python=$(find_python 3.10) || die "--env k2: no Python 3.10 on PATH, in pyenv, uv or conda; install one (pyenv install 3.10, uv python install 3.10) or use --env torch2"
elif [ "$env" != torch2 ]; then
  python=$(find_python 3.12) || die "--env $env: no Python 3.12 on PATH, in pyenv, uv or conda; install one (pyenv install 3.12, uv python install 3.12)"
else
  # shellcheck disable=SC2086
  python=$(find_python $current_pythons) || die "--env torch2: no Python of ${current_pythons// /, } on PATH, in pyenv, uv or conda; install one or use --env k2"
fi
[ ! -L "$root/.venv" ] && [ ! -L "$venv" ] || die "$root/.venv is a link, and making the environment would empty the folder behind it; expected a folder of its own; remove the link, or use --env none"
mkdir -p "$root/.venv" || die "$root/.venv: cannot be made; see the line above, or use --env none"
exec 8>"$root/.venv/.lock-$env"
command -v flock >/dev/null 2>&1 && { flock -n 8 || { echo "environment: another process is making it, waiting"; flock 8; }; }
take_new() { rm -rf "$old"; [ ! -e "$venv" ] || mv "$venv" "$old"; mv "$new" "$venv"; rm -rf "$old"; use; }
! finished "$venv" || use
! finished "$new" || take_new # killed between the two moves
echo "environment: making $venv with $python (a few minutes, some gigabytes; only once)"
rm -rf "$new"
if ! "$python" -m venv "$new" 2>"$root/.venv/venv.log"; then
  if command -v uv >/dev/null 2>&1; then uv venv --seed --python "$python" "$new"
  else die "$python cannot make an environment ($(tail -n 1 "$root/.venv/venv.log")); install its venv package (python3-venv) or uv"; fi
fi
pip() { "$new/bin/python" -m pip --disable-pip-version-check "$@"; }
install() { # a log instead of pages of output; its end where it fails
  pip install --progress-bar off "$@" >"$root/.venv/install-$env.log" 2>&1 && return
  grep -i -E '^ERROR|error:' "$root/.venv/install-$env.log" | tail -n 3 >&2 || true
  die "pip install $* failed; see $root/.venv/install-$env.log, check the network or the index and run again"
}
# k2's wheel has a name that newer versions of pip refuse ("no matching distribution").
[ "$env" != k2 ] || install "pip<24" "setuptools<81"
# The build of torch comes from the user's own index settings; a CPU build is taken where they offer one.
install -r "$root/requirements/$env.txt"
if [ "$env" = k2 ]; then
  install --no-deps -r "$root/requirements/k2-wheel.txt"
  "$new/bin/python" -c 'import k2, torchaudio' || die "k2 was installed but does not import; see the line above, or use --env torch2"
elif [ "$env" != torch2 ]; then
  :
elif pip install --progress-bar off --only-binary :all: --no-deps "k2>1.23.4" >>"$root/.venv/install-$env.log" 2>&1; then
  if "$new/bin/python" -c 'import k2' 2>/dev/null; then echo "environment: k2 from the index"
  else pip uninstall -qy k2; echo "environment: the index's k2 does not fit this torch; the torch backend is used"; fi
else
  echo "environment: the index has no k2 for this Python; the torch backend is used"
fi
case $env in
  k2|torch2) needed="torch, lhotse, lilcom, sentencepiece, kaldialign, lightning_fabric, safetensors, omegaconf, pydantic, tabulate" ;;
  espnet) needed="espnet2.bin.asr_transducer_train" ;;
  zipformer) needed="zipformer.bin.train" ;;
esac
"$new/bin/python" -c "import $needed" \
  || die "the environment is incomplete; see the line above and run again"
"$new/bin/python" - "$new" "$venv" <<'PY' # its scripts name the folder that it was made in
import os, pathlib, sys
new, venv = map(os.fsencode, sys.argv[1:])
for path in pathlib.Path(sys.argv[1], "bin").iterdir():
    if path.is_file() and not path.is_symlink() and new in path.read_bytes() and b"\0" not in path.read_bytes():
        path.write_bytes(path.read_bytes().replace(new, venv))
PY
echo "$wanted" >"$new/.finished"
take_new
