"""Wall-clock of generation at batch 1: transformers plainly, by prompt lookup, by an assistant, and our draft head.

    OMP_NUM_THREADS=2 python benchmarks/speculative_decoding.py --work WORK --count 600 --held-out 6 --max-new-tokens 64
    OMP_NUM_THREADS=1 python benchmarks/speculative_decoding.py --work WORK --model hub:LARGE --assistant hub:SMALL

Prompts: first halves of docstrings; the last tenth, of modules apart, is held out (or --prompts FILE, its last tenth).
The head is trained on the model's own greedy replies to the others, and so is, for as many epochs, an assistant of five
of the model's layers, where --assistant names none (`small_assistant.py`). All ways answer the same held-out prompts
one at a time, greedily, in turns, and each round begins with another way; medians over rounds. Transformers' ways have
the model as it is loaded, ours fused layers and the layout of `pack_linears`. "ours" is the shape that the automatic
choice takes (measured on other held-out prompts), "plain ours" is what it falls back to. Whether the tokens equal those
of plain transformers is recorded for every way. Target: ours at least 1.3 times as fast as plain transformers, and as
each of its other ways.
"""

from __future__ import annotations

import argparse
import ast
import math
import statistics
import sysconfig
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ontarget.data.stream_texts import stream_texts
from ontarget.pool.language_models import DEFAULT, load_language_model
from ontarget.progress import console_progress
from ontarget.serve.fused_decoder import fuse_decoder
from ontarget.serve.packed_linear import pack_linears
from ontarget.serve.speculative.draft_head import CONFIG, load_draft_head
from ontarget.serve.speculative.generate import generate, generate_plain
from ontarget.serve.speculative.make_draft import make_draft
from ontarget.serve.speculative.worth_it import SHAPES, worth_it
from ontarget.values import Context
from record import record
from small_assistant import make_assistant


def docstring_prompts(count: int) -> list[str]:
    """First halves of docstrings of 200 to 800 letters. The last tenth are of every fourth module of the standard
    library; the others are of its other modules and of every eighth that is installed besides."""
    paths = {name: Path(path) for name, path in sysconfig.get_paths().items()}
    library = [path for path in sorted(paths["stdlib"].rglob("*.py"))
               if not {"site-packages", "test", "tests", "idlelib", "lib2to3"} & set(path.parts)]  # fmt: skip
    installed = [path for path in sorted(paths["purelib"].rglob("*.py")) if not {"test", "tests"} & set(path.parts)][
        ::8
    ]
    held_out = _halves(library[::4])
    known = set(held_out)
    others = [text for text in _halves([path for at, path in enumerate(library) if at % 4] + installed)
              if text not in known]  # fmt: skip
    asked = count // 10
    return [*_evenly(others, count - asked), *_evenly(held_out, asked)]


