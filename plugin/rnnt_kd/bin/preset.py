"""Values of a preset as shell assignments, for run.sh.

$ python -m rnnt_kd.bin.preset --config egs/an4/conf/cpu.yaml text.vocab_size features.speed_perturb
text_vocab_size=60
features_speed_perturb='0.9 1.0 1.1'
"""

import shlex
from typing import List, Optional

from rnnt_kd.bin.entry import command
from rnnt_kd.bin.options import add_recipe, load_recipe, parser
from rnnt_kd.errors import UserError


@command
def main(argv: Optional[List[str]] = None) -> None:
    options = parser(__doc__)
    add_recipe(options)
    options.add_argument("keys", nargs="+", help="dotted keys")
    arguments = options.parse_args(argv)
    recipe = load_recipe(arguments.config, arguments.overrides)
    for key in arguments.keys:
        value = recipe
        for part in key.split("."):
            if not hasattr(value, part):
                raise UserError(key, "no such key in a preset", "a key of rnnt_kd.config.RecipeConfig")
            value = getattr(value, part)
        text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        print(f"{key.replace('.', '_')}={shlex.quote(text)}")


if __name__ == "__main__":
    main()
