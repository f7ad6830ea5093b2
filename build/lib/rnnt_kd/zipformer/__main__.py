"""``zipformer train`` as it stands, without k2, with a teacher, or with zeros among the weights.

    python -m rnnt_kd.zipformer train --exp-dir exp-large ...                                     # no k2 is needed
    python -m rnnt_kd.zipformer train --kd-teacher exp-large --kd-teacher-epoch 30 --exp-dir exp-small ...

Every other option is zipformer's; ``python -m rnnt_kd.icefall --help`` shows all of ours.
"""

import sys
from typing import List, Optional

from rnnt_kd.bin import options
from rnnt_kd.bin.entry import command
from rnnt_kd.errors import UserError


@command
def main(argv: Optional[List[str]] = None) -> None:
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] != ["train"]:
        parser = options.parser(__doc__)
        parser.add_argument("train", choices=["train"], help="then the options of zipformer train, and ours")
        parser.parse_args(words[:1])
    if any(word.split("=")[0] == "--kd-cache" for word in words):
        problem = "zipformer's loader speeds, warps and mixes anew in each epoch, and a cache knows one of these"
        raise UserError("--kd-cache", problem, "--kd-teacher, which hears what the student hears")

    from rnnt_kd.icefall.__main__ import main as icefall
    from rnnt_kd.icefall.launch import import_as_main
    from rnnt_kd.zipformer import train_py

    path = train_py()
    train = import_as_main(path)
    get_parser = train.get_parser

    def complete():  # 0.1.3 reads two options that its parser lacks
        parser = get_parser()
        parser.set_defaults(print_diagnostics=False, inf_check=False)
        return parser

    train.get_parser = complete
    icefall([str(path), *words[1:]])


if __name__ == "__main__":
    main()
