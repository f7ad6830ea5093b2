"""Units that are hidden while a model trains, and cut out of it: which go, and that the smaller model computes the same."""

import copy
import itertools

import pytest
import torch

from rnnt_kd.config import ModelConfig, SparsityConfig, SystemConfig
from rnnt_kd.config_io import write_system_config
from rnnt_kd.errors import UserError
from rnnt_kd.sparsity.sparsifier import Sparsifier
from rnnt_kd.sparsity.structures import UNITS, check_structure, unit_kinds
from rnnt_kd.sparsity.units import Units, find_families
from rnnt_kd.systems import store

ALL = "+".join(UNITS)
X, LENGTHS, LABELS = torch.randn(2, 90, 80), torch.tensor([90, 61]), torch.tensor([[1, 2, 3], [4, 5, -1]])


def system(structure=ALL, target=0.75, encoder="conformer", **options):
    sparsity = SparsityConfig(target=target, structure=structure)
    small = {
        "num_layers": 2,
        "dim": 48,
        "feedforward_dim": 40,
        "depthwise_kernel": 7,
        "subsampling_channels": 4,
        **options,
    }
    model = ModelConfig(encoder=encoder, encoder_options=small, predictor_dim=24, joiner_dim=20)
    return SystemConfig(name="x", role="sparse_student", model=model, sparsity=sparsity, vocab_size=11)


