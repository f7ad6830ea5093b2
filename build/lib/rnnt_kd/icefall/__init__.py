"""Distillation inside icefall's own recipes, none of whose files is edited.

    python -m rnnt_kd.icefall zipformer/train.py --kd-teacher zipformer/exp-large ...     # __main__.py

or by hand, in a train.py of one's own:

    teacher = load_teacher("zipformer/exp-large", epoch=50, avg=26)      # or "exp/jit_script.pt"
    kd = distill(model, teacher=teacher)                                 # after get_model(params)
    kd.batch = batch                                                     # with a cache: first line of compute_loss
    info["kd_loss"] = kd.last.item()
"""

from rnnt_kd.icefall.distill import distill
from rnnt_kd.icefall.model import IcefallModel
from rnnt_kd.icefall.recipe import load_teacher

__all__ = ["IcefallModel", "distill", "load_teacher"]
