"""A folder in Lhotse's Shar format, read as data: cuts in ``cuts.*.jsonl.gz``, their features or audio in archives, and
in others (``kd.*.tar``), where they are, what their teacher left.

The archives are walked once, for where each member begins; a cut is then read from there, in any order.  They are
plain files of the folder, not packed (``.tar``); what stands in a cut's placeholders is not opened.
"""

import hashlib
import tarfile
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

from rnnt_kd.data.cuts import check_lhotse, parse_line, read_lines, without_teacher
from rnnt_kd.data.stored_frames import SHAR, TEACHER
from rnnt_kd.errors import UserError
from rnnt_kd.files import named_in, parse_json

FIELDS = ("features", "recording")  # the first one that is there is used; beside it, the teacher's
LONGEST_META = 1 << 20  # bytes
AGAIN = "write it again with lhotse.shar.SharWriter, as shards that are not packed"


def files(folder: Path) -> List[Path]:
    """The manifests, then the archives that belong to them.  UserError: there are none, or not of each shard."""
    manifests = sorted(folder.glob("cuts.*.jsonl*"))
    if not manifests:
        raise UserError(folder, "no cuts.*.jsonl.gz here", "a folder in Shar format, or a cuts file", AGAIN)
    data, teachers = next(filter(None, (_archives(folder, field) for field in FIELDS)), []), _archives(folder, TEACHER)
    for archives, what in ((data, "features or recordings"), (teachers or data, f"the teacher ({TEACHER})")):
        if [path.name.split(".")[1] for path in archives] != [path.name.split(".")[1] for path in manifests]:
            problem = f"{len(manifests)} files of cuts and {len(archives)} of {what}"
            raise UserError(folder, problem, "one archive for each file of cuts", AGAIN)
    packed = [path for path in (*data, *teachers) if path.suffix != ".tar"]
    if packed:
        raise UserError(packed[0], "is packed", "a .tar", AGAIN)
    return [named_in(folder / "cuts", path.name) and path for path in (*manifests, *data, *teachers)]


def _archives(folder: Path, field: str) -> List[Path]:
    return [path for path in sorted(folder.glob(f"{field}.*")) if ".tar" in path.suffixes]


class Manifest:
    """As ``cuts.Manifest``, of a Shar folder."""

    def __init__(self, folder: Path):
        self.path, self._counts = Path(folder), [0]
        self.digest, self.teachers = hashlib.sha256(), hashlib.sha256()
        self.digests = self.digest, self.digest
        found = files(self.path)
        count = sum(path.name.startswith("cuts.") for path in found)
        self._shards = [(found[at], found[at + count :: count]) for at in range(count)]

    def where(self, place: int) -> str:
        shard = sum(place >= total for total in self._counts[1:])
        return f"{self._shards[shard][0]}:{place - self._counts[shard] + 1}"

    def __iter__(self) -> Iterator[Dict[str, Any]]:
        for manifest, archives in self._shards:
            for archive in archives:
                digest = self.teachers if archive.name.startswith(f"{TEACHER}.") else self.digest
                digest.update(f"{archive.name} {archive.stat().st_size}\n".encode())
            walks, number = [(archive, _members(archive)) for archive in archives], 0
            for number, line in enumerate(read_lines(manifest), 1):
                where = f"{manifest}:{number}"
                values = parse_line(line, where)
                self.digest.update(without_teacher(line, values, self.teachers)[0])
                for archive, members in walks:
                    data, field, value = next(members, (None, "", None))
                    if not isinstance(values, dict):
                        continue
                    if values.get("id") != data:
                        found = "ends" if data is None else f"has {data:.100}"
                        problem = f"{found} where {where} has {values.get('id')!s:.100}"
                        raise UserError(archive, problem, "the members in the order of the cuts", AGAIN)
                    if field != TEACHER:
                        values[field] = value
                    elif value is not None and isinstance(custom := values.get("custom") or {}, dict):
                        values["custom"] = {**custom, TEACHER: value}
                yield check_lhotse(values, where, in_shar=True)
            for archive, members in walks:
                if (more := next(members, None)) is not None:
                    problem = f"has {more[0]:.100} behind the last cut of {manifest}"
                    raise UserError(archive, problem, "nothing more", AGAIN)
            self._counts.append(self._counts[-1] + number)


def _members(archive: Path) -> Iterator[Tuple[str, str, Optional[Dict[str, Any]]]]:
    """Id of a cut, field, and what it holds with the place of the data (None: nothing), for each pair of members."""
    field, size = archive.name.split(".")[0], archive.stat().st_size
    data: Optional[tarfile.TarInfo] = None
    try:
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # else it keeps them all
                if not member.isreg() or member.offset_data + member.size > size:
                    raise ValueError(f"member {member.name:.100} is no plain file, or longer than the archive")
                if data is None:
                    data = member
                    continue
                stem, _, extension = data.name.rpartition(".")
                if extension == "nodata":
                    yield stem, field, None
                else:
                    if member.size > LONGEST_META or member.name != f"{stem}.json":
                        raise ValueError(f"member {member.name:.100} where {stem:.100}.json should be")
                    described = parse_json(tar.extractfile(member).read())  # type: ignore[union-attr]
                    if not isinstance(described, dict):
                        raise ValueError(f"member {member.name:.100} describes nothing")
                    yield stem, field, _placed(field, described, archive.name, data, extension)
                data = None
        if data is not None:
            raise ValueError(f"ends behind {data.name:.100}, without what describes it")
    except (ValueError, tarfile.TarError, OSError, EOFError) as error:
        raise UserError(archive, f"cannot be read ({error})", "an archive of Lhotse Shar", AGAIN) from None


def _placed(field: str, described: Dict[str, Any], archive: str, data: tarfile.TarInfo, kind: str) -> Dict[str, Any]:
    place = f"{data.offset_data},{data.size}"
    if field in ("features", TEACHER):
        if kind not in ("npy", "llc")[: 1 if field == TEACHER else 2]:
            raise ValueError(f"member {data.name:.100} is not .npy{'' if field == TEACHER else ', nor .llc'}")
        return {**described, "storage_type": SHAR, "storage_path": archive, "storage_key": f"{place},.{kind}"}
    sources = described.get("sources")
    if not (isinstance(sources, list) and len(sources) == 1 and isinstance(sources[0], dict)):
        raise ValueError(f"member {data.name:.100} is not described by one source")
    return {**described, "sources": [{**sources[0], "type": SHAR, "source": f"{archive},{place}"}]}
