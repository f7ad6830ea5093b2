"""Sentences of the ``synth`` corpus: spelled names, numbers, dates, times and commands.

``draw_sentence`` draws from a small grammar (about 150 words) with Python's ``random.Random``, so the same
seed gives the same sentences everywhere.  Which part a sentence may appear in is decided by its text
alone (``part_of``: a hash), so no sentence of dev or test is ever one of train, whatever the seeds.

A sentence is upper case, one space between words, a spelled letter is a word.  ``A`` and ``I`` are
always letters.
"""

import random
from typing import List

from rnnt_kd.data.synthesis.acoustics import hashed

PARTS = ("train", "dev", "test")

_DIGITS = "ZERO ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE".split()
_TEENS = "TEN ELEVEN TWELVE THIRTEEN FOURTEEN FIFTEEN SIXTEEN SEVENTEEN EIGHTEEN NINETEEN".split()
_TENS = "TWENTY THIRTY FORTY FIFTY SIXTY SEVENTY EIGHTY NINETY".split()
_ORDINALS = (
    "FIRST SECOND THIRD FOURTH FIFTH SIXTH SEVENTH EIGHTH NINTH TENTH ELEVENTH TWELFTH THIRTEENTH FOURTEENTH "
    "FIFTEENTH SIXTEENTH SEVENTEENTH EIGHTEENTH NINETEENTH TWENTIETH"
).split()
_MONTHS = "JANUARY FEBRUARY MARCH APRIL MAY JUNE JULY AUGUST SEPTEMBER OCTOBER NOVEMBER DECEMBER".split()
_DAYS = "MONDAY TUESDAY WEDNESDAY THURSDAY FRIDAY SATURDAY SUNDAY".split()
_ROOMS = "KITCHEN BEDROOM OFFICE GARDEN".split()
_NAMES = (
    "ADAM ALICE ANNA BENJAMIN BRIAN CAROL CHARLES CLARA DAVID DIANA EDWARD EMILY ERIC FELIX FRANK GEORGE GRACE HARRY "
    "HELEN HUGO IRENE ISAAC JACK JANE JAMES KAREN KEVIN LAURA LEWIS LUCY MARTIN MARY MAX NANCY NOAH OLIVER OSCAR "
    "PAUL PETER QUENTIN QUINN RACHEL ROBERT SARAH SIMON STEVEN TERRY THOMAS URSULA VERA VICTOR WALTER WENDY XAVIER "
    "YOLANDA YVONNE ZACHARY ZOE BAKER BROWN CLARK DAVIS EVANS FISHER GREEN HALL JONES KELLY KNIGHT LOPEZ MILLER MOORE "
    "PARKER QUICK REED SMITH TAYLOR VAUGHN WALKER WILLIAMS WRIGHT YOUNG"
).split()
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def draw_sentence(rng: random.Random) -> str:
    """One sentence of the grammar, 2 to about 14 words."""
    kind = rng.choice([_spelling, _spelling, _number, _number, _date, _date, _time, _command, _command, _command])
    return kind(rng)


def part_of(sentence: str) -> str:
    """The only part this sentence may appear in: 80 % of all are train's, 10 % dev's, 10 % test's."""
    ticket = hashed(sentence) % 10
    return "train" if ticket < 8 else PARTS[ticket - 7]


def spoken_form(sentence: str, rng: random.Random) -> str:
    """The sentence as espeak-ng should read it: letters by their names, some pauses (commas), an end.

    In a spelled word there are pauses more often than elsewhere, as people make them.
    """
    words = sentence.split()
    spoken: List[str] = []
    for position, word in enumerate(words):
        is_letter = len(word) == 1
        text = {"A": "[['eI]]", "I": "[['aI]]"}.get(word, word.lower())
        if position + 1 < len(words) and rng.random() < (0.15 if is_letter else 0.06):
            text += ","
        spoken.append(text)
    return " ".join(spoken) + rng.choice([".", ".", ".", "!", "?"])


def _spelling(rng: random.Random) -> str:
    name = rng.choice(_NAMES) if rng.random() < 0.5 else "".join(rng.choice(_LETTERS) for _ in range(rng.randint(3, 6)))
    spelled = " ".join(name)
    carriers = ["{}", "{}", "SPELL {}", "MY NAME IS {}", "PLEASE SPELL {}", "CALL {}", "SEND {} TO {}"]
    carrier = rng.choice(carriers)
    if carrier.count("{}") == 2:
        return carrier.format(
            " ".join(rng.choice(_LETTERS) for _ in range(3)), " ".join(rng.choice(_LETTERS) for _ in range(3))
        )
    return carrier.format(spelled)


