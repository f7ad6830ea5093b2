"""A model of icefall's as a system of our recipe: its encoder as it is, in its own code; the rest as our own parts.

icefall's stateless decoder and joiner compute what ``StatelessPredictor`` and ``TanhJoiner`` compute, so their weights
are carried over, and held against the original on random labels.  What comes out caches, runs online, and decodes as
any system does.  Whoever reads it needs the recipe's folder, inside a folder of PYTHONPATH, and what icefall needs.
"""

import os
from pathlib import Path
from typing import Any, Dict, Mapping, Tuple

import torch
from torch import Tensor, nn

from rnnt_kd import choices
from rnnt_kd.config import ModelConfig
from rnnt_kd.errors import UserError
from rnnt_kd.icefall.launch import TeacherSettings
from rnnt_kd.icefall.model import kind
from rnnt_kd.icefall.recipe import builder, import_train, recipe_imports
from rnnt_kd.models import CONTEXT_SIZE, build_transducer
from rnnt_kd.models.transducer import Transducer
from rnnt_kd.teachers.same import check_same

OPTIONS = ("path", "epoch", "avg", "iter", "use_averaged_model", "recipe", "tokens", "options")
REST = ("decoder", "joiner", "simple_am_proj", "simple_lm_proj", "ctc_output", "attention_decoder")  # no encoder


def as_system(given: Mapping[str, Any], pieces: list, where: str) -> Tuple[Transducer, ModelConfig, Dict[str, float]]:
    """The transducer in eval mode, how ``build_transducer`` makes it, and the scales of its smoothed loss.

    Args:
      given:   path, a folder of checkpoints or one of them, and as of ``load_teacher``: epoch, avg, iter,
               use_averaged_model, recipe, options; tokens, a bpe.model or tokens.txt, where its own has moved.
      pieces:  of the BPE model that it must have.
      where:   what ``given`` stands in, for messages.
    Raises:
      UserError: as ``load_teacher``; another BPE model, or no model that our parts can be.
    """
    for key in given:
        choices.check(str(key), OPTIONS, where)
    if not given.get("path"):
        raise UserError(where, "names no path", "path: the folder of an icefall training")
    values = {"place": given["path"], **{key: value for key, value in given.items() if key != "path"}}
    settings = TeacherSettings(**values)
    teacher = settings.load()
    if not teacher.options:
        expected = "a folder of checkpoints, epoch-N.pt or checkpoint-N.pt"
        raise UserError(
            teacher.where, "does not say what it is made of", expected, "or use it in python -m rnnt_kd.icefall"
        )
    found = {**kind(teacher.model), "pieces": settings.pieces(teacher.options)}
    ours = {"classes": len(pieces), "blank": 0, "context size": CONTEXT_SIZE, "pieces": pieces}
    check_same(teacher.where, found, ours)
    folder = Path(given.get("recipe") or _above(Path(given["path"]))).resolve()
    plain = {key: value for key, value in teacher.options.items() if isinstance(value, (str, int, float))}
    encoder_options = {"factory": f"{__name__}:encoder", "recipe": str(folder), "options": plain}
    weights = {
        "encoder.module.model." + name: value for name, value in teacher.state_dict().items() if _of_encoder(name)
    }
    weights.update(_ours(teacher.model, teacher.where))
    P, J = (weights[f"joiner.{name}.weight"].shape for name in ("predictor_proj", "output_linear"))
    config = ModelConfig(
        "external", "", encoder_options, predictor_dim=P[1], joiner_dim=J[1], dropout=0.0, ctc_head=False
    )
    model = build_transducer(**vars(config), vocab_size=len(pieces), blank_id=0)
    model.load_state_dict(weights)
    model.eval().requires_grad_(False)
    labels = torch.randint(1, len(pieces), (3, 20), generator=torch.Generator().manual_seed(0))
    if not torch.allclose(model.predict(labels), teacher.predict(labels), rtol=1e-3, atol=1e-4):
        raise _another_decoder(teacher.where)
    scale = teacher.options.get
    scales = {"lm_only_scale": float(scale("lm_scale", 0.25)), "am_only_scale": float(scale("am_scale", 0.0))}
    return model, config, scales


def encoder(recipe: str, options: Dict[str, Any]) -> nn.Module:
    """The factory that ``config.yaml`` names: the encoder that ``recipe``/train.py makes of ``options``."""
    folder = Path(recipe).resolve()
    known = [Path(path).resolve() for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if not any(path in (folder, *folder.parents) for path in known):
        raise UserError(
            folder, "lies in no folder of PYTHONPATH", "a recipe of your icefall", "export PYTHONPATH=ICEFALL"
        )
    with recipe_imports(folder):
        train = import_train(folder / "train.py")
        params = train.get_params()
        params.update(options)
        return Encoder(builder(train)(params))


class Encoder(nn.Module):
    """What of a model of icefall's makes encoder frames."""

    def __init__(self, model: nn.Module):
        super().__init__()
        for name in REST:
            if hasattr(model, name):
                delattr(model, name)
        self.model: Any = model

    def forward(self, x: Tensor, x_lens: Tensor) -> Tuple[Tensor, Tensor]:
        run = getattr(self.model, "forward_encoder", self.model.encoder)
        encoder_out, lens = run(x, x_lens)[:2]
        return encoder_out, lens


def _another_decoder(where: object) -> UserError:
    return UserError(where, "its decoder is another than icefall's stateless one", "an embedding and a convolution")


def _of_encoder(name: str) -> bool:
    return name.partition(".")[0] not in REST


def _above(path: Path) -> Path:
    return (path if path.is_dir() else path.parent).resolve().parent


def _ours(model: Any, where: object) -> Dict[str, Tensor]:
    """Decoder, joiner and simple heads under our names."""
    if not (hasattr(model, "simple_am_proj") and hasattr(model, "simple_lm_proj")):
        raise UserError(where, "has no simple heads", "a model that a pruned transducer loss has trained")
    if not (hasattr(model.decoder, "embedding") and hasattr(model.decoder, "conv")):
        raise _another_decoder(where)
    linear = {"joiner.encoder_proj": model.joiner.encoder_proj, "joiner.predictor_proj": model.joiner.decoder_proj}
    linear["joiner.output_linear"] = model.joiner.output_linear
    linear.update({"simple_am_proj": model.simple_am_proj, "simple_lm_proj": model.simple_lm_proj})
    weights = {}
    for name, module in linear.items():
        weights[f"{name}.weight"], bias = _parameters(module)
        weights[f"{name}.bias"] = torch.zeros(len(weights[f"{name}.weight"])) if bias is None else bias
    kernel, bias = _parameters(model.decoder.conv)  # (D, D / groups, context)
    D, size, context = kernel.shape
    dense, rows = torch.zeros(D, context, D), torch.arange(D)
    for column in range(size):
        dense[rows, :, rows // size * size + column] = kernel[:, column]
    weights["predictor.embedding.weight"] = _parameters(model.decoder.embedding)[0]
    weights["predictor.context_proj.weight"] = dense.flatten(1)
    weights["predictor.context_proj.bias"] = torch.zeros(D) if bias is None else bias
    return weights


def _parameters(module: Any) -> Tuple[Tensor, Any]:
    """Weight and bias as they act: icefall's older modules multiply both by learned scales."""
    if hasattr(module, "get_weight"):
        return module.get_weight(), module.get_bias() if hasattr(module, "get_bias") else None
    return module.weight, getattr(module, "bias", None)
