"""Plain text: whose it is, what is left of it, and how it becomes language-model batches."""

import os
import subprocess
import sys
from importlib.metadata import PathDistribution, distribution
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from kd.corpora.docstrings import Docstrings, docstrings
from kd.corpora.licences import permissive_licence
from kd.corpora.local import Local
from kd.corpora.prose import Novelty, prose
from kd.data.blocks import Blocks, blocks, lm_batch
from kd.models.tokenizers import END, byte_tokenizer

CONF = Path(__file__).parents[1] / "conf" / "corpus"
PARAGRAPH = "A sentence of ordinary words that goes on for a while, so that it counts as text. "
PAD = 0


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KD_CACHE", str(tmp_path / "cache"))


def text(name: str) -> str:
    return (f"About {name}. " + PARAGRAPH * 3).strip()


def installed(folder: Path, files: dict[str, str], licence: str = "License-Expression: MIT", name="demo") -> None:
    """A package as a wheel leaves it."""
    info = f"{name}-1.0.dist-info"
    head = f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.0\n{licence}\n"
    files = {**files, f"{info}/METADATA": f"{head}\n{text('the whole')}\n"}
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content)
    (folder / info / "RECORD").write_text("".join(f"{path},sha256=x,1\n" for path in files))


def declaring(folder: Path, licence: str) -> PathDistribution:
    installed(folder, {}, licence)
    return PathDistribution(folder / "demo-1.0.dist-info")


# --- licences ---


@pytest.mark.parametrize(
    ("declared", "licence"),
    [
        ("License-Expression: BSD-3-Clause AND (MIT OR Zlib)", "BSD-3-Clause AND (MIT OR Zlib)"),
        ("License-Expression: Apache-2.0 WITH LLVM-exception", "Apache-2.0 WITH LLVM-exception"),
        ("Classifier: License :: OSI Approved :: Apache Software License", "Apache-2.0"),
        ("License: Apache 2.0 License", "Apache-2.0"),
        ("License: MIT", "MIT"),
    ],
)
def test_a_permissive_licence_is_named_as_in_spdx(tmp_path, declared, licence):
    assert permissive_licence(declaring(tmp_path, declared)) == licence


@pytest.mark.parametrize(
    "declared",
    [
        "License-Expression: MIT AND MPL-2.0",
        "License-Expression: MIT OR GPL-3.0-or-later",
        "Classifier: License :: OSI Approved :: GNU General Public License v3 (GPLv3)",
        "Classifier: License :: OSI Approved :: MIT License\nClassifier: License :: Other/Proprietary License",
        "License: MIT, but not on Sundays",
        "License: ",
        "Summary: no licence at all",
    ],
)
def test_any_other_licence_is_refused(tmp_path, declared):
    with pytest.raises(ValueError, match=r"package demo declares the licence .* take it out of corpus.packages"):
        permissive_licence(declaring(tmp_path, declared))


def test_an_installed_package_under_a_share_alike_licence_is_refused():
    with pytest.raises(ValueError, match=r"package tqdm declares the licence 'MPL-2.0 AND MIT'"):
        Docstrings(packages=["numpy", "tqdm"], characters=1000)


# --- cleaning ---


def test_doctests_markup_and_placeholders_go():
    kept = text("sorting")
    document = f"""<p align="center"><img src="x.png"></p>
[![badge](https://x)](https://y)

{kept}

%(notes)s

```python
import x
```

| a | b |
|---|---|

Examples
--------
>>> sort([2, 1])
[1, 2]
"""
    assert prose(document) == kept


@pytest.mark.parametrize(
    "document",
    [
        "Too short to be a text.",
        text("code") + "\n\n" + "\n".join(f">>> f({i})" for i in range(200)),  # most of it is code
        "\n".join("0.1 2.3 4.5 -- == [] {}" for _ in range(40)),
        text("others") + "\n\nCopyright (c) 2006-2012, somebody",  # others' terms
    ],
    ids=["short", "doctests", "table", "notice"],
)
def test_what_is_no_text_is_left_out(document):
    assert prose(document) is None