def model_of(config, seed=0):
    """One whose biases and norms are not those of a fresh model."""
    torch.manual_seed(seed)
    model = store.build_model(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def outputs(model):
    encoded, _ = model.encode(X, LENGTHS)
    predicted = model.predict(LABELS)
    projected = model.joiner.encoder_proj(encoded)[:, :, None], model.joiner.predictor_proj(predicted)[:, None]
    return model.joiner(*projected), model.simple_am_proj(encoded), model.simple_lm_proj(predicted)


def train(model, sparsifier, optimizer, first, last):
    for step in range(first, last + 1):
        torch.manual_seed(step)  # of dropout
        optimizer.zero_grad()
        sum(output.square().mean() for output in outputs(model)).backward()
        sparsifier.mask_gradients()
        sparsifier.see_gradients()
        optimizer.step()
        sparsifier.step(step)


def start(config, scope="per-layer", score="magnitude", end=5):
    model, options = model_of(config), config.sparsity
    sparsifier = Sparsifier(model, options.target, 0, end, 1, structure=options.structure, scope=scope, score=score)
    return model, sparsifier, torch.optim.AdamW(model.parameters(), 1e-3)


def trained(config, scope="per-layer", score="magnitude"):
    model, sparsifier, optimizer = start(config, scope, score)
    train(model, sparsifier, optimizer, 1, 6)
    return model.eval(), sparsifier


def cut(config, model, sparsifier):
    weights = sparsifier.cut(model.state_dict())
    smaller = store.as_cut(config, weights)
    made = store.build_model(smaller)
    store.load_weights(made, weights, "the cut", "")
    return made.eval(), smaller


@pytest.mark.parametrize("encoder", ["conformer", "streaming_conformer"])
@pytest.mark.parametrize("structure, scope, score", [
    *itertools.product((ALL, "heads"), ("per-layer", "global"), ("magnitude", "taylor")),
    *((structure, "global", "taylor") for structure in (*UNITS, "ffn+heads", "channels+layers") if structure != "heads"),
])  # fmt: skip
def test_what_is_cut_out_computes_what_the_masked_model_does(encoder, structure, scope, score):
    config = system(structure, 0.5, encoder)
    model, sparsifier = trained(config, scope, score)
    smaller, _ = cut(config, model, sparsifier)
    for ours, theirs in zip(outputs(smaller), outputs(model), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    counts = sparsifier.sparsity_report(model)
    hidden = sum(total - kept for kept, total in counts.values())
    before, after = (sum(weight.numel() for weight in each.parameters()) for each in (model, smaller))
    assert before - after == hidden > 0


@pytest.mark.parametrize("gone", [[], [0], [2], [0, 1]])
def test_a_cut_streaming_model_goes_chunk_by_chunk_as_it_goes_at_once(gone):
    widths = [[0] * 4 if number in gone else [number + 1, 5, 9, 4] for number in range(3)]
    encoder = model_of(system(encoder="streaming_conformer", num_layers=3, layer_widths=widths)).eval().encoder
    assert len(encoder.init_state(2)[0]) == 3 - len(gone)
    x, state, chunks = torch.randn(2, 4 * 32 + 3, 80), encoder.init_state(2), []
    for start in range(0, 4 * 32, 32):
        out, *state = encoder.streaming_forward(x[:, start : start + 35], *state, torch.full((2,), start))
        chunks.append(out)
    encoder.eval_chunk_frames = 8
    at_once, _ = encoder(x, torch.tensor([131, 131]))
    torch.testing.assert_close(torch.cat(chunks, 1), at_once[:, :32], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("target", [0.0, 0.1, 0.5, 0.83])
@pytest.mark.parametrize("scope", ["per-layer", "global"])
def test_as_many_units_go_as_fit_into_the_target(target, scope):
    config = system(target=target)
    model = model_of(config)
    units = Units(model, UNITS, scope, "magnitude")
    masks = units.masks(target)
    total = sum(weight.numel() for weight in units.weights.values())
    hidden = sum(int((~mask).sum()) for mask in masks.values())
    gone = torch.cat([~family.kept(masks) for family in units.families])
    assert units._hidden(gone) == hidden
    ones = {name: torch.ones_like(weight.data) for name, weight in units.weights.items()}
    largest = max(float(family.per_unit(ones).max()) for family in units.families)
    assert target * total - largest < hidden <= target * total
    left = next(family.kept(masks) for family in units.families if family.kind == "layers").tolist()
    assert any(left)
    for family in units.families:
        inside = [int(name.split(".")[2]) for name, _, _ in family.parts if name.startswith("encoder.layers.")]
        assert family.kind == "layers" or family.kept(masks).any() == all(left[number] for number in inside)


@pytest.mark.parametrize("score", ["magnitude", "taylor"])
@pytest.mark.parametrize("scope", ["per-layer", "global"])
def test_the_layers_of_least_worth_go_by_plain_loops(scope, score):
    model = model_of(system("layers", 0.6, num_layers=4))
    units, alike = Units(model, ["layers"], scope, score), {}
    outputs(model)[0].square().sum().backward()
    units.see_gradients()
    changes = [0.0] * 4
    for name, weight in model.named_parameters():
        _, is_layer, rest = name.partition("encoder.layers.")
        number, _, tail = rest.partition(".")
        if is_layer and not tail.startswith("output_norm"):
            alike.setdefault(tail, []).append((weight.detach().square().sum().item(), weight.numel()))
            changes[int(number)] += (weight * weight.grad).sum().item()
    means = {tail: sum(square for square, _ in four) / 4 / four[0][1] for tail, four in alike.items()}
    squares = [sum(four[number][0] / means[tail] for tail, four in alike.items()) for number in range(4)]
    worth = squares if score == "magnitude" else [change**2 for change in changes]
    gone = sorted(range(4), key=lambda number: worth[number])[:2]
    masks = units.masks(0.6)
    for name, mask in masks.items():
        assert mask.any() == mask.all() == (int(name.split(".")[2]) not in gone), name


@pytest.mark.parametrize("encoder", ["conformer", "streaming_conformer"])
def test_of_a_layer_that_went_the_last_norm_is_left(encoder):
    """And the masked layer is that norm, whatever its biases were."""
    config = system("layers+heads+channels", 0.7, encoder, num_layers=3)
    model, sparsifier = trained(config)
    smaller, written = cut(config, model, sparsifier)
    widths = written.model.encoder_options["layer_widths"]
    gone = [number for number, row in enumerate(widths) if row == [0] * 4]
    assert gone and len(gone) < 3 and all(min(row) for row in widths if row != [0] * 4)
    x, nothing = torch.randn(2, 7, 48), torch.zeros(2, 1, 7)
    turned = torch.ones(7, 6), torch.zeros(7, 6)
    for number in gone:
        layer, left = model.encoder.layers[number], smaller.encoder.layers[number]
        assert [name for name, _ in left.named_parameters()] == ["output_norm.weight", "output_norm.bias"]
        masked = layer(x, nothing, torch.zeros(2, 7, 1, dtype=torch.bool), *turned)
        torch.testing.assert_close(masked, layer.output_norm(x), atol=1e-6, rtol=1e-6)
        assert torch.equal(left(x), layer.output_norm(x))


def test_the_units_of_least_weight_go_by_plain_loops():
    config = system("ffn", 0.5, num_layers=1)
    model = model_of(config)
    layer = model.encoder.layers[0]
    masks = Units(model, ["ffn"], "per-layer", "magnitude").masks(0.5)
    for name in ("feedforward1", "feedforward2"):
        module = getattr(layer, name)
        tensors = [module.linear_in.weight, module.linear_in.bias[:, None], module.linear_out.weight.T]
        worth = [sum(float((t[u] ** 2).sum() / (t**2).mean()) for t in tensors) for u in range(40)]
        kept = masks[f"encoder.layers.0.{name}.linear_in.bias"].tolist()
        assert sum(kept) == 20
        assert min(w for w, k in zip(worth, kept) if k) >= max(w for w, k in zip(worth, kept) if not k)


def test_taylor_scores_are_the_squared_first_order_change_of_the_loss():
    config = system("heads", 0.5)
    model = model_of(config)
    units = Units(model, ["heads"], "global", "taylor")
    expected = torch.zeros(8)
    for _ in range(2):
        model.zero_grad()
        outputs(model)[0].square().sum().backward()
        units.see_gradients()
        for number in range(8):
            module = model.encoder.layers[number // 4].attention
            rows = [range(block * 48 + number % 4 * 12, block * 48 + number % 4 * 12 + 12) for block in range(3)]
            rows = [row for block in rows for row in block]
            weight, bias, out = module.qkv_proj.weight, module.qkv_proj.bias, module.out_proj.weight
            columns = rows[:12]
            change = (weight * weight.grad)[rows].sum() + (bias * bias.grad)[rows].sum()
            change = change + (out * out.grad)[:, columns].sum()
            expected[number] = 0.98 * expected[number] + 0.02 * change.detach() ** 2
    torch.testing.assert_close(units.changes, expected, rtol=1e-4, atol=0)


def test_channels_that_are_hidden_are_not_in_the_norm():
    """The masked network's norm is over what is left, in float64 by hand."""
    config = system("channels", 0.6)
    model, _ = trained(config)
    norm = model.encoder.layers[0].convolution.depthwise_norm
    x, kept = torch.randn(3, 48), norm.weight != 0
    assert 0 < kept.sum() < 48
    rest = x[:, kept].double()
    normed = (rest - rest.mean(1, keepdim=True)) / (rest.var(1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    expected = torch.zeros(3, 48, dtype=torch.float64)
    expected[:, kept] = normed * norm.weight[kept].double() + norm.bias[kept].double()
    torch.testing.assert_close(norm(x), expected.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scope, score", [("per-layer", "magnitude"), ("global", "taylor")])
def test_a_resumed_ramp_is_the_same(scope, score):
    config = system(target=0.6)
    whole = start(config, scope, score, end=7)
    train(*whole, 1, 8)
    parts = start(config, scope, score, end=7)
    train(*parts, 1, 4)
    again = start(config, scope, score, end=7)
    for new, old in zip(again, parts, strict=True):
        new.load_state_dict(copy.deepcopy(old.state_dict()))
    train(*again, 5, 8)
    assert all(torch.equal(a, b) for a, b in zip(whole[0].parameters(), again[0].parameters(), strict=True))


def test_find_families_names_what_a_model_does_not_have():
    with pytest.raises(UserError, match="this model has no heads to cut out"):
        find_families(torch.nn.Linear(2, 2), ["heads"])


@pytest.mark.parametrize("structure, found", [
    ("heads+fnn", "no 'fnn'.*did you mean 'ffn'"),
    ("ffn+ffn", "names one twice"),
    ("heads+16x1", "no '16x1'"),
])  # fmt: skip
def test_a_wrong_name_is_one_line(structure, found):
    with pytest.raises(UserError, match=found):
        check_structure(structure, final_sparsity=0.5)


def test_another_score_is_refused():
    with pytest.raises(UserError, match="sparsity.score: there is no 'tailor'.*did you mean 'taylor'"):
        Units(model_of(system()), UNITS, "global", "tailor")


def test_names_of_units():
    assert unit_kinds("heads+ffn") == ("heads", "ffn") and unit_kinds("joiner") == ("joiner",)
    assert unit_kinds("unstructured") == unit_kinds("16x1") == unit_kinds("2:4") == ()


def test_a_target_that_would_leave_nothing_is_refused():
    config = system("heads", 0.5)
    with pytest.raises(UserError, match=r"0.9 with heads, of which one a module stays.*at most 0.750"):
        Sparsifier(model_of(config), 0.9, 0, 5, 1, structure="heads")


@pytest.mark.parametrize("row", [
    [1, 2, 3], [0, 2, 3, 4], [5, 2, 3, 4], [1, 41, 3, 4], [1, 2, 49, 4], [1, 2, 3, 10**12], [1.0, 2, 3, 4],
    [True, 2, 3, 4], ["1", 2, 3, 4], [0, 0, 0, 4], [1, 2, 0, 4], [0, 0, 0, -1], [0.0] * 4, {1: 1, 2: 2, 3: 3, 4: 4}, "1234", None,
])  # fmt: skip
def test_widths_that_make_no_encoder_are_refused(row):
    expected = "encoder option layer_widths.*2 lists of heads, units, channels, units: from 1 to 4, 40, 48, 40"
    for widths in ([row, [1, 2, 3, 4]], [row]):
        with pytest.raises(UserError, match=expected):
            store.build_model(system(layer_widths=widths))


def test_an_encoder_without_any_layer_is_refused():
    with pytest.raises(UserError, match="or, but not in all, only 0"):
        store.build_model(system(layer_widths=[[0] * 4] * 2))


@pytest.mark.parametrize("options, found", [
    ({"feature_dim": 40}, "there is no 'feature_dim'"),
    ({"depthwise_kernel": -1}, "values that make an encoder"),
    ({"subsampling_channels": -3}, "values that make an encoder"),
])  # fmt: skip
def test_options_that_make_no_encoder_are_one_line(options, found):
    with pytest.raises(UserError, match=found):
        store.build_model(system(**options))


def write(folder, config, weights):
    write_system_config(folder / "config.yaml", config)
    store.write_tensors(folder / "model.safetensors", weights)
    store.write_system(folder, {})


def test_a_folder_that_asks_for_giant_widths_is_refused_before_they_are_made(tmp_path):
    config = system(layer_widths=[[1, 10**12, 3, 4]] * 2, feedforward_dim=10**12)
    write(tmp_path, config, {"a": torch.zeros(3)})
    with pytest.raises(UserError, match="layer_widths: .*at most 1000, the largest size of its weights"):
        store.load_system(tmp_path)


def test_a_folder_that_asks_for_layers_that_it_has_no_weights_of_is_refused_before_they_are_made(tmp_path):
    config = system(num_layers=1000, dim=1000, num_heads=1, feedforward_dim=1000)
    write(tmp_path, config, {"a": torch.zeros(3)})
    with pytest.raises(UserError, match="num_layers: 1000; expected as 1 tensors have"):
        store.load_system(tmp_path)


def test_a_cut_of_a_module_wider_than_all_that_is_left_is_loaded(tmp_path):
    config = system("heads+ffn+channels", 0.9, feedforward_dim=1536, dim=32)
    model, sparsifier = trained(config)
    weights = sparsifier.cut(model.state_dict())
    write(tmp_path, store.as_cut(config, weights), weights)
    loaded, _ = store.load_system(tmp_path)
    torch.testing.assert_close(outputs(loaded)[0], outputs(model)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("structure, changed", [
    ("heads", {"encoder_options"}), ("joiner", {"joiner_dim"}), ("predictor", {"predictor_dim"}),
])  # fmt: skip
def test_only_what_was_cut_is_said_to_be_smaller(structure, changed):
    config = system(structure, 0.5)
    smaller = cut(config, *trained(config))[1]
    before, after = vars(config.model), vars(smaller.model)
    assert {key for key in before if before[key] != after[key]} == changed


def test_attributes_of_others_called_units_are_left_alone():
    other = torch.nn.Linear(2, 2)
    other.units = 256
    assert find_families(torch.nn.Sequential(other), []) == []


@pytest.mark.parametrize("structure", UNITS)
def test_a_zero_in_a_norm_is_a_channel_that_went_only_where_channels_go(structure):
    config = system(structure, 0.25)
    norm = trained(config)[0].encoder.layers[0].convolution.depthwise_norm
    assert norm.skips_zeros == (structure == "channels")