def _halves(paths: Sequence[Path]) -> list[str]:
    found = []
    for path in paths:
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (OSError, SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            text = ast.get_docstring(node) if isinstance(node, ast.ClassDef | ast.FunctionDef) else None
            if text and 200 <= len(text) <= 800:
                found.append(text[: len(text) // 2])
    return list(dict.fromkeys(found))


def _evenly(texts: list[str], count: int) -> list[str]:
    step = max(1, len(texts) // max(1, count))
    return texts[::step][:count]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", default=DEFAULT)
    parser.add_argument("--assistant", help="a smaller model with the same tokenizer; else one of its layers is tuned")
    parser.add_argument("--assistant-layers", type=int, default=5, help="0: no assistant is tuned")
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--column", default="text")
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--held-out", type=int, default=12)
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    given = parser.parse_args()

    source = load_language_model(given.model, dtype=given.dtype, device=given.device)
    if given.prompts:
        prompts = [text for batch in stream_texts(given.prompts, column=given.column) for text in batch.texts]
    else:
        prompts = docstring_prompts(given.count)
    prompts = list(dict.fromkeys(prompts))
    folder = given.work / "head"
    with console_progress() as progress:
        context = Context(device=given.device, progress=progress)
        if not (folder / CONFIG).exists():
            make_draft(source, prompts, folder, max_new_tokens=given.max_new_tokens, epochs=given.epochs,
                       learning_rate=given.learning_rate, context=context)  # fmt: skip
        assistant = given.assistant
        if assistant is None and given.assistant_layers:
            assistant = str(given.work / f"assistant-{given.assistant_layers}")
            if not Path(assistant).exists():
                trained_on = [source.prompt_ids(text) for text in prompts[: len(prompts) - max(1, len(prompts) // 10)]]
                make_assistant(source, trained_on, folder, Path(assistant), layers=given.assistant_layers,
                               max_new_tokens=given.max_new_tokens, epochs=given.epochs, context=context)  # fmt: skip
        model = load_language_model(given.model, dtype=given.dtype, device=given.device).model
        head = load_draft_head(folder, model)
        fuse_decoder(model)
        pack_linears(model)
        head.pack()
        held_out = [source.prompt_ids(text) for text in prompts[len(prompts) - max(1, len(prompts) // 10) :]]
        asked, others = held_out[: given.held_out], held_out[given.held_out :] or held_out
        settings = {"max_new_tokens": given.max_new_tokens, "stop_ids": source.stop_ids}
        verdict = worth_it(model, head, others[:4], context=context, **settings)
        ways = {
            "transformers": _theirs(source, given.max_new_tokens),
            "transformers, prompt lookup": _theirs(source, given.max_new_tokens, prompt_lookup_num_tokens=10),
            "plain ours": lambda ids: _flat(generate_plain(model, ids, **settings)),
            "ours": lambda ids: _flat(verdict.generate(model, head, ids, **settings)),
        }
        for shape in SHAPES:
            ways[f"ours, {shape.name}"] = lambda ids, shape=shape: _flat(
                generate(model, head, ids, shape=shape, **settings)
            )
        if assistant:
            helper = load_language_model(assistant, dtype=given.dtype, device=given.device).model
            ways["transformers, assistant"] = _theirs(source, given.max_new_tokens, assistant_model=helper)
        rows = _measured(ways, asked, given.rounds, progress)
    speeds = {name: row["tokens_per_second"] for name, row in rows.items()}
    best_theirs = max(speed for name, speed in speeds.items() if name.startswith("transformers"))
    record(
        f"speculative_decoding-{given.device}",
        headline=f"ours {speeds['ours']:.1f} tokens/s, transformers {speeds['transformers']:.1f}, with prompt lookup "
        f"{speeds['transformers, prompt lookup']:.1f}, with an assistant "
        f"{speeds.get('transformers, assistant', math.nan):.1f} ({given.model}, {given.device}); {verdict.text}",
        passed=speeds["ours"] >= 1.3 * speeds["transformers"] and speeds["ours"] >= best_theirs,
        ratio=speeds["ours"] / speeds["transformers"],
        ways=rows,
        model=given.model,
        assistant=given.assistant or f"{given.assistant_layers} layers, tuned",
        prompts=len(asked),
        trained_on=len(prompts) - len(held_out),
        epochs=given.epochs,
        max_new_tokens=given.max_new_tokens,
        threads=torch.get_num_threads(),
    )


def _theirs(source: Any, max_new_tokens: int, **settings: Any) -> Callable[[list[int]], list[int]]:
    def run(ids: list[int]) -> list[int]:
        given = torch.tensor([ids], device=source.model.device)
        with torch.inference_mode():
            made = source.model.generate(
                given, attention_mask=torch.ones_like(given), max_new_tokens=max_new_tokens, do_sample=False,
                temperature=None, top_p=None, top_k=None, eos_token_id=list(source.stop_ids),
                pad_token_id=source.stop_ids[0], **settings,
            )  # fmt: skip
        return list(made[0, len(ids) :].tolist())

    return run


def _measured(
    ways: dict[str, Callable[[list[int]], list[int]]], prompts: list[list[int]], rounds: int, progress: Any
) -> dict[str, dict[str, Any]]:
    names = list(ways)
    for run in ways.values():
        run(prompts[0])
    seconds: dict[str, list[float]] = {name: [] for name in names}
    said: dict[str, list[list[int]]] = {}
    for number in range(rounds):
        for at in range(len(names)):
            name = names[(at + number) % len(names)]
            if progress:
                progress(number * len(names) + at, rounds * len(names), "measuring")
            start = time.perf_counter()
            said[name] = [ways[name](ids) for ids in prompts]
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    return {
        name: {
            "tokens_per_second": sum(map(len, said[name])) / statistics.median(seconds[name]),
            "seconds": seconds[name],
            "equal_replies": sum(one == two for one, two in zip(said[name], said["transformers"], strict=True)),
        }
        for name in names
    }


def _flat(lists: Any) -> list[int]:
    return [token for each in lists for token in each]


if __name__ == "__main__":
    main()
