"""The pages of the documentation: their code blocks, the files that these stand for, their commands and links."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
FILE = re.compile(r"^`([\w./]+)`:\n\n```\w+\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
COMMAND = "#!{python}\nimport sys\nsys.path.insert(0, {root!r})\nfrom kd.command import start\nstart()\n"


def pages() -> list[Path]:
    """All of the project's Markdown, but for what runs and tools left."""
    tracked = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard", "*.md"], cwd=ROOT, text=True)
    return [ROOT / name for name in tracked.splitlines()]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks in one language."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [text for name, text in found if name == language]


def files(page: Path) -> dict[str, str]:
    """The files that a page shows in full: a line with the path, then the block."""
    return dict(FILE.findall(page.read_text(encoding="utf-8")))


def write(page: Path, folder: Path) -> None:
    """Write the files of a page into a folder."""
    for name, text in files(page).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def commands(page: Path) -> Iterator[str]:
    """The commands of a page's `bash` blocks, continued lines joined."""
    for block in blocks(page, "bash"):
        yield from block.replace("\\\n", "").strip().splitlines()


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder as it stands; `kd` and `python` are those of this environment."""
    programs = folder / ".bin"
    programs.mkdir(exist_ok=True)
    (programs / "kd").write_text(COMMAND.format(python=sys.executable, root=str(ROOT)))
    (programs / "kd").chmod(0o755)
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path}
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=540
    )
