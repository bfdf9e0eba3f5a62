"""mergekit's YAML, read into a `MergePlan` and written from one.

github.com/arcee-ai/mergekit: models with parameters that are a number, a gradient over the layers (a list of numbers),
or a list of {filter, value}; ``path+adapter`` for a model with a LoRA. Slices are read where every source has the same
layers and all layers come in their order; other slices would change the architecture and are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from ontarget.errors import DataError, SettingError, nearest
from ontarget.merge.layer_names import depth_of, layer_of

METHODS = ("linear", "task_arithmetic", "ties", "dare_linear", "dare_ties", "breadcrumbs", "breadcrumbs_ties")
DTYPES = ("float32", "bfloat16", "float16")


class PlannedModel(BaseModel):
    """A model and its own parameters, as written."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str
    parameters: dict[str, Any] = {}


class PlannedSource(PlannedModel):
    layer_range: tuple[int, int]


class PlannedSlice(BaseModel):
    model_config = ConfigDict(extra="forbid")

    sources: list[PlannedSource]
    parameters: dict[str, Any] = {}


class MergePlan(BaseModel):
    """A merge as mergekit writes it. Raises pydantic's ValidationError; `read_plan` tells it in our words."""

    model_config = ConfigDict(extra="forbid")

    merge_method: str
    base_model: str | None = None
    models: list[PlannedModel] = []
    slices: list[PlannedSlice] = []
    parameters: dict[str, Any] = {}
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> MergePlan:
        if bool(self.models) == bool(self.slices):
            raise ValueError("give models or slices, not both")
        listed = [[model.model for model in self.models]]
        listed += [[source.model for source in part.sources] for part in self.slices]
        for names in listed:
            if len(set(names)) < len(names):
                raise ValueError(f"'{max(names, key=names.count)}' is named twice: add its weights up")
        if self.merge_method not in METHODS:
            hint = nearest(self.merge_method, METHODS)
            raise ValueError(f"merge_method '{self.merge_method}' is not one of {', '.join(METHODS)} {hint}".rstrip())
        for name in (self.dtype, self.out_dtype):
            if name is not None and name not in DTYPES:
                raise ValueError(f"dtype '{name}' is not one of {', '.join(DTYPES)}")
        at = 0
        for part in self.slices:
            spans = {source.layer_range for source in part.sources}
            if len(spans) != 1 or next(iter(spans))[0] != at:
                raise ValueError("slices must have the same layers in every source, and all layers in their order")
            at = next(iter(spans))[1]
        return self

    def locators(self) -> list[str]:
        """Every model that is listed, each once."""
        found = [model.model for model in self.models]
        found += [source.model for part in self.slices for source in part.sources]
        return list(dict.fromkeys(found))

    def named_parameters(self) -> list[str]:
        """Every parameter that the plan sets somewhere."""
        parts: list[PlannedModel | PlannedSlice] = [*self.models, *self.slices]
        parts += [source for part in self.slices for source in part.sources]
        return list(dict.fromkeys([*self.parameters, *(name for part in parts for name in part.parameters)]))

    def value(self, locator: str, parameter: str, tensor: str, layers: int) -> float | None:
        """A model's parameter for a tensor; None where the plan does not tell it, 0 for the weight of a model that
        takes no part in the tensor's slice."""
        own, shared = self._of(locator, tensor, layers)
        if own is None:
            return 0.0 if parameter == "weight" else None
        for told in (own, shared, self.parameters):
            if parameter in told:
                found = evaluate(told[parameter], tensor, depth_of(tensor, layers))
                if found is not None:
                    return found
        return None

    def _of(self, locator: str, tensor: str, layers: int) -> tuple[Mapping[str, Any] | None, Mapping[str, Any]]:
        if self.models:
            return next((model.parameters for model in self.models if model.model == locator), None), {}
        layer = layer_of(tensor)
        if layer is None:  # what comes before the layers is the first slice's, the rest the last one's
            layer = 0 if depth_of(tensor, layers) == 0 else layers - 1
        for part in self.slices:
            first, last = part.sources[0].layer_range
            if first <= layer < last:
                return next((s.parameters for s in part.sources if s.model == locator), None), part.parameters
        return None, {}


def evaluate(setting: Any, tensor: str, depth: float) -> float | None:
    """A parameter at a tensor. setting: a number, a gradient, or conditions of which the first that fits counts."""
    if isinstance(setting, bool | int | float):
        return float(setting)
    if isinstance(setting, Mapping):
        setting = [setting]
    if isinstance(setting, list) and setting:
        if all(isinstance(entry, bool | int | float) for entry in setting):
            place = depth * (len(setting) - 1)
            low = min(int(place), len(setting) - 1)
            high = min(low + 1, len(setting) - 1)
            return float((1 - place + low) * setting[low] + (place - low) * setting[high])
        if all(isinstance(entry, Mapping) and "value" in entry for entry in setting):
            for entry in setting:
                wanted = entry.get("filter")
                if wanted in (None, "*") or str(wanted) in tensor:
                    return evaluate(entry["value"], tensor, depth)
            return None
    raise SettingError(
        f"A parameter of the plan is {setting!r}.", allowed="a number, a list of numbers, or a list of filter and value"
    )


def read_plan(path: Path) -> MergePlan:
    """Read YAML. Local paths are meant from where the file is. Raises DataError, SettingError."""
    import yaml

    try:
        told: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(told, dict):
            raise DataError(f"'{path}' is no merge plan.", allowed="mergekit's YAML: merge_method, models, ...")
        plan = MergePlan.model_validate(told)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"'{path}' cannot be read: {error}.", next_step="check the file") from error
    except ValidationError as error:
        raise _refused(error, str(path)) from error
    return plan


def write_plan(plan: MergePlan) -> str:
    """YAML that mergekit reads."""
    import yaml

    return str(yaml.safe_dump(plan.model_dump(exclude_defaults=True, mode="json"), sort_keys=False))


def plan_of(
    method: str, models: Sequence[str], weights: Sequence[float], *, base: str | None = None, **settings: float | bool
) -> MergePlan:
    """A plan with one weight a model and settings for all. Raises SettingError."""
    try:
        return MergePlan(
            merge_method=method, base_model=base, parameters=dict(settings),
            models=[PlannedModel(model=model, parameters={"weight": weight})
                    for model, weight in zip(models, weights, strict=True)],
        )  # fmt: skip
    except ValidationError as error:
        raise _refused(error, "the command line") from error


def _refused(error: ValidationError, where: str) -> SettingError:
    problems = "; ".join(f"{'.'.join(map(str, entry['loc'])) or 'plan'}: {entry['msg']}" for entry in error.errors())
    return SettingError(f"{where} gives no merge plan that can be used: {problems}.", option=where)
