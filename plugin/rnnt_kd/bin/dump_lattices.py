"""Stage 9, before the report: what teacher, student and its twin without distillation say on the teacher's lattice.

For each distilled system (sparse90_kd; its twin is sparse90): the utterances of a test set whose words distillation
changed, those that gained most and those that lost most.  Each is run through the three models, and

  EXP_DIR/report/lattices/<system>/<test set>/<utterance>.{json,npz,mp3}

hold what report/lattice_data.py describes.  With --figures also

  EXP_DIR/report/lattices/<system>/<test set>-figures.json

says over the whole test set where on the lattice the students differ from the teacher.

A system that is not trained or decoded yet is named and left out.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional

from rnnt_kd import atomic
from rnnt_kd.bin import options
from rnnt_kd.bin.entry import command
from rnnt_kd.bin.stage import Stage
from rnnt_kd.errors import UserError
from rnnt_kd.lattice import available_backends
from rnnt_kd.report.lattice_choice import decodings
from rnnt_kd.report.lattice_data import MODELS, lattices_dir, write_lattice


@command
def main(argv: Optional[List[str]] = None) -> None:
    parser = options.parser(__doc__)
    parser.add_argument("--exp-dir", type=Path, required=True, help="the experiment")
    parser.add_argument("--bpe-dir", type=Path, required=True, help="folder of stage 2")
    parser.add_argument("--test-set", required=True, help="its name")
    parser.add_argument("--cuts", type=Path, required=True, help="its cuts, of stage 1")
    parser.add_argument(
        "--systems",
        required=True,
        help='distilled systems, for example "sparse90_kd small_kd"; NAME=TWIN where the twin is not what stands '
        "before _kd; a name with a slash is a folder below EXP_DIR",
    )
    parser.add_argument("--teacher-dir", type=Path, help="default: EXP_DIR/teacher")
    parser.add_argument("--search", help="of the decodings to compare; default: the first that all three have")
    parser.add_argument("--max-utterances", type=int, default=6, help="pictures of a system")
    parser.add_argument("--max-seconds", type=float, default=12.0, help="longer utterances get no picture")
    parser.add_argument("--figures", action="store_true", help="also figures over all utterances of the test set")
    parser.add_argument("--allow-pipes", action="store_true", help="run the shell pipes of wav.scp for the audio")
    parser.add_argument(
        "--lattice-backend", choices=["auto", *available_backends()], default="auto", help="auto: k2 where installed"
    )
    options.add_device(parser)
    args = parser.parse_args(argv)
    _check(args)

    import torch

    torch.set_num_threads(args.num_threads)
    for system in args.systems.split():
        trio = _Trio.of(args, system)
        reason = trio.why_not(args)
        if reason:
            print(f"lattices of {trio.label} on {args.test_set}: left out, {reason}", flush=True)
        else:
            _dump(args, trio)
            if args.figures:
                _figures(args, trio)


@dataclass(frozen=True)
class _Trio:
    """A distilled system, its twin and their teacher; ``names`` and ``folders`` have the keys ``MODELS``."""

    label: str
    names: Dict[str, str]
    folders: Dict[str, Path]

    @classmethod
    def of(cls, args, system: str) -> "_Trio":
        name, _, twin = system.partition("=")
        twin = twin or (name.partition("_kd")[0] if "_kd" in name else "")
        if not twin:
            raise UserError("--systems", f"'{name}' names no twin without distillation", "NAME_kd, or NAME=TWIN")
        folders = {"teacher": args.teacher_dir or args.exp_dir / "teacher"}
        for key, value in (("twin", twin), ("student", name)):
            folders[key] = args.exp_dir / value if "/" in value else args.exp_dir / "students" / value
        shown = [value.replace("experiments/", "").replace("/", "-") for value in ("teacher", twin, name)]
        return cls(shown[2], dict(zip(MODELS, shown)), folders)

    def why_not(self, args) -> str:
        """Why there can be no pictures (yet); "" if there can."""
        from rnnt_kd.systems.store import weights_file

        for folder in self.folders.values():
            if not folder.is_dir():
                return f"there is no {folder}"
            if not weights_file(folder).exists():
                return f"{folder} is not trained to the end"
            if not decodings(folder, args.test_set):
                return f"{folder} has not decoded {args.test_set}"
        if not self.searches(args):
            wanted = f"with {args.search}" if args.search else "with one search"
            return f"the three have not decoded {args.test_set} {wanted}"
        return ""

    def searches(self, args) -> List[str]:
        """Those that all three have, and that are wanted."""
        found = [set(decodings(folder, args.test_set)) for folder in self.folders.values()]
        return sorted(search for search in set.intersection(*found) if args.search in (None, search))


def _dump(args, trio: _Trio) -> None:
    from rnnt_kd.report.make_lattices import make_lattices
    from rnnt_kd.systems.store import weights_file

    search = trio.searches(args)[0]
    recogs = {key: decodings(trio.folders[key], args.test_set)[search] for key in MODELS}
    folder = lattices_dir(args.exp_dir, trio.label, args.test_set)
    settings = {"search": search, "max_utterances": args.max_utterances, "max_seconds": args.max_seconds}
    settings.update(allow_pipes=args.allow_pipes, lattice_backend=args.lattice_backend)
    inputs = [*recogs.values(), args.bpe_dir / "bpe.model"]
    for path in trio.folders.values():
        inputs += [path / "config.yaml", weights_file(path)]
    stage = Stage(folder, f"lattices-{trio.label}-{args.test_set}", settings, inputs, [], [args.cuts])
    if stage.is_finished():
        return
    items = make_lattices(
        trio.folders,
        trio.names,
        recogs,
        args.cuts,
        args.bpe_dir,
        test_set=args.test_set,
        search=search,
        max_utterances=args.max_utterances,
        max_seconds=args.max_seconds,
        allow_pipes=args.allow_pipes,
        device=options.chosen_device(args.device),
        backend_name=args.lattice_backend,
        say=lambda line: print(line, flush=True),
    )
    stage.start()
    for stale in folder.glob("[!.]*"):
        stale.unlink()
    stage.finish([made for item in items for made in write_lattice(folder, item)])
    kinds = [item.chosen for item in items]
    figures = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)) or "no word was changed"
    print(f"lattices of {trio.label} on {args.test_set}: {len(items)} utterances ({figures}) -> {folder}", flush=True)


def _figures(args, trio: _Trio) -> None:
    from rnnt_kd.report.lattice_figures import REGIONS, lattice_figures

    device = options.chosen_device(args.device)
    found = lattice_figures(trio.folders, args.cuts, args.bpe_dir, device, args.lattice_backend)
    folder = lattices_dir(args.exp_dir, trio.label, args.test_set)
    path = folder.with_name(f"{args.test_set}-figures.json")
    names = {f"name_of_{key}": name for key, name in trio.names.items()}
    atomic.write_text(path, json.dumps({**names, **found}, indent=1, ensure_ascii=False) + "\n")
    share = found["nodes"]["off"] / max(1, sum(found["nodes"].values()))
    print(f"{found['utterances']} utterances, {share:.0%} of the nodes off the teacher's paths -> {path}")
    for key in ("twin", "student"):
        mine = found[key]
        means = ", ".join(f"{mine['mean_kl'][region]:.3f} {region}" for region in REGIONS)
        blank = f"p(blank) {mine['blank_at_emission']:.3f} where the teacher emits"
        print(f"  {trio.names[key]}: KL a node {means}; {blank}", flush=True)


def _check(args) -> None:
    if not args.exp_dir.is_dir():
        raise UserError(args.exp_dir, "no such folder", "an experiment", "run the stages before")
    if not args.systems.split():
        raise UserError("--systems", "empty", "at least one name")
    for key in ("max_utterances", "num_threads"):
        if getattr(args, key) < 1:
            raise UserError(f"--{key.replace('_', '-')}", str(getattr(args, key)), "1 or more")
    if not args.max_seconds > 0:
        raise UserError("--max-seconds", str(args.max_seconds), "a positive number")


if __name__ == "__main__":
    main()
