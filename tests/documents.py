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
PYTHON = '#!/usr/bin/env bash\nPYTHONPATH="$PYTHONPATH:{root}" exec {python} "$@"\n'


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
    """Run a command in a folder as it stands; `kd` and `python` are this environment's, with the code of this clone."""
    programs = folder / ".bin"
    programs.mkdir(exist_ok=True)
    (programs / "python").write_text(PYTHON.format(root=ROOT, python=sys.executable))
    (programs / "kd").write_text("#!/usr/bin/env python\nfrom kd.command import start\nstart()\n")
    for program in programs.iterdir():
        program.chmod(0o755)
    environment = os.environ | {"PATH": os.pathsep.join([str(programs), os.environ["PATH"]])}
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=540
    )
