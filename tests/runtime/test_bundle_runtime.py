import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ontarget.runtime import load_bundle
from ontarget.runtime.bundle import BundleError, file_digest
from ontarget.runtime.preprocess import InputError

Copy = Callable[[Path], Path]

# Refuses every import that is neither the standard library nor one of the four packages (and what they need).
BLOCKER = """
import sys
ALLOWED = {"numpy", "onnxruntime", "tokenizers", "PIL", "run", "huggingface_hub", "flatbuffers", "google", "ml_dtypes"}
class Blocker:
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        if top not in sys.stdlib_module_names and top not in ALLOWED and not top.startswith("_"):
            raise ModuleNotFoundError(f"blocked: {name}", name=name)
sys.meta_path.insert(0, Blocker())
"""


def test_predictions_are_sorted_back_and_sum_to_one(text_bundle: Path) -> None:
    bundle = load_bundle(text_bundle)
    texts = ["a bad thing", "a good thing, a very good thing", "bad"]
    predictions = bundle.predict(texts)
    assert [row["label"] for row in predictions] == ["bad", "good", "bad"]
    assert all(sum(row["probabilities"].values()) == pytest.approx(1) for row in predictions)
    single = np.concatenate([bundle.scores([text]) for text in texts])
    np.testing.assert_allclose(bundle.scores(texts), single, atol=1e-5)
    assert bundle.predict([]) == []


def test_self_test_passes_here_and_tells_what_it_did(text_bundle: Path) -> None:
    result = load_bundle(text_bundle).self_test()
    assert [check["name"] for check in result["checks"]] == ["files", "outputs", "latency"]
    assert result["checks"][0]["passed"]
    assert result["checks"][1]["passed"]


def test_wrong_rows_are_named(text_bundle: Path, image_bundle: Path) -> None:
    with pytest.raises(InputError, match="row 1: expected a text"):
        load_bundle(text_bundle).predict(["a longer text", 3] + ["fine"] * 40)
    with pytest.raises(InputError, match="row 1: expected a text"):
        load_bundle(text_bundle).predict(["fine"] * 1 + [3] + ["a"] * 40)
    good = np.zeros((4, 4, 3), dtype=np.uint8)
    with pytest.raises(InputError, match=r"row 40: .* cannot be read as an image"):
        load_bundle(image_bundle).predict([good] * 40 + [b"no image"])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "bundle.json").unlink(), "no bundle.json"),
        (lambda folder: (folder / "bundle.json").write_text("{"), "is damaged"),
        (lambda folder: (folder / "model.onnx").unlink(), "model.onnx is missing"),
        (lambda folder: (folder / "model.onnx").write_bytes(b"poison"), "model.onnx has been changed"),
        (lambda folder: (folder / "run" / "bundle.py").write_text("import os"), "run/bundle.py has been changed"),
        (lambda folder: _edit(folder, format_version=99), "format version 99"),
        (lambda folder: _edit(folder, files={"../outside": "0"}), "leads out of the bundle"),
        (lambda folder: _edit(folder, files={}), "does not list model.onnx"),
    ],
)
def test_damaged_bundles_are_refused_before_anything_runs(
    text_bundle: Path, copied: Copy, damage: Callable[[Path], object], words: str
) -> None:
    folder = copied(text_bundle)
    damage(folder)
    with pytest.raises(BundleError, match=words):
        load_bundle(folder)


def _edit(folder: Path, **values: object) -> None:
    path = folder / "bundle.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_self_test_fails_on_other_outputs(text_bundle: Path, copied: Copy) -> None:
    folder = copied(text_bundle)
    expected = json.loads((folder / "selftest.json").read_text())
    expected["scores"][0][0] += 1.0
    (folder / "selftest.json").write_text(json.dumps(expected))
    files = json.loads((folder / "bundle.json").read_text())["files"]
    _edit(folder, files={**files, "selftest.json": file_digest(folder / "selftest.json")})
    result = load_bundle(folder).self_test()
    assert not result["passed"]
    assert not result["checks"][1]["passed"]


@pytest.mark.parametrize("kind", ["text", "image"])
def test_it_runs_with_four_packages_alone(kind: str, text_bundle: Path, image_bundle: Path, tmp_path: Path) -> None:
    """In the bundle's folder, with imports of everything else (PyTorch, OnTarget, pandas, ...) refused."""
    folder = text_bundle if kind == "text" else image_bundle
    rows = tmp_path / "rows.csv"
    if kind == "text":
        rows.write_text('text,other\ngood thing,1\n"bad, thing",2\n')
    else:
        (tmp_path / "picture.png").write_bytes((folder / "selftest" / "00.png").read_bytes())
        rows.write_text("image\npicture.png\n")
    for arguments in (["predict", str(rows)], ["doctor"]):
        code = (
            BLOCKER + f"sys.argv = ['run', *{arguments!r}]\nimport runpy\nrunpy.run_module('run', run_name='__main__')"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
        if arguments == ["doctor"]:
            assert "ok     outputs" in done.stdout, done.stderr
        else:
            assert done.returncode == 0, done.stderr
            assert done.stdout.splitlines()[0] == "row,label,probability"
            assert len(done.stdout.splitlines()) == (3 if kind == "text" else 2)


def test_the_standalone_program_names_a_missing_column(text_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("txt\na\n")
    command = [sys.executable, "-m", "run", "predict", str(tmp_path / "rows.csv")]
    done = subprocess.run(command, cwd=text_bundle, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no column text; it has txt" in done.stderr


def test_nothing_heavy_is_imported_by_the_package() -> None:
    code = "import sys, ontarget, ontarget.cli; print([m for m in ('torch', 'pandas', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_model_that_points_to_other_files_is_refused(tmp_path: Path) -> None:
    """External data may name any path: such a graph is not even opened."""
    import onnx
    from onnx import TensorProto, helper

    from ontarget.runtime.session import make_session

    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    entry = weight.external_data.add()
    entry.key, entry.value = "location", "../secret"
    graph = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["y"])], "g", [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])], [weight],
    )  # fmt: skip
    (tmp_path / "m.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    assert onnx is not None
    with pytest.raises(ValueError, match="refers to other files"):
        make_session(tmp_path / "m.onnx")
