"""LibriSpeech's folders: read one part, download what is missing.

    <root>/<part>/<speaker>/<chapter>/<speaker>-<chapter>-<number>.{flac,opus}
    <root>/<part>/<speaker>/<chapter>/<speaker>-<chapter>.trans.txt    one line an utterance: id, words

Every defect is one ``UserError`` that names the file and the line.
"""

import errno
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Sequence

from rnnt_kd import atomic
from rnnt_kd.errors import UserError
from rnnt_kd.progress_bar import plain_bars
from rnnt_kd.text_files import read_text

SUFFIXES = (".flac", ".opus")  # in the order of preference


@dataclass(frozen=True)
class LibriSpeechUtterance:
    id: str  # "<speaker>-<chapter>-<number>"
    audio: Path
    text: str

    @property
    def speaker(self) -> str:
        return self.id.split("-")[0]


def read_part(part: Path) -> List[LibriSpeechUtterance]:
    """All utterances of ``<corpus_dir>/<part>``, by id; every defect is a ``UserError`` that names the file."""
    utterances: List[LibriSpeechUtterance] = []
    for speaker in folders(part):
        for chapter in folders(speaker):
            utterances += _read_chapter(chapter)
    if not utterances:
        raise UserError(part, "holds no speech", "<speaker>/<chapter>/*.flac and *.trans.txt", "unpack this part again")
    return sorted(utterances, key=lambda utterance: utterance.id)


def folders(folder: Path) -> List[Path]:
    """The folders in ``folder``, sorted, hidden ones left out."""
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except PermissionError:
        raise UserError(folder, "cannot be read: permission denied", "a readable folder") from None


def download(root: Path, parts: Sequence[str], base_url: str) -> None:
    """Fetch and unpack the parts that are not in ``root``, by Lhotse's downloader.

    A part on its way is marked in ``.LibriSpeech.downloading`` beside ``root``, and only such a part is ever replaced:
    a folder without the mark is the user's, and whole.
    Raises: UserError for no network, a damaged archive, a part that LibriSpeech has not.
    """
    from lhotse.recipes.librispeech import LIBRISPEECH, MINI_LIBRISPEECH, download_librispeech

    downloading = root.parent / f".{root.name}.downloading"
    for part in dict.fromkeys(parts):
        is_whole = (root / part).is_dir() and not (downloading / part).exists()
        if is_whole:
            continue
        if part not in (*LIBRISPEECH, *MINI_LIBRISPEECH):
            problem = f'no part "{part}" of LibriSpeech'
            raise UserError("--option train, dev or test", problem, ", ".join((*LIBRISPEECH, *MINI_LIBRISPEECH)))
        if root.name != "LibriSpeech":
            problem = f"no part {part}, and only a folder named LibriSpeech can be downloaded to"
            raise UserError(root, problem, "", "rename it")
        where = f"download of {part} from {base_url}"
        atomic.write_text(downloading / part, "")
        try:
            with plain_bars():
                download_librispeech(root.parent, dataset_parts=[part], base_url=base_url)
        except (tarfile.TarError, EOFError, zlib.error) as error:
            (root.parent / f"{part}.tar.gz").unlink(missing_ok=True)
            problem = f"the archive is damaged ({error}), removed"
            raise UserError(where, problem, "LibriSpeech's own archive", "run the same command again") from None
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise
            advice = "run the same command again to go on, or give --corpus-dir DIR of a LibriSpeech that you have"
            raise UserError(where, f"failed: {getattr(error, 'reason', error)}", "a network", advice) from None
        if not (root / part).is_dir():
            problem = f"the archive holds no LibriSpeech/{part}"
            raise UserError(where, problem, "LibriSpeech's own archive")
        (downloading / part).unlink()


def _read_chapter(chapter: Path) -> List[LibriSpeechUtterance]:
    prefix = f"{chapter.parent.name}-{chapter.name}"
    audio: Dict[str, Path] = {}
    try:
        names = sorted(path.name for path in chapter.iterdir())
    except PermissionError:
        raise UserError(chapter, "cannot be read: permission denied", "a readable folder") from None
    for suffix in reversed(SUFFIXES):
        ours = [name for name in names if name.endswith(suffix) and not name.startswith(".")]
        audio.update({name[: -len(suffix)]: chapter / name for name in ours})
    transcript = chapter / f"{prefix}.trans.txt"
    if not audio and not transcript.is_file():
        raise UserError(chapter, "is empty", f"{prefix}-0000.flac and {prefix}.trans.txt", "unpack this part again")
    if not transcript.is_file():
        problem = f"no such file, but {len(audio)} audio files beside it"
        raise UserError(transcript, problem, "their transcripts", "unpack this part again")
    lines = read_text(transcript).removesuffix("\n").split("\n")
    utterances: Dict[str, LibriSpeechUtterance] = {}
    for number, line in enumerate(lines, 1):
        where = f"{transcript}:{number}"
        key, _, text = line.strip().partition(" ")
        if not key.startswith(f"{prefix}-") or not text.strip():
            raise UserError(where, f'found "{line[:60]}"', f"{prefix}-<number> and its words", "unpack this part again")
        if key in utterances:
            raise UserError(where, f"a second transcript for {key}", "one", "remove a line")
        if key not in audio:
            expected = f"{chapter / key}{' or '.join(SUFFIXES)}"
            raise UserError(where, f"{key} has no audio", expected, "unpack this part again, or remove the line")
        utterances[key] = LibriSpeechUtterance(key, audio[key].absolute(), text.strip())
    for key, path in audio.items():
        if key not in utterances:
            raise UserError(path, "has no transcript", f"a line in {transcript}", "add the line, or remove the audio")
    return list(utterances.values())
