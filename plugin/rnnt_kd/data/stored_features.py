"""The features of a cut, read from where it says they lie; nothing is opened but plain files, by the door of
``rnnt_kd.files``, and what the user trusts Lhotse to open.

They may lie in longer ones (``cut.start``); cuts without features have them computed from their audio whenever they
are read.
"""

import dataclasses
import functools
import hashlib
import os
from pathlib import Path
from typing import BinaryIO, Optional

import numpy as np
import torch
from lhotse import Fbank, Features, MonoCut
from lhotse.audio import AudioSource
from lhotse.features.io import (
    CHUNK_SIZE_KEY,
    ChunkedLilcomHdf5Reader,
    LilcomChunkyReader,
    LilcomFilesReader,
    LilcomHdf5Reader,
    MemoryLilcomReader,
    MemoryNpyReader,
    NumpyFilesReader,
    NumpyHdf5Reader,
    get_reader,
)

from rnnt_kd.data.audio_format import SAMPLING_RATE
from rnnt_kd.data.cuts import AGAIN, FEATURES_DIGEST, STORAGES, frames_of
from rnnt_kd.data.stored_frames import SHAR
from rnnt_kd.errors import UserError
from rnnt_kd.files import allowed_storages, bytes_at, named_in

READERS = {reader.name: reader for reader in (LilcomFilesReader, NumpyFilesReader)}  # a file for each matrix
MOST_PACKED = 100  # numbers of an array in HDF5 a byte of its own that the file holds
HDF5 = {reader.name: reader for reader in (NumpyHdf5Reader, LilcomHdf5Reader, ChunkedLilcomHdf5Reader)}


def read_features(cut: MonoCut, cuts_path: Path) -> torch.Tensor:
    """(T, 80) float32, finite.  A cuts file and its ``*_feats`` folder may move together: the folder beside it comes
    first.  UserError: outside of the folder of the cuts, missing, or not what the cut says."""
    features, cuts_path = cut.features, Path(cuts_path)
    if features is None:
        return _computed_features(cut, cuts_path)
    trusted = features.storage_type in allowed_storages() and features.storage_type not in STORAGES  # which we open
    if trusted:
        path, next_step = Path(features.storage_path), f"repair what {cuts_path} names"
    else:
        path = _features_file(str(cuts_path), features.storage_type, features.storage_path, features.storage_key)
        next_step = f"move {path.parent} away and run stage 1 again"
    skipped = frames_of(cut.start - features.start)
    num_frames = frames_of(cut.duration)
    try:
        if trusted:
            matrix = _opened_by_lhotse(features)
        else:
            matrix = _stored(features, path, (cut.custom or {}).get(FEATURES_DIGEST))
    except (ValueError, RuntimeError, EOFError, OSError, MemoryError) as error:
        problem = f"features of {cut.id} cannot be read ({error})"
        raise UserError(path, problem, "the file that stage 1 wrote", next_step) from None
    expected = (features.num_frames, features.num_features)
    if matrix.shape != expected or skipped + num_frames > features.num_frames + 1:
        problem = f"features of {cut.id} have shape {matrix.shape}"
        wanted = f"{expected}, as in {cuts_path}" if matrix.shape != expected else f"{skipped + num_frames} frames"
        raise UserError(path, problem, wanted, next_step)
    if not np.isfinite(matrix).all():
        raise UserError(path, f"features of {cut.id} hold NaN or infinity", "the file that stage 1 wrote", next_step)
    matrix = matrix[skipped : skipped + num_frames]
    if len(matrix) < num_frames:  # times that are rounded in two ways; as Lhotse does
        matrix = np.concatenate((matrix, matrix[-1:]))
    return torch.from_numpy(np.ascontiguousarray(matrix, dtype=np.float32))


def stored_digest(file: BinaryIO, key: str) -> str:
    """SHA-256 of the bytes that one cut's features are in an open ``.lca`` file; ``key`` is their ``storage_key``."""
    start, *sizes = map(int, key.split(","))
    file.seek(start)
    return hashlib.sha256(file.read(min(sum(sizes), os.fstat(file.fileno()).st_size))).hexdigest()


