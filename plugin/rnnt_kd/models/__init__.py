"""Networks.  ``build_transducer`` makes one from names and numbers.

An encoder named ``big_net`` is the file ``encoders/big_net.py`` with a table ``SIZES`` (size name ->
keyword arguments) and a class ``BigNet``.  Nothing is registered anywhere else.
"""

import importlib
import inspect
from pathlib import Path
from typing import Any, Dict, List

from rnnt_kd.errors import UserError
from rnnt_kd.models.joiner import Joiner
from rnnt_kd.models.predictor import StatelessPredictor
from rnnt_kd.models.transducer import Transducer

CONTEXT_SIZE = 2  # labels the predictor sees


def available_encoders() -> List[str]:
    """Names of the files in ``encoders/`` that have sizes."""
    folder = Path(__file__).parent / "encoders"
    return sorted(p.stem for p in folder.glob("*.py") if "\nSIZES = {" in p.read_text(encoding="utf-8"))


def build_transducer(
    *,
    encoder: str,
    size: str,
    encoder_options: Dict[str, Any],
    predictor_dim: int,
    joiner_dim: int,
    dropout: float,
    ctc_head: bool,
    vocab_size: int,
    blank_id: int,
) -> Transducer:
    """A freshly initialised transducer (parameters drawn from torch's global generator).

    Args:
      encoder:         a name of ``available_encoders()``.
      size:            a row of that encoder's ``SIZES``.
      encoder_options: replaces single values of the row.
    Raises:
      UserError: an unknown encoder, size or option, or a blank outside the vocabulary; it lists the right ones.
    """
    if encoder not in available_encoders():
        raise UserError("encoder", f"unknown name {encoder!r}", f"one of {', '.join(available_encoders())}")
    module = importlib.import_module(f"{__name__}.encoders.{encoder}")
    encoder_class = getattr(module, "".join(part.capitalize() for part in encoder.split("_")))
    if size not in module.SIZES:
        raise UserError(f"size of encoder {encoder}", f"unknown size {size!r}", f"one of {', '.join(module.SIZES)}")
    known = [name for name in inspect.signature(encoder_class).parameters if name != "dropout"]
    for name in encoder_options:
        if name not in known:
            raise UserError(
                f"encoder_options of encoder {encoder}", f"unknown option {name!r}", f"one of {', '.join(known)}"
            )
    if not 0 <= blank_id < vocab_size:
        raise UserError("blank_id", f"{blank_id} with a vocabulary of {vocab_size}", "a label of the vocabulary")
    network = encoder_class(dropout=dropout, **{**module.SIZES[size], **encoder_options})
    predictor = StatelessPredictor(vocab_size, predictor_dim, context_size=CONTEXT_SIZE, blank_id=blank_id)
    joiner = Joiner(network.output_dim, predictor_dim, joiner_dim, vocab_size)
    return Transducer(network, predictor, joiner, vocab_size, blank_id=blank_id, ctc_head=ctc_head)
