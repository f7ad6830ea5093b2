"""``write_cache`` with a teacher, batches and texts that are not ours."""

import pytest
import torch
from command_cases import told
from foreign_teacher import BLANK, FRAMES, Recipe, assert_holds_the_mean, batch, facts_of
from objective_cases import make_model

from rnnt_kd.errors import UserError
from rnnt_kd.lattice import get_backend
from rnnt_kd.lattice.prune_ranges import get_rnnt_prune_ranges
from rnnt_kd.lattice.smoothed_loss import rnnt_loss_smoothed
from rnnt_kd.systems.store import tensors_digest
from rnnt_kd.teachers.cache import TeacherCache
from rnnt_kd.teachers.ensemble import Ensemble
from rnnt_kd.teachers.interface import as_teacher
from rnnt_kd.teachers.shards import shard_path
from rnnt_kd.teachers.write_cache import cache_facts, write_cache


def refuse():
    raise AssertionError("a batch was asked for")
    yield


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_it_holds_the_teachers_posteriors_on_the_ranges_of_its_simple_heads(tmp_path, temperature):
    teacher = Recipe().eval()
    facts = facts_of(teacher, temperature=temperature)
    assert write_cache(teacher, iter([batch("c", "a"), batch("b-σ")]), tmp_path, facts, backend="torch")
    cache = TeacherCache.open(
        tmp_path, {"teacher": tensors_digest(teacher.state_dict()), "bpe": "lang", "blank_id": BLANK}
    )
    ids, features, lens, texts = batch("a", "b-σ", "c")
    frames = lens // 3
    found = cache.lookup(ids, frames.tolist() if torch.is_tensor(frames) else frames, 3)
    for b, (name, T, text) in enumerate(zip(ids, frames.tolist(), texts)):
        with torch.no_grad():
            encoder_out, _ = teacher.encode(features[b : b + 1, : FRAMES[name]], lens[b : b + 1])
            labels = torch.tensor([text + [BLANK] * (3 - len(text))])
            predictor_out = teacher.predict(labels)
            boundary = torch.tensor([[0, 0, len(text), T]])
            am, lm = teacher.simple(encoder_out, predictor_out)
        _, grads = rnnt_loss_smoothed(
            lm.double(), am.double(), labels, BLANK, 0.2, 0.0, boundary, return_grad=True, backend=get_backend("torch")
        )
        ranges = get_rnnt_prune_ranges(*grads, boundary, 3)
        assert found.starts[b, :T].tolist() == ranges[0, :, 0].tolist()
    assert_holds_the_mean(found, [teacher], ids, temperature)


def test_each_of_several_jobs_writes_its_part_and_again_nothing(tmp_path):
    teacher = Recipe().eval()
    facts = facts_of(teacher)
    for shard, ids in enumerate((["a", "c"], ["b-σ"])):
        assert write_cache(teacher, [batch(*ids)], tmp_path, facts, shard=shard, num_shards=2)
        assert not write_cache(teacher, refuse(), tmp_path, facts, shard=shard, num_shards=2)
        if shard == 0:
            with pytest.raises(UserError, match="not finished: 1 of 2 shards"):
                TeacherCache.open(tmp_path)
    assert len(TeacherCache.open(tmp_path)) == 3
    other = Recipe(seed=1).eval()
    assert tensors_digest(other.state_dict()) != facts.teacher
    assert write_cache(other, [batch("a", "c")], tmp_path, facts_of(other), shard=0, num_shards=2)


def test_order_is_as_the_batches_come_or_as_asked(tmp_path):
    teacher = Recipe().eval()
    for name, batches, order in (("as", ["c", "a", "b-σ"], None), ("asked", ["b-σ", "c", "a"], ["c", "a", "b-σ"])):
        each = [batch(utterance) for utterance in batches]
        write_cache(teacher, each, tmp_path / name, facts_of(teacher), order=order)
    first, second = (shard_path(tmp_path / name, 0).read_bytes() for name in ("as", "asked"))
    assert first == second


def test_what_cannot_be_cached_is_one_line_and_writes_nothing(tmp_path):
    def simple_less():
        teacher = Recipe().eval()
        teacher.simple = lambda *inputs: None
        return teacher

    def nan():
        teacher = Recipe().eval()
        torch.nn.init.constant_(teacher.out.weight, float("nan"))
        return teacher

    ids, features, lens, texts = batch("a", "c")
    good, plain = [batch("a", "c")], Recipe().eval
    cases = [
        (Recipe(), good, {}, "teacher: is in train mode; expected eval mode"),
        (simple_less(), good, {}, "teacher: Recipe has no simple heads"),
        (nan(), good, {"where": "exp/big"}, "exp/big: its posteriors of a are not numbers"),
        (plain(), [batch("a"), batch("a")], {}, "a: comes twice"),
        (plain(), good, {"order": ["a"]}, "c: is in the order or in the batches, not in both"),
        (plain(), [(ids, features, lens, texts[:1])], {}, "batch: 2 ids, 2 features, 2 lengths, 1 lists of labels"),
        (plain(), [(["a"], features[:1], lens[:1], [[1] * 30])], {}, "a: no path of the pruned lattice takes its 30"),
        (plain(), [(["a"], features[:1], lens[:1], [[1, BLANK]])], {}, "a: symbol 1 is 3, the blank"),
    ]
    for teacher, batches, options, message in cases:
        assert message in told(write_cache, teacher, batches, tmp_path / "out", facts_of(teacher), **options)
        assert not (tmp_path / "out").exists()


def test_a_model_of_ours_is_in_train_mode_whatever_it_is_wrapped_in(tmp_path):
    model = as_teacher(make_model(1).train())
    for teacher in (model, Ensemble([model])):
        facts = cache_facts(teacher, digest="of mine")
        assert "teacher: is in train mode" in told(write_cache, teacher, refuse(), tmp_path, facts)


def test_a_batch_of_nobody_is_no_entry(tmp_path):
    teacher = Recipe().eval()
    nobody = [], torch.zeros(0, 9, 7), torch.zeros(0, dtype=torch.int64), []
    assert write_cache(teacher, [nobody, batch("a")], tmp_path, facts_of(teacher))
    assert len(TeacherCache.open(tmp_path)) == 1


def test_a_teacher_without_a_state_needs_a_digest():
    class Bare:
        blank_id = 0

    with pytest.raises(UserError, match=r"Bare has no state_dict\(\); expected digest= of its weights"):
        cache_facts(Bare())
    assert cache_facts(Bare(), digest="of mine").teacher == "of mine"
