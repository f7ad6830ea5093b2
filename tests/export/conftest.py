"""An export of a small system with random weights, and one that hears bit by bit."""

import shutil
from pathlib import Path

import pytest
from export_cases import export, make_system, workplace  # noqa: F401


@pytest.fixture(scope="session")
def exported(workplace) -> Path:  # noqa: F811
    """systems/dense, exported and compared with sherpa-onnx on data/."""
    return export(workplace, "dense", check_data_dir=workplace / "data")


@pytest.fixture(scope="session")
def hears(workplace) -> Path:  # noqa: F811
    """systems/hears, whose encoder can stream, exported so."""
    make_system(workplace / "systems" / "hears", workplace / "bpe", encoder="streaming_conformer", seed=3)
    return export(workplace, "hears", streaming=True)


@pytest.fixture
def folder(exported, tmp_path) -> Path:
    """A copy of ``exported`` to spoil."""
    return shutil.copytree(exported, tmp_path / "export")
