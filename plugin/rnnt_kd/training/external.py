"""A teacher that another recipe trained, made a system of this one: ``{external: icefall, path: ...}``.

Another kind is a row of ``KINDS``: a module with ``as_system``, as ``icefall/external.py`` has it.
"""

import dataclasses
import importlib
from pathlib import Path

from rnnt_kd import choices
from rnnt_kd.config import SystemConfig
from rnnt_kd.config_io import read_system_config, write_system_config
from rnnt_kd.systems import store
from rnnt_kd.systems.describe import describe
from rnnt_kd.text.tokenizer import Tokenizer
from rnnt_kd.training import setup
from rnnt_kd.training import system_dir as system_files
from rnnt_kd.training.progress import Say

EXTERNAL = "external"  # the key, and what its encoder is
KINDS = {"icefall": "rnnt_kd.icefall.external"}


def is_external(config: SystemConfig) -> bool:
    """Is it a plan's, of a system that another recipe trained?"""
    return EXTERNAL in config.model.encoder_options


def take_system(
    config: SystemConfig, system_dir: Path, *, train_cuts: Path, dev_cuts: Path, tokenizer: Tokenizer, say: Say
) -> None:
    """Make the folder of a system, or find it made.  Raises UserError as the kind's ``as_system`` and the folder."""
    given = dict(config.model.encoder_options[EXTERNAL])
    where = f"external teacher {config.name}"
    kind = importlib.import_module(KINDS[choices.check(str(given.pop(EXTERNAL)), list(KINDS), where)])
    asked = setup.resolve(config, tokenizer, None)
    inputs = setup.input_digests(system_dir, train_cuts, dev_cuts, None)
    record = system_files.system_record(system_dir, asked, inputs)
    with system_files.locked(system_dir):
        is_to_do = system_files.open_system_dir(record, asked, say)
        if not is_to_do and not is_external(read_system_config(system_dir / store.CONFIG)):
            return
        model, made_of, scales = kind.as_system(given, tokenizer.pieces(), where)
        training = dataclasses.replace(asked.training, **scales)
        config = dataclasses.replace(asked, model=made_of, training=training)
        write_system_config(system_dir / store.CONFIG, config)
        store.write_tensors(system_dir / store.FINAL, model.state_dict())
        values = describe(config, dict(model.named_parameters()), {}, None, say)
        store.write_system(system_dir, {**values, "train_seconds": 0.0})
        record.finish()
