"""The notebooks, executed: `python -m tests.notebooks` stores them with their outputs.

Each runs beside a folder `docs` of the clone, in a folder of its own, so that nothing in its outputs names the machine.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
VARIABLES = {"FORCE_COLOR": "", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}  # a kernel requests colours of its commands
PLAIN = [f"--IPKernelApp.exec_lines=import os, warnings; os.environ |= {VARIABLES}; warnings.simplefilter('ignore')"]
LONGEST = 1500  # seconds of one cell, on a machine that does other things as well


def executed(path: Path, folder: Path) -> nbformat.NotebookNode:
    """The notebook as it is after all of its cells ran in `folder/notebooks`. Raises where a cell fails."""
    (folder / "docs").symlink_to(ROOT / "docs")
    (folder / "notebooks").mkdir()
    kd = folder / "bin" / "kd"  # the console command of the clone, whether it is installed or not
    kd.parent.mkdir()
    kd.write_text(f"#!{sys.executable}\nfrom kd.command import start\n\nstart()\n")
    kd.chmod(0o755)
    commands = os.pathsep.join([str(kd.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(folder / "notebooks")}}
    client = NotebookClient(
        notebook,
        timeout=LONGEST,
        resources=resources,
        record_timing=False,
        coalesce_streams=True,
        extra_arguments=PLAIN,
    )
    return client.execute(env={**os.environ, "PATH": commands, "PYTHONPATH": str(ROOT)})


def main() -> None:
    """Execute all, or those named on the command line, and write them back."""
    for path in [ROOT / "notebooks" / f"{name}.ipynb" for name in sys.argv[1:]] or NOTEBOOKS:
        folder = Path(tempfile.mkdtemp())
        try:
            notebook = executed(path, folder)
        finally:
            shutil.rmtree(folder)
        path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
        print(path.relative_to(ROOT), f"{path.stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
