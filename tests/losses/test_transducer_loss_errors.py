"""What does not fit the loss without logits: one line that names what, found, expected, next step."""

import inspect

import pytest
import torch
from joiner_cases import make_joiner_case
from lattice_cases import make_case

from rnnt_kd.errors import UserError
from rnnt_kd.losses import JoinerParts, NodeScores, pruned_transducer_loss, rnnt_loss_pruned
from rnnt_kd.losses.node_scores import node_scores

CASE = make_case(1, B=2, T=5, S=3, C=6, s_range=3)  # utterance 0 has all 3 symbols and 5 frames

LATTICE = dict(symbols=CASE.symbols, ranges=CASE.ranges, termination_symbol=0, boundary=CASE.boundary)


def changed(tensor: torch.Tensor, where, value) -> torch.Tensor:
    tensor = tensor.clone()
    tensor[where] = value
    return tensor


BAD_INPUT = {
    "variant": (dict(kd_variant="squashed"), "kd variant: .*'squashed'; expected one of: collapsed, full"),
    "weighting": (
        dict(kd_weighting="student_occupancy"),
        "one of: uniform, occupancy, student-occupancy, one-best, mixed",
    ),
    "weighting without a teacher": (dict(kd_weighting="x", teacher=None), "kd weighting: .*'x'; expected one of"),
    "activation that sums": (dict(activation=lambda h: h.sum(-1)), r"activation: makes \(1,\) of \(1, 4\)"),
    "activation that returns none": (dict(activation=lambda h: None), "activation: returns a NoneType"),
    "temperature": (dict(kd_temperature=0.0), "kd temperature: 0.0; expected a number above 0"),
    "two class scales": (dict(kd_class_scales=(1.0, 1.0)), "three numbers >= 0"),
    "class scales of no number": (dict(kd_class_scales=(1.0, 1.0, float("nan"))), "three numbers >= 0"),
    "class scales": (dict(kd_class_scales=(1.0, -1.0, 1.0)), "three numbers >= 0"),
    "rnnt_type": (dict(rnnt_type="fast"), "rnnt_type: 'fast'; expected regular, modified or constrained"),
    "reduction": (dict(reduction="max"), "reduction: 'max'; expected none, mean or sum"),
    "backend": (dict(backend="numpy"), "one of: auto, k2, torch, triton"),
    "blank too large": (dict(termination_symbol=6), "termination symbol: 6; expected a class, 0 to 5"),
    "blank below 0": (dict(termination_symbol=-1), "termination symbol: -1; expected a class, 0 to 5"),
    "symbol too large": (dict(symbols=changed(CASE.symbols, (0, 1), 6)), "symbols: symbol 6; expected .* 0 to 5"),
    "symbol below 0": (dict(symbols=changed(CASE.symbols, (0, 1), -2)), "symbols: symbol -2; expected .* 0 to 5"),
    "blank in the text": (
        dict(symbols=changed(CASE.symbols, (0, 1), 0)),
        "utterance 0 of the batch: symbol 1 is 0, the blank; expected labels other than blank; check",
    ),
    "symbols of a wrong dtype": (dict(symbols=CASE.symbols.int()), "symbols: torch.int32; expected int64"),
    "symbols without a batch": (dict(symbols=CASE.symbols[0]), r"symbols \(3,\).* expected \(B, S\)"),
    "symbols of another batch": (dict(symbols=CASE.symbols[:1]), r"symbols \(1, 3\), ranges \(2, 5, 3\)"),
    "ranges of a wrong dtype": (dict(ranges=CASE.ranges.float()), "ranges: torch.float32; expected int64"),
    "ranges of another batch": (dict(ranges=CASE.ranges[:1]), r"ranges \(1, 5, 3\)"),
    "ranges of fewer frames": (dict(ranges=CASE.ranges[:, :4]), r"boundary: row \[0, 0, 3, 5\].* T_b <= 4"),
    "ranges of more frames": (
        dict(ranges=torch.cat((CASE.ranges, CASE.ranges[:, -1:]), dim=1)),
        r"joiner inputs: am \(2, 5, 4\).* \(2, 6, 4\)",
    ),
    "ranges of no frame": (dict(ranges=CASE.ranges[:, :0]), "with a frame at least"),
    "ranges without s_range": (dict(ranges=CASE.ranges[:, :, 0]), r"\(B, T, s_range\)"),
    "ranges above S": (
        dict(ranges=changed(CASE.ranges, (1, 4), torch.tensor([2, 3, 4]))),
        r"ranges: \[2, 3, 4\] in frame 4 of utterance 1; expected consecutive symbol positions, 0 to 3",
    ),
    "ranges below 0": (dict(ranges=changed(CASE.ranges, (0, 0, 0), -1)), r"ranges: \[-1, 1, 2\] in frame 0"),
    "ranges with a gap": (dict(ranges=changed(CASE.ranges, (0, 0, 2), 3)), r"ranges: \[0, 1, 3\] in frame 0"),
    "boundary of more frames": (dict(boundary=changed(CASE.boundary, (0, 3), 6)), r"row \[0, 0, 3, 6\].* T_b <= 5"),
    "boundary of more symbols": (dict(boundary=changed(CASE.boundary, (0, 2), 4)), r"row \[0, 0, 4, 5\].* S_b <= 3"),
    "boundary that begins late": (dict(boundary=changed(CASE.boundary, (0, 1), 1)), r"row \[0, 1, 3, 5\]"),
    "boundary of a wrong shape": (dict(boundary=CASE.boundary[:, 2:]), r"boundary \(2, 2\)"),
    "boundary of a wrong dtype": (dict(boundary=CASE.boundary.int()), "boundary: torch.int32; expected int64"),
    "an utterance without frames": (dict(boundary=changed(CASE.boundary, (1, 3), 0)), "utterance 1 .* no path"),
    "no path": (dict(boundary=changed(CASE.boundary, (0, 3), 1), rnnt_type="modified"), "utterance 0 .* no path"),
    "am of other frames": (dict(am=torch.zeros(2, 4, 4)), r"am \(2, 4, 4\).* expected \(B, T, J\) = \(2, 5, 4\)"),
    "am not projected": (dict(am=torch.zeros(2, 5, 9)), r"am \(2, 5, 9\).*projected to the width of the output layer"),
    "lm of fewer symbols": (dict(lm=torch.zeros(2, 3, 4)), r"lm \(2, 3, 4\).*\(B, S \+ 1, J\) = \(2, 4, 4\)"),
    "lm of another prune range": (dict(lm=torch.zeros(2, 5, 2, 4)), r"lm \(2, 5, 2, 4\)"),
    "lm of another batch": (dict(lm=torch.zeros(1, 4, 4)), r"lm \(1, 4, 4\)"),
    "weight of no matrix": (dict(weight=torch.zeros(6)), r"output layer: weight \(6,\)"),
    "activation to train": (dict(activation=torch.nn.PReLU()), "activation: PReLU has parameters to train"),
    "less than no memory": (dict(memory=-1), "memory: -1; expected a number of bytes, at least 0"),
    "weight of another width": (dict(weight=torch.zeros(6, 3)), r"\(B, T, J\) = \(2, 5, 3\)"),
    "bias of another vocabulary": (
        dict(bias=torch.zeros(5)),
        r"output layer: weight \(6, 4\), bias \(5,\); expected \(C, J\) and",
    ),
    "am of whole numbers": (dict(am=torch.zeros(2, 5, 4, dtype=torch.int64)), "torch.int64.*floating point"),
    "a weight elsewhere": (dict(weight=torch.zeros(6, 4, device="meta")), "tensors on cpu and meta; expected one"),
    "symbols elsewhere": (dict(symbols=CASE.symbols.to("meta")), "symbols, ranges, boundary on cpu and meta"),
    "teacher of another kind": (dict(teacher=torch.zeros(2)), "teacher: Tensor; expected JoinerParts, NodeScores"),
    "teacher of another vocabulary": (
        dict(teacher=JoinerParts(torch.zeros(2, 5, 4), torch.zeros(2, 4, 4), torch.zeros(7, 4))),
        "teacher: 7 classes; expected the student's 6; teacher and student must share the BPE model",
    ),
    "teacher of another frame rate": (
        dict(teacher=JoinerParts(torch.zeros(2, 3, 4), torch.zeros(2, 4, 4), torch.zeros(6, 4))),
        r"joiner inputs: am \(2, 3, 4\)",
    ),
    "teacher scores of another lattice": (
        dict(teacher=NodeScores(*(torch.zeros(2, 5, 4) for _ in range(3)))),
        r"teacher scores: log_blank \(2, 5, 4\) on cpu; expected \(B, T, s_range\) = \(2, 5, 3\).* share frame rate",
    ),
    "teacher scores of whole numbers": (
        dict(teacher=NodeScores(*(torch.zeros(2, 5, 3, dtype=torch.int64) for _ in range(3)))),
        "teacher scores: log_blank of torch.int64; expected log-probabilities",
    ),
    "tempered scores of another lattice": (
        dict(
            teacher=NodeScores(*(torch.zeros(2, 5, 3) for _ in range(3))),
            tempered_teacher=NodeScores(*(torch.zeros(2, 4, 3) for _ in range(3))),
            kd_temperature=2.0,
        ),
        r"teacher scores: log_blank \(2, 4, 3\)",
    ),
}


