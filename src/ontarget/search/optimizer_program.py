"""Update rules as programs: straight-line statements that can be run, checked, mutated, compared and printed.

Chen, Liang, Huang, Real, Wang, Liu, Pham, Dong, Luong, Hsieh, Lu, Le, "Symbolic Discovery of Optimization
Algorithms", NeurIPS 2023, arXiv 2302.06675, section 2. Official code: google/automl, folder hero (core.py, fn_lib.py).
Claim: a space of programs over tensors is wide enough to hold AdamW, Lion, and rules nobody has written down.
Left out: conditionals, loops and functions of functions, which hero can parse and the paper does not use.
Checked in tests/search/test_optimizer_program.py (AdamW and Lion as programs, every function, every mutation).

    update, v1, v2 <- train(w, g, v1, v2, lr);   w <- w - update

w, g, v1, v2: (P,) all parameters of a group in one vector, v1 and v2 zero at first; lr: (), the schedule's value, 1 at
its peak, since the program holds the learning rate as a constant. Abstract values have one of three kinds: "scalar"
(), "norms" (one number a parameter tensor, spread over its entries) and "tensor" (P,). As in hero: division adds 1e-8
to the divisor, log and sqrt take absolute values, a new constant is 1, a mutated one is multiplied by 2**N(0, 1).
Nothing here executes text: `Program.rule` walks over the statements, and `to_source` is for people.

>>> lion(1e-4).states, Program(lion(1e-4).statements[:2]).fault
(('v1',), '')
"""

from __future__ import annotations

import hashlib
import keyword
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ontarget.errors import DataError, SettingError

INPUTS = {"w": "tensor", "g": "tensor", "v1": "tensor", "v2": "tensor", "lr": "scalar"}
OUTPUTS = ("update", "v1", "v2")
KINDS = ("scalar", "norms", "tensor")  # an elementwise function gives the widest of its arguments'
LARGEST = 1e10  # of a mutated constant, as in hero
LONGEST = 30  # statements (choice)
TRIES = 20  # of one insertion, before it counts as rejected (choice)
EPSILON = 1e-8

Rule = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Sequence[int]], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Function:
    """takes: "any", "tensor" or "scalar" for each argument. gives: "widest", or a kind. source: Python, for people.

    arithmetic: numbers may stand beside a tensor as they are; elsewhere they become tensors.
    """

    takes: tuple[str, ...]
    gives: str
    compute: Callable[..., Tensor]
    source: str
    arithmetic: bool = False
    commutes: bool = False


def _norm(x: Tensor, sizes: Sequence[int]) -> Tensor:
    return torch.cat([part.norm().expand(len(part)) for part in torch.split(x, list(sizes))])


