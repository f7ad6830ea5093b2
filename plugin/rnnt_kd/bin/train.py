"""Train one system of an experiment, or go on with it, or find it finished; take over one that is external.

The same command again: a finished system is skipped, an interrupted one resumes from its last checkpoint and ends
with the same weights.  With another configuration, the older run is moved to <its folder>.old-N first.  The teacher,
and its cache where the system learns from one that its cuts do not carry, must be there: rnnt_kd.bin.experiment makes
all in their order.

With --nproc, or started by torchrun or srun, several processes train the system together (data parallel): each takes
batches of its own, so there are that many times fewer steps.
"""

import os
import sys
from typing import Any, List, Optional

from rnnt_kd import choices
from rnnt_kd.bin import options
from rnnt_kd.bin.entry import command
from rnnt_kd.errors import UserError
from rnnt_kd.jobs import follow_launcher, run_ranks


@command
def main(argv: Optional[List[str]] = None) -> None:
    parser = options.parser(__doc__)
    options.add_experiment(parser)
    parser.add_argument("--system", required=True, help="a system of the experiment's file")
    parser.add_argument("--seed", type=int, help="default: the first of the system's")
    options.add_train_cuts(parser)
    parser.add_argument("--dev-set", default="dev", help="name of the development set")
    options.add_lattice_backend(parser)
    options.add_device(parser)
    options.add_ranks(parser)
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds that these wait for one another")
    options.add_data_root(parser)
    args = parser.parse_args(argv)
    options.check_positive(args, "num_threads", "nproc", "num_nodes", "timeout")
    asked, is_rank = args.nproc * args.num_nodes, "TORCHELASTIC_RUN_ID" in os.environ
    if is_rank:
        follow_launcher()
    elif asked > 1 and os.environ.get("SLURM_STEP_NUM_TASKS", "1") == "1":
        words = ["-m", "rnnt_kd.bin.train", *(sys.argv[1:] if argv is None else argv)]
        sys.exit(1 if run_ranks(words, args.nproc, args.num_nodes) else 0)

    import torch

    from rnnt_kd.experiments.plan import Places, Plan
    from rnnt_kd.text.tokenizer import Tokenizer
    from rnnt_kd.training.external import is_external, take_system
    from rnnt_kd.training.loop import train_system
    from rnnt_kd.training.ranks import find_world, leave

    if asked not in (1, find_world().size):
        found = f"{find_world().size} processes were started"
        raise UserError("--nproc, --num-nodes", found, f"{asked}, or neither option", "torchrun and srun say how many")
    torch.set_num_threads(args.num_threads)
    given = dict(given_cuts=args.train_cuts, overrides=tuple(args.overrides))
    places = Places(args.config, args.exp_dir, args.dev_set, {}, **given)
    plan = Plan(args.experiment, places)
    jobs = plan.jobs_of(choices.check(args.system, list(plan.experiment.systems), "--system"))
    seed = jobs[0][1] if args.seed is None else args.seed
    job = args.system, int(choices.check(str(seed), [str(seed) for _, seed in jobs], f"--seed of {args.system}"))
    cache = plan.cache_to_make(job)
    own = plan.config(job), plan.system_dir(job)
    data: Any = dict(train_cuts=plan.train_cuts(job), dev_cuts=places.dev_cuts, say=_say)
    data.update(tokenizer=Tokenizer.load(places.bpe_dir))
    if is_external(own[0]):
        return take_system(*own, **data) if find_world().rank == 0 else None
    train_system(
        *own,
        **data,
        teacher_dir=plan.teacher_dir(job),
        more_teachers=[plan.system_dir(teacher) for teacher in plan.teachers_of(job)[1:]],
        kd_cache=cache.folder if cache else None,
        device=options.chosen_device(args.device),
        backend_name=args.lattice_backend,
        timeout=args.timeout,
    )
    leave()


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")  # at once, see entry
    sys.stderr.flush()


if __name__ == "__main__":
    main()
