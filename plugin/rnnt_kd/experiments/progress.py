"""How far each system of an experiment is, by its files.

What a system *is* counts: definition, preset, data, BPE model, teacher.  Where it was made does not: a system trained
on a GPU is finished for a table made on a CPU, and one that was trained by hand is, too, if it is the same.
"""

import itertools
from pathlib import Path
from typing import Dict, Optional, Tuple

from rnnt_kd.config_io import read_system_config
from rnnt_kd.data.source import open_source
from rnnt_kd.errors import UserError
from rnnt_kd.experiments.plan import OWN_BONUS, Job, Plan
from rnnt_kd.record import Record, file_digest, in_words, read_record, record_path
from rnnt_kd.scoring import token_bonus
from rnnt_kd.systems import store
from rnnt_kd.systems.store import weights_file
from rnnt_kd.teachers.cache import TeacherCache
from rnnt_kd.teachers.carried import CarriedTeacher, StoredTeacher
from rnnt_kd.teachers.shards import digest_of_all
from rnnt_kd.text.normalization import FORMS
from rnnt_kd.text.tokenizer import Tokenizer
from rnnt_kd.training import setup, system_dir

HOW_FAST = ("device", "num_threads", "batch_seconds", "engine")  # settings of a decoding that do not change what it is


class Progress:
    """Looks at the disk whenever it is asked, and reads again what has changed since."""

    def __init__(self, plan: Plan):
        self.plan, self.places = plan, plan.places
        self._digests: Dict[Tuple[Path, int], str] = {}
        self._tokenizer: Optional[Tokenizer] = None
        self._compared: Dict[Job, Tuple[tuple, str]] = {}  # with the times of all files that matter

    def why_not_trained(self, job: Job) -> str:
        """ "" for a finished system, else what is missing, for people."""
        job = self.plan.training_of(job)
        folder = self.plan.system_dir(job)
        if not (folder / system_dir.RECORD).exists():
            return "not trained"
        if not (folder / store.SYSTEM).exists() or not weights_file(folder).exists():
            return "training is not finished"
        if not read_record(folder / system_dir.RECORD):
            return f"what it was made of cannot be told: {folder / system_dir.RECORD} is damaged"
        teacher = self.plan.teacher_dir(job)
        for one in map(self.plan.system_dir, self.plan.teachers_of(job)):
            if not (one / store.SYSTEM).exists():
                return f"its teacher is not finished ({one})"
        why = self.why_no_pseudo_labels(job)
        if why:
            return f"what it was trained on is not up to date: {why}"
        times = self._times(job)
        if self._compared.get(job, (None,))[0] != times:
            self._compared[job] = times, self._compare(job, teacher)
        return self._compared[job][1]

    def why_no_pseudo_labels(self, job: Job) -> str:
        """Why the cuts of what learns from unlabelled audio, too, cannot be used; "" for any other."""
        plan = self.plan
        if not plan.is_pseudo_labelled(job):
            return ""
        teacher = plan.teacher_of(job) if plan.needs_words else None
        why = self.why_not_decoded(teacher, plan.unlabelled_set) if teacher is not None else ""
        return why or plan.pseudo_labels(job).record(plan.train_cuts(job)).why_not()

    def why_no_cache(self, job: Job) -> str:
        """Why what the system distils from cannot be used, a cache or its cuts'; "" where it can, or none is needed."""
        try:
            self._cache(job)
        except UserError as error:
            return str(error)
        return ""

    def why_not_decoded(self, job: Job, test_set: str, way: str = "") -> str:
        """ "" where the decoding is that of these weights, this BPE model, this test set and way (``Plan.ways``)."""
        if way == OWN_BONUS:
            return self.why_not_tuned(job)
        folder, search = self.plan.decode_dir(job, test_set, way), way or self.plan.search
        path = record_path(folder, f"decode-{test_set}")
        if not path.exists():
            return f"decoding of {test_set} is not finished" if folder.exists() else f"not decoded: {test_set}"
        before, decoding = read_record(path).get("settings", {}), self.plan.recipe.decoding
        settings = {"search": search, "beam": decoding.beam, "test_set": test_set}
        if self.plan.recipe.text.normalization != FORMS[0]:
            settings["normalization"] = self.plan.recipe.text.normalization
        settings.update({"originals": True} if test_set == self.plan.unlabelled_set else {})
        settings.update({key: before[key] for key in HOW_FAST if key in before})
        system, places = self.plan.system_dir(job), self.places
        inputs = store.decoding_inputs(system, places.bpe_dir, places.cuts(test_set), self._bytes)
        why = Record(folder, f"decode-{test_set}", settings, inputs).why_not()
        return f"decoding of {test_set} is not finished: {why}" if why else ""

    def why_not_tuned(self, job: Job) -> str:
        """ "" where it is decoded with a token bonus of its own: of these weights, BPE model, sets and preset."""
        folder, recipe = self.plan.system_dir(job) / "token_bonus", self.plan.recipe
        if not record_path(folder, token_bonus.RECORD).exists():
            return "its token bonus is not chosen"
        inputs = {}
        for name in (self.places.dev_set, *self.places.test_sets):
            cuts, system = self.places.cuts(name), self.plan.system_dir(job)
            digests = store.decoding_inputs(system, self.places.bpe_dir, cuts, self._bytes)
            inputs.update({f"{'dev' if name == self.places.dev_set else name}: {key}": digests[key] for key in digests})
        text = recipe.text
        asked = (token_bonus.GRID, recipe.decoding.beam, not text.score_events, text.normalization)
        why = Record(folder, token_bonus.RECORD, token_bonus.settings(*asked), inputs).why_not()
        return f"its token bonus is not chosen: {why}" if why else ""

    def why_not_finished(self, job: Job) -> str:
        """ "" where trained, and all that the training makes is decoded on all test sets, in all ways."""
        each = itertools.product(self.plan.made_by(job), self.places.test_sets, self.plan.ways)
        return self.why_not_trained(job) or next((why for one in each if (why := self.why_not_decoded(*one))), "")

    def refuse_foreign(self, job: Job) -> None:
        """Raises UserError where the folder holds a finished system of another corpus, BPE model or teacher."""
        job = self.plan.training_of(job)
        folder = self.plan.system_dir(job)
        if not (folder / store.SYSTEM).exists():
            return
        config = read_system_config(folder / store.CONFIG)
        next_step = "move the folder away, or choose the --exp-dir that it belongs to"
        own = self.tokenizer().checksum
        if config.bpe_checksum != own:
            problem = f"trained with another BPE model (checksum {config.bpe_checksum[:12]})"
            raise UserError(folder, problem, f"{own[:12]}, that of {self.places.bpe_dir}", next_step)
        inputs = read_record(folder / system_dir.RECORD).get("inputs", {})
        for name, path in (("train cuts", self.plan.train_cuts(job)), ("dev cuts", self.places.dev_cuts)):
            if name in inputs and inputs[name] != open_source(path).content_as(inputs[name]):
                raise UserError(folder, f"trained with other {name}", f"those of {path}", next_step)
        teacher = self.plan.teacher_dir(job)
        weights = teacher and teacher / "model.safetensors"
        if weights and config.teacher_checksum and weights.exists() and config.teacher_checksum != self._bytes(weights):
            problem = f"its teacher had other weights (checksum {config.teacher_checksum[:12]})"
            raise UserError(folder, problem, f"{self._bytes(weights)[:12]}, those of {weights}", next_step)

    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            self._tokenizer = Tokenizer.load(self.places.bpe_dir)
        return self._tokenizer

    def _compare(self, job: Job, teacher: Optional[Path]) -> str:
        """Is the finished system the one that the plan has there?"""
        try:
            cache = self._cache(job)
            config = setup.resolve(self.plan.config(job), self.tokenizer(), teacher, cache)
            folder = self.plan.system_dir(job)
            inputs = setup.input_digests(folder, self.plan.train_cuts(job), self.places.dev_cuts, cache)
            record = system_dir.system_record(folder, config, inputs)
            changed, why = in_words(record.changes()), record.why_not()
        except UserError as error:
            return f"cannot be checked: {error}"
        return f"is another system: {changed}" if changed else f"training is not finished: {why}" if why else ""

    def _times(self, job: Job) -> tuple:
        folder, cache = self.plan.system_dir(job), self.plan.cache(job)
        teachers = map(self.plan.system_dir, self.plan.teachers_of(job))
        folders = [folder / place for place in store.member_dirs(self.plan.config(job))]
        paths = [folder / system_dir.RECORD, *(weights_file(one) for one in folders)]
        paths += [one / name for one in folders for name in (store.SYSTEM, store.CONFIG)]
        paths += [self.plan.train_cuts(job), self.places.dev_cuts, self.places.bpe_dir / "bpe.model"]
        paths += [teacher / "model.safetensors" for teacher in teachers]
        paths += sorted(cache.folder.glob("*.safetensors")) if cache else []
        return tuple((path, path.stat().st_mtime_ns) for path in paths if path.exists())

    def _cache(self, job: Job) -> Optional[StoredTeacher]:
        planned = self.plan.cache(job)
        if planned is None:
            return None
        weights = [self.plan.system_dir(teacher) / "model.safetensors" for teacher in planned.teachers]
        facts = setup.expected_facts(self.plan.config(job), self.tokenizer(), self.plan.train_cuts(job))
        expected = {"teacher": digest_of_all(list(map(self._bytes, weights))), **facts}
        if self.plan.cache_to_make(job) is None:
            return CarriedTeacher.of(open_source(self.plan.train_cuts(job)), expected)
        return TeacherCache.open(planned.folder, expected)

    def _bytes(self, path: Path) -> str:
        try:
            key = (path, path.stat().st_mtime_ns)
        except FileNotFoundError:
            if path.name.endswith(store.LEFT_OUT):
                return "absent"
            raise UserError(path, "no such file", "what the stages before made", "run them first") from None
        if key not in self._digests:
            self._digests[key] = file_digest(path)
        return self._digests[key]
