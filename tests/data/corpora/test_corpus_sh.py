"""Every ``egs/<name>/corpus.sh`` names what exists: its module, its options, its default presets."""

import importlib
import subprocess
from pathlib import Path

import pytest

EGS = Path(__file__).resolve().parents[3] / "egs"
CORPORA = sorted(path.parent.name for path in EGS.glob("*/corpus.sh"))
SHOW = (
    'set -euo pipefail; preset=$2; . "$1/corpus.sh"; echo "$corpus_module|$needs_corpus_dir|${train_dir:-}|'
    '${dev_dir:-}|${test_dirs:-}|$default_preset_cpu|$default_preset_gpu|${conf_corpus:-}|${prepare_options[*]-}"'
)


def cases():
    for name in CORPORA:
        for preset in ["", *sorted(path.stem for path in (EGS / name / "conf").glob("*.yaml") if path.stem != "base")]:
            yield name, preset


@pytest.mark.parametrize("name, preset", cases())
def test_names_what_exists(name, preset):
    shown = subprocess.run(["bash", "-c", SHOW, "bash", EGS / name, preset], capture_output=True, text=True, check=True)
    module, needs_corpus_dir, *dirs, cpu, gpu, conf, options = shown.stdout.rstrip("\n").split("|")
    assert needs_corpus_dir in ("true", "false")
    assert all((EGS / (conf or name) / "conf" / f"{preset}.yaml").is_file() for preset in (cpu, gpu))
    if module:
        known = importlib.import_module(f"rnnt_kd.data.corpora.{module}").OPTIONS
        assert {option.partition("=")[0] for option in options.split()} <= set(known)
        assert all(dirs)


@pytest.mark.parametrize(
    "preset, tests", [("5h", "test"), ("100h", "test-clean test-other"), ("960h", "test-clean test-other")]
)
def test_librispeech_parts_follow_the_preset(preset, tests):
    shown = subprocess.run(
        ["bash", "-c", SHOW, "bash", EGS / "librispeech", preset], capture_output=True, text=True, check=True
    )
    fields = shown.stdout.rstrip("\n").split("|")
    assert fields[4] == tests and f"test={tests.replace(' ', ',') if preset != '5h' else ''}" in fields[-1].split()
    assert (
        sum(part in fields[-1] for part in ("train-clean-100", "train-clean-360", "train-other-500"))
        == {"5h": 0, "100h": 1, "960h": 3}[preset]
    )