def assert_named(function, told, change, **arguments):
    """The arguments are good, and with ``change`` they are one line."""
    function(**arguments)
    with pytest.raises(UserError, match=told):
        function(**{**arguments, **change})


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_named(name):
    change, told = BAD_INPUT[name]
    joiner = dict(am=torch.zeros(2, 5, 4), lm=torch.zeros(2, 4, 4), weight=torch.zeros(6, 4))
    more = dict(bias=torch.zeros(6), teacher=JoinerParts(**joiner))
    assert_named(pruned_transducer_loss, told, change, **LATTICE, **joiner, **more)


SHAPES = ("symbols without a batch", "symbols of another batch", "ranges of no frame", "ranges of fewer frames")
WITH_LOGITS = {
    name: (change, r"transducer loss: logits \(2, 5, 3, 6\), ranges" if name in SHAPES else told)
    for name, (change, told) in BAD_INPUT.items()
    if set(change) <= {*inspect.signature(rnnt_loss_pruned).parameters} and name != "ranges of more frames"
}
WITH_LOGITS["another vocabulary"] = (dict(teacher_logits=torch.zeros(2, 5, 3, 7)), "vocabulary, frame rate and ranges")


@pytest.mark.parametrize("name", WITH_LOGITS)
def test_bad_input_is_named_by_the_loss_with_logits(name):
    change, told = WITH_LOGITS[name]
    logits = dict(logits=CASE.logits, teacher_logits=CASE.teacher_logits)
    assert_named(rnnt_loss_pruned, told, change, **LATTICE, **logits)


@pytest.mark.parametrize("options, told", [
    (dict(kd_variant="full"), "'full' compares whole logits.* let the teacher run online"),
    (dict(kd_temperature=2.0), "kd temperature: 2.0, .* make the cache with this temperature"),
    (dict(impl="numpy"), "impl: there is no 'numpy'"),
])  # fmt: skip
def test_what_posteriors_alone_do_not_give_is_named(options, told):
    case = make_joiner_case(1)
    teacher = node_scores(case.teacher, case.nodes)
    with pytest.raises(UserError, match=told):
        pruned_transducer_loss(*case.student[:4], *case.arguments, teacher=teacher, **options)