def _stored(features: Features, path: Path, digest: Optional[str]) -> np.ndarray:
    """(T, F) in an open file or archive; ValueError: not what was written, or not there."""
    key = features.storage_key
    if features.storage_type == SHAR:
        offset, size = map(int, key.split(",")[:2])
        data = bytes_at(path, offset, size)
        if len(data) < size:
            raise ValueError(f"the file ends before {key}")
        return (MemoryNpyReader if key.endswith(".npy") else MemoryLilcomReader)().read(data)
    if features.storage_type in HDF5:
        return _in_hdf5(features.storage_type, path, key)
    if features.storage_type != LilcomChunkyReader.name:
        return READERS[features.storage_type](path.parent).read(path.name)
    if sum(map(int, key.split(","))) > path.stat().st_size:
        raise ValueError(f"the file ends before {key}")
    if digest is not None:
        with open(path, "rb") as file:
            if stored_digest(file, key) != digest:
                raise ValueError("they are not what was written")
    return LilcomChunkyReader(str(path)).read(key)


def _opened_by_lhotse(features: Features) -> np.ndarray:
    """(T, F), of a storage that the user allowed; ValueError: what its library raises."""
    try:
        return get_reader(features.storage_type)(features.storage_path).read(features.storage_key)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{features.storage_type}: {type(error).__name__}: {reason}") from None


def _in_hdf5(storage_type: str, path: Path, key: str) -> np.ndarray:
    """(T, F), if the file itself holds it: HDF5 may also say that the data of a key are in other files."""
    import h5py

    with h5py.File(path, "r") as file:
        for name in (key, *{CHUNK_SIZE_KEY} & {*file}):
            parts = name.split("/")
            for depth in range(1, len(parts) + 1):
                if not isinstance(file.get("/".join(parts[:depth]), getlink=True), h5py.HardLink):
                    raise ValueError(f"{name} is not there, or a link")
            found = file[name]
            if not isinstance(found, h5py.Dataset) or found.is_virtual or found.external:
                raise ValueError(f"{name} is no array, or one whose data are in another file")
            if found.size * found.dtype.itemsize > found.id.get_storage_size() * MOST_PACKED:
                raise ValueError(f"{name} claims {found.shape} numbers, which are not there")
    return HDF5[storage_type](str(path)).read(key)


def _computed_features(cut: MonoCut, cuts_path: Path) -> torch.Tensor:
    """(T, 80) float32, of the cut's audio."""
    (source,), repair = cut.recording.sources, "repair it or remove the cut"
    if source.type == SHAR:
        name, offset, size = source.source.split(",")
        path = named_in(cuts_path / "cuts", name)
        opened = AudioSource("memory", source.channels, bytes_at(path, int(offset), int(size)))
    else:
        path = named_in(cuts_path, source.source)
        opened = AudioSource("file", source.channels, str(path))
    heard = dataclasses.replace(cut, recording=dataclasses.replace(cut.recording, sources=[opened]))
    try:
        samples = heard.resample(SAMPLING_RATE).load_audio()
        matrix = Fbank().extract(samples[:1], SAMPLING_RATE)
    except Exception as error:  # of a decoder, with whatever it raises
        reason = " ".join(str(error).split())[:200]
        problem = f"the audio of {cut.id} cannot be read ({type(error).__name__}: {reason})"
        raise UserError(path, problem, f"{cut.duration:g} s from {cut.start:g} s on", repair) from None
    if not np.isfinite(matrix).all():
        raise UserError(path, f"the audio of {cut.id} holds NaN or infinity", "samples", repair)
    return torch.from_numpy(matrix)


@functools.lru_cache(maxsize=10_000)
def _features_file(cuts_path: str, storage_type: str, storage_path: str, storage_key: str) -> Path:
    """The file; one of its folder and name beside the cuts comes first, then one of its name."""
    name = storage_path
    if storage_type in READERS:
        name = os.path.join(storage_path, storage_key)
    if storage_type == SHAR:
        return named_in(Path(cuts_path) / "cuts", name)
    depths = (3, 2) if storage_type in READERS else (2, 1)
    beside = (Path(*Path(name).parts[-depth:]) for depth in depths)
    there = next((path for path in beside if os.path.exists(Path(cuts_path).parent / path)), name)
    return named_in(Path(cuts_path), there, next_step=f"{AGAIN}, or name their folder with --data-root")
