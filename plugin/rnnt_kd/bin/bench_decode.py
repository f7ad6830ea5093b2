"""How fast the searches are on real speech, and what they recognise: alone, with the encoder, and from audio to text.

Recognisers of the same weights take turns on the same batches, on the CPU:

    ours         the batched searches of this project (fast_beam_search where k2 is installed)
    plain loop   the same search written as a loop over utterances and frames, as it often is
    sherpa-onnx  the export of the system, where --exports has one (from audio to text only)

    python -m rnnt_kd.bin.bench_decode --systems exp/an4/teacher exp/an4/students/sparse90_kd \\
        --data-dir data/an4/test --bpe-dir exp/an4/bpe --exports exp/an4/export
"""

import argparse
import json
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from tqdm import tqdm

from rnnt_kd import atomic
from rnnt_kd.benchmark.decoder_rows import LOOP, OURS, SHERPA, decoder_rows, decoder_table, goal_lines
from rnnt_kd.benchmark.decoders import Decode, in_torch, make_batches, time_in_turns
from rnnt_kd.benchmark.peers import plain_search
from rnnt_kd.bin.bench_infer_options import chosen_systems, own_tokenizer
from rnnt_kd.bin.bench_options import check_outputs, machine, names, numbers
from rnnt_kd.bin.entry import command
from rnnt_kd.bin.options import parser
from rnnt_kd.data.speech import Speech, read_speech
from rnnt_kd.decoding.graphs import words_of
from rnnt_kd.decoding.lookup import available_searches, get_search
from rnnt_kd.errors import UserError
from rnnt_kd.systems.store import load_system
from rnnt_kd.text.transcripts import read_transcripts


@command
def main(argv: Optional[List[str]] = None) -> None:
    arguments = _parser().parse_args(argv)
    _check(arguments)
    check_outputs(arguments.json, arguments.md)
    torch.set_num_threads(arguments.num_threads)
    searches = names("--searches", arguments.searches, available_searches()) or _usable_searches()
    for search in searches:
        get_search(search)
    systems = chosen_systems(arguments)
    tokenizer = own_tokenizer(arguments.bpe_dir, [Path(system["system_dir"]) for _, system in systems])
    speech = _speech(arguments.data_dir, arguments.utterances)
    seconds = sum(item.seconds for item in speech)
    refs = {item.id: item.text for item in speech}
    sizes = numbers("--batch-sizes", arguments.batch_sizes)
    grouped = {size: make_batches(speech, size) for size in sizes}
    total = len(systems) * (arguments.rounds + 1) * sum(map(len, grouped.values()))
    layout = "{percentage:3.0f}%|{bar:20}| {elapsed}<{remaining} {desc}"
    rows: List[Dict[str, Any]] = []
    with tqdm(total=total, bar_format=layout, mininterval=1.0) as bar:
        for name, system in systems:
            with ExitStack() as stack:
                decoders = _decoders(name, Path(system["system_dir"]), searches, tokenizer, arguments, stack)
                for size, batches in grouped.items():
                    bar.set_description_str(f"{name}, batch {size}", refresh=False)
                    turns = time_in_turns([decode for _, decode in decoders], batches, arguments.rounds, bar.update)
                    rows += decoder_rows(name, size, [key for key, _ in decoders], turns, refs, seconds)
    where = f"{machine('cpu', arguments.num_threads)}; {len(speech)} utterances, {seconds:.0f} s of speech"
    _report(rows, f"{where}; beam {arguments.beam}, {arguments.rounds} rounds", arguments)


