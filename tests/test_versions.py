"""Which code a run depends on, by `VERSION` and by content."""

import sys

import pytest

from kd import versions as module
from kd.versions import code_digest, tree_digest, versions


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A user's package outside of `kd`."""
    package = tmp_path / "mine"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "losses.py").write_text(
        "import torch\nfrom mine.numbers import SCALE\n\ndef loss(x): return SCALE * x\n"
    )
    (package / "numbers.py").write_text("SCALE = 2\n")
    (package / "unrelated.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield package
    for cache in (module._file_of, module._roots, module._imports):
        cache.cache_clear()
    sys.modules.pop("mine", None)


def test_own_code_counts_with_all_that_it_imports(own):
    before = versions("mine.losses.loss")
    assert set(before) == {"mine", "mine.losses", "mine.numbers"}
    (own / "unrelated.py").write_text("x = 22\n")
    assert versions("mine.losses.loss") == before
    (own / "numbers.py").write_text("SCALE = 33\n")
    after = versions("mine.losses.loss")
    assert {name for name in after if after[name] != before[name]} == {"mine.numbers"}


@pytest.mark.parametrize(
    "line",
    [
        "import os; import mine.numbers",
        "from mine import \\\n    numbers",
        "from mine import (  # (see there)\n    numbers,\n)",
        "from mine import(numbers)",
        "from . import numbers as n",
        "try: from mine.numbers import SCALE\nexcept ImportError: SCALE = 1",
        "def f(): import mine.numbers as n; return n.SCALE",
        "import importlib; n = importlib.import_module( 'mine.numbers')",
    ],
)
def test_every_way_to_import_counts(own, line):
    (own / "losses.py").write_text(line + "\n")
    assert set(versions("mine.losses.loss")) == {"mine", "mine.losses", "mine.numbers"}


def test_a_module_of_kd_counts_by_its_version_and_only_where_it_is_imported(tmp_path, monkeypatch):
    folder = tmp_path / "kd"
    (folder / "objectives").mkdir(parents=True)
    (folder / "objectives/mended.py").write_text("from kd.base import x\n\nVERSION = 3  # the sign\n")
    (folder / "objectives/sound.py").write_text("VERSION = 1\n")
    (folder / "base.py").write_text("from kd import (  # both\n    seldom,\n)\nx = 1\n")
    (folder / "seldom.py").write_text("VERSION: int = 2\n")
    monkeypatch.setattr(module, "PACKAGE", folder)
    monkeypatch.setattr(module, "_roots", lambda top: (folder,) if top == "kd" else ())
    module._file_of.cache_clear()
    module._imports.cache_clear()
    try:
        assert versions("kd.objectives.mended.loss") == {"kd.objectives.mended": 3, "kd.seldom": 2}
        assert versions("kd.objectives.sound.Loss.method") == {}
        assert versions("kd.seldom", "kd.objectives.sound") == {"kd.seldom": 2}
    finally:
        module._file_of.cache_clear()
        module._imports.cache_clear()


def test_an_installed_function_counts_by_its_file():
    assert set(versions("hydra.utils.instantiate")) == {"hydra.utils"}


def test_the_digest_of_code_goes_by_what_it_does():
    source = '"""Doc."""\n\ndef f(x):\n    """Doc."""\n    return x + 1  # one\n'
    same = '"""Other."""\ndef f(x):\n\n    return (x + 1)\n'
    assert tree_digest(source) == tree_digest(same)
    assert tree_digest(source) != tree_digest(source.replace("+ 1", "+ 2"))


def test_the_digest_of_code_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("KD_CACHE", str(tmp_path))
    module._code_digest.cache_clear()
    first = code_digest()
    module._code_digest.cache_clear()  # as in another process
    monkeypatch.setattr(module, "tree_digest", lambda source: 1 / 0)
    assert code_digest() == first
    assert len(first) == 16


@pytest.mark.parametrize("damage", ["", "0123456789abcdef"])
def test_a_digest_of_code_that_was_damaged_is_made_again(tmp_path, monkeypatch, damage):
    monkeypatch.setenv("KD_CACHE", str(tmp_path))
    module._code_digest.cache_clear()
    first = code_digest()
    (memo,) = (path for path in (tmp_path / "code").iterdir() if path.suffix != ".json")
    memo.write_text(damage)
    module._code_digest.cache_clear()
    assert code_digest() == first == memo.read_text()


def test_a_version_that_is_raised_while_a_process_runs_counts(tmp_path):
    file = tmp_path / "mended.py"
    file.write_text("VERSION = 2\n")
    assert module._stamp("kd.mended", file) == {"kd.mended": 2}
    file.write_text("VERSION = 13\n")  # another size
    assert module._stamp("kd.mended", file) == {"kd.mended": 13}
    file.write_text("x = 1\n")
    assert module._stamp("kd.mended", file) == {}
