"""The voices of the ``synth`` corpus: who speaks, in which part, with which accents.

A speaker is an accent and a voice variant of espeak-ng, ``en-us_f3``.  No *variant* is in two parts, so
every dev and test voice is new to the recogniser; accents are shared.  The choice leaves out what people
do not sound like (robots, whispers, the Klatt synthesiser), what overflows 16 bits, and the variants
whose isolated words a nearest-neighbour classifier trained on the others gets wrong more than 6 times in
100.  Near copies of one voice (``iven2``, ``iven3`` ...) stay together.
"""

from dataclasses import dataclass
from typing import Dict, List

ACCENTS = ("en-us", "en", "en-gb-x-rp", "en-gb-scotland", "en-029", "en-us-nyc")  # "en" is Great Britain

VARIANTS: Dict[str, List[str]] = {
    "train": (
        "Andrea Andy Denis Diogo Gene Gene2 Henrique Hugo Jacky Mario Michael Nguyen Storm anika aunty belinda "
        "ed f2 f4 f5 grandpa gustave iven2 iven3 iven4 john linda m1 m3 m5 m7 m8 marcelo michel miguel pablo paul "
        "pedro robert sandro steph steph3 victor"
    ).split(),
    "dev": "boris grandma m2 steph2".split(),
    "test": "Alex Annie Mike f1 f3 m4 m6 quincy".split(),
}

_ACCENTS_OF_A_TRAIN_VARIANT = 2


@dataclass(frozen=True)
class Speaker:
    accent: str
    variant: str

    @property
    def id(self) -> str:
        return f"{self.accent}_{self.variant}"


def speakers(part: str) -> List[Speaker]:
    """The speakers of ``train``, ``dev`` or ``test``, always the same, in an order that mixes the accents."""
    rounds = _ACCENTS_OF_A_TRAIN_VARIANT if part == "train" else 1
    variants = VARIANTS[part]
    stride = len(ACCENTS) // rounds
    return [
        Speaker(ACCENTS[(position + turn * stride) % len(ACCENTS)], variant)
        for turn in range(rounds)
        for position, variant in enumerate(variants)
    ]
