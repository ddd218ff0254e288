"""Run notebooks in a clean kernel and store them as the repository keeps them: `python tests/store.py notebooks/X.ipynb`.

Metadata is minimal, widgets leave their sentence instead of a dead view.
"""

import os
import resource
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

WIDGET = "application/vnd.jupyter.widget-view+json"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def store(path: Path) -> None:
    """Execute a notebook and write it back, all or nothing."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    folder = {"metadata": {"path": str(path.resolve().parent)}}
    client = NotebookClient(notebook, timeout=900, kernel_name="python3", resources=folder, record_timing=False)
    os.environ["TQDM_DISABLE"] = "1"  # a progress bar would be stored
    with client.setup_kernel():
        for index, cell in enumerate(notebook.cells):
            client.execute_cell(cell, index)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(WIDGET, None)
        cell.metadata.pop("execution", None)
    notebook.metadata, notebook.nbformat_minor = METADATA, 5
    nbformat.validate(notebook)
    unfinished = path.with_suffix(".unfinished")
    nbformat.write(notebook, unfinished)
    unfinished.replace(path)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        start = time.perf_counter()
        store(Path(name))
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
        took, size = time.perf_counter() - start, Path(name).stat().st_size // 1024
        print(f"{name}: {took:.0f} s, {size} KiB, {peak} MiB at most in any run so far")