_PLAIN = (
    "abs", "arccos", "arccosh", "arcsin", "arcsinh", "arctan", "arctanh", "cos", "cosh", "exp", "exp2", "expm1",
    "negative", "reciprocal", "sign", "sin", "sinh", "square", "tan", "tanh",
)  # fmt: skip
_ANY, _TENSOR = ("any",), ("tensor",)
FUNCTIONS: dict[str, Function] = {
    **{name: Function(_ANY, "widest", getattr(torch, name), f"torch.{name}({{0}})") for name in _PLAIN},
    "cbrt": Function(_ANY, "widest", lambda x: torch.sign(x) * torch.abs(x) ** (1 / 3),
                     "torch.sign({0}) * torch.abs({0}) ** (1 / 3)"),
    "cube": Function(_ANY, "widest", lambda x: torch.pow(x, 3), "torch.pow({0}, 3)"),
    "exp10": Function(_ANY, "widest", lambda x: torch.pow(10.0, x), "torch.pow(10.0, {0})"),
    "log": Function(_ANY, "widest", lambda x: torch.log(torch.abs(x)), "torch.log(torch.abs({0}))"),
    "log10": Function(_ANY, "widest", lambda x: torch.log10(torch.abs(x)), "torch.log10(torch.abs({0}))"),
    "log1p": Function(_ANY, "widest", lambda x: torch.log(torch.abs(1 + x)), "torch.log(torch.abs(1 + {0}))"),
    "log2": Function(_ANY, "widest", lambda x: torch.log2(torch.abs(x)), "torch.log2(torch.abs({0}))"),
    "sqrt": Function(_ANY, "widest", lambda x: torch.sqrt(torch.abs(x)), "torch.sqrt(torch.abs({0}))"),
    "+": Function(_ANY * 2, "widest", lambda x, y: x + y, "{0} + {1}", True, True),
    "-": Function(_ANY * 2, "widest", lambda x, y: x - y, "{0} - {1}", True),
    "*": Function(_ANY * 2, "widest", lambda x, y: x * y, "{0} * {1}", True, True),
    "/": Function(_ANY * 2, "widest", lambda x, y: x / (y + EPSILON), "{0} / ({1} + 1e-08)", True),
    "maximum": Function(_ANY * 2, "widest", torch.maximum, "torch.maximum({0}, {1})", False, True),
    "minimum": Function(_ANY * 2, "widest", torch.minimum, "torch.minimum({0}, {1})", False, True),
    "power": Function(_ANY * 2, "widest", torch.pow, "torch.pow({0}, {1})"),
    # hero annotates the first argument as the scalar and computes with the third; the paper's is the third.
    "interpolate": Function(("any", "any", "scalar"), "widest", lambda x, y, a: (1 - a) * x + a * y,
                            "(1 - {2}) * {0} + {2} * {1}", True),
    "norm": Function(_TENSOR, "norms", _norm,
                     "torch.cat([part.norm().expand(len(part)) for part in torch.split({0}, list(sizes))])"),
    "global_norm": Function(_TENSOR, "scalar", lambda x: x.norm(), "{0}.norm()"),
    "dot": Function(_TENSOR * 2, "scalar", torch.dot, "torch.dot({0}, {1})", False, True),
    # hero divides by the product of norms alone, which is 0 at the first step for v1 and v2 (choice).
    "cosine_sim": Function(_TENSOR * 2, "scalar", lambda x, y: torch.dot(x, y) / (x.norm() * y.norm() + EPSILON),
                           "torch.dot({0}, {1}) / ({0}.norm() * {1}.norm() + 1e-08)", False, True),
    "clip_by_global_norm": Function(("tensor", "scalar"), "tensor", lambda x, c: x * (c / x.norm()).clamp(max=1.0),
                                    "{0} * ({1} / {0}.norm()).clamp(max=1.0)"),
    "get_e": Function((), "scalar", lambda: torch.tensor(math.e), "torch.tensor(math.e)"),
    "get_eps": Function((), "scalar", lambda: torch.tensor(EPSILON), "torch.tensor(1e-08)"),
    "get_pi": Function((), "scalar", lambda: torch.tensor(math.pi), "torch.tensor(math.pi)"),
}  # fmt: skip


@dataclass(frozen=True)
class Statement:
    """``target = function(arguments)``; an argument is a variable's name or a number."""

    target: str
    function: str
    arguments: tuple[str | float, ...]

    def reads(self) -> set[str]:
        return {argument for argument in self.arguments if isinstance(argument, str)}

    def text(self, *, python: bool = False) -> str:
        """One line: with functions' names, or as Python on tensors."""
        numbers_stand = not python or (FUNCTIONS[self.function].arithmetic and bool(self.reads()))
        words = [
            argument if isinstance(argument, str) else repr(argument) if numbers_stand else f"torch.tensor({argument})"
            for argument in self.arguments
        ]
        if python:
            return f"{self.target} = {FUNCTIONS[self.function].source.format(*words)}"
        if self.function in "+-*/":
            return f"{self.target} = {words[0]} {self.function} {words[1]}"
        return f"{self.target} = {self.function}({', '.join(words)})"


