"""What was written is read; what was damaged is named; no torch."""

import io
import json
import zipfile

import numpy as np
import pytest
from command_cases import writes_interrupted
from lattice_pictures import utterance_lattice

from rnnt_kd.errors import UserError
from rnnt_kd.report import lattice_data
from rnnt_kd.report.lattice_data import file_stem, lattices_dir, list_lattices, read_lattice, write_lattice


def same(one, other):
    arrays = ("starts", "loudness", "models")
    plain = [{key: value for key, value in vars(item).items() if key not in arrays} for item in (one, other)]
    assert plain[0] == plain[1] and list(one.models) == list(other.models) == ["teacher", "twin", "student"]
    for mine, theirs in ((one, other), *((model, other.models[key]) for key, model in one.models.items())):
        for name in set(vars(mine)) - {"models"}:
            np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name), err_msg=name)


@pytest.mark.parametrize("changed", [{}, {"audio": b"", "audio_type": ""}, {"tokens": (), "ref": ()}])
def test_what_was_written_is_read(tmp_path, changed):
    item = utterance_lattice(**changed)
    names = write_lattice(tmp_path, item)
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir()) and names[-1] == "spk-utt1.json"
    assert ("spk-utt1.mp3" in names) == bool(item.audio)
    same(read_lattice(tmp_path / "spk-utt1.json"), item)


def test_the_same_item_makes_the_same_bytes(tmp_path):
    for folder in ("a", "b"):
        names = write_lattice(tmp_path / folder, utterance_lattice())
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("utterance", ["a/b", "../x", ".hidden", "100%", "déjà vu", "x:y*z?"])
def test_any_id_makes_a_file_in_the_folder(tmp_path, utterance):
    folder = lattices_dir(tmp_path, "sparse90_kd", "test")
    write_lattice(folder, utterance_lattice(utterance=utterance))
    assert [path.parent for path in tmp_path.rglob("*") if path.is_file()] == [folder] * 3
    assert [read_lattice(path).utterance for path in list_lattices(tmp_path)] == [utterance]


def test_different_ids_make_different_files():
    names = ["a/b", "a%2Fb", "a_b", ".a", "%2Ea", "a"]
    assert len({file_stem(name) for name in names}) == len(names)


def test_listed_by_system_and_test_set_then_as_they_were_chosen(tmp_path):
    assert list_lattices(tmp_path) == []
    made = [("small_kd", "test", "z", 1), ("small_kd", "test", "a", 2), ("small_kd", "other", "b", 1)]
    for system, test_set, utterance, order in [*made, ("a_kd", "test", "c", 1)]:
        item = utterance_lattice(utterance=utterance, test_set=test_set, order=order)
        write_lattice(lattices_dir(tmp_path, system, test_set), item)
    listed = [(path.parent.parent.name, path.parent.name, path.stem) for path in list_lattices(tmp_path)]
    of_small = [("small_kd", *rest) for rest in (("other", "b"), ("test", "z"), ("test", "a"))]
    assert listed == [("a_kd", "test", "c"), *of_small]


def test_an_interrupted_write_leaves_nothing_that_is_listed(tmp_path):
    folder = lattices_dir(tmp_path, "x_kd", "test")
    with pytest.raises(KeyboardInterrupt), writes_interrupted(2):
        write_lattice(folder, utterance_lattice())
    assert len(list(folder.iterdir())) == 2 and list_lattices(tmp_path) == []


@pytest.mark.parametrize("victim", ["npz", "mp3"])
def test_a_missing_file_is_named(tmp_path, victim):
    write_lattice(tmp_path, utterance_lattice())
    (tmp_path / f"spk-utt1.{victim}").unlink()
    with pytest.raises(UserError, match=rf"spk-utt1\.{victim}: no such file; expected what .*spk-utt1\.json names"):
        read_lattice(tmp_path / "spk-utt1.json")


def broken_json(folder, **changed):
    content = json.loads((folder / "spk-utt1.json").read_text())
    content.update(changed)
    (folder / "spk-utt1.json").write_text(json.dumps({key: value for key, value in content.items() if value != "gone"}))


def broken_arrays(folder, **changed):
    with np.load(folder / "spk-utt1.npz") as file:
        arrays = {**{name: file[name] for name in file.files}, **changed}
    np.savez(folder / "spk-utt1.npz", **{name: array for name, array in arrays.items() if array is not None})


@pytest.mark.parametrize("damage", [
    lambda folder: (folder / "spk-utt1.npz").write_bytes((folder / "spk-utt1.npz").read_bytes()[:900]),
    lambda folder: (folder / "spk-utt1.npz").write_bytes(b""),
    lambda folder: (folder / "spk-utt1.json").write_text("{"),
    lambda folder: (folder / "spk-utt1.json").write_text("[]"),
    lambda folder: broken_json(folder, format=99),
    lambda folder: broken_json(folder, tokens="gone"),
    lambda folder: broken_json(folder, surprise=1),
    lambda folder: broken_json(folder, audio="x.exe"),
    lambda folder: broken_json(folder, tokens=["a"]),  # the path goes higher
    lambda folder: broken_arrays(folder, twin_kl=None),
    lambda folder: broken_arrays(folder, twin_kl=np.zeros((3, 3))),
    lambda folder: broken_arrays(folder, starts=np.zeros(4)),
    lambda folder: broken_arrays(folder, teacher_path=np.array([[0, 99]])),
    lambda folder: broken_arrays(folder, starts=np.array([{}], dtype=object)),
])  # fmt: skip
def test_damage_is_one_line_that_names_the_file(tmp_path, damage):
    write_lattice(tmp_path, utterance_lattice())
    damage(tmp_path)
    with pytest.raises(UserError, match=f"^{tmp_path / 'spk-utt1.json'}: damaged or not of this program"):
        read_lattice(tmp_path / "spk-utt1.json")


@pytest.mark.parametrize("audio", ["../secret.mp3", "link.mp3", "{}/secret.mp3", "pipe:touch EXECUTED .mp3"])
def test_audio_is_never_read_from_another_folder(tmp_path, audio):
    write_lattice(tmp_path / "in", utterance_lattice())
    (tmp_path / "secret.mp3").write_bytes(b"secret")
    (tmp_path / "in/link.mp3").symlink_to(tmp_path / "secret.mp3")
    broken_json(tmp_path / "in", audio=audio.format(tmp_path))
    with pytest.raises(UserError, match="make the lattices again|a shell pipe"):
        read_lattice(tmp_path / "in/spk-utt1.json")


@pytest.mark.parametrize("claim", [(10**13,), (10**6, 10**7)])
def test_arrays_that_claim_to_be_huge_are_one_line(tmp_path, claim, monkeypatch):
    write_lattice(tmp_path, utterance_lattice())
    monkeypatch.setattr(lattice_data, "LARGEST_ARRAYS", 10)
    with pytest.raises(UserError, match="spk-utt1.json: damaged .*more than 10 bytes of arrays"):
        read_lattice(tmp_path / "spk-utt1.json")
    monkeypatch.undo()
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": claim})
    with zipfile.ZipFile(tmp_path / "spk-utt1.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("starts.npy", header.getvalue() + bytes(100))
    with pytest.raises(UserError, match="spk-utt1.json: damaged"):
        read_lattice(tmp_path / "spk-utt1.json")
