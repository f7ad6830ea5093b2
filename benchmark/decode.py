"""How fast the searches are on real speech, and what they recognise: alone, with the encoder, and from audio to text.

Recognisers of the same weights take turns on the same batches, on the CPU:

    ours         the searches of this project (fast_beam_search where k2 is installed)
    ours, numba  with --engine numba: the same behind the encoder in compiled code, which skips zeros
    plain loop   the same search written as a loop over utterances and frames, as it often is
    sherpa-onnx  the export of the system, where --exports has one (from audio to text only)

    python -m benchmark.decode --systems exp/an4/teacher exp/an4/students/sparse90_kd \\
        --data-dir data/an4/test --bpe-dir exp/an4/bpe --exports exp/an4/export
"""

import argparse
from pathlib import Path
from statistics import median
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch

from benchmark import options, plain_search
from benchmark.measure import Subject
from benchmark.recognisers import LOOP, OURS, SHERPA, check_same_weights, make_recogniser
from benchmark.rows import real_time_factor, times_as_fast
from benchmark.speech import WORD_HEAD, WORD_KEYS, named_systems, own_tokenizer, usable_speech, word_figures
from benchmark.turns import Measurement, run_groups
from rnnt_kd import choices
from rnnt_kd.bin.entry import command
from rnnt_kd.bin.options import parser
from rnnt_kd.data.speech import Speech
from rnnt_kd.decoding.lookup import available_searches, get_search
from rnnt_kd.errors import UserError
from rnnt_kd.systems.store import load_system
from rnnt_kd.tables import markdown, shown
from rnnt_kd_engine import available_engines

PARTS = {"search": "search", "encoder_search": "encoder_search", "whole": None}


def subjects(specification: Dict[str, Any]) -> Tuple[List[Subject], Dict[str, Any]]:
    """A recogniser on each batch of utterance ids; facts: "texts", all that it recognised, by id."""
    speech = {item.id: item for item in usable_speech(Path(specification["data_dir"]), specification["utterances"])}
    batches = [[speech[key] for key in batch] for batch in specification["batches"]]
    recognise = make_recogniser(specification)
    texts = {item.id: text for batch in batches for item, text in zip(batch, recognise(batch)[0], strict=True)}

    def subject(batch: Sequence[Speech]) -> Subject:
        return lambda: recognise(batch)[1], [torch.zeros(1)]

    return [subject(batch) for batch in batches], {"texts": texts}


@command
def main(argv: Optional[List[str]] = None) -> None:
    arguments = _parser().parse_args(argv)
    options.check(arguments)
    if arguments.exports is not None and not arguments.exports.is_dir():
        raise UserError(arguments.exports, "no such folder", "a folder of exports", "run stage 8, or drop --exports")
    searches = _usable_searches()
    if arguments.searches:
        searches = options.names("--searches", arguments.searches, available_searches())
    for search in searches:
        get_search(search)
    if arguments.engine is not None:
        choices.check(arguments.engine, available_engines(), "--engine")
    systems = named_systems(arguments.systems)
    own_tokenizer(arguments.bpe_dir, [folder for _, folder in systems])
    for name, folder in systems if arguments.exports is not None else []:
        check_same_weights(arguments.exports / name, load_system(folder)[0])
    speech = usable_speech(arguments.data_dir, arguments.utterances)
    refs, seconds = {item.id: item.text for item in speech}, sum(item.seconds for item in speech)
    groups = [
        _jobs(name, folder, searches, speech, size, arguments)
        for name, folder in systems
        for size in options.numbers("--batch-sizes", arguments.batch_sizes)
    ]
    rows: List[Dict[str, Any]] = []
    try:
        finished = lambda jobs: rows.extend(rows_of_group(jobs, refs, seconds))  # noqa: E731
        run_groups(groups, rounds=arguments.rounds, title=_title, finished=finished)
    finally:  # after Ctrl-C, too: the groups that are finished are not lost
        if rows:
            where = (
                f"{options.machine('cpu', arguments.num_threads)}; {len(speech)} utterances, {seconds:.0f} s of speech"
            )
            where += f"; beam {arguments.beam}, {arguments.rounds} rounds; real-time factors (RTF)"
            options.report(where, [decoder_table(rows)], rows, arguments)


def _parser() -> argparse.ArgumentParser:
    target = parser(__doc__)
    target.add_argument("--systems", type=Path, nargs="+", required=True, help="folders of trained systems")
    target.add_argument("--data-dir", type=Path, required=True, help="a Kaldi data directory: real speech")
    target.add_argument("--bpe-dir", type=Path, required=True, help="holds bpe.model of the systems")
    target.add_argument("--exports", type=Path, help="folder of exports, each called as its system")
    target.add_argument("--engine", metavar="NAME", help="also with the encoder in this engine of rnnt_kd_engine")
    target.add_argument("--searches", default="", help="some, with commas (default: all that can be used here)")
    words = "text of a Kaldi data directory: fast_beam_search on its words"
    target.add_argument("--graph-text", type=Path, help=words)
    target.add_argument("--beam", type=int, default=4, help="hypotheses an utterance")
    target.add_argument("--batch-sizes", default="1,16", help="utterances a batch, some numbers")
    target.add_argument("--rounds", type=int, default=5, help="timed passes over everything")
    target.add_argument("--utterances", type=int, help="so many at most, short and long (default: all)")
    target.add_argument("--num-threads", type=int, default=1, help="of ours and the loop; sherpa-onnx has one")
    options.add_report(target)
    return target


