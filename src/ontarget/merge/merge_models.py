"""`ontarget merge`: from a plan to a merged model's folder. Names, shapes and tokenizers are checked before merging."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from ontarget.errors import SettingError, nearest
from ontarget.merge import average, breadcrumbs, dare, task_arithmetic, ties
from ontarget.merge._contract import Rule
from ontarget.merge.checkpoint import Checkpoint, Weights, check_same_tokenizer
from ontarget.merge.layer_names import layer_count
from ontarget.merge.layer_swapping import layer_swapping
from ontarget.merge.lora_adapter import CONFIG, LoraAdapter
from ontarget.merge.merge_checkpoints import Ingredient, merge_checkpoints
from ontarget.merge.mergekit_config import MergePlan, PlannedSlice, PlannedSource, write_plan
from ontarget.pool.language_models import local_folder
from ontarget.values import Context

RULES: dict[str, Rule] = {
    "linear": average.RULE, "task_arithmetic": task_arithmetic.RULE, "ties": ties.RULE, "dare_linear": dare.RULE,
    "dare_ties": dare.TIES_RULE, "breadcrumbs": breadcrumbs.RULE, "breadcrumbs_ties": breadcrumbs.TIES_RULE,
}  # fmt: skip
PLAN = "mergekit_config.yml"


def merge_models(plan: MergePlan, output: Path, *, seed: int = 0, context: Context = Context()) -> Path:
    """Merge by a plan into the new folder ``output``, with config, tokenizer and the plan beside the weights.

    Models are folders, .safetensors files, ``zoo:`` and ``hub:`` locators, each with ``+adapter`` for a LoRA on it, or
    adapters alone where the plan names their base. Raises DataError, SettingError, RunError, and leaves nothing then.
    """
    rule = RULES[plan.merge_method]
    base = open_weights(plan.base_model, None) if plan.base_model else None
    # A base that is listed among the models, as mergekit's plans do, has no task vector.
    listed = [name for name in plan.locators() if not (rule.needs_base and name == plan.base_model)]
    opened = {name: base if base and name == plan.base_model else open_weights(name, base) for name in listed}
    if not opened:
        raise SettingError("The plan merges no model.", option="models", next_step="name one or more beside the base")
    folders = {title: folder_of(one) for title, one in opened.items()} | (
        {plan.base_model: folder_of(base)} if plan.base_model and base is not None else {}
    )
    check_same_tokenizer(folders)
    first = base or next(iter(opened.values()))
    layers = layer_count(first.entries)
    last = max((part.sources[0].layer_range[1] for part in plan.slices), default=layers)
    if last != layers:
        raise SettingError(
            f"The plan's slices have {last} layers, the models {layers}.", option="layer_range",
            next_step="a merge here keeps the architecture: name all layers",
        )  # fmt: skip
    models = []
    for locator, weights in opened.items():
        value = partial(plan.value, locator, layers=layers)
        if value("weight", next(iter(first.entries))) is None and len(opened) > 1:
            raise SettingError(f"'{locator}' has no weight in the plan.", option="weight", next_step="give one")
        own = {name: partial(value, name) for name in rule.of_model}
        models.append(Ingredient(weights, partial(_weight, value), own))
    known = {"weight", "rescale", "int8_mask", *rule.of_model, *rule.of_all}
    for name in plan.named_parameters():
        if name not in known:
            raise SettingError(
                f"{plan.merge_method} has no parameter '{name}'.", allowed=", ".join(sorted(known)), option=name,
                next_step=nearest(name, known),
            )  # fmt: skip
    rescale = plan.parameters.get("rescale")
    if rescale is not None and bool(rescale) != plan.merge_method.startswith("dare"):
        raise SettingError(
            f"rescale is {rescale!r} with {plan.merge_method}.", option="rescale",
            allowed="true for dare_linear and dare_ties, which rescale always; false for the others, which never do",
        )  # fmt: skip
    shared = {name: told for name in rule.of_all if (told := _shared(plan, name)) is not None}
    return merge_checkpoints(
        rule, base if rule.needs_base else None, models, output, settings=shared, dtype=plan.out_dtype or plan.dtype,
        copy_from=folder_of(first), card={PLAN: write_plan(plan), "README.md": _card(plan)}, seed=seed, context=context,
    )  # fmt: skip


def swap_plan(task: str, language: str, layers: int, **sizes: int | None) -> MergePlan:
    """Layer swapping as a plan that mergekit reads too: runs of layers with equal shares are slices."""
    shares = layer_swapping(layers, **sizes)
    slices: list[PlannedSlice] = []
    start = 0
    for at in range(1, layers + 1):
        if at == layers or shares[at] != shares[start]:
            weights = {language: shares[start], task: 1 - shares[start]}
            sources = [PlannedSource(model=model, layer_range=(start, at), parameters={"weight": weight})
                       for model, weight in weights.items()]  # fmt: skip
            slices.append(PlannedSlice(sources=sources))
            start = at
    if shares[0] != 1.0 or shares[-1] != 1.0:
        raise SettingError("bottom and top are 0.", allowed="1 or more: embeddings and head go with these layers")
    return MergePlan(merge_method="linear", slices=slices)


def open_weights(locator: str, base: Weights | None) -> Weights:
    """Raises DataError, SettingError."""
    whole, _, adapter = locator.partition("+") if not Path(locator).exists() else (locator, "", "")
    folder = local_folder(whole)
    if (folder / CONFIG).exists():
        if base is None:
            raise SettingError(f"'{locator}' is an adapter.", option="--base", next_step="name its base")
        return LoraAdapter(folder).on(base)
    weights: Weights = Checkpoint(folder, whole)
    return LoraAdapter(local_folder(adapter)).on(weights) if adapter else weights


def folder_of(weights: Any) -> Path:
    """Where config and tokenizer of a model, or of an adapter's base, lie."""
    return folder_of(weights.base) if hasattr(weights, "base") else Path(weights.folder)


def _weight(value: Any, name: str) -> float:
    found = value("weight", name)
    return 1.0 if found is None else float(found)


def _shared(plan: MergePlan, name: str) -> float | bool | None:
    found = plan.parameters.get(name)
    if found is None or isinstance(found, bool | int | float):
        return found
    raise SettingError(f"{name} is {found!r}.", allowed="one value for all tensors", option=name)


def _card(plan: MergePlan) -> str:
    names = "\n".join(f"- `{name}`" for name in plan.locators())
    return (
        f"---\ntags: [merge, ontarget]\n---\n# Merged by {plan.merge_method}\n\nModels:\n\n{names}\n\n"
        f"The plan, which mergekit reads too:\n\n```yaml\n{write_plan(plan)}```\n"
    )
