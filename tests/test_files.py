"""The one door: what a file names is a plain file in that file's folder or in a folder that the user named."""

import ast
import json
import os
from pathlib import Path

import pytest
from command_cases import told

from rnnt_kd.errors import UserError
from rnnt_kd.files import DATA_ROOTS, allow, named_in, parse_json

PACKAGE = Path(__file__).resolve().parents[1] / "plugin" / "rnnt_kd"


# What opens, runs or imports by a name that may come out of a file -> the files that may call or import it, and why.
OPENERS = {
    "subprocess": {
        "children.py": "this Python, on modules of ours",
        "jobs.py": "this Python, on commands of ours, and the program that the user named with --cmd",
        "data/audio.py": "wav.scp's pipes, with --allow-pipes",
    },
    "shell=True": {"data/audio.py": "wav.scp's pipes, with --allow-pipes"},
    "multiprocessing": {
        "children.py": "functions of ours",
        "data/features.py": "is it a child?",
        "jobs.py": "a free port",
    },
    "import_module": {
        "choices.py": "names of the package's own files",
        "training/external.py": "a table of its own names the modules",
        "lattice/__init__.py": "names of the package's own files",
        "losses/node_scores/__init__.py": "names of the package's own files",
        "models/encoders/external.py": "modules that the user wrote, on PYTHONPATH",
        "icefall/recipe.py": "the train.py that the user named",
        "zipformer/__init__.py": "the package zipformer",
    },
    "h5py": {"data/stored_features.py": "a file by the door, whose links and outer data are not followed"},
    "runpy": {"espnet/run.py": "what ESPnet's asr.sh asks of its Python"},
    "torch.load": {"icefall/recipe.py": "checkpoints of icefall's, which only that reads; the user named them"},
    "weights_only=False": {"icefall/recipe.py": "the same"},
    "literal_eval": {"scoring/recognitions.py": "lists of words"},
    "ctypes": {"children.py": "prctl", "data/synthesis/espeak.py": "the library of a wheel"},
    "tarfile": {
        "data/librispeech_tree.py": "its errors; Lhotse unpacks, and checks the names",
        "data/shar.py": "where members lie; nothing is unpacked",
    },
    "np.load": {
        "report/lattice_data.py": "arrays without pickled code, by the door",
        "data/stored_frames.py": "bytes of a Shar directory, without pickled code",
    },
    "get_reader": {"data/stored_features.py": "a storage that the user named with --allow-storage"},
    "LilcomChunkyReader": {"data/stored_features.py": "features, by the door"},
    "AudioSource": {
        "data/utterance_audio.py": "written, never read",
        "data/stored_features.py": "a plain file by the door, or bytes",
    },
    "load_audio": {"data/stored_features.py": "of a recording whose one source was made there"},
    "named_in": {  # the door itself
        "data/stored_features.py": "features and audio",
        "data/source.py": "audio, whose times a decoding records",
        "data/shar.py": "manifests and archives of the folder",
        "data/stored_frames.py": "frames that a cut carries",
        "report/lattice_data.py": "arrays and sound of a picture",
        "systems/experiment_folder.py": "all folders of an experiment",
    },
}
# Nobody's: pickled code, code in text, Lhotse's readers that open what they find, archives, the net.
CALLS = "open_best load_features load_audio load_video load_custom from_file from_json from_jsonl from_shar get_reader "
CALLS += "load_manifest load_manifest_lazy load_jsonl deserialize_item AudioSource LilcomChunkyReader named_in "
CALLS += "urlopen urlretrieve extractall literal_eval import_module popen"
ATTRIBUTES = (
    "torch.load np.load numpy.load yaml.load yaml.unsafe_load yaml.full_load os.system os.execv os.execvp os.spawnv"
)
MODULES = (
    "subprocess multiprocessing pickle cPickle marshal shelve dill joblib cloudpickle runpy ctypes tarfile socket "
)
MODULES += "urllib.request http.client http.server ftplib requests xml h5py kaldiio pty"
NAMES = "eval exec compile __import__"


