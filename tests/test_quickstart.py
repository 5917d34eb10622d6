"""The notebook runs as it stands, but on fewer images; what is stored of it is small and clean."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from support import PYTHONPATH, ROOT

nbformat = pytest.importorskip("nbformat")
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
TINY = 'FOLDER = "quickstart"\nTRAIN, TEST = 12, 3\nEPOCHS = 2\nLOOKED_AT = 4\n'


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_valid_and_was_run_from_top_to_bottom(notebook):
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3


def test_it_is_small_and_names_no_place_of_the_machine_that_ran_it(notebook):
    assert NOTEBOOK.stat().st_size < 400_000
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            text = output.get("text", "") + output.get("data", {}).get("text/plain", "")
            assert not [word for word in text.split() if word.startswith(("/", "C:\\", "file:"))]
    assert set(notebook.metadata) == {"kernelspec", "language_info"}


def test_it_loads_nothing_from_the_network(notebook):
    assert "http" not in json.dumps([cell.get("outputs", []) for cell in notebook.cells])


@pytest.mark.slow
@pytest.mark.drawn
def test_it_runs(notebook, tmp_path, monkeypatch):
    client = pytest.importorskip("nbclient")
    (parameters,) = [
        cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())
    ]
    assert {line.split(" = ")[0] for line in parameters.source.splitlines()} == {
        line.split(" = ")[0] for line in TINY.splitlines()
    }
    parameters.source = TINY
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), PYTHONPATH]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    resources = {"metadata": {"path": str(tmp_path)}}
    done = client.NotebookClient(notebook, timeout=300, resources=resources).execute()
    text = "".join(
        output.get("text", "") for cell in done.cells for output in cell.get("outputs", ())
    )
    folder = tmp_path / "quickstart"
    assert len((folder / "review" / "review.csv").read_text().splitlines()) == 1 + 4
    assert (folder / "run" / "reviewed" / "report.html").is_file()
    assert len(list((folder / "final").glob("*.png"))) == 15
    for path in (folder / "review" / "masks").iterdir():
        assert set(np.unique(Image.open(path))) <= {0, 1}
    assert "after the review" in text
    assert str(tmp_path) not in text