def test_no_heading_is_left_of_what_went():
    assert prose(f"{text('x')}\n\nExamples\n--------\n\n>>> 1\n1") == text("x")
    assert prose(f"Notes\n-----\n{text('x')}") == f"Notes\n-----\n{text('x')}"


def test_half_of_a_text_must_be_new():
    is_new = Novelty()
    assert is_new("aaaa\n\nbbbb")
    assert not is_new("aaaa\n\nbbbb")  # nothing new
    assert is_new("aaaa\n\ncccc")  # half of it
    assert not is_new("bbbb\n\n  cccc\n\ndd")  # 2 of 10
    assert not is_new("")


def test_docstrings_come_in_the_order_of_their_lines():
    source = '"""Module."""\nclass A:\n  """Class."""\n  def f():\n    """Method."""\ndef g():\n  """Function."""\n'
    assert list(docstrings(source)) == ["Module.", "Class.", "Method.", "Function."]
    assert list(docstrings('x = """no docstring"""')) == []
    assert list(docstrings('"""{{ template }}"""\n{{ code }} =')) == []


# --- packages ---


def test_a_package_is_read_without_importing_it(tmp_path, monkeypatch):
    code = f'"""{text("a module")}"""\nraise SystemExit("imported")\n'
    files = {
        "demo/__init__.py": code,
        "demo/copy.py": code,
        "demo/page.md": text("a page"),
        "demo/CHANGELOG.md": text("changes"),
        "demo/tests/test_it.py": f'"""{text("a test")}"""',
        "demo/_vendored/other.py": f'"""{text("others")}"""',
    }
    installed(tmp_path, files)
    monkeypatch.syspath_prepend(str(tmp_path))
    corpus = Docstrings(packages=["demo"], characters=10_000)
    assert corpus.licence == "demo 1.0: MIT"
    assert corpus.texts()[0] == text("the whole")  # the description stands first
    assert sorted(corpus.texts()) == sorted(map(text, ["the whole", "a module", "a page"]))
    assert corpus.texts() == Docstrings(packages=["demo", "demo"], characters=10_000).texts()


def test_what_one_package_lacks_the_next_ones_give(tmp_path, monkeypatch):
    installed(tmp_path, {"demo/__init__.py": ""})
    installed(tmp_path, {f"rich/{i}.py": f'"""{text(str(i))} {"z" * i}"""' for i in range(9)}, name="demorich")
    monkeypatch.syspath_prepend(str(tmp_path))
    one = len(text("the whole"))
    texts = Docstrings(packages=["demo", "demorich"], characters=6 * one).texts()
    assert len(texts) >= 5  # an equal share would hold 3 of each
    assert sum(map(len, texts)) <= 6 * one


def test_a_page_that_is_too_long_does_not_end_a_share(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    installed(tmp_path, {"demo/page.md": text("a page") * 40, "demo/__init__.py": f'"""{text("a module")}"""'})
    texts = Docstrings(packages=["demo"], characters=5000).texts()
    assert sorted(texts) == sorted([text("the whole"), text("a module")])


def test_other_content_under_the_same_version_is_another_corpus(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    digests = []
    for topic in ("one", "two"):
        installed(tmp_path, {f"demo/{topic}.py": f'"""{text(topic)}"""'})  # RECORD changes with it
        digests.append(Docstrings(packages=["demo"], characters=10_000).digest)
    assert digests[0] != digests[1]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"packages": ["nosuchpackage"]}, "'nosuchpackage' of corpus.packages is not installed"),
        ({"packages": []}, "corpus.packages is empty"),
        ({"characters": 0}, "corpus.characters=0"),
        ({"packages": ["bare"]}, "lists no Python files, as editable installations do not"),
    ],
)
def test_packages_that_cannot_be_read_are_refused(tmp_path, monkeypatch, arguments, sentence):
    installed(tmp_path, {}, name="bare")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match=sentence):
        Docstrings(**{"packages": ["numpy"], "characters": 1000} | arguments)


def test_a_bound_that_no_document_fits_is_reported():
    with pytest.raises(ValueError, match=r"fits corpus.characters=10 is in omegaconf"):
        Docstrings(packages=["omegaconf"], characters=10).texts()


