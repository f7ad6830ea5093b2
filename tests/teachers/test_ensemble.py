"""Several teachers that fill one cache: plain means in float64 of what each says, on the ranges of the first."""

import dataclasses
import functools

import pytest
import torch
from foreign_teacher import C, Recipe, assert_holds_the_mean, batch, facts_of
from torch import nn

from rnnt_kd.errors import UserError
from rnnt_kd.teachers.cache import TeacherCache
from rnnt_kd.teachers.ensemble import Ensemble
from rnnt_kd.teachers.write_cache import write_cache


def wider(seed):
    """Another size, the same labels."""
    teacher = Recipe(seed)
    teacher.enc, teacher.dec = nn.Linear(21, 12), nn.Embedding(C, 12)
    teacher.out = nn.Linear(12, C, bias=False)
    return teacher.eval()


def sure(teacher):
    """The same, surer: so a mean of probabilities is no mean of logarithms."""
    with torch.no_grad():
        teacher.out.weight.mul_(6.0)
    return teacher


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_cache_holds_the_mean_of_all_on_the_ranges_of_the_first(tmp_path, count, temperature):
    teachers = [Recipe().eval(), sure(wider(1)), wider(2)][:count]
    facts = facts_of(Ensemble(teachers), temperature=temperature)
    assert write_cache(Ensemble(teachers), iter([batch("c", "a"), batch("b-σ")]), tmp_path / "all", facts)
    assert write_cache(teachers[0], iter([batch("c", "a"), batch("b-σ")]), tmp_path / "first", facts_of(teachers[0]))
    ids, _, lens, _ = batch("a", "b-σ", "c")
    found, first = (TeacherCache.open(tmp_path / name).lookup(ids, lens // 3, 3) for name in ("all", "first"))
    assert torch.equal(found.starts, first.starts)
    if count == 1:
        assert torch.equal(found.packed, first.packed)
    assert_holds_the_mean(found, teachers, ids, temperature)


def test_members_may_pad_otherwise(tmp_path):
    longer = Recipe(1).eval()
    longer.encode = lambda x, lens: (nn.functional.pad(Recipe.encode(longer, x, lens)[0], (0, 0, 0, 2)), lens // 3)
    teachers = [Recipe().eval(), longer]
    assert write_cache(Ensemble(teachers), [batch("c", "a"), batch("b-σ")], tmp_path, facts_of(Ensemble(teachers)))
    found = TeacherCache.open(tmp_path).lookup(["a", "b-σ", "c"], batch("a", "b-σ", "c")[2] // 3, 3)
    assert_holds_the_mean(found, [Recipe().eval(), Recipe(1).eval()], ["a", "b-σ", "c"], 1.0)


def test_another_member_is_another_cache():
    digests = {facts_of(Ensemble([Recipe(a).eval(), Recipe(b).eval()])).teacher for a, b in ((0, 1), (1, 0), (0, 2))}
    assert len(digests) == 3


def slow(teacher):
    teacher.encode = functools.partial(lambda encode, x, lens: encode(x, lens - 3), teacher.encode)
    return teacher


def blank_of(teacher, blank):
    teacher.blank_id = blank
    return teacher


def with_classes(teacher, classes):
    teacher.out = nn.Linear(8, classes, bias=False)
    return teacher


@pytest.mark.parametrize("second, found", [
    (lambda: slow(Recipe(1).eval()), r"ensemble: \[5, 7\] and \[4, 6\] encoder frames.*the same subsampling"),
    (lambda: blank_of(Recipe(1).eval(), 0), "ensemble: blank ids 3, 0.*the same labels"),
    (lambda: with_classes(Recipe(1).eval(), 9), "ensemble: 6, 9 classes.*the same labels"),
    (lambda: Recipe(1).train(), "is in train mode"),
])  # fmt: skip
def test_teachers_that_do_not_go_together_are_refused(second, found, tmp_path):
    first = Recipe().eval()
    facts = dataclasses.replace(facts_of(first), teacher="x")
    with pytest.raises(UserError, match=found):
        write_cache(Ensemble([first, second()]), [batch("c", "a")], tmp_path, facts)


def test_no_teacher_is_no_ensemble():
    with pytest.raises(UserError, match="no teacher"):
        Ensemble([])
