"""What several rooms' tests share: real bundles made once a process, a browser where there is one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

TEXTS = [f"{word} thing number {row}" for row in range(12) for word in ("good", "bad", "<b>odd</b>")]
CLASSES = ("bad", "good", "<script>alert(1)</script>")


def make_text_bundle(folder: Path) -> Path:
    """A bundle of WordLlama with a linear head over three classes, one of which tries to be a script."""
    from ontarget.adapt.tune.assembled import Assembled
    from ontarget.adapt.tune.linear_head import linear_head
    from ontarget.compress.export import export_onnx
    from ontarget.pool import load, resolve
    from ontarget.pool.features import extract
    from ontarget.serve.bundle import write_bundle
    from ontarget.values import Examples

    loaded = load(resolve("zoo:wordllama"))
    targets = np.array([1, 0, 2] * 12)
    head = linear_head(extract(loaded, TEXTS), targets, outputs=3, kind="classification")
    path = export_onnx(Assembled(loaded.encoder, head.module()), loaded.preprocess, TEXTS, folder / "m.onnx")
    info = {
        "name": "things <i>",
        "modality": "text",
        "kind": "classification",
        "classes": list(CLASSES),
        "input_columns": ["text"],
        "form": "onnx-fp32",
        "threads": 1,
        "created": "2026-01-01T00:00:00+00:00",
    }
    return write_bundle(
        folder / "bundle",
        preprocess=loaded.preprocess,
        onnx_path=path,
        info=info,
        examples=Examples(TEXTS[:6], targets[:6], np.arange(6)),
        sources=[{"locator": "zoo:wordllama", "title": "WordLlama", "licence": "MIT", "sha256": ""}],
        model_card="# things\n",
    )


def make_image_bundle(folder: Path) -> Path:
    """A bundle of 16 x 16 pixels with a random linear head over two classes."""
    import torch

    from ontarget.adapt.tune.assembled import Assembled
    from ontarget.compress.export import export_onnx
    from ontarget.pool import load, resolve
    from ontarget.serve.bundle import write_bundle
    from ontarget.values import Examples

    torch.manual_seed(0)
    loaded = load(resolve("control:pixels"))
    images: list[Any] = [np.random.default_rng(row).integers(0, 256, (20, 20, 3), dtype=np.uint8) for row in range(4)]
    network = Assembled(loaded.encoder, torch.nn.Linear(loaded.dim, 2)).eval()
    path = export_onnx(network, loaded.preprocess, images, folder / "m.onnx")
    info = {"name": "pictures", "modality": "image", "kind": "classification", "classes": ["a", "b"],
            "input_columns": ["image"], "form": "onnx-fp32", "threads": 1}  # fmt: skip
    return write_bundle(
        folder / "bundle", preprocess=loaded.preprocess, onnx_path=path, info=info,
        examples=Examples(images, np.zeros(4, dtype=np.int64), np.arange(4)), sources=[], model_card="# pictures\n",
    )  # fmt: skip


@pytest.fixture(scope="session")
def text_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_text_bundle(tmp_path_factory.mktemp("text-bundle"))


@pytest.fixture(scope="session")
def image_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_image_bundle(tmp_path_factory.mktemp("image-bundle"))


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    """A copy of a bundle that a test may damage."""

    def copy(bundle: Path) -> Path:
        return Path(shutil.copytree(bundle, tmp_path / "bundle"))

    return copy


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium through selenium, its console kept."""
    if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
        pytest.skip("Chromium and its driver are not installed: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}", "--window-size=1100,1400",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(shutil.which("chromedriver"))))
    yield driver
    driver.quit()


@pytest.fixture(scope="session")
def tiny_language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a Llama that writes letters, with a window of 128."""
    from ontarget.testing.tiny_llama import letter_tokenizer, write_tiny_llama

    folder = tmp_path_factory.mktemp("tiny-language-model")
    return write_tiny_llama(folder, letter_tokenizer(), initializer_range=0.02, tie_word_embeddings=True)


@pytest.fixture(scope="session")
def language_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a Llama that writes bytes, with a chat template and a window of 4,096."""
    from ontarget.testing.tiny_llama import byte_tokenizer, write_tiny_llama

    folder = tmp_path_factory.mktemp("language") / "tiny"
    return write_tiny_llama(folder, byte_tokenizer(), max_position_embeddings=4096)