def _number(rng: random.Random) -> str:
    form = rng.randrange(5)
    if form == 0:  # a telephone number
        return " ".join(rng.choice(_DIGITS) for _ in range(rng.randint(4, 8)))
    if form == 1:  # digits as in a room number
        return f"CALL {' '.join(rng.choice(_DIGITS) for _ in range(rng.randint(3, 5)))} PLEASE"
    if form == 2:
        return f"{_below_thousand(rng)} DOLLARS AND {_below_hundred(rng)} CENTS"
    if form == 3:
        return f"{_below_thousand(rng)} {rng.choice(['PLUS', 'MINUS', 'TIMES'])} {_below_hundred(rng)}"
    return f"NUMBER {_below_thousand(rng)} {rng.choice(['AND', 'OR'])} {_below_thousand(rng)}"


def _date(rng: random.Random) -> str:
    day = _ordinal(rng)
    month = rng.choice(_MONTHS)
    form = rng.randrange(4)
    if form == 0:
        return f"{month} {day} NINETEEN {_below_hundred(rng, lowest=10)}"
    if form == 1:
        return f"{rng.choice(_DAYS)} {month} {day}"
    if form == 2:
        return f"THE {day} OF {month} TWENTY {_below_hundred(rng, lowest=10)}"
    return f"CALL ME ON {rng.choice(_DAYS)} {rng.choice(['MORNING', 'EVENING'])} {month} {day}"


def _time(rng: random.Random) -> str:
    hour = (_DIGITS[1:] + _TEENS[:3])[rng.randrange(12)]
    minutes = rng.choice(
        [f"OH {rng.choice(_DIGITS[1:])}", rng.choice(_TEENS), _below_hundred(rng, lowest=20, highest=59)]
    )
    clock = f"{hour} {minutes} {rng.choice(['A M', 'P M'])}"
    return rng.choice(["SET THE ALARM FOR {}", "{} ON " + rng.choice(_DAYS), "WAKE ME AT {}", "THE TIME IS {}"]).format(
        clock
    )


def _command(rng: random.Random) -> str:
    def one_of(words: str) -> str:
        return rng.choice(words.split())

    room = rng.choice(_ROOMS)
    small = _below_hundred(rng)
    sentence = rng.choice(
        [
            f"TURN {one_of('ON OFF')} THE {room} {one_of('LIGHT RADIO')}",
            f"{one_of('OPEN CLOSE')} THE {room} {one_of('DOOR WINDOW')} {rng.choice(['NOW', 'AT ' + small])}",
            f"{one_of('PLAY STOP REPEAT')} SONG {rng.choice(['NUMBER ', ''])}{small}",
            f"SET THE {one_of('VOLUME TEMPERATURE')} TO {small}",
            f"SET {one_of('THE MY')} TIMER FOR {small} MINUTES",
            f"GO {one_of('FORWARD BACK LEFT RIGHT')} {small} STEPS",
            f"TURN {one_of('LEFT RIGHT')} AND GO {one_of('FORWARD BACK')} {small} STEPS",
            f"{one_of('START STOP')} THE TIMER AND {one_of('OPEN CLOSE')} THE {one_of('DOOR WINDOW')}",
            f"MOVE {one_of('UP DOWN')} {small} STEPS AND {one_of('STOP REPEAT')}",
        ]
    )
    return f"{sentence} PLEASE" if rng.random() < 0.2 else sentence


def _below_hundred(rng: random.Random, lowest: int = 1, highest: int = 99) -> str:
    return _words(rng.randint(lowest, highest))


def _below_thousand(rng: random.Random) -> str:
    number = rng.randint(1, 999)
    if number < 100:
        return _words(number)
    hundreds, rest = divmod(number, 100)
    return f"{_DIGITS[hundreds]} HUNDRED" + (f" {_words(rest)}" if rest else "")


def _words(number: int) -> str:
    if number < 10:
        return _DIGITS[number]
    if number < 20:
        return _TEENS[number - 10]
    tens, ones = divmod(number, 10)
    return _TENS[tens - 2] + (f" {_DIGITS[ones]}" if ones else "")


def _ordinal(rng: random.Random) -> str:
    number = rng.randint(1, 31)
    if number <= 20:
        return _ORDINALS[number - 1]
    if number == 30:
        return "THIRTIETH"
    return f"{_TENS[number // 10 - 2]} {_ORDINALS[number % 10 - 1]}"