@dataclass(frozen=True)
class Program:
    """An update rule. Made by hand, by `mutate`, or by `from_json`; `fault` says whether it can run."""

    statements: tuple[Statement, ...]

    @cached_property
    def fault(self) -> str:
        """Abstract execution: "" where the program gives what it must, or the first thing that is wrong with it."""
        kinds, wrong = abstract_execution(self.statements)
        if wrong:
            return wrong
        for name in OUTPUTS:
            if kinds.get(name) != "tensor":
                return f"{name} is {kinds.get(name, 'never assigned')} and has to be a tensor"
        # A rule that never looks at the gradient cannot learn (choice).
        used = set().union(*(statement.reads() for statement in without_dead_code(self).statements))
        return "" if "g" in used else "the update does not depend on g"

    @cached_property
    def states(self) -> tuple[str, ...]:
        """Those of v1 and v2 that later updates depend on: what an optimizer has to keep."""
        kept: set[str] = set()
        while True:
            needed, _ = _live(self.statements, {"update", *kept})
            found = needed & {"v1", "v2"}
            if found <= kept:
                return tuple(sorted(kept))
            kept |= found

    @cached_property
    def digest(self) -> str:
        """The same for programs that compute the same by the same steps: no names, no dead code, no order of x + y.

        Every variable's value is hashed by what made it, as in hero; order of arguments is our addition (choice).
        """
        values = {name: f"input {name}" for name in INPUTS}
        for statement in self.statements:
            parts = [values.get(a, a) if isinstance(a, str) else repr(float(a)) for a in statement.arguments]
            if FUNCTIONS[statement.function].commutes:
                parts.sort()
            values[statement.target] = _hash(f"{statement.function}({', '.join(parts)})")
        return _hash(" ".join(f"{name}={values.get(name)}" for name in ("update", *self.states)))[:24]

    def rule(self) -> Rule:
        """The function (w, g, v1, v2, lr, sizes) -> (update, v1, v2); sizes: entries of each parameter tensor, sum P.

        Raises DataError for a program with a fault.
        """
        if self.fault:
            raise DataError(f"The program cannot run: {self.fault}.", next_step="check Program.fault first")
        steps = []
        for statement in without_dead_code(self).statements:
            function = FUNCTIONS[statement.function]
            stand = function.arithmetic and bool(statement.reads())
            arguments = [a if isinstance(a, str) or stand else torch.tensor(a) for a in statement.arguments]
            steps.append((statement.target, function.compute, arguments, statement.function == "norm"))

        def train(
            w: Tensor, g: Tensor, v1: Tensor, v2: Tensor, lr: Tensor, sizes: Sequence[int]
        ) -> tuple[Tensor, Tensor, Tensor]:
            values = {"w": w, "g": g, "v1": v1, "v2": v2, "lr": lr}
            for target, compute, arguments, by_tensor in steps:
                found = [values[a] if isinstance(a, str) else a for a in arguments]
                values[target] = compute(*found, sizes) if by_tensor else compute(*found)
            return values["update"], values["v1"], values["v2"]

        return train

    def text(self) -> str:
        """The statements, one a line."""
        return "\n".join(statement.text() for statement in self.statements)

    def to_json(self) -> list[list[Any]]:
        """``[[target, function, [arguments]], ...]``."""
        return [[s.target, s.function, list(s.arguments)] for s in self.statements]


def from_json(value: Any) -> Program:
    """The program that `Program.to_json` gave. Raises DataError for anything that is none or cannot run."""
    try:
        statements = tuple(
            Statement(target, name, tuple(a if isinstance(a, str) else float(a) for a in arguments))
            for target, name, arguments in value
        )
    except (TypeError, ValueError) as error:
        raise DataError(f"This is no program: {error}.", allowed="[[target, function, [arguments]], ...]") from error
    program = Program(statements)
    if program.fault:
        raise DataError(f"The program cannot run: {program.fault}.", next_step="take program.json as it was written")
    return program


