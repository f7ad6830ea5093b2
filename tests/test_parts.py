"""Work in parts: whose they are."""

from rnnt_kd.parts import Parts, are_left


def test_names_may_hold_any_sign_and_parts_of_another_work_stay(tmp_path):
    other, own = (Parts(tmp_path, f"features_{name}", "key", 1) for name in ("tes", "te[s]"))
    assert not are_left(tmp_path, "features_te[s]")
    for parts in (other, own):
        parts.write(0, [1])
    assert are_left(tmp_path, "features_te[s]")
    own.remove()
    assert not own.dir.exists() and other.dir.exists() and not are_left(tmp_path, "features_te[s]")
