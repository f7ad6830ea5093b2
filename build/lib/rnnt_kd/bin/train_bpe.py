"""Stage 2: the transcripts of Kaldi data directories -> a sentencepiece model; or one that is there, to be used."""

from pathlib import Path
from typing import List, Optional

from rnnt_kd.bin.entry import command
from rnnt_kd.bin.options import add_normalization, parser
from rnnt_kd.bin.stage import Stage
from rnnt_kd.config import TextConfig
from rnnt_kd.errors import UserError
from rnnt_kd.text.events import count_events, most_frequent
from rnnt_kd.text.tokenizer import RECORD, Tokenizer
from rnnt_kd.text.train_bpe import MODEL_TYPES, take_bpe, train_bpe
from rnnt_kd.text.transcripts import read_transcripts


@command
def main(argv: Optional[List[str]] = None) -> None:
    options = parser(__doc__)
    options.add_argument("--text", type=Path, nargs="+", help="text files of Kaldi data directories (id, transcript)")
    options.add_argument("--vocab-size", type=int, help="pieces, <blk> and <unk> included")
    options.add_argument("--bpe-model", type=Path, help="of icefall, or of another run, in the place of --text")
    options.add_argument("--model-type", choices=MODEL_TYPES, default="bpe", help="sentencepiece's")
    options.add_argument(
        "--out-dir", type=Path, required=True, help="gets bpe.model and tokens.txt; an older folder is replaced"
    )
    options.add_argument(
        "--shrink-to-fit", action="store_true", help="where the text allows fewer pieces, take as many as it allows"
    )
    options.add_argument(
        "--enlarge-to-fit", action="store_true", help="where its characters need more pieces, take as many as they need"
    )
    options.add_argument(
        "--byte-fallback", action="store_true", help="rare and unknown characters in bytes, of 256 more pieces"
    )
    options.add_argument(
        "--keep-events", action="store_true", help="a piece of its own for <unk>, [noise] and the like"
    )
    add_normalization(options)
    args = options.parse_args(argv)
    if args.bpe_model is not None:
        return _take(args.bpe_model, args.out_dir)
    if args.text is None or args.vocab_size is None:
        raise UserError("--text, --vocab-size", "not given", "both, or --bpe-model")

    fitting = {name: getattr(args, name) for name in ("shrink_to_fit", "enlarge_to_fit", "byte_fallback")}
    settings = {"vocab_size": args.vocab_size, "model_type": args.model_type, **fitting}
    settings.update(keep_events=args.keep_events, normalization=args.normalization)
    outputs = ["bpe.model", "tokens.txt"]
    stage = Stage(args.out_dir, RECORD, settings, args.text, outputs, defaults=vars(TextConfig()))
    if stage.is_finished():
        return
    texts = read_transcripts(args.text, args.normalization)
    events = count_events(texts)
    kept = most_frequent(events) if args.keep_events else []
    train_bpe(texts, args.vocab_size, args.out_dir, args.model_type, **fitting, events=kept)
    tokenizer = Tokenizer.load(args.out_dir)
    stage.finish()
    print(f"{args.out_dir / 'bpe.model'}: {tokenizer.vocab_size} pieces", end="")
    enlarged = f", more than text.vocab_size {args.vocab_size}: one for each character of the text"
    print(enlarged * (tokenizer.vocab_size > args.vocab_size))
    if events:
        names = ", ".join(f"{event} ({events[event]} times)" for event in most_frequent(events)[:5])
        rule = f"{len(kept)} have a piece of their own, the others are spelled in letters" if kept else ""
        rule = "each has a piece of its own" if len(kept) == len(events) else rule or "they are spelled in letters"
        print(f"{len(events)} words in brackets that stand for no word, such as {names}: {rule} (text.keep_events)")


def _take(model: Path, out_dir: Path) -> None:
    stage = Stage(out_dir, RECORD, {}, [model], ["bpe.model", "tokens.txt"])
    if stage.is_finished():
        return
    tokenizer = Tokenizer.load(model)
    take_bpe(model, out_dir)
    stage.finish()
    print(f"{out_dir / 'bpe.model'}: {tokenizer.vocab_size} pieces, those of {model}")


if __name__ == "__main__":
    main()