def abstract_execution(statements: Iterable[Statement]) -> tuple[dict[str, str], str]:
    """Kind of every variable after the statements, and what is wrong ("" where nothing is). Computes no tensor."""
    kinds = dict(INPUTS)
    for statement in statements:
        function = FUNCTIONS.get(statement.function) if isinstance(statement.function, str) else None
        if function is None or len(statement.arguments) != len(function.takes):
            return kinds, f"no function {statement.function} of {len(statement.arguments)} arguments"
        if not _is_name(statement.target):
            return kinds, f"{statement.target!r} is no variable's name"
        found = []
        for argument, wanted in zip(statement.arguments, function.takes, strict=True):
            if not isinstance(argument, str) and not math.isfinite(argument):
                return kinds, f"{argument} is not finite"
            kind = kinds.get(argument, "") if isinstance(argument, str) else "scalar"
            if not kind:
                return kinds, f"{argument} is read before it is assigned"
            if wanted not in ("any", kind):
                return kinds, f"{statement.function} takes a {wanted}, and {argument} is {kind}"
            found.append(kind)
        widest = max(found, key=KINDS.index, default="scalar")
        kinds[statement.target] = widest if function.gives == "widest" else function.gives
    return kinds, ""


def without_dead_code(program: Program) -> Program:
    """The statements that an update, now or later, depends on."""
    _, kept = _live(program.statements, {"update", *program.states})
    return program if len(kept) == len(program.statements) else Program(kept)


def mutate(program: Program, generator: np.random.Generator, *, longest: int = LONGEST) -> Program | None:
    """One insertion, deletion or modification, equally likely, that passes abstract execution; None if it does not."""
    actions = [_delete, _modify] + ([_insert] if len(program.statements) < longest else [])
    return actions[int(generator.integers(len(actions)))](program, generator)


def _insert(program: Program, generator: np.random.Generator) -> Program | None:
    for _ in range(TRIES):
        at = int(generator.integers(len(program.statements) + 1))
        before, after = program.statements[:at], program.statements[at:]
        kinds, _ = abstract_execution(before)
        name = str(generator.choice(list(FUNCTIONS)))
        arguments: list[str | float] = []
        for wanted in FUNCTIONS[name].takes:
            fitting: list[str | float] = [variable for variable, kind in kinds.items() if wanted in ("any", kind)]
            fitting += [1.0] if wanted != "tensor" else []
            arguments.append(fitting[int(generator.integers(len(fitting)))])
        taken = {*kinds, *(statement.target for statement in after)}
        new = next(f"t{number}" for number in range(len(taken) + 1) if f"t{number}" not in taken)
        made = Statement(new, name, tuple(arguments))
        kind = abstract_execution([*before, made])[0][new]
        targets = [new, *(variable for variable, other in kinds.items() if other == kind)]
        made = replace(made, target=targets[int(generator.integers(len(targets)))])
        child = Program((*before, made, *after))
        if not child.fault:
            return child
    return None


def _delete(program: Program, generator: np.random.Generator) -> Program | None:
    for at in generator.permutation(len(program.statements)):
        child = Program(program.statements[:at] + program.statements[at + 1 :])
        if not child.fault:
            return child
    return None


def _modify(program: Program, generator: np.random.Generator) -> Program | None:
    for at in generator.permutation(len(program.statements)):
        statement = program.statements[at]
        kinds, _ = abstract_execution(program.statements[:at])
        for place in generator.permutation(len(statement.arguments)):
            old = statement.arguments[place]
            if isinstance(old, str):
                others = [name for name, kind in kinds.items() if name != old and kind == kinds[old]]
                if not others:
                    continue
                new: str | float = others[int(generator.integers(len(others)))]
            else:
                new = float(np.clip(old * 2.0 ** generator.normal(), -LARGEST, LARGEST))
            arguments = (*statement.arguments[:place], new, *statement.arguments[place + 1 :])
            changed = replace(statement, arguments=arguments)
            child = Program((*program.statements[:at], changed, *program.statements[at + 1 :]))
            # Times two to the n, 0 stays 0.
            return None if child.fault or child == program else child
    return None


