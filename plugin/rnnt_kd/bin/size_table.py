"""Stage 8, after the export: how small a system's files become, and what that costs; every system in every format.

Measures the first seed of each system that is exported under EXPERIMENT_DIR/export, and writes
EXPERIMENT_DIR/sizes.md and sizes.json (or --md, --json).  "times smaller" compares with the float32 ONNX files of the
dense teacher.  Each ONNX format is decoded by onnxruntime on the test set with our own search; p compares with float32
of the same system (two-sided, paired bootstrap).  --random-sizes adds bytes, without words, of larger models with
random weights and masks.
"""

import argparse
import os
from pathlib import Path
from typing import List, Optional

import torch
from tqdm import tqdm

from rnnt_kd import atomic
from rnnt_kd.bin.entry import command
from rnnt_kd.bin.options import add_allow_pipes, add_data_root, command_line, parser
from rnnt_kd.bin.stage import Stage
from rnnt_kd.data.speech import filter_banks, read_speech
from rnnt_kd.decoding.lookup import available_searches, get_search
from rnnt_kd.errors import UserError
from rnnt_kd.systems import experiment_folder
from rnnt_kd.systems.experiment_folder import ExperimentFolder
from rnnt_kd.systems.store import read_system, weights_file


@command
def main(argv: Optional[List[str]] = None) -> None:
    options = parser(__doc__)
    options.add_argument("--experiment-dir", type=Path, required=True, help="EXP_DIR/EXPERIMENT")
    options.add_argument("--test-set", help="default: the experiment's first")
    options.add_argument("--systems", help='names, for example "teacher sparse90"; default: all that are exported')
    options.add_argument("--dense", help="the system whose float32 files are the measure; default: the first teacher")
    options.add_argument("--search", choices=available_searches(), help="default: the experiment's")
    options.add_argument("--beam", type=int, help="hypotheses kept; default: the experiment's")
    options.add_argument("--random-sizes", default="", help='bytes of random models, for example "S M"')
    options.add_argument("--random-sparsity", type=float, default=0.9, help="of the random models")
    options.add_argument("--random-structure", default="unstructured", help="of the random models")
    options.add_argument("--json", type=Path, help="default: EXPERIMENT_DIR/sizes.json")
    options.add_argument("--md", type=Path, help="default: EXPERIMENT_DIR/sizes.md")
    add_allow_pipes(options)
    add_data_root(options)
    args = options.parse_args(argv)
    about = experiment_folder.read(args.experiment_dir)
    args.test_set, test_set = about.test_set(args.test_set)
    args.search, args.beam = args.search or about.search, about.beam if args.beam is None else args.beam
    if args.beam < 1:
        raise UserError("--beam", str(args.beam), "1 or more")
    get_search(args.search)
    args.systems = _systems(args, about)
    args.dense = args.dense or next((one.name for one in about.systems if one.role == "teacher"), args.systems[0])
    args.json, args.md = args.json or args.experiment_dir / "sizes.json", args.md or args.experiment_dir / "sizes.md"
    folders = {name: about.system(name).first for name in [args.dense, *args.systems]}
    for folder in folders.values():
        read_system(folder)
    data_dir = experiment_folder.data_dir(args.experiment_dir, test_set)
    keys = ("test_set", "systems", "dense", "search", "beam", "random_sizes", "random_sparsity", "random_structure")
    outputs = [args.json.name, os.path.relpath(args.md, args.json.parent)]
    args.score_events = about.score_events
    args.failed = [path.parent.stem for path in experiment_folder.failed_exports(args.experiment_dir)]
    settings = {key: getattr(args, key) for key in keys}
    settings.update({"failed": args.failed} if args.failed else {}, **({} if args.score_events else {"events": False}))
    inputs = [path for folder in folders.values() for path in (folder / "config.yaml", weights_file(folder))]
    inputs += [data_dir / name for name in ("wav.scp", "text", "segments")]
    inputs = sorted([*inputs, about.bpe_dir / "bpe.model"])
    stage = Stage(args.json.parent, f"sizes-{args.json.stem}", settings, inputs, outputs)
    if not stage.is_finished():
        stage.start()
        _measure(args, folders, data_dir, about.bpe_dir, command_line("rnnt_kd.bin.size_table", argv))
        stage.finish()
    print(args.md.read_text(encoding="utf-8"), end="")


def _measure(args: argparse.Namespace, folders, data_dir: Path, bpe_dir: Path, typed: str) -> None:
    from rnnt_kd.export import size_table  # its packages are optional

    torch.set_num_threads(1)
    encoder, random_rows = read_system(folders[args.dense]).model.encoder, []
    for size in args.random_sizes.split():
        sparse = size_table.measure_random(encoder, size, args.random_sparsity, args.random_structure)
        dense = size_table.measure_random(encoder, size, 0.0, "unstructured")
        size_table.add_ratios([*dense, *sparse], dense[0]["bytes"])
        random_rows += [*dense, *sparse]
    speech = [item for item in read_speech(data_dir, args.allow_pipes) if item.samples is not None]
    if not any(item.text for item in speech):
        raise UserError(data_dir, "no utterance that can be used has words", "a test set")
    features = [filter_banks(item.samples) for item in speech if item.samples is not None]
    measured = {}
    for name in tqdm({args.dense: None, **dict.fromkeys(args.systems)}, desc="sizes", unit="system", disable=None):
        measured[name] = size_table.measure_system(
            name,
            folders[name],
            bpe_dir,
            speech,
            search=args.search,
            beam=args.beam,
            features=features,
            score_events=args.score_events,
        )
    rows = [row for name in args.systems for row in measured[name]]
    size_table.add_ratios(rows, measured[args.dense][0]["bytes"])
    rows += random_rows
    what = f"{args.test_set}: {len(speech)} utterances, {args.search}, beam {args.beam}, onnxruntime"
    heading = f"Sizes of systems in bytes, and %WER on {what}; measured against {args.dense} in float32."
    if args.failed:
        heading += f" The export failed its check (export/SYSTEM.failed/check.json): {', '.join(args.failed)}."
    atomic.write_json(args.json, rows)
    atomic.write_text(args.md, size_table.markdown(rows, heading, typed))


def _systems(args: argparse.Namespace, about: ExperimentFolder) -> List[str]:
    """Names of the systems to measure."""
    if args.systems is None:
        exported = [one.name for one in about.systems if (args.experiment_dir / "export" / one.name).is_dir()]
        if not exported:
            problem = "no system of the experiment is exported"
            raise UserError(
                args.experiment_dir / "export", problem, "EXPERIMENT_DIR/export/SYSTEM", "run stage 8 first"
            )
        return exported
    names = args.systems.split()
    if not names or len(set(names)) < len(names):
        raise UserError("--systems", f"'{args.systems}'", "one or more names, each once")
    return names


if __name__ == "__main__":
    main()
