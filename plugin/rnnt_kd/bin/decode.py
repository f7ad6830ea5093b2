"""Stage 6: recognise a test set with one system.

Writes to OUT_DIR
  recogs-<test set>.txt     reference and recognised words, as icefall writes them
  speakers-<test set>.json  utterance id -> speaker id
  decode.json               what was done, how fast (real-time factor of encoder and search)
"""

import json
import shlex
import sys
from pathlib import Path
from typing import List, Optional

import torch
from tqdm import tqdm

from rnnt_kd import atomic
from rnnt_kd.bin.entry import command
from rnnt_kd.bin.options import add_device, join, parser
from rnnt_kd.bin.stage import Stage
from rnnt_kd.data.dataset import make_dataloader
from rnnt_kd.decoding.decode import decode
from rnnt_kd.decoding.lookup import available_searches, get_search
from rnnt_kd.errors import UserError
from rnnt_kd.scoring.recognitions import Recognition, write_recogs
from rnnt_kd.scoring.results import read_json
from rnnt_kd.text.tokenizer import Tokenizer
from rnnt_kd.training.checkpoint import load_system


@command
def main(argv: Optional[List[str]] = None) -> None:
    options = parser(__doc__)
    options.add_argument(
        "--system-dir", type=Path, required=True, help="a trained system: config.yaml, model.safetensors"
    )
    options.add_argument("--cuts", type=Path, required=True, help="cuts of the test set, from stage 1")
    options.add_argument("--bpe-dir", type=Path, required=True, help="holds bpe.model")
    options.add_argument("--out-dir", type=Path, required=True, help="made where it is missing")
    options.add_argument("--test-set", required=True, help="name of the test set, for the file names")
    options.add_argument("--search", default="modified_beam_search", help=f"one of: {join(available_searches())}")
    options.add_argument("--beam", type=int, default=4, help="hypotheses an utterance")
    options.add_argument("--batch-seconds", type=float, default=120.0, help="audio a batch, padding included")
    add_device(options)
    args = options.parse_args(argv)
    search = get_search(args.search)
    if args.beam < 1 or not args.batch_seconds > 0 or args.num_threads < 1:
        raise UserError(
            "--beam, --batch-seconds, --num-threads",
            f"{args.beam}, {args.batch_seconds}, {args.num_threads}",
            "positive numbers",
        )
    if not args.test_set or "/" in args.test_set:
        raise UserError("--test-set", f"'{args.test_set}'", "a name, not a path")
    device = args.device if args.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device", "cuda, but torch finds no GPU", "cpu or auto on this machine")

    left_out_path = _left_out_path(args.cuts)
    inputs = [
        args.system_dir / "config.yaml",
        args.system_dir / "model.safetensors",
        args.cuts,
        left_out_path,
        args.bpe_dir / "bpe.model",
    ]
    settings = {
        "search": args.search,
        "beam": args.beam,
        "batch_seconds": args.batch_seconds,
        "device": device,
        "threads": args.num_threads,
    }
    recogs, speakers = f"recogs-{args.test_set}.txt", f"speakers-{args.test_set}.json"
    stage = Stage(args.out_dir, f"decode-{args.test_set}", settings, inputs, [recogs, speakers, "decode.json"])
    if stage.is_finished():
        return

    torch.set_num_threads(args.num_threads)
    tokenizer = Tokenizer.load(args.bpe_dir)
    model, config = load_system(args.system_dir, device)
    if config.bpe_checksum != tokenizer.checksum:
        found = f"its BPE model is another one (checksum {tokenizer.checksum[:12]})"
        raise UserError(
            args.bpe_dir,
            found,
            f"that of {args.system_dir} ({config.bpe_checksum[:12]})",
            "give the BPE folder it was trained with",
        )
    loader = make_dataloader(args.cuts, batch_seconds=args.batch_seconds)
    with tqdm(loader, desc=f"{config.name} on {args.test_set}", unit="batch", mininterval=1.0) as batches:
        decoded = decode(model, batches, search, tokenizer, beam=args.beam, blank_id=config.blank_id)

    record = {
        "system": config.name,
        "search": args.search,
        "beam": args.beam,
        "test_set": args.test_set,
        "utterances": len(decoded.words),
        "audio_seconds": round(decoded.audio_seconds, 3),
        "decode_seconds": round(decoded.seconds, 3),
        "rtf": round(decoded.real_time_factor, 5),
        "device": device,
        "num_threads": args.num_threads,
        "left_out": {**read_json(left_out_path, default={}), **loader.left_out},
        "command": shlex.join(["python", "-m", "rnnt_kd.bin.decode", *(sys.argv[1:] if argv is None else argv)]),
    }
    stage.start()
    for stale in (f"errs-{args.test_set}.txt", f"wer-{args.test_set}.txt", f"wer-{args.test_set}.json"):
        (args.out_dir / stale).unlink(missing_ok=True)  # they describe an older decoding
    write_recogs(args.out_dir / recogs, [Recognition(key, ref, hyp) for key, (ref, hyp) in decoded.words.items()])
    atomic.write_text(
        args.out_dir / speakers, json.dumps(decoded.speakers, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    )
    atomic.write_text(args.out_dir / "decode.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    stage.finish()
    print(
        f"{config.name} on {args.test_set}: {len(decoded.words)} utterances, {decoded.audio_seconds:.1f} s of audio, "
        f"real-time factor {decoded.real_time_factor:.4f} ({device}, {args.search}) -> {args.out_dir / recogs}"
    )


def _left_out_path(cuts: Path) -> Path:
    """What stage 1 left out, beside the cuts."""
    return cuts.with_name(cuts.name.replace(".jsonl.gz", "") + ".left_out.json")


if __name__ == "__main__":
    main()
