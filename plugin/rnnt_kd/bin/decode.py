"""Stage 6: recognise a test set with one system.

Writes to OUT_DIR
  recogs-<test set>.txt     reference and recognised words, as icefall writes them
  tokens-<test set>.jsonl   tokens and words of each utterance, and when in the audio they came
  speakers-<test set>.json  utterance id -> speaker id
  <test set>.ctm            words, their times and confidences, as Kaldi and sclite have them
  ref-<test set>.trn, hyp-<test set>.trn  the words of all utterances, for sclite
  nbest-<test set>.jsonl    with --nbest: the best hypotheses with scores, times and confidences
  decode.json               what was done, how fast (real-time factor of encoder and search)

With --job K, K from 1 to --nj, one of several jobs, here or on other machines, in any order; the last one to end writes
these files, which do not depend on how many there are but for the times in decode.json.
"""

from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

import numpy as np
import torch

from rnnt_kd import atomic
from rnnt_kd.bin.entry import command
from rnnt_kd.bin.options import (
    add_batch_seconds,
    add_data_root,
    add_device,
    add_job,
    add_normalization,
    check_above_zero,
    check_job,
    check_positive,
    chosen_device,
    command_line,
    parser,
    without_job,
)
from rnnt_kd.bin.scorer_options import add_scorers, check_scorers, make_scorers, scorer_settings
from rnnt_kd.bin.stage import Stage
from rnnt_kd.data.dataset import load_cuts_info, make_dataloader
from rnnt_kd.data.features import originals
from rnnt_kd.data.source import open_source
from rnnt_kd.decoding.decode import Decoded, decode
from rnnt_kd.decoding.graphs import words_of
from rnnt_kd.decoding.lookup import available_searches, get_search
from rnnt_kd.errors import UserError
from rnnt_kd.models.interfaces import Encoder, StreamingEncoder
from rnnt_kd.parts import Parts
from rnnt_kd.progress_bar import ProgressBar
from rnnt_kd.record import file_digest
from rnnt_kd.scoring.alternatives import write_nbest
from rnnt_kd.scoring.ctm import write_ctm
from rnnt_kd.scoring.emissions import write_emissions
from rnnt_kd.scoring.kaldi_files import FILES as KALDI_FILES
from rnnt_kd.scoring.recognitions import Recognition, write_recogs
from rnnt_kd.scoring.results import read_json
from rnnt_kd.scoring.trn import write_trn
from rnnt_kd.systems.store import LEFT_OUT, check_bpe, decoding_inputs, load_system
from rnnt_kd.text.coverage import coverage
from rnnt_kd.text.normalization import FORMS
from rnnt_kd.text.tokenizer import Tokenizer
from rnnt_kd.text.transcripts import read_transcripts

OUTPUTS = (("recogs", "txt"), ("tokens", "jsonl"), ("speakers", "json"))  # <name>-<test set>.<kind>
MOST_PARTS = 128  # that jobs share
SCORES = (("errs", "txt"), ("wer", "txt"), ("wer", "json"), ("delay", "json"))  # made from them by other commands