def _parser() -> argparse.ArgumentParser:
    options = parser(__doc__)
    options.add_argument("--systems", type=Path, nargs="+", required=True, help="folders of trained systems")
    options.add_argument("--data-dir", type=Path, required=True, help="a Kaldi data directory: real speech")
    options.add_argument("--bpe-dir", type=Path, required=True, help="holds bpe.model of the systems")
    options.add_argument("--exports", type=Path, help="folder of exports, each called as its system")
    options.add_argument("--searches", default="", help="some, with commas (default: all that can be used here)")
    options.add_argument(
        "--graph-text", type=Path, help="text of a Kaldi data directory: fast_beam_search on its words"
    )
    options.add_argument("--beam", type=int, default=4, help="hypotheses an utterance")
    options.add_argument("--batch-sizes", default="1,16", help="utterances a batch, some numbers")
    options.add_argument("--rounds", type=int, default=5, help="timed passes over everything")
    options.add_argument("--utterances", type=int, help="so many at most, short and long (default: all)")
    options.add_argument("--num-threads", type=int, default=1, help="of ours and the loop; sherpa-onnx has one")
    options.add_argument("--json", type=Path, help="write all figures")
    options.add_argument("--md", type=Path, help="write the table")
    return options


def _check(arguments: argparse.Namespace) -> None:
    for name in ("beam", "rounds", "utterances", "num_threads"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError("--" + name.replace("_", "-"), str(value), "a number from 1 on")
    if arguments.exports is not None and not arguments.exports.is_dir():
        raise UserError(arguments.exports, "no such folder", "a folder of exports", "run stage 7, or leave it away")


def _usable_searches() -> List[str]:
    usable = []
    for name in available_searches():
        try:
            get_search(name)
        except UserError:  # its library is not installed
            continue
        usable.append(name)
    return usable


def _speech(data_dir: Path, most: Optional[int]) -> List[Speech]:
    """What can be used of it; of too many every n-th by length."""
    speech = [item for item in read_speech(data_dir) if item.samples is not None]
    if not speech:
        raise UserError(data_dir, "holds no usable audio", "some speech")
    if most is None or most >= len(speech):
        return speech
    ordered = sorted(speech, key=lambda item: len(item.samples))
    return [ordered[number * len(ordered) // most] for number in range(most)]


def _decoders(
    name: str, system_dir: Path, searches: Sequence[str], tokenizer, arguments: argparse.Namespace, stack: ExitStack
) -> List[Tuple[Tuple[str, str], Decode]]:
    """((search, by), recogniser) of one system; processes end with ``stack``."""
    model, _ = load_system(system_dir)
    make = partial(in_torch, model, tokenizer, arguments.beam)
    folder = arguments.exports / name if arguments.exports is not None else None
    if folder is not None:
        from rnnt_kd.benchmark.sherpa_decoder import SherpaOnnx, check_same_weights  # need onnxruntime

        check_same_weights(folder, model)
    found: List[Tuple[Tuple[str, str], Decode]] = []
    for search in searches:
        found.append(((search, OURS), make(get_search(search))))
        if search in plain_search.SEARCHES:
            found.append(((search, LOOP), make(plain_search.SEARCHES[search])))
            if folder is not None:
                sherpa = stack.enter_context(SherpaOnnx(folder, search, arguments.beam))
                found.append(((search, SHERPA), sherpa))
    if arguments.graph_text is not None and "fast_beam_search" in searches:
        graph = words_of(read_transcripts([arguments.graph_text]), tokenizer, source=arguments.graph_text)
        found.append((("fast_beam_search, words", OURS), make(partial(get_search("fast_beam_search"), graph=graph))))
    return found


def _report(rows: List[Dict[str, Any]], where: str, arguments: argparse.Namespace) -> None:
    lines = goal_lines(rows)
    print(f"{where}\n\n{decoder_table(rows)}", *lines, sep="\n")
    if arguments.json:
        atomic.write_text(arguments.json, json.dumps({"where": where, "rows": rows}, indent=1) + "\n")
    if arguments.md:
        text = "".join(f"{line}\n" for line in lines)
        atomic.write_text(arguments.md, f"{decoder_table(rows, markdown=True)}\n\n{where}.\n{text}")


if __name__ == "__main__":
    main()
