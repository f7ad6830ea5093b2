"""Every ``egs/<name>/corpus.sh`` names what exists: its module, its options, its default presets."""

import importlib
import subprocess
from pathlib import Path

import pytest

EGS = Path(__file__).resolve().parents[3] / "egs"
CORPORA = sorted(path.parent.name for path in EGS.glob("*/corpus.sh"))
TESTS = ["test-clean", "test-other"]
SHOW = (
    'set -euo pipefail; preset=$2; . "$1/corpus.sh"; echo "$corpus_module|$needs_corpus_dir|${train_dir:-}|'
    '${dev_dir:-}|${test_dirs:-}|$default_preset_cpu|$default_preset_gpu|${conf_corpus:-}|${prepare_options[*]-}"'
)


def cases():
    for name in CORPORA:
        for preset in ["", *sorted(path.stem for path in (EGS / name / "conf").glob("*.yaml") if path.stem != "base")]:
            yield name, preset


def shown(name, preset):
    """Fields of ``SHOW``."""
    command = ["bash", "-c", SHOW, "bash", EGS / name, preset]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.rstrip("\n").split("|")


@pytest.mark.parametrize("name, preset", cases())
def test_corpus_sh_names_what_exists(name, preset):
    module, needs_corpus_dir, *dirs, cpu, gpu, conf, options = shown(name, preset)
    assert needs_corpus_dir in ("true", "false")
    assert all((EGS / (conf or name) / "conf" / f"{preset}.yaml").is_file() for preset in (cpu, gpu))
    if module:
        known = importlib.import_module(f"rnnt_kd.data.corpora.{module}").OPTIONS
        assert {option.partition("=")[0] for option in options.split()} <= set(known)
        assert all(dirs)


@pytest.mark.parametrize("preset, tests, parts", [("5h", [], 0), ("100h", TESTS, 1), ("960h", TESTS, 3)])
def test_librispeech_parts_follow_the_preset(preset, tests, parts):
    *fields, options = shown("librispeech", preset)
    assert fields[4] == " ".join(tests or ["test"]) and f"test={','.join(tests)}" in options.split()
    names = ("train-clean-100", "train-clean-360", "train-other-500")
    assert sum(part in options for part in names) == parts
