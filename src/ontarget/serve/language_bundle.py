"""The deployable result of a generation task: a model's folder that transformers and vLLM read as it is, but for one
in few bits, which OnTarget reads.

Beside config, tokenizer and weights lie ``ontarget.json`` (what a prompt is wrapped in, how long an answer may be, what
was measured, digests of all files) and ``selftest.json`` (prompts and the answers they had here). Where a lookup won,
the folder holds ``answers.json`` and no weights.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ontarget.errors import RunError
from ontarget.plan.run_folder import to_json, write_atomic
from ontarget.values import Context, Prompts

INFO, SELF_TEST, ANSWERS = "ontarget.json", "selftest.json", "answers.json"
FORMAT_VERSION = 1
AGREE = 0.8  # share of the self-test's answers that must be the same: rounding differs between machines (choice)


class LanguageBundle:
    """A loaded bundle. info: what ontarget.json holds."""

    def __init__(self, path: Path, info: dict[str, Any], *, device: str = "cpu") -> None:
        from ontarget.adapt.lookup_answers import METHODS
        from ontarget.pool.language_models import DTYPES, load_language_model
        from ontarget.serve.lay_out_to_answer import lay_out_to_answer

        self.path, self.info = path, info
        self.source = None
        if info["method"] not in METHODS:
            dtype = info["dtype"] if info["dtype"] in DTYPES else None  # few bits: as stored
            self.source = load_language_model(str(path), dtype=dtype, device=device)
            lay_out_to_answer(self.source.model)

    def answer(self, prompts: Sequence[str], *, context: Context = Context()) -> list[str]:
        """One answer for each prompt, as they were judged: greedy."""
        from ontarget.adapt.answers import generate_answers
        from ontarget.adapt.judge_answers import with_examples
        from ontarget.adapt.lookup_answers import answer_by_lookup

        if self.source is None:
            stored = json.loads((self.path / ANSWERS).read_text(encoding="utf-8"))
            references = tuple((str(answer),) for answer in stored["answers"])
            known = Prompts(tuple(stored["prompts"]), references, np.arange(len(references)))
            return answer_by_lookup(self.info["method"], known, prompts)
        examples = [(str(asked), str(said)) for asked, said in self.info["examples"]]
        return generate_answers(
            self.source, [with_examples(prompt, examples) for prompt in prompts],
            instruction=self.info["instruction"], max_new_tokens=self.info["max_new_tokens"], context=context,
        )  # fmt: skip

    def self_test(self) -> dict[str, Any]:
        """Files and answers against what was recorded: {"passed": bool, "checks": [...]}."""
        changed = [name for name, digest in self.info["files"].items()
                   if not (self.path / name).is_file() or _digest(self.path / name) != digest]  # fmt: skip
        checks = [{
            "name": "files", "passed": not changed, "next": "copy the bundle again",
            "detail": f"{len(self.info['files'])} files" + (f", changed or missing: {changed[0]}" if changed else ""),
        }]  # fmt: skip
        stored = json.loads((self.path / SELF_TEST).read_text(encoding="utf-8"))
        began = time.perf_counter()
        said = self.answer(stored["prompts"])
        seconds = time.perf_counter() - began
        same = sum(a == b for a, b in zip(said, stored["answers"], strict=True))
        checks.append({
            "name": "answers", "passed": same >= AGREE * len(said),
            "detail": f"{same} of {len(said)} answers as recorded, in {seconds:.1f} s",
            "next": "the model computes something else here: check the versions of torch and transformers",
        })  # fmt: skip
        return {"passed": all(check["passed"] for check in checks), "checks": checks}


def is_language_bundle(path: Path) -> bool:
    return (path / INFO).is_file()


def bundled_type(folder: Path) -> str | None:
    """The type of a bundle's weights that its fit has chosen: float32 or bfloat16; None for other folders."""
    from ontarget.pool.language_models import DTYPES

    if not is_language_bundle(folder):
        return None
    found = json.loads((folder / INFO).read_text(encoding="utf-8")).get("dtype")
    return found if found in DTYPES else None


def load_language_bundle(path: Path, *, device: str = "cpu") -> LanguageBundle:
    """Raises RunError: no bundle, a newer format; DataError: a model that cannot be loaded."""
    try:
        info = json.loads((path / INFO).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"'{path}' is no bundle of a language model ({error}).", next_step="make it again") from error
    if info.get("format", 99) > FORMAT_VERSION:
        raise RunError(f"'{path}' was made by a newer OnTarget.", next_step="pip install --upgrade ontarget")
    return LanguageBundle(path, info, device=device)


def write_language_bundle(
    folder: Path, model: Path | None, info: Mapping[str, Any], *, answers: Mapping[str, Sequence[str]] | None = None,
    self_test: Mapping[str, Sequence[str]],
) -> Path:  # fmt: skip
    """Write the bundle; it is there when it is whole.

    model: folder of config, tokenizer and weights, copied; None where ``answers`` (prompts, answers) are looked up.
    info: method, dtype, instruction, max_new_tokens, examples, and whatever a reader should know. self_test: prompts
    and answers.
    """
    temporary = folder.with_name(folder.name + ".part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    if model is not None:
        for path in sorted(model.iterdir()):
            if path.is_file() and path.suffix in (".json", ".safetensors", ".jinja", ".txt", ".model"):
                shutil.copyfile(path, temporary / path.name)
    if answers is not None:
        write_atomic(temporary / ANSWERS, to_json(answers))
    write_atomic(temporary / SELF_TEST, to_json(self_test))
    write_atomic(temporary / "README.md", _readme(info, (temporary / "gwq.json").exists()).encode())
    files = {path.name: _digest(path) for path in sorted(temporary.iterdir())}
    write_atomic(temporary / INFO, to_json({"format": FORMAT_VERSION, "kind": "generation", **info, "files": files}))
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    return folder


def _digest(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _readme(info: Mapping[str, Any], packed: bool) -> str:
    transformers = (
        "Its weights are in few bits. In Python `load_language_model(\".\", dtype=None)` of "
        "`ontarget.pool.language_models` reads them; a type, such as `dtype=\"bfloat16\"`, writes them out.\n"
    ) if packed else (
        "The folder is a transformers model too, where it holds weights: `AutoModelForCausalLM.from_pretrained`, or "
        "`vllm serve .`\n"
    )  # fmt: skip
    return (
        f"# {info.get('name') or 'A language model'}\n\nMade by OnTarget: {info['method']} on {info['source']}.\n\n"
        "```\nontarget doctor .                    # does it still answer as it did where it was made?\n"
        "ontarget predict . prompts.csv       # answers to new prompts\n"
        f"ontarget serve .                     # OpenAI's API\n```\n\n{transformers}"
    )