def adamw(rate: float, *, betas: tuple[float, float] = (0.9, 0.999), decay: float = 0.01) -> Program:
    """Where the search starts: AdamW as the paper has it, without bias correction; epsilon is the division's 1e-8."""
    return Program((
        Statement("v1", "interpolate", ("v1", "g", round(1 - betas[0], 12))),
        Statement("squared", "square", ("g",)),
        Statement("v2", "interpolate", ("v2", "squared", round(1 - betas[1], 12))),
        Statement("root", "sqrt", ("v2",)),
        Statement("update", "/", ("v1", "root")),
        Statement("decay", "*", ("w", float(decay))),
        Statement("update", "+", ("update", "decay")),
        Statement("rate", "*", ("lr", float(rate))),
        Statement("update", "*", ("update", "rate")),
    ))  # fmt: skip


def lion(rate: float, *, betas: tuple[float, float] = (0.9, 0.99), decay: float = 0.0) -> Program:
    """What the paper's search found (its program 1)."""
    return Program((
        Statement("update", "interpolate", ("v1", "g", round(1 - betas[0], 12))),
        Statement("update", "sign", ("update",)),
        Statement("v1", "interpolate", ("v1", "g", round(1 - betas[1], 12))),
        Statement("decay", "*", ("w", float(decay))),
        Statement("update", "+", ("update", "decay")),
        Statement("rate", "*", ("lr", float(rate))),
        Statement("update", "*", ("update", "rate")),
    ))  # fmt: skip


class DiscoveredOptimizer(torch.optim.Optimizer):
    """A program as an optimizer. params: parameters or groups; those of a group share device and dtype.

    lr: multiple of the program's own learning rate, so 1.0 is what was found; a schedule may change it. Global norms
    and products run over the parameters of a group that have a gradient (choice). State: v1 and v2 where `states`
    names them, float like the parameter. Raises SettingError for lr <= 0, DataError for a program with a fault.
    """

    def __init__(self, params: Iterable[Any], program: Program, lr: float = 1.0) -> None:
        if not (lr > 0 and math.isfinite(lr)):
            raise SettingError(f"lr is {lr}.", allowed="numbers above 0", option="lr")
        self.program, self._rule = program, program.rule()
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            sizes = [weight.numel() for weight in weights]
            flat = torch.cat([weight.flatten() for weight in weights])
            slopes = torch.cat([weight.grad.flatten() for weight in weights])
            kept = {name: torch.zeros_like(flat) for name in ("v1", "v2")}
            for name in self.program.states:
                for weight in weights:
                    self.state[weight].setdefault(name, torch.zeros_like(weight))
                kept[name] = torch.cat([self.state[weight][name].flatten() for weight in weights])
            rate = torch.tensor(float(group["lr"]), dtype=flat.dtype, device=flat.device)
            update, kept["v1"], kept["v2"] = self._rule(flat, slopes, kept["v1"], kept["v2"], rate, sizes)
            for weight, part in zip(weights, torch.split(update, sizes), strict=True):
                weight.sub_(part.view_as(weight))
            for name in self.program.states:
                for weight, part in zip(weights, torch.split(kept[name], sizes), strict=True):
                    self.state[weight][name] = part.view_as(weight).clone()
        return loss


def to_source(program: Program, *, lr: float = 1.0) -> str:
    """A readable, self-contained Python module: ``train``, the rule, and ``Discovered``, a torch Optimizer with it.

    lr: default of the optimizer's ``lr``. For people: OnTarget itself runs programs through `Program.rule`.
    """
    kept = without_dead_code(program)
    lines = "\n".join(f"    {statement.text(python=True)}" for statement in kept.statements)
    return _TEMPLATE.format(lines=lines, states=repr(program.states), lr=repr(float(lr)), text=_indented(kept.text()))


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


