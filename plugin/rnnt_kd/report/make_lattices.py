"""A distilled system, its twin and their teacher -> what ``lattice_data`` holds, for the utterances worth a picture.

The only module of the report that needs torch; the page does not import it.
"""

from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Tuple

import numpy as np
import torch

from rnnt_kd.config import SystemConfig
from rnnt_kd.data.audio_format import FRAME_SECONDS, SAMPLING_RATE
from rnnt_kd.data.cut_audio import compressed, cut_samples, loudness
from rnnt_kd.data.dataset import Batch, load_cuts_info, read_batches
from rnnt_kd.errors import UserError
from rnnt_kd.lattice import get_backend
from rnnt_kd.models.transducer import Transducer
from rnnt_kd.report.lattice_choice import Chosen, choose
from rnnt_kd.report.lattice_data import MODELS, ModelOnLattice, UtteranceLattice
from rnnt_kd.report.utterance_lattice import ModelView, utterance_lattice
from rnnt_kd.scoring.recognitions import check_same_references, read_recogs
from rnnt_kd.systems.store import check_bpe, load_system, weights_digest
from rnnt_kd.text.tokenizer import Tokenizer


def make_lattices(
    folders: Mapping[str, Path],
    names: Mapping[str, str],
    recogs: Mapping[str, Path],
    cuts: Path,
    bpe_dir: Path,
    *,
    test_set: str,
    search: str,
    max_utterances: int = 6,
    max_seconds: float = 12.0,
    score_events: bool = True,
    data_dir: Optional[Path] = None,
    allow_pipes: bool = False,
    device: str = "cpu",
    backend_name: str = "auto",
    say: Callable[[str], None],
) -> List[UtteranceLattice]:
    """Choose utterances and run the three models over each.

    Args:
      folders, names, recogs:  of "teacher", "twin" and "student": trained systems, what to call them, and what they
                    recognised.
      cuts:         the test set's, of stage 1.
      data_dir:     where its audio is; None: the pictures have no sound.
      score_events: words such as <unk> and [noise] count as errors.
      say:          takes a line for the user.
    Raises:
      UserError: the files are not of the same test set, teacher, BPE model or frame rate.
    """
    recognitions = {key: read_recogs(recogs[key]) for key in MODELS}
    for key in ("twin", "student"):
        check_same_references(recognitions[key], recognitions["teacher"], recogs[key], recogs["teacher"])
    infos = load_cuts_info(cuts)
    seconds = {info.id: info.duration for info in infos}
    chosen = choose(recognitions, seconds, max_utterances, max_seconds, score_events)
    places = {info.id: place for place, info in enumerate(infos)}
    for item in chosen:
        if tuple(infos[places[item.utterance]].text.split()) != item.ref:
            raise UserError(recogs["student"], f'ref of "{item.utterance}" differs from {cuts}', "the same test set")
    if not chosen:
        return []

    tokenizer = Tokenizer.load(bpe_dir)
    models, configs = load_trio(folders, tokenizer, bpe_dir, device)
    student = configs["student"]
    subsampling = models["teacher"].encoder.subsampling_factor
    order = [places[item.utterance] for item in chosen]
    backend = get_backend(backend_name, torch.device(device))
    lattices = lattices_of(models, configs, tokenizer, cuts, order, backend)
    sounds = cut_samples(cuts, order, data_dir, allow_pipes) if data_dir else [None] * len(order)
    made: List[UtteranceLattice] = []
    for item, (batch, ids, found), samples in zip(chosen, lattices, sounds):
        if isinstance(found, str):
            say(f"lattices of {names['student']} on {test_set}: {item.utterance} omitted, {found}")
            continue
        starts, views = found
        made.append(
            UtteranceLattice(
                utterance=item.utterance,
                chosen=item.kind,
                ref=item.ref,
                speaker=batch.speakers[0],
                duration=batch.durations[0],
                order=len(made) + 1,
                test_set=test_set,
                search=search,
                frame_seconds=subsampling * FRAME_SECONDS,
                prune_range=student.training.prune_range,
                rnnt_type=student.training.rnnt_type,
                tokens=tuple(tokenizer.pieces()[token] for token in ids),
                starts=starts.numpy(),
                **_sound(samples, len(starts), subsampling),
                models={key: _on_lattice(key, names[key], item, view) for key, view in views.items()},
            )
        )
    return made


def load_trio(
    folders: Mapping[str, Path], tokenizer: Tokenizer, bpe_dir: Path, device: str
) -> Tuple[Dict[str, Transducer], Dict[str, SystemConfig]]:
    """The three models, which must belong together."""
    loaded = {key: load_system(folders[key], device) for key in MODELS}
    models = {key: model for key, (model, _) in loaded.items()}
    configs = {key: config for key, (_, config) in loaded.items()}
    for key, config in configs.items():
        check_bpe(config, tokenizer, folders[key], bpe_dir)
    if configs["student"].kd is None:
        raise UserError(folders["student"], "trained without distillation", "a distilled system")
    if configs["student"].teacher_checksum != weights_digest(folders["teacher"]):
        raise UserError(folders["student"], f"distilled from another teacher than {folders['teacher']}", "its own one")
    return models, configs


def lattices_of(
    models: Mapping[str, Transducer], configs: Mapping[str, SystemConfig], tokenizer, cuts: Path, places, backend
) -> Iterator[Tuple[Batch, List[int], Any]]:
    """Each cut as a batch, its tokens, and what ``utterance_lattice`` gives, or why no path leads through it (str)."""
    student = configs["student"]
    for batch in read_batches(cuts, [[place] for place in places]):
        ids = tokenizer.encode(batch.texts[0])
        try:
            found: Any = utterance_lattice(
                models, configs["teacher"].training, student.training.prune_range, student.training.rnnt_type, backend,
                batch.features[0], ids, student.kd.shift if student.kd else 0,
            )  # fmt: skip
        except UserError as error:
            if not error.where.startswith("utterance"):
                raise
            found = error.problem
        yield batch, ids, found


def _sound(samples, num_frames: int, subsampling: int) -> dict:
    if samples is None:
        return {"loudness": np.zeros(num_frames, dtype=np.float32), "audio": b"", "audio_type": ""}
    audio, audio_type = compressed(samples)
    window = round(subsampling * FRAME_SECONDS * SAMPLING_RATE)
    return {"loudness": loudness(samples, num_frames, window), "audio": audio, "audio_type": audio_type}


def _on_lattice(key: str, name: str, item: Chosen, view: ModelView) -> ModelOnLattice:
    arrays = ("log_blank", "log_label", "occupancy", "path")
    facts: Dict[str, Any] = {each: getattr(view, each).numpy() for each in arrays}
    facts.update(name=name, hyp=item.hyps[key], errors=item.errors[key], loss=view.loss)
    if key == "teacher":
        return ModelOnLattice(**facts, kl=None, kd=0.0)
    return ModelOnLattice(**facts, kl=view.kl.numpy(), kd=view.kd)
