"""What the documentation names is there: files, modules, functions, rooms, and the targets of its links.

Run: python -m pytest tests/test_documents.py
"""

import re
import shlex
import subprocess
from dataclasses import fields
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from kd import types
from kd.composition.overrides import check_overrides
from tests.documents import ROOT, pages
from tests.test_layers import NAMELESS
from tests.test_readme import SHORT, SMALL, run

HISTORY = {"CHANGELOG.md", "experiments/LOG.md"}  # they name what was
FENCED = re.compile(r"^```.*?^```$", flags=re.DOTALL | re.MULTILINE)
NAME = re.compile(r"\bkd(?:\.\w+)+")
PATH = re.compile(r"(?<![\w/.])(?:kd|conf|tests|docs|benchmarks|experiments|hydra_plugins|\.ci)/[\w./-]*")
LINK = re.compile(r"\]\(([^)\s]+)\)")
FILES = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True).splitlines()
COMMAND = re.compile(r"^ *(python (?:run\.py|-m (?:kd|benchmarks)\.).*)$", flags=re.MULTILINE)
SHOWING = [page for page in pages() if page.parent != ROOT and "extending" not in page.parts]
COMMANDS = list(dict.fromkeys(line.strip() for page in SHOWING for line in COMMAND.findall(page.read_text())))
# Checked and not run: what needs a server, a GPU, a model of your own, a sandbox's minutes or another command's files;
# sweeps; what the README has. tests/teachers/test_endpoint_page.py runs those of docs/endpoint.md,
# tests/teachers/test_served.py a teacher in a process of its own, and tests/augmentation/test_ray_workers.py the actors
# of a Ray cluster.
CHECKED = re.compile(
    r"<|=vllm|teacher=(?:endpoint|several|served)|kd\.serve"
    r"|hub:|local:|cached=true|kd\.sandbox|kd\.reports|benchmarks|run\.py -m"
    r"|(?:experiment|method)=|run\.py +#|trainer=fsdp |run\.ray"
)
# Grids of papers (tests/composition/test_paper_grids.py composes their arms), and globs.
SLOW = re.compile(r"glob\(\*|experiment=(?!first_run|tiny_)")
RUN = [pytest.param(line, marks=pytest.mark.long) for line in COMMANDS if not CHECKED.search(line)]
PAGES = [pytest.param(page, id=str(page.relative_to(ROOT))) for page in pages()]


def spans(page: Path) -> list[str]:
    """Inline code."""
    return re.findall(r"`([^`\n]+)`", FENCED.sub("", page.read_text(encoding="utf-8")))


def exists(dotted: str) -> bool:
    """Whether a name leads to a module, or to something in one."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for name in parts[end:]:
            if not hasattr(found, name):
                return name in getattr(found, "__annotations__", {})  # a field of a dataclass, or of a protocol
            found = getattr(found, name)
        return True
    return False


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub names them in links."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [p for p in PAGES if p.id not in HISTORY])
def test_names_and_paths_in_a_page_are_there(page: Path) -> None:
    code = spans(page)
    missing = {name for span in code for name in NAME.findall(span) if not exists(name)}
    paths = {path for span in code for path in PATH.findall(span) if not re.search(r"[<*{…]", span)}
    assert missing | {path for path in paths if not (ROOT / path).exists()} == set()


@pytest.mark.parametrize("page", [p for p in PAGES if p.id not in HISTORY])
def test_source_files_that_a_page_names_by_their_end_are_there(page: Path) -> None:
    named = {name for span in spans(page) for name in re.findall(r"(?<![\w/.<*])(?!my_)[\w/]+\.py\b", span)}
    missing = {name for name in named if not any(f"/{file}".endswith(f"/{name}") for file in FILES)}
    assert missing <= {f"{name}.py" for name in NAMELESS}  # those that stay out


@pytest.mark.parametrize("page", ["README.md", "docs/design.md"])
def test_members_in_the_table_of_axes_are_files(page: str) -> None:
    table = (ROOT / page).read_text(encoding="utf-8").partition("| axis | question | members |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \| .*? \| (.*) \|$", table, flags=re.MULTILINE)
    assert len(rows) == 11
    for axis, members in rows:
        plain = re.sub(r"\(.*?\)|…", "", members)
        names = set(re.findall(r"[a-z]\w+(?=`|,|;| *$)", re.sub(r"\b(?:live|cached|losses|sums)\b.*", "", plain)))
        assert names <= {file.stem for file in (ROOT / "conf" / axis).glob("*.yaml")}, axis


def test_the_table_of_types_has_their_fields() -> None:
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([A-Z]\w+)`[^|]*\| ([^|]*) \|", text, flags=re.MULTILINE))
    assert len(rows) == 6
    for name, told in rows.items():
        plain = re.sub(r"\([^)]*\)|:[^,;]*|`[^`]*`|, already shifted", "", told.replace("padding side", "padding_side"))
        names = re.findall(r"\w+", plain)
        assert set(names) <= {field.name for field in fields(getattr(types, name))}, name


@pytest.mark.parametrize(
    "command", [pytest.param(c, marks=[pytest.mark.long] if SLOW.search(c) else []) for c in COMMANDS]
)
def test_commands_in_pages_name_what_there_is(command: str) -> None:
    """Flags, choices and keys, as a command's words are checked; README and docs/extending are run as a whole."""
    if command.startswith("python run.py"):
        check_overrides(shlex.split(command, comments=True)[2:])
    else:
        assert find_spec(command.split()[2])


@pytest.mark.parametrize("command", RUN)
def test_commands_in_pages_run(command: str, tmp_path: Path) -> None:
    """As they stand, but for small models, little data and few steps."""
    words = shlex.join(shlex.split(command, comments=True))
    small = [] if "kd.skills" in words else [*SMALL, "teacher.prepare=null", "trainer=cpu"]
    more = [word for word in small if f" {word.partition('=')[0]}=" not in words and "steps" not in word]
    if "run.py" in words:
        more = [*more, *SHORT, "compare=null", f"run.root={tmp_path / 'outputs'}"]
    done = run(words, more, {"KD_CACHE": str(tmp_path / "cache")})
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("page", PAGES)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    """Relative ones, and their anchors; of the others nothing is asked here."""
    broken = []
    for target in LINK.findall(FENCED.sub("", page.read_text(encoding="utf-8"))):
        file, _, anchor = target.partition("#")
        to = (page.parent / file).resolve() if file else page
        if "://" in target or target.startswith("mailto:"):
            continue
        if not to.exists() or (anchor and anchor not in anchors(to)):
            broken.append(target)
    assert broken == []


def test_the_rooms_of_the_design_are_those_of_the_package() -> None:
    """Each line of the tree in docs/design.md, and each file and folder of kd/."""
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    tree = text.partition("## 6. Rooms")[2].partition("    kd/\n")[2].partition("    hydra_plugins/")[0]
    columns = [line[:30] for line in tree.splitlines() if re.match(r" {6}\S", line)]
    told = {name.rstrip("/") for column in columns for name in column.split()}
    there = {path.name for path in (ROOT / "kd").iterdir() if path.suffix == ".py" or any(path.glob("*.py"))}
    assert told == there - {"__init__.py"}


def test_the_index_has_a_line_for_each_page() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    linked = {target.partition("#")[0] for target in re.findall(r"^- \[.*?\]\((.+?)\): ", index, flags=re.MULTILINE)}
    folder = ROOT / "docs"
    assert linked == {path.relative_to(folder).as_posix() for path in folder.rglob("*.md")} - {"index.md"}
    assert "docs/index.md" in (ROOT / "README.md").read_text(encoding="utf-8")