def _is_name(name: Any) -> bool:
    plain = isinstance(name, str) and re.fullmatch(r"[a-z][a-z0-9_]*", name) is not None
    return plain and not keyword.iskeyword(name) and name not in ("torch", "math", "sizes", "len", "list", "part")


def _live(statements: Sequence[Statement], wanted: set[str]) -> tuple[set[str], tuple[Statement, ...]]:
    """Variables that ``wanted`` depends on at the start, and the statements in between."""
    live, kept = set(wanted), []
    for statement in reversed(statements):
        if statement.target in live:
            kept.append(statement)
            live = (live - {statement.target}) | statement.reads()
    return live, tuple(reversed(kept))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


_TEMPLATE = '''"""An update rule found by symbolic discovery (arXiv 2302.06675) with OnTarget.

{text}
"""

import math  # noqa: F401

import torch


def train(w, g, v1, v2, lr, sizes):
    """All tensors of a group in one vector; lr: 0-dimensional; sizes: entries of each. Gives update, v1, v2."""
{lines}
    return update, v1, v2


class Discovered(torch.optim.Optimizer):
    """w <- w - update. lr: multiple of the learning rate that the rule holds; multiply it by your schedule."""

    STATES = {states}

    def __init__(self, params, lr={lr}):
        super().__init__(params, {{"lr": lr}})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            sizes = [weight.numel() for weight in weights]
            w = torch.cat([weight.flatten() for weight in weights])
            g = torch.cat([weight.grad.flatten() for weight in weights])
            kept = {{"v1": torch.zeros_like(w), "v2": torch.zeros_like(w)}}
            for name in self.STATES:
                for weight in weights:
                    self.state[weight].setdefault(name, torch.zeros_like(weight))
                kept[name] = torch.cat([self.state[weight][name].flatten() for weight in weights])
            rate = torch.tensor(float(group["lr"]), dtype=w.dtype, device=w.device)
            update, kept["v1"], kept["v2"] = train(w, g, kept["v1"], kept["v2"], rate, sizes)
            for weight, part in zip(weights, update.split(sizes)):
                weight.sub_(part.view_as(weight))
            for name in self.STATES:
                for weight, part in zip(weights, kept[name].split(sizes)):
                    self.state[weight][name] = part.view_as(weight).clone()
        return loss
'''


def constants(program: Program) -> list[tuple[int, int, float]]:
    """(statement, argument, value) of every number in the program."""
    places = enumerate(program.statements)
    return [(at, place, a) for at, s in places for place, a in enumerate(s.arguments) if not isinstance(a, str)]


def with_constant(program: Program, at: int, place: int, value: float) -> Program:
    """The program with one number changed."""
    statement = program.statements[at]
    arguments = (*statement.arguments[:place], value, *statement.arguments[place + 1 :])
    changed = replace(statement, arguments=arguments)
    return Program((*program.statements[:at], changed, *program.statements[at + 1 :]))


def removals(program: Program) -> Mapping[int, tuple[Program, ...]]:
    """Statement -> the runnable programs without it: dropped, or its readers read one of its arguments instead.

    Dropping alone cannot remove a statement whose variable is read and assigned nowhere else (choice).
    """
    found: dict[int, tuple[Program, ...]] = {}
    for at, statement in enumerate(program.statements):
        before, after = program.statements[:at], program.statements[at + 1 :]
        tries = [Program(before + after)]
        for argument in statement.reads() - {statement.target}:
            tries.append(Program(before + _reading(after, statement.target, argument)))
        found[at] = tuple(child for child in sorted(tries, key=lambda child: child.digest) if not child.fault)
    return found


def _reading(statements: Sequence[Statement], name: str, instead: str) -> tuple[Statement, ...]:
    """The statements with ``instead`` read for ``name`` until that is assigned again."""
    changed = []
    for at, statement in enumerate(statements):
        arguments = tuple(instead if argument == name else argument for argument in statement.arguments)
        changed.append(replace(statement, arguments=arguments))
        if statement.target == name:
            return (*changed, *statements[at + 1 :])
    return tuple(changed)