@pytest.fixture(scope="module")
def real():
    """The default corpus, smaller."""
    config = OmegaConf.load(CONF / "docstrings.yaml")
    config.characters = 300_000
    return instantiate(config)


def test_the_default_packages_give_as_much_text_as_requested(real):
    texts = real.texts()
    assert 0.95 * 300_000 < sum(map(len, texts)) <= 300_000
    assert len({" ".join(each.split()) for each in texts}) == len(texts)
    assert not [each for each in texts if ">>>" in each or len(each) < 200]
    for package in real.packages:
        assert f"{package.name} {distribution(package.name).version}: " in real.licence


def test_every_process_reads_the_same(tmp_path):
    code = (
        "from kd.corpora.docstrings import Docstrings as D; import sys\n"
        "print(D(packages=['numpy', 'lightning'], characters=40_000).digest, 'numpy.ma' in sys.modules)"
    )
    said = []
    for i in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": i, "KD_CACHE": str(tmp_path / i)}
        command = [sys.executable, "-c", code]
        said.append(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    here = Docstrings(packages=["numpy", "lightning"], characters=40_000)
    again = Docstrings(packages=["numpy", "lightning"], characters=40_000)  # from the cache
    assert {line.split()[0] for line in said} == {here.digest} == {again.digest}


# --- one's own text ---


def test_a_folder_is_read_in_the_order_of_names(tmp_path):
    folder = tmp_path / "own"
    for name, content in {"b.txt": " second \n", "a/z.md": "first", "c.txt": "", "d.py": "code"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    corpus = Local(path=str(folder), licence="CC0-1.0")
    assert (corpus.texts(), corpus.licence) == (("first", "second"), "CC0-1.0")
    (tmp_path / "one.txt").write_text("first")
    assert Local(path=str(tmp_path / "one.txt")).texts() == ("first",)
    assert Local(path=str(tmp_path / "one.txt")).digest != corpus.digest


def test_text_that_is_not_there_is_reported(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"corpus.path=.*missing does not exist"):
        Local(path=str(tmp_path / "missing"))
    (tmp_path / "data.csv").write_text("1,2")
    with pytest.raises(ValueError, match=r"holds no file that ends in \.txt, \.md, \.rst"):
        Local(path=str(tmp_path))
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(ValueError, match="holds no text"):
        Local(path=str(tmp_path)).texts()
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt is not UTF-8"):
        Local(path=str(tmp_path)).texts()


# --- blocks ---


def test_documents_are_joined_with_the_end_token_and_cut():
    tokenizer = byte_tokenizer()
    ids, end = tokenizer("abcde")["input_ids"], tokenizer.eos_token_id
    a, b, c, d, e = ids
    assert blocks(["abc", "de"], tokenizer, 3) == [(a, b, c), (end, d, e)]  # the last end token has no label
    assert blocks(["abc", "d"], tokenizer, 4) == [(a, b, c, end), (d, end)]
    assert blocks(["ab"], tokenizer, 100) == [(a, b, end)]


def test_words_that_look_like_a_special_token_are_text():
    tokenizer = byte_tokenizer()
    (block,) = blocks([f"a{END}b"], tokenizer, 100)
    assert len(block) == len(END) + 3
    assert block.index(tokenizer.eos_token_id) == len(block) - 1


def test_a_base_models_documents_begin_with_its_begin_token():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template, tokenizer.bos_token = None, "<|user|>"
    a, begin, end = tokenizer("a")["input_ids"][0], tokenizer.bos_token_id, tokenizer.eos_token_id
    assert blocks(["a", "a"], tokenizer, 6) == [(begin, a, end, begin, a, end)]
    tokenizer.bos_token = tokenizer.eos_token  # GPT-2's: it stands between documents once
    assert blocks(["a", "a"], tokenizer, 6) == [(a, end, a, end)]


@pytest.mark.parametrize(
    ("texts", "length", "sentence"), [(["abc"], 1, "length 1 hold no label"), ([], 8, "no text"), ([""], 8, "no text")]
)
def test_blocks_of_nothing_are_refused(texts, length, sentence):
    with pytest.raises(ValueError, match=sentence):
        blocks(texts, byte_tokenizer(), length)


def test_a_tokenizer_without_end_token_is_refused():
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no end token"):
        blocks(["abc"], tokenizer, 8)


def test_every_token_but_the_first_is_a_label():
    batch = lm_batch([(5, 6, 7, 8), (9, 10)], pad=PAD)
    assert batch.student.tokens.tolist() == [[5, 6, 7], [9, PAD, PAD]]
    assert batch.student.mask.tolist() == [[True, True, True], [True, False, False]]
    assert batch.student.labels[batch.student.mask].tolist() == [6, 7, 8, 10]
    assert batch.student.lengths.tolist() == [3, 1]
    assert batch.teacher is batch.student
    assert (batch.records, batch.group_size) == ((), 1)


def seen(stream: Blocks, steps: range, rank: int = 0, ranks: int = 1) -> list[tuple[int, ...]]:
    """The blocks of the steps' batches."""
    rows = []
    for sequences in (batch.student for step in steps for batch in stream.at(step, rank, ranks)):
        for row, length in enumerate(sequences.lengths):
            rows.append((int(sequences.tokens[row, 0]), *sequences.labels[row, :length].tolist()))
    return rows


def stream(texts, *, size=4, seed=1, max_tokens=100) -> Blocks:
    return Blocks(blocks(texts, byte_tokenizer(), 16), pad=PAD, size=size, max_tokens=max_tokens, seed=seed)


def test_an_epoch_has_every_token_of_real_text_once(real):
    tokenizer, texts = byte_tokenizer(), real.texts()[:20]
    whole = [i for each in texts for i in (*tokenizer(each)["input_ids"], tokenizer.eos_token_id)]
    cut = blocks(texts, tokenizer, 16)
    assert [i for block in cut for i in block] == whole[: sum(map(len, cut))]
    assert len(whole) - sum(map(len, cut)) <= 1
    while len(cut) % 4:  # the epoch ends with a step
        cut.pop()
    corpus = Blocks(cut, pad=PAD, size=4, max_tokens=100, seed=1)
    steps = len(cut) // 4
    first, second = seen(corpus, range(steps)), seen(corpus, range(steps, 2 * steps))
    assert sorted(first) == sorted(second) == sorted(cut)
    assert first != second


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_ranks_share_what_one_rank_sees(ranks):
    corpus = stream([text(str(i)) for i in range(5)], size=7)
    for step in (0, 3, 50):
        shares = [seen(corpus, range(step, step + 1), rank, ranks) for rank in range(ranks)]
        assert sorted(row for share in shares for row in share) == sorted(seen(corpus, range(step, step + 1)))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_step_is_a_function_of_the_seed():
    texts = [text(str(i)) for i in range(5)]
    asked_before, fresh = stream(texts), stream(texts)
    for step in range(30):
        asked_before.at(step)
    torch.manual_seed(7)
    assert seen(asked_before, range(9, 10)) == seen(fresh, range(9, 10))
    assert seen(fresh, range(9, 10)) != seen(stream(texts, seed=2), range(9, 10))


def test_micro_batches_keep_to_their_bound():
    batches = stream([text("x")], size=8, max_tokens=30).at(0)
    assert [batch.student.tokens.shape[0] for batch in batches] == [2, 2, 2, 2]  # rows of 15


def test_too_few_blocks_are_refused():
    with pytest.raises(ValueError, match=r"2 blocks of text per step are fewer than the 3 ranks"):
        stream([text("x")], size=2).at(0, rank=0, ranks=3)
    with pytest.raises(ValueError, match="0 per step give nothing to learn"):
        stream([text("x")], size=0)


# --- configs ---


def test_every_corpus_states_what_it_is(tmp_path):
    (tmp_path / "own.txt").write_text("text")
    for path in CONF.glob("*.yaml"):
        config = OmegaConf.load(path)
        if path.stem == "none":
            assert config._target_ is None
            continue
        if path.stem == "local":
            config.path = str(tmp_path / "own.txt")
        corpus = instantiate(config)
        assert (corpus.name, bool(corpus.licence)) == (path.stem, True)
