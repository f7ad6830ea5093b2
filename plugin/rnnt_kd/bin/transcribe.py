"""Text of recordings, or of a microphone, by an export in sherpa-onnx.

Prints a line for each file, its name and its text; with a streaming export one for each segment between pauses,
and on stderr what is heard so far, as it comes.  Any rate, of several channels the first.  An offline export gets
recordings of more than --longest seconds in pieces, cut where it is quiet.  The export is verified first.  A file
that cannot be read is an error line, the others are transcribed, and the command ends with status 1.

With --data-dir it writes the file ``text`` of a Kaldi data directory that has none.

    python -m rnnt_kd.bin.transcribe exp/an4/export/teacher speech.flac interview.wav
"""

import sys
from pathlib import Path
from typing import Any, Callable, Iterable, List, Optional

import numpy as np

from rnnt_kd import atomic
from rnnt_kd.bin.entry import command
from rnnt_kd.bin.options import add_allow_pipes, parser
from rnnt_kd.data.kaldi_dir import read_data_dir
from rnnt_kd.errors import UserError
from rnnt_kd.progress_bar import ProgressBar

MICROPHONE = "microphone"


@command
def main(argv: Optional[List[str]] = None) -> None:
    options = parser(__doc__)
    options.add_argument("export_dir", type=Path, metavar="EXPORT_DIR", help="what rnnt_kd.bin.export made")
    options.add_argument("files", type=Path, nargs="*", metavar="FILE", help="audio that libsndfile reads")
    options.add_argument("--microphone", action="store_true", help="listen (a streaming export; Ctrl-C ends it)")
    options.add_argument(
        "--data-dir", type=Path, help="in the place of files: all utterances of a Kaldi data directory"
    )
    add_allow_pipes(options)
    options.add_argument("--search", choices=["greedy_search", "modified_beam_search"], default="modified_beam_search")
    options.add_argument("--beam", type=int, default=4, help="hypotheses of modified_beam_search")
    options.add_argument(
        "--longest",
        type=float,
        metavar="SECONDS",
        help="offline: longer audio comes in pieces; best about as long as the utterances of the training [30]",
    )
    options.add_argument("--real-time", action="store_true", help="streaming: hear files at the pace of their speech")
    args = options.parse_intermixed_args(argv)  # options may stand before the files, too
    if [bool(args.files), args.microphone, args.data_dir is not None].count(True) != 1:
        raise UserError("arguments", "not one of audio files, --microphone and --data-dir", "one of them")
    if args.allow_pipes and args.data_dir is None:
        raise UserError("--allow-pipes", "given without --data-dir", "a wav.scp, whose pipes it runs", "leave it out")
    if args.real_time and not args.files:
        raise UserError("--real-time", "given without audio files", "files to hear at that pace", "leave it out")

    from rnnt_kd.export.check_files import verify_static  # its packages are optional

    manifest = verify_static(args.export_dir)
    streaming = manifest["streaming"]
    if manifest.get("static"):
        problem, cure = "an export of fixed sizes, for NPUs", "export the system without --target npu"
        raise UserError(args.export_dir, problem, "one for sherpa-onnx", cure)
    if not streaming and (args.microphone or args.real_time):
        problem = "an offline export, which needs whole recordings"
        raise UserError(args.export_dir, problem, "a streaming export", "export a streaming_student with --streaming")
    if streaming and args.longest is not None:
        raise UserError(args.export_dir, "a streaming export, with --longest", "an offline export", "leave it out")
    transcribe = _listen if streaming else _offline
    if not transcribe(args):
        sys.exit(1)


def _offline(args) -> bool:
    """Transcribe the files; True where all could be read."""
    from rnnt_kd.data.pieces import LONGEST_SECONDS
    from rnnt_kd.data.speech import load_samples
    from rnnt_kd.export.client import Transcriber

    longest = LONGEST_SECONDS if args.longest is None else args.longest
    with Transcriber(args.export_dir, args.search, args.beam, longest) as transcriber:
        if args.data_dir is not None:
            return _each_utterance(args, transcriber.pieces)
        return _each(args.files, lambda path: _print(path, transcriber.transcribe(load_samples(path)).text))


def _listen(args) -> bool:
    from rnnt_kd.data.speech import load_samples
    from rnnt_kd.export.client import Listener, chunks_of, listen, microphone

    with Listener(args.export_dir, search=args.search, beam=args.beam) as listener:

        def follow(name: object, chunks) -> None:
            printed = False
            for heard in listen(listener, chunks):
                if not heard.final:
                    _partial(heard.seconds, heard.result.text)
                elif heard.result.text:
                    _print(name, heard.result.text)
                    printed = True
            if not printed:
                _print(name, "")

        if args.data_dir is not None:
            return _each_utterance(args, lambda samples: _segments(listen(listener, chunks_of(samples))))
        if args.microphone:
            try:
                follow(MICROPHONE, _until_interrupted(microphone()))
            except KeyboardInterrupt:  # in the middle of a chunk: what was heard so far stands on stderr
                pass
            return True
        return _each(args.files, lambda path: follow(path, chunks_of(load_samples(path), args.real_time)))


def _each(files: List[Path], transcribe: Callable[[Path], None]) -> bool:
    read = 0
    for path in files:
        try:
            transcribe(path)
            read += 1
        except UserError as error:
            if error.where != str(path):  # not the file's fault
                raise
            print(f"error: {error}", file=sys.stderr, flush=True)
    return read == len(files)


def _each_utterance(args, segments_of: Callable[[np.ndarray], Iterable[Any]]) -> bool:
    """Write ``text``, the words of the model's tokens (in its text the client closes words up); without a word for
    audio that cannot be used, which is said."""
    from rnnt_kd.data.speech import read_speech
    from rnnt_kd.export.client_text import words_in

    path, lines = args.data_dir / "text", []
    if path.exists():
        raise UserError(path, "is there", "a data directory without text", "move it away")
    total = len(read_data_dir(args.data_dir, args.allow_pipes, unlabelled=True).utterances)
    with ProgressBar(f"text of {args.data_dir}", total, "utt") as progress:
        for speech in progress.counted(read_speech(args.data_dir, args.allow_pipes, unlabelled=True)):
            if speech.samples is None:
                print(f"{args.data_dir}: {speech.id} {speech.reason}", file=sys.stderr, flush=True)
            found = [] if speech.samples is None else segments_of(speech.samples)
            lines.append(" ".join((speech.id, *words_in(one.tokens for one in found))))
    atomic.write_text(path, "".join(f"{line}\n" for line in lines))
    print(f"{path}: {len(lines)} utterances")
    return True


def _segments(heard) -> Iterable[Any]:
    """Of all that a ``Listener`` tells of, the final ones."""
    return (one.result for one in heard if one.final)


def _until_interrupted(chunks):
    """Ctrl-C is how one stops speaking."""
    try:
        yield from chunks
    except KeyboardInterrupt:
        return


def _print(name: object, text: str) -> None:
    print("\r\x1b[K" * sys.stderr.isatty(), end="", file=sys.stderr, flush=True)
    print(f"{name}\t{text}", flush=True)


def _partial(seconds: float, text: str) -> None:
    line = f"{seconds:6.1f} s  {text}"
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line[-78:]}", end="", file=sys.stderr, flush=True)
    else:
        print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
