"""ESPnet itself, from the package index: tests/run.sh --env espnet."""

import pytest
from espnet_cases import TRANSDUCER, World


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    pytest.importorskip("espnet2.tasks.asr_transducer", reason="ESPnet is not here (tests/run.sh --env espnet)")
    return World(tmp_path_factory.mktemp("espnet"))


@pytest.fixture(scope="session")
def teacher(world) -> str:
    """Weights of a teacher, trained with our loss and none of its own."""
    from rnnt_kd.espnet import KdTransducerTask

    wider = {**TRANSDUCER, "joint_network_conf": {"joint_space_size": 12}}
    KdTransducerTask.main(cmd=world.options("teacher", wider))
    return world.weights("teacher")
