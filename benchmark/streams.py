"""How fast many streams are recognised together in one process, and one after the other.

Each stream is speech of its own, utterances one after the other, which comes in pieces of 100 ms.

    python -m benchmark.streams --system exp/an4/streaming/stream/seed1 --data-dir data/an4/test
"""

import argparse
from itertools import cycle
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import torch
from torch import Tensor

from benchmark import options
from benchmark.measure import Subject
from benchmark.rows import real_time_factor, times_as_fast
from benchmark.speech import usable_speech
from benchmark.turns import Measurement, run_groups
from rnnt_kd.bin.entry import command
from rnnt_kd.bin.options import parser
from rnnt_kd.data.audio_format import FRAMES_PER_SECOND
from rnnt_kd.data.speech import filter_banks
from rnnt_kd.decoding.streaming import SEARCHES, StreamingRecognizer, accept_together
from rnnt_kd.systems.store import load_system
from rnnt_kd.tables import markdown, shown

ALONE, TOGETHER = "one after the other", "together"
PIECE = 10  # feature frames


def subjects(specification: Dict[str, Any]) -> Tuple[List[Subject], Dict[str, Any]]:
    """All streams once; facts: "tokens" of each."""
    model, _ = load_system(Path(specification["system_dir"]))
    streams = _streams(specification)
    groups = [streams] if specification["by"] == TOGETHER else [[features] for features in streams]

    def recognise() -> List[List[int]]:
        return [tokens for group in groups for tokens in _recognise(model, group, specification)]

    def timed() -> None:
        recognise()

    return [(timed, [torch.zeros(1)])], {"tokens": recognise()}


def _streams(specification: Dict[str, Any]) -> List[Tensor]:
    speech = [filter_banks(item.heard) for item in usable_speech(Path(specification["data_dir"]), 64)]
    frames, features = specification["seconds"] * FRAMES_PER_SECOND, cycle(speech)
    streams = []
    for _ in range(specification["streams"]):
        stream = next(features)
        while len(stream) < frames:
            stream = torch.cat((stream, next(features)))
        streams.append(stream[:frames])
        next(features)  # so that they differ
    return streams


def _recognise(model, group: List[Tensor], specification: Dict[str, Any]) -> List[List[int]]:
    chosen = {key: specification[key] for key in ("search", "beam", "chunk_frames")}
    recognizers = [StreamingRecognizer(model, **chosen) for _ in group]
    for pieces in zip(*(features.split(PIECE) for features in group), strict=True):
        found = accept_together(recognizers, pieces)
    return [hypothesis.tokens for hypothesis in found]


@command
def main(argv: Optional[List[str]] = None) -> None:
    target = parser(__doc__)
    target.add_argument("--system", type=Path, required=True, help="folder of a streaming system")
    target.add_argument("--data-dir", type=Path, required=True, help="a Kaldi data directory: real speech")
    target.add_argument("--chunks", default="8,16", help="encoder frames a chunk, some numbers")
    target.add_argument("--streams", type=int, default=16, help="at once")
    target.add_argument("--seconds", type=int, default=8, help="of each stream")
    target.add_argument("--beam", type=int, default=4, help="hypotheses of modified_beam_search")
    target.add_argument("--rounds", type=int, default=5, help="timed passes over everything")
    target.add_argument("--num-threads", type=int, default=1)
    options.add_report(target)
    arguments = target.parse_args(argv)
    options.check(arguments)
    StreamingRecognizer(load_system(arguments.system)[0])  # one that cannot stream is told now
    groups = [
        [_job(arguments, search, chunk, by) for by in (ALONE, TOGETHER)]
        for chunk in options.numbers("--chunks", arguments.chunks)
        for search in SEARCHES
    ]
    rows: List[Dict[str, Any]] = []
    finished = lambda jobs: rows.extend(_rows(jobs, arguments.streams * arguments.seconds))  # noqa: E731
    run_groups(groups, rounds=arguments.rounds, title=lambda job: job.specification["search"], finished=finished)
    where = f"{arguments.streams} streams of {arguments.seconds} s; {options.machine('cpu', arguments.num_threads)}"
    head = ["search", "chunk", "by", "RTF", "one after the other ÷ it", "streams with other tokens"]
    cells = [
        [
            *(row[key] for key in ("search", "chunk", "by")),
            f"{row['rtf']:.5f}",
            shown(row["ratio"], ".2f"),
            row["other"],
        ]
        for row in rows
    ]
    options.report(where, [markdown(head, cells, left=3)], rows, arguments)


def _job(arguments: argparse.Namespace, search: str, chunk: int, by: str) -> Measurement:
    specification = {key: getattr(arguments, key) for key in ("streams", "seconds", "beam", "num_threads")}
    specification.update(module="benchmark.streams", batches=[0], search=search, chunk_frames=chunk, by=by)
    specification.update(system_dir=str(arguments.system), data_dir=str(arguments.data_dir))
    return Measurement(f"{search} {chunk} {by}", specification)


def _rows(jobs: List[Measurement], seconds: float) -> List[Dict[str, Any]]:
    alone = jobs[0]
    return [
        {
            "search": job.specification["search"],
            "chunk": job.specification["chunk_frames"],
            "by": job.specification["by"],
            "rtf": real_time_factor(job, seconds),
            "ratio": times_as_fast(job, alone),
            "other": sum(map(list.__ne__, job.facts["tokens"], alone.facts["tokens"])),
        }
        for job in jobs
    ]


if __name__ == "__main__":
    main()
