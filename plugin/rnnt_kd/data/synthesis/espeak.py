"""Text to speech by the espeak-ng library that the ``espeakng-loader`` wheel carries.

No root, no binary, no network.  The one promise beyond speech: the samples are a function of the
arguments alone, whatever this process said before.  espeak-ng keeps state from one utterance to the
next (flutter, echo, noise), and neither ``espeak_Terminate`` nor its seed resets all of it; so each
call unloads the library and loads a fresh copy, which costs 3 ms.
"""

import _ctypes
import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import List

import numpy as np

from rnnt_kd.errors import UserError

SAMPLING_RATE = 22050

# Numbers of espeak-ng's speak_lib.h.
_SYNCHRONOUS = 2
_DONT_EXIT = 0x8000
_PARAMETERS = {"rate": 1, "volume": 2, "pitch": 3, "range": 4, "word_gap": 7}  # of Prosody
_POSITION_CHARACTER = 1
_UTF8_WITH_PHONEMES = 1 | 0x100

_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True)
class Prosody:
    """Rate, pitch and pauses of a sentence, in espeak-ng's units."""

    rate: int = 175  # words a minute, 80..450
    pitch: int = 50  # 0..100
    range: int = 50  # of the pitch, 0..100
    word_gap: int = 0  # 10 ms at the default rate
    volume: int = 40  # 0..200; from 60 on some voices overflow 16 bits inside the library


def speak(text: str, accent: str, variant: str, prosody: Prosody = Prosody(), seed: int = 0) -> np.ndarray:
    """Speak one sentence.

    Args:
      text:    what to say; phonemes may stand in double brackets, ``[['eI]]``.
      accent:  a language of espeak-ng, for example ``en-us``.
      variant: a voice variant, for example ``f3``.
      prosody: rate, pitch and pauses.
      seed:    of the noise inside the voice.
    Returns: samples ``(n,)`` int16 at ``SAMPLING_RATE``.
    Raises: UserError where the library, the accent or the variant is missing.
    """
    library_path, data_path = _find_library()
    if not (Path(data_path) / "voices" / "!v" / variant).is_file():
        problem = f'no voice variant "{variant}" in {data_path}'
        raise UserError(f"espeak-ng voice {accent}+{variant}", problem, "a name under voices/!v")
    try:
        library = ctypes.CDLL(library_path)
    except OSError as error:
        problem = f"cannot be loaded: {error}"
        raise UserError(library_path, problem, "the library of the espeakng-loader package", _INSTALL) from None
    try:
        return _speak(library, data_path, text, f"{accent}+{variant}", prosody, seed)
    finally:
        library.espeak_Terminate()
        _ctypes.dlclose(library._handle)


_INSTALL = "install it: pip install espeakng-loader"


def _find_library() -> "tuple[str, str]":
    try:
        import espeakng_loader
    except ImportError:
        raise UserError("espeakng_loader", "is not installed", "the package espeakng-loader", _INSTALL) from None
    return espeakng_loader.get_library_path(), espeakng_loader.get_data_path()


def _speak(library: ctypes.CDLL, data_path: str, text: str, voice: str, prosody: Prosody, seed: int) -> np.ndarray:
    pieces: List[np.ndarray] = []

    @_CALLBACK
    def keep(samples, count, events):
        if samples and count > 0:
            pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    text_, int_, flags, pointer = ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p
    library.espeak_Initialize.argtypes = [int_, int_, text_, int_]
    library.espeak_Synth.argtypes = [text_, ctypes.c_size_t, flags, int_, flags, flags, pointer, pointer]
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, data_path.encode(), _DONT_EXIT)
    if rate != SAMPLING_RATE:
        problem = f"espeak-ng could not start (code {rate})"
        raise UserError(data_path, problem, f"its data and {SAMPLING_RATE} Hz", _INSTALL)
    library.espeak_ng_SetRandSeed(ctypes.c_long(seed & 0x7FFFFFFF))
    library.espeak_SetSynthCallback(keep)
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        raise UserError(f"espeak-ng voice {voice}", "espeak-ng does not know it", "a language of espeak-ng")
    for name, parameter in _PARAMETERS.items():
        library.espeak_SetParameter(parameter, getattr(prosody, name), 0)
    content = text.encode("utf-8") + b"\0"
    code = library.espeak_Synth(content, len(content), 0, _POSITION_CHARACTER, 0, _UTF8_WITH_PHONEMES, None, None)
    if code != 0 or not pieces:
        raise UserError(f"espeak-ng voice {voice}", f'could not say "{text}" (code {code})', "a sentence")
    return np.concatenate(pieces)
