"""Stage 2: the transcripts of Kaldi data directories -> a sentencepiece model."""

from pathlib import Path
from typing import List, Optional

from rnnt_kd.bin.entry import command
from rnnt_kd.bin.options import parser
from rnnt_kd.bin.stage import Stage
from rnnt_kd.text.tokenizer import RECORD, Tokenizer
from rnnt_kd.text.train_bpe import MODEL_TYPES, train_bpe
from rnnt_kd.text.transcripts import read_transcripts


@command
def main(argv: Optional[List[str]] = None) -> None:
    options = parser(__doc__)
    options.add_argument(
        "--text", type=Path, nargs="+", required=True, help="text files of Kaldi data directories (id, transcript)"
    )
    options.add_argument("--vocab-size", type=int, required=True, help="pieces, <blk> and <unk> included")
    options.add_argument("--model-type", choices=MODEL_TYPES, default="bpe", help="sentencepiece's")
    options.add_argument(
        "--out-dir", type=Path, required=True, help="gets bpe.model and tokens.txt; an older folder is replaced"
    )
    options.add_argument(
        "--shrink-to-fit", action="store_true", help="where the text allows fewer pieces, take as many as it allows"
    )
    args = options.parse_args(argv)

    settings = {"vocab_size": args.vocab_size, "model_type": args.model_type, "shrink_to_fit": args.shrink_to_fit}
    stage = Stage(args.out_dir, RECORD, settings, args.text, ["bpe.model", "tokens.txt"])
    if stage.is_finished():
        return
    train_bpe(read_transcripts(args.text), args.vocab_size, args.out_dir, args.model_type, args.shrink_to_fit)
    tokenizer = Tokenizer.load(args.out_dir)
    stage.finish()
    print(f"{args.out_dir / 'bpe.model'}: {tokenizer.vocab_size} pieces")


if __name__ == "__main__":
    main()
