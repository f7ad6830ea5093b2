"""``model.json`` counts and digests what is there, independently of how it was written."""

import hashlib
import json

import numpy as np
import pytest
import yaml
from export_cases import export
from lhotse import Fbank

from rnnt_kd.config_io import read_system_config
from rnnt_kd.export.model_json import json_digest, read_manifest, scores_of
from rnnt_kd.systems.store import read_tensors


@pytest.fixture(scope="module")
def sparse(workplace):
    """systems/sparse, exported."""
    return read_manifest(export(workplace, "sparse"))


def exported_tensors(system):
    heads = ("simple_am_proj", "simple_lm_proj", "ctc_output")
    tensors = read_tensors(system / "model.safetensors")
    return {name: value.numpy() for name, value in tensors.items() if name.split(".")[0] not in heads}


def test_parameters_and_zeros_are_counted_in_the_weights(sparse, workplace):
    tensors = exported_tensors(workplace / "systems" / "sparse")
    assert sparse["params"] == sum(value.size for value in tensors.values())
    assert sparse["nonzero_params"] == sum(np.count_nonzero(value) for value in tensors.values())
    assert sparse["sparsity_total"] == pytest.approx(1 - sparse["nonzero_params"] / sparse["params"])
    assert sparse["sparsity"] == pytest.approx(0.9, abs=2e-3) and sparse["sparsity_total"] < 0.9
    assert (sparse["system"], sparse["role"]) == ("sparse", "sparse_student")


def test_every_parameter_has_its_shape_and_digest(sparse, workplace):
    tensors = exported_tensors(workplace / "systems" / "sparse")
    assert set(sparse["parameters"]) == set(tensors)
    for name, value in tensors.items():
        facts = sparse["parameters"][name]
        assert facts["shape"] == list(value.shape)
        assert facts["sha256"] == hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        file = {"encoder": "encoder.onnx", "predictor": "decoder.onnx"}.get(name.split(".")[0])
        file = file or {"encoder_proj": "encoder.onnx", "predictor_proj": "decoder.onnx"}.get(name.split(".")[1])
        assert facts["file"] == (file or "joiner.onnx"), name


def test_files_have_their_digests_and_model_json_its_own(sparse, workplace):
    folder = workplace / "out" / "sparse"
    for name, facts in sparse["files"].items():
        content = (folder / name).read_bytes()
        assert facts == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}, name
    own = {key: value for key, value in json.loads((folder / "model.json").read_text()).items() if key != "sha256"}
    assert sparse["sha256"] == json_digest(own) == read_manifest(folder)["sha256"]


def test_the_training_configuration_is_the_systems(sparse, workplace):
    path = workplace / "systems" / "sparse" / "config.yaml"
    assert sparse["training_config"] == yaml.safe_load(path.read_text())
    assert sparse["bpe_sha256"] == read_system_config(path).bpe_checksum
    assert sparse["bpe_sha256"] == hashlib.sha256((workplace / "bpe" / "bpe.model").read_bytes()).hexdigest()


def test_a_digest_does_not_depend_on_order_or_spaces():
    one, other = json.loads('{"a": 1, "b": [1.5, "ä"]}'), json.loads('{"b":[1.5,"\\u00e4"],"a":1}')
    assert json_digest(one) == json_digest(other) != json_digest({**one, "a": 2})


def test_the_features_it_names_are_those_we_compute(sparse):
    """That sherpa-onnx computes the same is measured by running it (``features_difference``)."""
    ours, features = Fbank().config, sparse["features"]
    for name, own in (("num_bins", "num_filters"), ("preemphasis", "preemph_coeff"), ("window", "window_type")):
        assert features[name] == getattr(ours, own)
    for name in ("sampling_rate", "low_freq", "high_freq", "dither", "snip_edges"):
        assert features[name] == getattr(ours, name)
    for name in ("frame_length", "frame_shift"):
        assert features[f"{name}_ms"] == 1000 * getattr(ours, name)


def test_scores_are_copied_from_every_folder(tmp_path):
    for name, wer in (("x", 10.0), ("y", 20.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "wer-test.json").write_text(json.dumps({"test_set": "test", "wer": wer, "speakers": [1]}))
    rows = scores_of([tmp_path / "x", tmp_path / "y", tmp_path / "nowhere"])
    assert [row["wer"] for row in rows] == [10.0, 20.0] and all("speakers" not in row for row in rows)
