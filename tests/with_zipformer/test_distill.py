"""zipformer's AsrModel as student and as teacher, by hand."""

import copy

import pytest
import torch

from rnnt_kd.errors import UserError
from rnnt_kd.zipformer import distill, without_k2


def losses(model, batch, lm_scale=0.25):
    torch.manual_seed(3)
    return [x.item() for x in model(*batch, lm_scale=lm_scale)[:2]]


@pytest.fixture
def pair(asr_model):
    without_k2("torch")
    return asr_model(7).train(), asr_model(8, encoder_dim="24,32")


def test_the_term_is_added_to_the_pruned_loss_and_the_teacher_is_in_no_checkpoint(pair, batch):
    student, teacher = pair
    names, alone = set(student.state_dict()), losses(copy.deepcopy(student), batch)
    kd = distill(student, teacher=teacher, scale=0.5)
    simple, pruned = losses(student, batch)
    assert kd.last > 0.1 and kd.steps == 1
    assert simple == pytest.approx(alone[0], rel=1e-6)
    assert pruned == pytest.approx(alone[1] + 0.5 * kd.last.item(), rel=1e-5)
    student(*batch)[1].backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert set(student.state_dict()) == names == set(copy.deepcopy(student).state_dict())


def test_without_without_k2_a_distilled_model_needs_no_k2_either(pair, zipformer_model, batch):
    student, teacher = pair
    zipformer_model.k2 = None
    kd = distill(student, teacher=teacher)
    student(*batch)[1].backward()
    assert kd.last > 0.1 and zipformer_model.k2 is None


def test_a_teacher_equal_to_the_student_has_nothing_to_teach(pair, batch):
    student, _ = pair
    kd = distill(student.eval(), teacher=copy.deepcopy(student))
    torch.nn.Module.train(student, False)
    student.training = True  # the term is asked for, while all parts are as in the teacher
    student(*batch)
    assert kd.steps == 1 and abs(kd.last.item()) < 1e-4


@pytest.mark.parametrize(
    "sizes, what", [({"vocab_size": 31}, "classes is 31.*30"), ({"context_size": 1}, "context size is 1.*2")]
)
def test_a_teacher_of_another_kind_is_refused_with_both_named(pair, asr_model, sizes, what):
    with pytest.raises(UserError, match=what):
        distill(pair[0], teacher=asr_model(9, **sizes))
