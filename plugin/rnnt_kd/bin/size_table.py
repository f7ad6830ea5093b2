"""How small a system's files become, and what that costs: every system in every format.

Reads EXP_DIR/teacher and EXP_DIR/students/NAME; writes EXP_DIR/sizes.md and EXP_DIR/sizes.json (or --md, --json).
"times smaller" compares with the float32 ONNX files of the dense teacher.  Each ONNX format is decoded by
onnxruntime on DATA_DIR with our own search; p compares with float32 of the same system (two-sided, paired bootstrap).
--random-sizes adds bytes, without words, of larger models with random weights and masks.
"""

import json
from pathlib import Path
from typing import List, Optional

import torch
from tqdm import tqdm

from rnnt_kd import atomic
from rnnt_kd.bin.entry import command
from rnnt_kd.bin.options import command_line, join, parser
from rnnt_kd.bin.stage import Stage
from rnnt_kd.data.speech import filter_banks, read_speech
from rnnt_kd.decoding.lookup import available_searches, get_search
from rnnt_kd.errors import UserError
from rnnt_kd.models.encoders.conformer import SIZES
from rnnt_kd.sparsity.structures import get_structure
from rnnt_kd.systems.store import read_system, weights_file


@command
def main(argv: Optional[List[str]] = None) -> None:
    options = parser(__doc__)
    options.add_argument("--exp-dir", type=Path, required=True, help="holds teacher/ and students/")
    options.add_argument("--bpe-dir", type=Path, required=True, help="holds bpe.model")
    options.add_argument("--data-dir", type=Path, required=True, help="Kaldi data directory of the test set")
    options.add_argument("--systems", default="teacher", help='names, for example "teacher sparse90 sparse90_kd"')
    options.add_argument("--dense", default="teacher", help="the system whose float32 files are the measure")
    options.add_argument("--search", default="modified_beam_search", choices=available_searches())
    options.add_argument("--beam", type=int, default=4, help="hypotheses kept")
    options.add_argument("--random-sizes", default="", help='bytes of random models, for example "S M"')
    options.add_argument("--random-sparsity", type=float, default=0.9, help="of the random models")
    options.add_argument("--random-structure", default="unstructured", help="of the random models")
    options.add_argument("--json", type=Path, help="(default: EXP_DIR/sizes.json)")
    options.add_argument("--md", type=Path, help="(default: EXP_DIR/sizes.md)")
    options.add_argument("--allow-pipes", action="store_true", help="run the commands in wav.scp")
    args = options.parse_args(argv)
    names = args.systems.split()
    if not names or len(set(names)) < len(names):
        raise UserError("--systems", f"'{args.systems}'", "one or more names, each once")
    if args.beam < 1:
        raise UserError("--beam", str(args.beam), "1 or more")
    get_search(args.search)
    _check_random(args)
    folders = {name: _folder(args.exp_dir, name) for name in [args.dense, *names]}
    for folder in folders.values():
        read_system(folder)
    json_path, md_path = args.json or args.exp_dir / "sizes.json", args.md or args.exp_dir / "sizes.md"
    settings = {key: getattr(args, key) for key in ("systems", "dense", "search", "beam")}
    settings |= {key: getattr(args, key) for key in ("random_sizes", "random_sparsity", "random_structure")}
    settings |= {"json": str(json_path.resolve()), "md": str(md_path.resolve())}
    systems = [path for folder in folders.values() for path in (folder / "config.yaml", weights_file(folder))]
    data = [args.data_dir / name for name in ("wav.scp", "text", "segments")]
    outputs = [str(path.resolve()) for path in (json_path, md_path)]
    inputs = sorted([*systems, *data, args.bpe_dir / "bpe.model"])
    stage = Stage(json_path.parent, f"sizes-{json_path.stem}", settings, inputs, outputs)
    if not stage.is_finished():
        stage.start()
        _measure(args, folders, names, json_path, md_path, command_line("rnnt_kd.bin.size_table", argv))
        stage.finish()
    print(md_path.read_text(encoding="utf-8"), end="")


def _measure(args, folders, names: List[str], json_path: Path, md_path: Path, typed: str) -> None:
    from rnnt_kd.export import size_table  # its packages are optional

    torch.set_num_threads(1)
    speech = [item for item in read_speech(args.data_dir, args.allow_pipes) if item.samples is not None]
    if not any(item.text for item in speech):
        raise UserError(args.data_dir, "no utterance that can be used has words", "a test set")
    features = [filter_banks(item.samples) for item in speech]
    measured = {}
    for name in tqdm({args.dense: None, **dict.fromkeys(names)}, desc="sizes", unit="system"):
        measured[name] = size_table.measure_system(
            folders[name], args.bpe_dir, speech, search=args.search, beam=args.beam, features=features
        )
    rows = [row for name in names for row in measured[name]]
    size_table.add_ratios(rows, measured[args.dense][0]["bytes"])
    for size in args.random_sizes.split():
        dense = size_table.measure_random(size, 0.0, "unstructured")
        sparse = size_table.measure_random(size, args.random_sparsity, args.random_structure)
        size_table.add_ratios([*dense, *sparse], dense[0]["bytes"])
        rows += [*dense, *sparse]
    what = f"{args.data_dir.name}: {len(speech)} utterances, {args.search}, beam {args.beam}, onnxruntime"
    heading = f"Sizes of systems in bytes, and %WER on {what}; measured against {args.dense} in float32."
    atomic.write_text(json_path, json.dumps(rows, indent=1) + "\n")
    atomic.write_text(md_path, size_table.markdown(rows, heading, [typed]))


def _check_random(args) -> None:
    for size in args.random_sizes.split():
        if size not in SIZES:
            raise UserError("--random-sizes", f"'{size}'", f"of: {join(SIZES)}")
    if not 0 <= args.random_sparsity < 1:
        raise UserError("--random-sparsity", str(args.random_sparsity), "at least 0 and less than 1")
    get_structure(args.random_structure)


def _folder(exp_dir: Path, name: str) -> Path:
    if name != Path(name).name:
        raise UserError("--systems", f"'{name}'", "names, not paths")
    return exp_dir / "teacher" if name == "teacher" else exp_dir / "students" / name


if __name__ == "__main__":
    main()