def openers_of(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (name.partition(".")[0] if name not in MODULES.split() else name for name in names
                        if {name, name.partition(".")[0]} & {*MODULES.split()})  # fmt: skip
        if isinstance(node, ast.Call):
            written = ast.unparse(node.func)
            last = written.rpartition(".")[2]
            if written in ATTRIBUTES.split() or written in NAMES.split():
                yield written
            elif last in CALLS.split():
                yield last
            for keyword in node.keywords:
                text = f"{keyword.arg}={ast.unparse(keyword.value)}"
                if keyword.arg in ("shell", "allow_pickle", "load_external_data", "trust_remote_code"):
                    if not text.endswith("=False"):
                        yield text
                if text == "weights_only=False":
                    yield text


def test_what_opens_or_runs_by_a_name_stands_in_few_files_and_each_says_why():
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for opener in openers_of(path):
            found.setdefault(opener, set()).add(path.relative_to(PACKAGE).as_posix())
    assert found == {opener: set(files) for opener, files in OPENERS.items()}


@pytest.mark.parametrize("code, opener", [
    ("import subprocess as s", "subprocess"), ("from subprocess import run", "subprocess"), ("eval(x)", "eval"),
    ("import pickle", "pickle"), ("torch.load(p)", "torch.load"), ("np.load(p)", "np.load"), ("cut.load_features()", "load_features"),
    ("from urllib.request import urlopen", "urllib.request"), ("np.load(p, allow_pickle=True)", "allow_pickle=True"),
    ("CutSet.from_file(p)", "from_file"), ("yaml.load(s)", "yaml.load"), ("lhotse.serialization.open_best(p)", "open_best"),
    ("f(x, shell=flag)", "shell=flag"), ("import xml.etree.ElementTree", "xml"),
])  # fmt: skip
def test_the_walk_finds_them(tmp_path, code, opener):
    (tmp_path / "x.py").write_text(code)
    assert opener in [*openers_of(tmp_path / "x.py")]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """home/list, which names; home/sub/a; other/b, elsewhere; links that lead there and back."""
    monkeypatch.setenv(DATA_ROOTS, "[]")
    for name in ("home/list", "home/sub/a", "other/b"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "home/there").symlink_to(tmp_path / "other/b")
    (tmp_path / "home/folder").symlink_to(tmp_path / "other")
    (tmp_path / "home/here").symlink_to(tmp_path / "home/sub/a")
    (tmp_path / "link").symlink_to(tmp_path / "home")
    (tmp_path / "home/circle").symlink_to("circle")
    os.mkfifo(tmp_path / "home/fifo")
    return tmp_path


@pytest.mark.parametrize("name", ["sub/a", "sub/../sub/a", "here", "{}/home/sub/a", "{}/link/sub/a", "../home/sub/a"])
@pytest.mark.parametrize("folder", ["home", "link"])
def test_a_plain_file_in_the_folder_is_found_however_it_is_written(place, folder, name):
    assert named_in(place / folder / "list", name.format(place)) == place / "home/sub/a"


@pytest.mark.parametrize("name, reason", [
    ("../other/b", "not below"), ("{}/other/b", "not below"), ("there", "not below"), ("folder/b", "not below"),
    ("/dev/zero", "not below"), ("/proc/self/environ", "not below"), ("../home2/list", "not below"),
    ("fifo", "a device or pipe"), ("nothing", "no such file"), ("list/x", "no such file"),
    ("circle", "no such file"), ("x" * 300, "no such file"),
    ("pipe:touch {}/RUN", "a shell pipe"), ("touch {}/RUN |", "a shell pipe"), ("| touch {}/RUN", "a shell pipe"),
    ("http://localhost/a", "a URL"), ("s3://bucket/a", "a URL"), ("file:///etc/passwd", "a URL"),
    ("", "names ''"), ("a\0b", "names"), (None, "names 'None'"), (3, "names '3'"), (["sub/a"], "names"),
])  # fmt: skip
def test_everything_else_is_refused_by_name_and_not_opened(place, name, reason):
    name = name.format(place) if isinstance(name, str) else name
    with pytest.raises(UserError, match=reason):
        named_in(place / "home/list", name)
    assert not (place / "RUN").exists()


def test_a_data_root_that_the_user_names_is_allowed_in_this_process_and_its_children(place):
    assert "--data-root" in told(named_in, place / "home/list", "there")
    allow([place / "home/folder"])  # a link: where it leads
    assert named_in(place / "home/list", "there") == place / "other/b"
    assert json.loads(os.environ[DATA_ROOTS]) == [str(place / "other")]
    assert "not below" in told(named_in, place / "home/list", "../link2")


def test_a_path_may_be_missing_where_that_is_said_but_not_elsewhere(place):
    assert named_in(place / "home/list", "sub/new", exists=False) == place / "home/sub/new"
    assert named_in(place / "home/sub/a", "../new", within=place / "home", exists=False) == place / "home/new"
    assert "not below" in told(named_in, place / "home/list", "../new", exists=False)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, b"\xff", "{", "1 2"])
def test_json_that_is_none_or_too_deep_is_a_value_error(text):
    with pytest.raises(ValueError):
        parse_json(text)
    assert parse_json('{"a": [1.5, null]}') == {"a": [1.5, None]}


def test_a_name_that_no_file_can_have_is_refused_also_where_a_file_may_be_missing(tmp_path):
    with pytest.raises(UserError, match="no such file; expected what .*x names") as error:
        named_in(tmp_path / "x", "9" * 400, exists=False)
    assert len(str(error.value)) < 700
    assert named_in(tmp_path / "x", "y", exists=False) == tmp_path / "y"
