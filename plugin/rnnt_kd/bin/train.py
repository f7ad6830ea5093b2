"""Train one system of a preset, or go on with it, or find it finished."""

import sys
from pathlib import Path
from typing import List, Optional

from rnnt_kd.bin import options
from rnnt_kd.bin.entry import command
from rnnt_kd.config import SystemConfig
from rnnt_kd.errors import UserError
from rnnt_kd.training.compose import ROLES, compose

DESCRIPTION = """Train one system of a preset, or go on with it, or find it finished.

The same command again: a finished system is skipped, an interrupted one resumes from its
last checkpoint and ends with the same weights.  With another configuration, the older run
is moved to <exp-dir>.old-N first."""

KD_RANGES = ["teacher", "student"]


@command
def main(argv: Optional[List[str]] = None) -> None:
    from rnnt_kd.lattice import available_backends
    from rnnt_kd.losses import available_variants, available_weightings

    parser = options.parser(DESCRIPTION)
    options.add_recipe(parser)
    parser.add_argument("--role", choices=ROLES, required=True, help="which part of the preset")
    parser.add_argument("--name", required=True, help="of the system, in the final table")
    parser.add_argument("--train-cuts", type=Path, required=True, help="cuts of stage 1")
    parser.add_argument("--dev-cuts", type=Path, required=True, help="cuts of stage 1")
    parser.add_argument("--bpe-dir", type=Path, required=True, help="folder of stage 2")
    parser.add_argument("--exp-dir", type=Path, required=True, help="folder of this system")
    parser.add_argument(
        "--teacher-dir", type=Path, help="a trained system: sparse and streaming students start there; teaches online"
    )
    parser.add_argument("--sparsity", type=float, default=0.0, help="of a sparse or streaming student, in [0, 1)")
    parser.add_argument("--structure", help="instead of the preset's sparsity.structure: unstructured, 16x1, 2:4 ...")
    parser.add_argument("--kd", action="store_true", help="distil from a teacher over the pruned lattice")
    parser.add_argument(
        "--kd-ranges",
        choices=KD_RANGES,
        help="instead of the preset's kd.ranges: teacher, from --kd-cache; student, --teacher-dir runs online",
    )
    parser.add_argument("--kd-cache", type=Path, help="folder of stage 4, for --kd-ranges teacher")
    parser.add_argument("--kd-variant", choices=available_variants(), help="instead of the preset's kd.variant")
    parser.add_argument("--kd-weighting", choices=available_weightings(), help="instead of the preset's kd.weighting")
    parser.add_argument("--kd-scale", type=float, help="instead of the preset's kd.scale")
    parser.add_argument(
        "--kd-shift",
        type=int,
        metavar="FRAMES",
        help="instead of the preset's kd.shift: compare with the teacher as many encoder frames (40 ms) before",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--lattice-backend", choices=["auto", *available_backends()], default="auto", help="auto: k2 where installed"
    )
    options.add_device(parser)
    arguments = parser.parse_args(argv)

    config = compose(
        options.load_recipe(arguments.config, arguments.overrides),
        role=arguments.role,
        name=arguments.name,
        seed=arguments.seed,
        sparsity=arguments.sparsity,
        structure=arguments.structure,
        with_kd=arguments.kd,
        kd_options={
            "ranges": arguments.kd_ranges,
            "variant": arguments.kd_variant,
            "weighting": arguments.kd_weighting,
            "scale": arguments.kd_scale,
            "shift": arguments.kd_shift,
        },
    )
    _check_cache(config, arguments.kd_cache)

    import torch

    from rnnt_kd.text.tokenizer import Tokenizer
    from rnnt_kd.training.loop import train_system

    torch.set_num_threads(arguments.num_threads)
    train_system(
        config,
        arguments.exp_dir,
        train_cuts=arguments.train_cuts,
        dev_cuts=arguments.dev_cuts,
        tokenizer=Tokenizer.load(arguments.bpe_dir),
        teacher_dir=arguments.teacher_dir,
        kd_cache=arguments.kd_cache,
        device=options.chosen_device(arguments.device),
        backend_name=arguments.lattice_backend,
        say=_say,
    )


def _check_cache(config: SystemConfig, kd_cache: Optional[Path]) -> None:
    if kd_cache is None:  # a missing one is found by whoever needs it
        return
    if config.kd is None:
        raise UserError("--kd-cache", "given without --kd", "--kd as well", "add --kd, or omit it")
    if config.kd.ranges != "teacher":
        raise UserError(
            "--kd-cache", "given, and kd.ranges is student: the teacher runs online", "no --kd-cache", "omit it"
        )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
