"""Networks.  ``build_transducer`` makes one from names and numbers.

Names are files, and nothing is registered anywhere else:

    encoder ``big_net``     ``encoders/big_net.py``: class ``BigNet``, and ``SIZES``: size name -> keyword arguments
                            (empty: the options say everything)
    predictor ``long_ago``  ``predictors/long_ago.py``: class ``LongAgoPredictor``
    joiner ``plain``        ``joiners/plain.py``: class ``PlainJoiner``

What their classes must offer stands in ``interfaces.py``.
"""

import inspect
from typing import Any, Dict

from rnnt_kd import choices
from rnnt_kd.errors import UserError
from rnnt_kd.models.transducer import Transducer

CONTEXT_SIZE = 2  # labels the predictor sees


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
    predictor: str = "stateless",
    joiner: str = "tanh",
    label_dropout: float = 0.0,
) -> Transducer:
    """A freshly initialised transducer (parameters drawn from torch's global generator).

    Args:
      encoder, predictor, joiner:  files in ``encoders/``, ``predictors/``, ``joiners/``.
      size:            a row of that encoder's ``SIZES``.
      encoder_options: replaces single values of the row.
      label_dropout:   of the predictor.
    Raises:
      UserError: an unknown name, size or option, options that make no encoder, or a blank outside the
        vocabulary; it lists the right ones.
    """
    module = choices.load(f"{__name__}.encoders", encoder, what="encoder")
    encoder_class = _class(module, encoder)
    if module.SIZES:
        choices.check(size, list(module.SIZES), f"size of encoder {encoder}")
    parameters = inspect.signature(encoder_class).parameters.values()
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        known = [parameter.name for parameter in parameters if parameter.name not in ("dropout", "feature_dim")]
        for name in encoder_options:
            choices.check(name, known, f"encoder_options of encoder {encoder}")
    predictor_module = choices.load(f"{__name__}.predictors", predictor, what="predictor")
    predictor_class = _class(predictor_module, predictor, "Predictor")
    joiner_class = _class(choices.load(f"{__name__}.joiners", joiner, what="joiner"), joiner, "Joiner")
    if not 0 <= blank_id < vocab_size:
        raise UserError("blank_id", f"{blank_id} with a vocabulary of {vocab_size}", "a label of the vocabulary")
    try:
        network = encoder_class(dropout=dropout, **{**module.SIZES.get(size, {}), **encoder_options})
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:  # torch: of a size below 0
        if isinstance(error, UserError) or not encoder_options:
            raise
        what = f"{encoder_options} ({type(error).__name__}: {error})"
        raise UserError(f"encoder_options of encoder {encoder}", what, "values that make an encoder") from error
    options: Dict[str, Any] = {"dropout": label_dropout} if label_dropout else {}
    if options and "dropout" not in inspect.signature(predictor_class).parameters:
        raise UserError("model.label_dropout", f"the predictor {predictor} takes no dropout", "0")
    labels = predictor_class(vocab_size, predictor_dim, context_size=CONTEXT_SIZE, blank_id=blank_id, **options)
    joined = joiner_class(network.output_dim, labels.output_dim, joiner_dim, vocab_size)
    return Transducer(network, labels, joined, vocab_size, blank_id=blank_id, ctc_head=ctc_head)


def _class(module: Any, name: str, ending: str = "") -> Any:
    return getattr(module, "".join(part.capitalize() for part in name.split("_")) + ending)
