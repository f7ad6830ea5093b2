"""Options of ``bench_infer``, and the systems that they name."""

import argparse
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

from rnnt_kd.benchmark.encoder_pass import make_model
from rnnt_kd.bin.options import add_device, chosen_device, parser
from rnnt_kd.decoding.lookup import get_search
from rnnt_kd.errors import UserError
from rnnt_kd.sparsity.structures import only_sparsity
from rnnt_kd.systems.store import read_system
from rnnt_kd.text.tokenizer import Tokenizer


def infer_parser(description: str) -> argparse.ArgumentParser:
    options = parser(description)
    options.add_argument("--systems", type=Path, nargs="+", default=[], help="folders of trained systems")
    options.add_argument("--size", help="a row of the conformer's SIZES: random weights instead of systems")
    options.add_argument("--structure", default="16x1", help="of the zeros of random weights; some, with commas")
    options.add_argument("--sparsity", type=float, default=0.9, help="of random weights")
    options.add_argument("--engines", default="torch,onnxruntime,onnxruntime_int8,numba,torch_bsr")
    options.add_argument("--data-dir", type=Path, help="a Kaldi data directory: real speech")
    options.add_argument("--bpe-dir", type=Path, help="count the words, too")
    options.add_argument("--search", default="modified_beam_search")
    options.add_argument("--beam", type=int, default=4)
    options.add_argument("--rounds", type=int, default=7, help="timed passes over everything")
    options.add_argument("--batches", type=int, default=10, help="parts of the utterances that take turns")
    options.add_argument("--batch", type=int, default=32, help="utterances a batch on a GPU; else it is 1")
    options.add_argument("--frames", type=int, default=1500, help="of features an utterance on a GPU")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--json", type=Path, help="write all figures")
    options.add_argument("--md", type=Path, help="write the table")
    options.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    add_device(options)
    options.set_defaults(device="cpu")
    return options


def check(arguments: argparse.Namespace) -> None:
    """Raises UserError: a number out of range, options that do not go together."""
    for name in ("rounds", "batches", "num_threads", "beam", "batch", "frames"):
        if getattr(arguments, name) < 1:
            raise UserError("--" + name.replace("_", "-"), str(getattr(arguments, name)), "a number from 1 on")
    if not 0.0 <= arguments.sparsity < 1.0:
        raise UserError("--sparsity", str(arguments.sparsity), "a fraction in [0, 1)", "write 0.9 for 90 %")
    if arguments.seed < 0:
        raise UserError("--seed", str(arguments.seed), "a number from 0 on")
    arguments.device = chosen_device(arguments.device) if arguments.device == "cuda" else "cpu"
    if bool(arguments.systems) == bool(arguments.size):
        raise UserError("--systems, --size", "none or both", "one of them: trained systems, or a size")
    if arguments.bpe_dir and not (arguments.systems and arguments.data_dir):
        raise UserError("--bpe-dir", "words of random weights or random features", "--systems and --data-dir with it")
    get_search(arguments.search)


def chosen_systems(arguments: argparse.Namespace) -> List[Tuple[str, Dict[str, Any]]]:
    """Names and specifications; a dense one first where they are random."""
    if arguments.systems:
        folders = [folder.resolve() for folder in arguments.systems]
        for folder in folders:
            read_system(folder)
        short = [folder.name for folder in folders]
        return [
            (name if short.count(name) == 1 else str(folder), {"system_dir": str(folder)})
            for name, folder in zip(short, folders)
        ]
    common = {"size": arguments.size, "seed": arguments.seed}
    systems = [(f"{arguments.size} dense", {**common, "structure": "unstructured", "sparsity": 0.0})]
    for structure in filter(None, (part.strip() for part in arguments.structure.split(","))):
        only = only_sparsity(structure)
        sparsity = arguments.sparsity if only is None else only
        name = f"{arguments.size} {structure}"
        systems.append((name, {**common, "structure": structure, "sparsity": sparsity}))
    for _, system in systems:
        make_model(system)  # a size or structure that does not exist is told now
    return systems


def own_tokenizer(bpe_dir: Path, system_dirs: Sequence[Path]) -> Tokenizer:
    """That of the folder.  UserError: some system has another."""
    tokenizer = Tokenizer.load(bpe_dir)
    for system_dir in system_dirs:
        checksum = read_system(system_dir).bpe_checksum
        if checksum != tokenizer.checksum:
            expected = f"that of {system_dir} (checksum {checksum[:12]})"
            raise UserError(bpe_dir, f"another BPE model (checksum {tokenizer.checksum[:12]})", expected)
    return tokenizer