@command
def main(argv: Optional[List[str]] = None) -> None:
    options = parser(__doc__)
    options.add_argument("--system-dir", type=Path, required=True, help="holds config.yaml and model.safetensors")
    options.add_argument("--cuts", type=Path, required=True, help="of the test set: of stage 1, of Lhotse, or Shar")
    options.add_argument("--bpe-dir", type=Path, required=True, help="holds bpe.model")
    options.add_argument("--out-dir", type=Path, required=True, help="made where it is missing")
    options.add_argument("--test-set", required=True, help="name of the test set, for the file names")
    options.add_argument("--search", default="modified_beam_search", help=f"one of: {', '.join(available_searches())}")
    options.add_argument("--beam", type=int, default=4, help="hypotheses an utterance")
    options.add_argument(
        "--graph-text",
        type=Path,
        metavar="FILE",
        help="with fast_beam_search: text of a Kaldi data directory; only its words may be said (default: any tokens)",
    )
    options.add_argument("--nbest", type=int, metavar="N", help="also write the N best hypotheses of each utterance")
    add_batch_seconds(options)
    options.add_argument(
        "--chunk-frames",
        type=int,
        metavar="FRAMES",
        help="encoder frames (40 ms) a chunk, of a streaming system; 0: it sees the whole utterance "
        "(default: the system's encoder_options.chunk_frames)",
    )
    options.add_argument(
        "--engine",
        metavar="NAME",
        help="run the encoder in this engine of rnnt_kd_engine: numba, compiled code that skips zeros (default: torch)",
    )
    options.add_argument(
        "--originals", action="store_const", const=True, help="not their copies at other speeds, and far ones"
    )
    add_job(options, "of how many jobs --job is one")
    add_scorers(options)
    add_normalization(options)
    add_device(options)
    add_data_root(options)
    args = options.parse_args(argv)
    _check(args)

    settings: Dict[str, Any] = {"search": args.search, "beam": args.beam, "test_set": args.test_set}
    settings.update(device=chosen_device(args.device), num_threads=args.num_threads, batch_seconds=args.batch_seconds)
    if args.engine is not None and settings["device"] != "cpu":
        raise UserError("--engine", f"given for {settings['device']}", "--device cpu, where it runs")
    for name in ("chunk_frames", "engine", "nbest", "originals"):  # not in the settings of earlier decodings
        if getattr(args, name) is not None:
            settings[name] = getattr(args, name)
    settings.update(scorer_settings(args))
    if args.normalization != FORMS[0]:
        settings["normalization"] = args.normalization
    there = read_json(args.out_dir / "decode.json", default={}).get("test_set", args.test_set)
    if there != args.test_set:
        raise UserError(args.out_dir, f"holds {there}", f"a folder for {args.test_set} alone", "another --out-dir")
    left_out_path = args.cuts.with_name(args.cuts.name.replace(".jsonl.gz", "") + LEFT_OUT)  # of stage 1
    more = [path for path in (args.graph_text, args.lm, args.hotwords) if path is not None]
    outputs = [f"{name}-{args.test_set}.{kind}" for name, kind in OUTPUTS] + ["decode.json"]
    name = f"decode-{args.test_set}"
    if args.graph_text is not None:
        settings["graph_text"] = str(args.graph_text)
    inputs = decoding_inputs(args.system_dir, args.bpe_dir, args.cuts)
    if args.cuts.is_dir():  # Shar
        inputs["cuts"] = open_source(args.cuts).content
    inputs.update({str(path): file_digest(path) for path in more})
    stage = Stage(args.out_dir, name, settings, inputs, outputs, sources=open_source(args.cuts).audio_files())
    if stage.is_finished():
        return

    infos, places = load_cuts_info(args.cuts), None
    if args.originals:
        original_of = originals([info.id for info in infos])
        places = np.flatnonzero([original_of[info.id] == info.id for info in infos]).astype(np.int32)
        infos = [infos[place] for place in places]
    loader = make_dataloader(args.cuts, batch_seconds=args.batch_seconds, places=places)
    size = -(-len(loader) // MOST_PARTS)  # batches a part
    parts = Parts(args.out_dir, name, stage.identity(), -(-len(loader) // size))
    todo = parts.missing(args.job, args.nj)
    if args.job is not None and not todo and parts.missing():
        print(f"{args.test_set}: job {args.job} of {args.nj} has nothing to do")
        return
    torch.set_num_threads(args.num_threads)
    tokenizer = Tokenizer.load(args.bpe_dir)
    model, config = load_system(args.system_dir, settings["device"])
    check_bpe(config, tokenizer, args.system_dir, args.bpe_dir)
    if args.chunk_frames is not None:
        _set_chunk(model.encoder, args.chunk_frames, args.system_dir)
    if args.engine is not None:
        from rnnt_kd_engine import Batches

        model.encoder = Batches(model.encoder, args.engine)
    scorers = make_scorers(settings, tokenizer, args.normalization)
    written = _written(args.test_set, {info.id: info.text for info in infos}, tokenizer)
    search = get_search(args.search)
    search_options = {"beam": args.beam, "blank_id": config.blank_id, "scorers": scorers}
    if args.graph_text is not None:
        text = read_transcripts([args.graph_text], args.normalization)
        _written(str(args.graph_text), {f"its text {n}": line for n, line in enumerate(text, 1)}, tokenizer)
        search_options["graph"] = words_of(text, tokenizer, source=args.graph_text)
    batches = {index: min(size, len(loader) - index * size) for index in todo}
    with ProgressBar(f"{config.name} on {args.test_set}", sum(batches.values()), "batch") as bar:
        for index, count in batches.items():
            these = bar.counted(loader[number] for number in range(index * size, index * size + count))
            found = decode(model, these, search, tokenizer, nbest=args.nbest or 1, **search_options)
            parts.write(index, found.plain())
    with parts.lock():
        if parts.missing():  # others are at work, or one of them was faster
            print(f"{config.name} on {args.test_set}: this part is done")
            return
        decoded = Decoded.together(parts.read())
        in_cuts = {info.id for info in infos}
        # A WER over a subset would be misleading.
        assert in_cuts == {*decoded.words}, "the loader lost utterances"
        record = {
            "system": config.name,
            **settings,
            "utterances": len(decoded.words),
            "audio_seconds": round(decoded.audio_seconds, 3),
            "decode_seconds": round(decoded.seconds, 3),
            "rtf": round(decoded.real_time_factor, 5),
            "left_out": read_json(left_out_path, default={}),
            **({"unwritable": written} if written else {}),
            "command": command_line("rnnt_kd.bin.decode", without_job(argv)),
        }
        stage.start()
        stage.finish(_write(args.out_dir, args.test_set, decoded, record))
        parts.remove()
    print(
        f"{config.name} on {args.test_set}: {record['utterances']} utterances, {decoded.audio_seconds:.1f} s of audio, "
        f"real-time factor {record['rtf']} ({settings['device']}, {args.search}) -> {args.out_dir / outputs[0]}"
    )


def _check(args) -> None:
    get_search(args.search)
    if args.graph_text is not None and args.search != "fast_beam_search":
        raise UserError("--graph-text", f"given with {args.search}", "--search fast_beam_search")
    check_positive(args, "beam", "num_threads")
    check_job(args)
    if args.nbest is not None and not 1 <= args.nbest <= args.beam:
        raise UserError("--nbest", str(args.nbest), f"1 .. {args.beam}, the hypotheses that --beam keeps")
    check_scorers(args)
    check_above_zero(args, "batch_seconds")
    if args.chunk_frames is not None and args.chunk_frames < 0:
        raise UserError("--chunk-frames", str(args.chunk_frames), "0 or more")
    if not args.test_set or "/" in args.test_set:
        raise UserError("--test-set", f"'{args.test_set}'", "a name, not a path")


def _set_chunk(encoder: Encoder, chunk_frames: int, system_dir: Path) -> None:
    if not isinstance(encoder, StreamingEncoder):
        problem = f"given for {system_dir}, which sees the whole utterance"
        raise UserError("--chunk-frames", problem, "a streaming system", "omit it")
    encoder.eval_chunk_frames = chunk_frames


def _written(name: str, texts: Mapping[str, str], tokenizer: Tokenizer) -> str:
    """What is printed of texts that the BPE model cannot write; "" where it can."""
    found = coverage(texts, tokenizer.encode, tokenizer.unk_id)
    if not found.unwritable:
        return ""
    print(found.sentence(name), flush=True)
    return found.sentence(name)


def _write(out_dir: Path, test_set: str, decoded: Decoded, record: Dict[str, Any]) -> List[str]:
    """The outputs, ``decode.json`` last; scores of an older decoding go first.  Returns the names of those that
    decodings of earlier versions lack, which are finished nevertheless."""
    nbest = f"nbest-{test_set}.jsonl"
    for stale in (*(f"{name}-{test_set}.{kind}" for name, kind in SCORES), *KALDI_FILES, nbest, "decode.json"):
        (out_dir / stale).unlink(missing_ok=True)
    recognitions = [Recognition(utterance_id, ref, hyp) for utterance_id, (ref, hyp) in decoded.words.items()]
    write_recogs(out_dir / f"recogs-{test_set}.txt", recognitions)
    write_emissions(out_dir / f"tokens-{test_set}.jsonl", decoded.emissions.items())
    more = [f"{test_set}.ctm", f"ref-{test_set}.trn", f"hyp-{test_set}.trn"]
    write_ctm(out_dir / more[0], [(utterance_id, found[0]) for utterance_id, found in decoded.alternatives.items()])
    write_trn(out_dir / more[1], out_dir / more[2], recognitions, decoded.speakers)
    if "nbest" in record:
        write_nbest(out_dir / nbest, decoded.alternatives.items())
        more.append(nbest)
    for name, values in ((f"speakers-{test_set}.json", decoded.speakers), ("decode.json", record)):
        atomic.write_json(out_dir / name, values)
    return more


if __name__ == "__main__":
    main()
