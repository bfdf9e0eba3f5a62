"""Merging against mergekit: the same plans on the same checkpoints, CPU-seconds, peak memory, and the weights made.

    python benchmarks/merge_peer.py --peer PEER/bin --work WORK        # about 10 minutes, on a machine at rest

Three Llamas of 97.5 million parameters in bfloat16 and their base, random with task vectors of normal numbers (0.02 of
the weights' spread). Plans: linear, TIES (density 0.2), Breadcrumbs (density 0.15, gamma 0.006). Both sides as whole
processes, in turn, each with its defaults, on the CPU. Targets: at most half of mergekit's CPU-seconds, at most a third
of its memory, the same weights to bfloat16's rounding. mergekit computes in bfloat16 throughout (weights such as 0.3
too); here sums are float32 and rounded once, so that the last bits may differ: told is the share of weights that differ
by more than two units in the last place of the larger of weight and base. In bfloat16 many task-vector entries have the
very magnitude of a threshold; which of these mergekit keeps is up to an unstable sort. They are told apart: those
"unexplained" differ by more than two units and lie at no threshold.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

from record import record

PLANS: dict[str, str] = {
    "linear": "merge_method: linear\nmodels:\n{models}dtype: bfloat16\n",
    "ties": "merge_method: ties\nbase_model: {base}\nmodels:\n{models}parameters: {{density: 0.2}}\ndtype: bfloat16\n",
    "breadcrumbs": "merge_method: breadcrumbs\nbase_model: {base}\nmodels:\n{models}"
    "parameters: {{density: 0.15, gamma: 0.006}}\ndtype: bfloat16\n",
}
WEIGHTS = (0.5, 0.3, 0.4)
# Ascending ranks, from 1, of the magnitudes on both sides of each threshold.
RANKS: dict[str, Any] = {
    "linear": lambda count: (),
    "ties": lambda count: (count - int(0.2 * count), count - int(0.2 * count) + 1),
    "breadcrumbs": lambda count: (
        count - int(0.006 * count) - int(0.15 * count), count - int(0.006 * count) - int(0.15 * count) + 1,
        count - int(0.006 * count), count - int(0.006 * count) + 1,
    ),
}  # fmt: skip


def checkpoints(work: Path) -> list[Path]:
    """The base and three models tuned from it."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folders = [work / name for name in ("base", "m0", "m1", "m2")]
    if all((folder / "model.safetensors").exists() for folder in folders):
        return folders
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32000, hidden_size=640, num_hidden_layers=12, num_attention_heads=10, num_key_value_heads=10,
        intermediate_size=1728, tie_word_embeddings=False, max_position_embeddings=512,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    print(f"{sum(value.numel() for value in state.values()):,} parameters")
    tokenizer = Tokenizer(models.WordLevel({f"w{at}": at for at in range(32000)}, unk_token="w0"))
    for at, folder in enumerate(folders):
        model.save_pretrained(folder)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
        generator = torch.Generator().manual_seed(at)
        if at:
            tuned = {name: (value.float() + 0.02 * float(value.float().std().nan_to_num()) *
                            torch.randn(value.shape, generator=generator)).to(torch.bfloat16)
                     for name, value in state.items()}  # fmt: skip
            save_file(tuned, folder / "model.safetensors", metadata={"format": "pt"})
    return folders


def measured(command: list[str]) -> dict[str, float]:
    """CPU-seconds and peak memory of a process."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    told = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{command} failed:\n{told.decode()[-2000:]}")
    return {"cpu_s": usage.ru_utime + usage.ru_stime, "memory_mb": usage.ru_maxrss / 1024}


def differences(work: Path, plan: str) -> dict[str, float]:
    """Of two merged models, in units of bfloat16's last place."""
    import torch
    from safetensors import safe_open

    def tensors(name: str) -> dict[str, Any]:
        found = {}
        for path in sorted((work / name).glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                found |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return found

    base, ours, theirs, *models = (
        tensors(name) for name in ("base", f"{plan}-ours", f"{plan}-mergekit", "m0", "m1", "m2")
    )
    beyond, unexplained, equal, total = 0, 0, 0, 0
    for name, start in base.items():
        one, other = ours[name].float(), theirs[name].float()
        size = torch.maximum(torch.maximum(one.abs(), other.abs()), start.float().abs())
        far = (one - other).abs() > 2 * 2.0**-7 * size
        beyond += int(far.sum())
        at_threshold = torch.zeros_like(far)
        for model in models:
            magnitude = (model[name] - start).abs().float()
            for rank in RANKS[plan](magnitude.numel()):
                at_threshold |= magnitude == magnitude.view(-1).kthvalue(rank).values
        unexplained += int((far & ~at_threshold).sum())
        equal += int((one == other).sum())
        total += one.numel()
    return {"equal": equal / total, "beyond_two_units": beyond / total, "unexplained": unexplained / total}


def apart(function: Any, *given: Any) -> Any:
    """In a process of its own: what this one has in memory would count as its children's."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        return executor.submit(function, *given).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, required=True, help="bin folder of the environment with mergekit")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    import shutil

    options.work.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg()[0]
    base, *models = apart(checkpoints, options.work)
    listed = "".join(f"  - model: {model}\n    parameters: {{weight: {weight}}}\n"
                     for model, weight in zip(models, WEIGHTS, strict=True))  # fmt: skip
    rows: dict[str, Any] = {}
    program = str(Path(sys.executable).with_name("ontarget"))
    for name, text in PLANS.items():
        plan = options.work / f"{name}.yml"
        plan.write_text(text.format(models=listed, base=base))
        sides: dict[str, list[dict[str, float]]] = {"ours": [], "mergekit": []}
        for _ in range(options.rounds):
            for side in sides:
                out = options.work / f"{name}-{side}"
                shutil.rmtree(out, ignore_errors=True)
                command = (
                    [program, "merge", str(plan), "-o", str(out), "-q"] if side == "ours"
                    else [str(options.peer / "mergekit-yaml"), str(plan), str(out)]
                )  # fmt: skip
                sides[side].append(measured(command))
        told = {side: {key: median(row[key] for row in found) for key in found[0]} for side, found in sides.items()}
        ratios = {key: told["mergekit"][key] / told["ours"][key] for key in told["ours"]}
        same = apart(differences, options.work, name)
        rows[name] = {**told, "times_fewer": ratios, "weights": same, "rounds": sides}
        print(name, told, ratios, same, flush=True)
    record(
        "merge_peer",
        headline="; ".join(
            f"{name}: {row['times_fewer']['cpu_s']:.1f} times fewer CPU-seconds, {row['times_fewer']['memory_mb']:.1f} "
            f"times less memory, {row['weights']['equal']:.2%} of weights equal, {row['weights']['unexplained']:.1e} "
            "unexplained"
            for name, row in rows.items()
        ),
        command="python benchmarks/merge_peer.py --peer PEER/bin --work WORK",
        targets={"cpu_s": 2.0, "memory_mb": 3.0}, load_before=load, plans=rows,
    )  # fmt: skip


if __name__ == "__main__":
    main()
