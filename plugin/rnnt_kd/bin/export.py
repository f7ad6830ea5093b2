"""Stage 8: a trained system as files that sherpa-onnx runs, verified.

Writes to OUT  encoder.onnx decoder.onnx joiner.onnx tokens.txt bpe.model bpe.vocab model.json README.md check.json

With --dev-cuts a constant is taken off the joiner's bias of blank: the one with which greedy and beam search together
make the fewest errors there; model.json says which.

Verified before the folder appears (--check, the default): the ONNX checker; onnxruntime against torch on random
lengths; what sherpa-onnx recognises (in a process of its own; greedy and modified beam search, single and batched)
against our own decoder, on every utterance of --check-data-dir.  Tokens, times and letters decide.  Where no
weight is rounded any difference is an error, and the export is kept as OUT.failed; else differences are listed, with
both word error rates.  With --target npu onnxruntime runs the files, one utterance at a time, in sherpa-onnx's place.
"""

import argparse
from pathlib import Path
from typing import Any, Dict, List, Optional

import torch

from rnnt_kd.bin.entry import command
from rnnt_kd.bin.options import add_allow_pipes, add_data_root, add_format, add_ignore_events, parser
from rnnt_kd.bin.stage import Stage
from rnnt_kd.data.kaldi_dir import TABLES
from rnnt_kd.errors import UserError

OUTPUTS = "encoder.onnx decoder.onnx joiner.onnx tokens.txt bpe.model bpe.vocab model.json README.md check.json".split()


def arguments(argv: Optional[List[str]] = None) -> argparse.Namespace:
    """The options."""
    options = parser(__doc__)
    options.add_argument("system_dir", type=Path, metavar="EXP_DIR", help="a trained system")
    options.add_argument("--bpe-dir", type=Path, help="holds bpe.model (default: that of the same experiment)")
    options.add_argument("--out", type=Path, required=True, help="the folder to make")
    options.add_argument("--target", default="sherpa-onnx", help="what runs it; npu: a number for every size, batch 1")
    options.add_argument("--streaming", action="store_true", help="for sherpa-onnx's OnlineRecognizer; npu: by chunks")
    options.add_argument("--seconds", type=float, help="npu, offline: the length that utterances are padded to")
    add_format(options)
    options.add_argument("--check", action=argparse.BooleanOptionalAction, default=True, help="verify (see above)")
    options.add_argument("--check-data-dir", type=Path, help="Kaldi data directory to compare the recognised text on")
    add_allow_pipes(options)
    add_ignore_events(options)
    add_data_root(options)
    options.add_argument("--blank-penalty", type=float, default=0.0, help="taken off blank's logit, in the files [0]")
    options.add_argument("--dev-cuts", type=Path, help="choose --blank-penalty on these cuts: the fewest errors")
    options.add_argument(
        "--decode-dir",
        type=Path,
        action="append",
        help="holds a wer-*.json for model.json; may be repeated (default: EXP_DIR/decode_*)",
    )
    args = options.parse_args(argv)
    if args.bpe_dir is None:
        args.bpe_dir = _bpe_dir(args.system_dir)
    if args.check_data_dir is not None and not args.check:
        raise UserError("--check-data-dir", "given with --no-check", "one of them")
    for folder in args.decode_dir or []:
        if not [*folder.glob("wer-*.json")]:
            raise UserError(folder, "holds no wer-*.json", "a decoding that is scored", "check --decode-dir")
    if args.decode_dir is None:
        args.decode_dir = sorted(args.system_dir.glob("decode_*"))
    return args


def make_stage(args: argparse.Namespace) -> Stage:
    settings = {**_forms(args), **({"ignore_events": True} if args.ignore_events else {})}
    settings.update({"blank_penalty": args.blank_penalty} if args.blank_penalty else {})
    settings.update({} if args.seconds is None else {"seconds": args.seconds})
    scores = [path for folder in args.decode_dir for path in sorted(folder.glob("wer-*.json"))]
    weights = [args.system_dir / name for name in ("model.safetensors", "model.packed.safetensors")]
    inputs = [args.system_dir / "config.yaml", *weights, args.bpe_dir / "bpe.model"]
    data = [args.check_data_dir / name for name in TABLES] if args.check_data_dir else []
    data += [args.dev_cuts] if args.dev_cuts else []
    return Stage(args.out, "export", settings, [*inputs, *data, *scores], OUTPUTS)


def _forms(args: argparse.Namespace) -> Dict[str, Any]:
    return {name: getattr(args, name) for name in ("target", "streaming", "form", "check")}


@command
def main(argv: Optional[List[str]] = None) -> None:
    args = arguments(argv)
    stage = make_stage(args)
    if stage.is_finished():
        return
    from rnnt_kd.export.export_system import export_system  # its packages are optional

    torch.set_num_threads(1)
    manifest = export_system(
        args.system_dir,
        args.bpe_dir,
        args.out,
        **_forms(args),
        seconds=args.seconds,
        check_data_dir=args.check_data_dir,
        allow_pipes=args.allow_pipes,
        score_events=not args.ignore_events,
        decode_dirs=args.decode_dir,
        blank_penalty=args.blank_penalty,
        dev_cuts=args.dev_cuts,
        say=lambda line: print(line, flush=True),
    )
    stage.finish()
    _report(manifest, args.out)


def _bpe_dir(system_dir: Path) -> Path:
    """``exp/an4/bpe`` for ``exp/an4/teacher`` and ``exp/an4/students/sparse90``; its checksum is compared later."""
    places = [folder / "bpe" for folder in system_dir.resolve().parents[:2]]
    for place in places:
        if (place / "bpe.model").is_file():
            return place
    problem = f"not given, and neither {places[0]} nor {places[-1]} holds a bpe.model"
    raise UserError("--bpe-dir", problem, "the folder of stage 2", "give --bpe-dir DIR")


def _report(manifest: dict, out: Path) -> None:
    check, files = manifest["check"], manifest["files"]
    total = sum(files[name]["bytes"] for name in ("encoder.onnx", "decoder.onnx", "joiner.onnx"))
    print(f"{manifest['system']}: {total} bytes of ONNX ({manifest['weights']}) -> {out}")
    if not check:
        print("  not verified (--no-check)")
        return
    numbers = ", ".join(f"{name} {value:.1e}" for name, value in check["onnxruntime_against_torch"].items())
    features = f"; features {check['features_difference']:.1e}" if "features_difference" in check else ""
    print(f"{manifest['system']}: onnxruntime against torch: {numbers}{features}")
    for run in check["runs"]:
        rates = ""
        if "wer_sherpa_onnx" in run:
            p = "too few utterances for a p-value" if run["p_value"] is None else f"p = {run['p_value']:.4f}"
            rates = f"; %WER {run['wer_sherpa_onnx']:.2f}, rnnt_kd's {run['wer_rnnt_kd']:.2f}, {p}"
        if "segments" in run:
            kind, of = f"{run['number_of_segments']} segments", f"{run['streams']} streams"
        else:
            kind, of = f"batches of {run['batch_size']}", f"{check['utterances']} utterances"
        print(f"  {run.get('by', 'sherpa-onnx')}, {run['search']}, {kind}: {run['differences']} of {of} differ{rates}")


if __name__ == "__main__":
    main()