def _usable_searches() -> List[str]:
    usable = []
    for name in available_searches():
        try:
            get_search(name)
        except UserError:  # its library is not installed
            continue
        usable.append(name)
    return usable


def make_batches(speech: Sequence[Speech], size: int) -> List[List[str]]:
    """Ids of ``size`` utterances a batch, of like length; the last may be smaller."""
    ordered = [item.id for item in sorted(speech, key=lambda item: len(item.heard))]
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def _jobs(
    system: str,
    folder: Path,
    searches: Sequence[str],
    speech: Sequence[Speech],
    size: int,
    arguments: argparse.Namespace,
) -> List[Measurement]:
    """All recognisers of one system, on batches of one size."""
    keys = ("data_dir", "bpe_dir", "utterances", "beam", "num_threads")
    common = {key: getattr(arguments, key) for key in keys}
    common.update(module="benchmark.decode", system=system, system_dir=folder, graph_text=None)
    common.update(batch=size, batches=make_batches(speech, size))
    common["export_dir"] = arguments.exports / system if arguments.exports is not None else None
    common = {key: str(value) if isinstance(value, Path) else value for key, value in common.items()}
    jobs = []
    for search in searches:
        pairs = {OURS: True, LOOP: search in plain_search.SEARCHES}
        pairs[f"{OURS}, {arguments.engine}"] = arguments.engine is not None
        pairs[SHERPA] = pairs[LOOP] and arguments.exports is not None
        for by in (by for by, takes_part in pairs.items() if takes_part):
            subject = by if by == SHERPA else "ours"  # a failure of ours is a bug
            jobs.append(Measurement(f"{search} {by}", {**common, "search": search, "by": by, "subject": subject}))
    if arguments.graph_text is not None and "fast_beam_search" in searches:
        words = {"search": "fast_beam_search", "by": OURS, "graph_text": str(arguments.graph_text)}
        jobs.append(Measurement("fast_beam_search, words", {**common, **words}))
    return jobs


def _title(job: Measurement) -> str:
    return f"{job.specification['system']}, batch {job.specification['batch']}"


def rows_of_group(jobs: Sequence[Measurement], refs: Dict[str, str], seconds: float) -> List[Dict[str, Any]]:
    """A row for each recogniser that ran.

    "search_rtf", "encoder_search_rtf" and "whole_rtf" are real-time factors, with "_low" and "_high" of the fastest
    and slowest rounds; "loop_ratio" and "sherpa_ratio" are how many times as fast it is as these; other words are
    those that ``OURS`` of the same search did not recognise.

    Args:
      refs:    utterance id -> what was said.
      seconds: of audio.
    """
    by_name = {(_search(job), job.specification["by"]): job for job in jobs if job.cannot is None}
    rows = []
    for (search, by), job in by_name.items():
        row = {**{key: job.specification[key] for key in ("system", "batch")}, "search": search, "by": by}
        for name, part in PARTS.items():
            for suffix, choose in (("", median), ("_low", min), ("_high", max)):
                row[f"{name}_rtf{suffix}"] = real_time_factor(job, seconds, part, choose)
        row["rounds"] = len(job.seconds[0])
        row["loop_ratio"] = times_as_fast(job, by_name.get((search, LOOP)), "search")
        row["sherpa_ratio"] = times_as_fast(job, by_name.get((search, SHERPA)))
        ours = by_name.get((search, OURS))
        rows.append({**row, **word_figures(refs, job.facts["texts"], ours.facts["texts"] if ours else None)})
    return rows


def decoder_table(rows: Sequence[Dict[str, Any]]) -> str:
    head = ["system", "search", "by", "batch", "search RTF", "low..high", "encoder+search", "audio to text"]
    head += ["search, loop ÷ it", "all, sherpa ÷ it", *WORD_HEAD]
    cells = []
    for row in rows:
        low, high = (shown(row[f"search_rtf_{end}"], ".5f") for end in ("low", "high"))
        cells.append([row["system"], row["search"], row["by"], row["batch"], shown(row["search_rtf"], ".5f")])
        cells[-1] += ["-" if low == "-" else f"{low}..{high}"]
        cells[-1] += [shown(row[key], ".5f") for key in ("encoder_search_rtf", "whole_rtf")]
        cells[-1] += [shown(row[key], ".2f") for key in ("loop_ratio", "sherpa_ratio", "wer")]
        cells[-1] += [shown(row[key], "d") for key in WORD_KEYS[1:]]
    return markdown(head, cells, left=3)


def _search(job: Measurement) -> str:
    return job.specification["search"] + (", words" if job.specification["graph_text"] else "")


if __name__ == "__main__":
    main()
