import ast
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ontarget.errors import DataError, SettingError
from ontarget.parts.optimizers.lion import Lion
from ontarget.search.optimizer_program import (
    FUNCTIONS,
    DiscoveredOptimizer,
    Program,
    Statement,
    abstract_execution,
    adamw,
    constants,
    from_json,
    lion,
    mutate,
    removals,
    to_source,
    with_constant,
    without_dead_code,
)

SIZES = (12, 3)


def parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((4, 3), (3,))]


def slopes(seed: int, like: list[torch.nn.Parameter]) -> None:
    generator = torch.Generator().manual_seed(seed)
    for weight in like:
        weight.grad = torch.randn(weight.shape, generator=generator)


def vectors(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    w, g, v1, v2 = (torch.randn(sum(SIZES), generator=generator) for _ in range(4))
    return w, g, v1, v2.abs(), torch.tensor(0.7)


def compiled(program: Program) -> dict[str, object]:
    """The printed source, executed: it is made from statements that passed abstract execution."""
    space: dict[str, object] = {}
    exec(to_source(program), space)
    return space


def test_lion_as_a_program_is_lion() -> None:
    ours, theirs = parameters(), parameters()
    first = DiscoveredOptimizer(ours, lion(1e-2, betas=(0.9, 0.99), decay=0.5))
    second = Lion(theirs, lr=1e-2, betas=(0.9, 0.99), weight_decay=0.5)
    for step in range(20):
        slopes(step, ours)
        slopes(step, theirs)
        first.step()
        second.step()
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_adamw_as_a_program_is_torch_s_without_bias_correction() -> None:
    """The start has no bias correction, as in the paper. torch's AdamW divides m by 1 - b1^t and v by 1 - b2^t: undone
    here by a rate, a decay and an epsilon for each step."""
    ours, theirs = parameters(), parameters()
    rate, decay, (b1, b2) = 1e-2, 0.1, (0.9, 0.99)
    first = DiscoveredOptimizer(ours, adamw(rate, betas=(b1, b2), decay=decay))
    second = torch.optim.AdamW(theirs, lr=rate, betas=(b1, b2), weight_decay=decay)
    for step in range(1, 21):
        slopes(step, ours)
        slopes(step, theirs)
        for group in second.param_groups:
            group["lr"] = rate * (1 - b1**step) / (1 - b2**step) ** 0.5
            group["weight_decay"] = decay * rate / group["lr"]
            group["eps"] = 1e-8 / (1 - b2**step) ** 0.5
        first.step()
        second.step()
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    corrected = parameters()  # and it does differ from AdamW as it is
    plain, third = parameters(), torch.optim.AdamW(corrected, lr=rate, weight_decay=decay)
    fourth = DiscoveredOptimizer(plain, adamw(rate, decay=decay))
    slopes(0, corrected)
    slopes(0, plain)
    third.step()
    fourth.step()
    assert not torch.allclose(plain[0], corrected[0], rtol=1e-3)


def test_one_step_by_hand() -> None:
    """w=2, g=-3: update = (sign(0.1 * -3) + 0.5 * 2) * 0.1 = 0; v1 = 0.01 * -3."""
    rule = lion(0.1, decay=0.5).rule()
    zero = torch.zeros(1)
    update, v1, v2 = rule(torch.tensor([2.0]), torch.tensor([-3.0]), zero, zero, torch.tensor(1.0), (1,))
    assert update.item() == pytest.approx(0.0, abs=1e-7)
    assert v1.item() == pytest.approx(-0.03) and v2.item() == 0.0


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_every_function_computes_what_its_source_says(name: str) -> None:
    """And has the kind that abstract execution gives it, with numbers in every place that takes them."""
    takes = FUNCTIONS[name].takes
    choices = {"any": ("g", "lr", 0.25), "tensor": ("g", "v2"), "scalar": ("lr", 0.25)}
    calls: list[tuple[str | float, ...]] = [()]
    for wanted in takes:
        calls = [(*call, choice) for call in calls for choice in choices[wanted]]
    w, g, v1, v2, lr = vectors()
    for call in calls:
        statement = Statement("out", name, call)
        kinds, wrong = abstract_execution([statement])
        assert wrong == ""
        program = Program((statement, Statement("t", "*", ("out", 1.0)), Statement("update", "+", ("g", "t"))))
        update, *_ = program.rule()(w, g, v1, v2, lr, SIZES)
        space: dict[str, Any] = {"torch": torch, "math": __import__("math")}
        values: dict[str, Any] = {"g": g, "v2": v2, "lr": lr, "sizes": SIZES}
        exec(statement.text(python=True), space, values)
        torch.testing.assert_close(update, g + values["out"] * 1.0, equal_nan=True)
        assert torch.as_tensor(values["out"]).ndim == (0 if kinds["out"] == "scalar" else 1)


def test_functions_by_hand() -> None:
    """log and sqrt of absolute values, the guarded division, norms by tensor, clipping, cosine."""
    x, sizes = torch.tensor([3.0, -4.0, -12.0]), (2, 1)
    compute = {name: function.compute for name, function in FUNCTIONS.items()}
    assert compute["norm"](x, sizes).tolist() == [5.0, 5.0, 12.0]
    assert compute["global_norm"](x).item() == 13.0
    assert compute["sqrt"](torch.tensor(-9.0)).item() == 3.0
    assert compute["log"](torch.tensor(-1.0)).item() == 0.0
    assert compute["log1p"](torch.tensor(-3.0)).item() == pytest.approx(np.log(2))
    assert compute["cbrt"](torch.tensor(-8.0)).item() == pytest.approx(-2.0)
    assert compute["exp10"](torch.tensor(2.0)).item() == pytest.approx(100.0)
    assert compute["/"](torch.tensor(1.0), torch.tensor(0.0)).item() == pytest.approx(1e8)
    assert compute["interpolate"](torch.tensor(1.0), torch.tensor(5.0), 0.25).item() == 2.0
    assert compute["clip_by_global_norm"](x, 6.5).tolist() == [1.5, -2.0, -6.0]
    assert compute["clip_by_global_norm"](x, 100.0).tolist() == x.tolist()
    assert compute["cosine_sim"](x, -x).item() == pytest.approx(-1.0)


BAD = [
    ("dot of a number", Statement("a", "dot", ("g", "lr"))),
    ("interpolation by a tensor", Statement("a", "interpolate", ("g", "w", "v1"))),
    ("an unknown variable", Statement("a", "sign", ("nothing",))),
    ("an unknown function", Statement("a", "eval", ("g",))),
    ("too few arguments", Statement("a", "+", ("g",))),
    ("a state that becomes a number", Statement("v1", "global_norm", ("g",))),
    ("a state that becomes norms", Statement("v2", "norm", ("g",))),
    ("an infinite constant", Statement("a", "*", ("g", float("inf")))),
    ("a name that is code", Statement("a = 1; b", "sign", ("g",))),
    ("a keyword", Statement("lambda", "sign", ("g",))),
    ("a module's name", Statement("torch", "sign", ("g",))),
]


@pytest.mark.parametrize(("why", "statement"), BAD, ids=[why for why, _ in BAD])
def test_abstract_execution_refuses(why: str, statement: Statement) -> None:
    program = Program((statement, Statement("update", "*", ("g", 0.1))))
    assert program.fault
    with pytest.raises(DataError):
        program.rule()
    with pytest.raises(DataError):
        from_json(program.to_json())


def test_abstract_execution_refuses_outputs_that_do_not_fit() -> None:
    assert "never assigned" in Program((Statement("a", "sign", ("g",)),)).fault
    assert "scalar" in Program((Statement("update", "dot", ("g", "g")),)).fault
    assert "norms" in Program((Statement("update", "norm", ("g",)),)).fault
    assert "does not depend on g" in Program((Statement("update", "sign", ("w",)),)).fault
    kinds, wrong = abstract_execution([Statement("a", "norm", ("g",)), Statement("b", "*", ("a", "lr"))])
    assert (kinds["b"], wrong) == ("norms", "")
    assert abstract_execution([Statement("a", "norm", ("g",)), Statement("b", "dot", ("a", "g"))])[1]


def test_digest_ignores_names_dead_code_and_the_order_of_sums() -> None:
    original = lion(1e-3, decay=0.1)
    names = {"decay": "x7"}
    renamed = Program(
        tuple(
            Statement(
                names.get(s.target, s.target), s.function, tuple("x7" if a == "decay" else a for a in s.arguments)
            )
            for s in original.statements
        )
    )
    dead = Program((Statement("z", "exp", ("g",)), *original.statements, Statement("lr", "cos", ("lr",))))
    # v2 is kept from step to step, and nothing ever reads it.
    idle = Program((Statement("v2", "interpolate", ("v2", "g", 0.5)), *original.statements))
    swapped = list(original.statements)
    swapped[4] = Statement("update", "+", ("decay", "update"))
    digests = {program.digest for program in (original, renamed, dead, idle, Program(tuple(swapped)))}
    assert len(digests) == 1
    assert without_dead_code(dead) == without_dead_code(idle) == original
    assert (idle.states, adamw(1.0).states) == (("v1",), ("v1", "v2"))
    other = [with_constant(original, at, place, value * 2) for at, place, value in constants(original)]
    minus = Program((*original.statements[:4], Statement("update", "-", ("update", "decay")), *original.statements[5:]))
    turned = Program(
        (*original.statements[:4], Statement("update", "-", ("decay", "update")), *original.statements[5:])
    )
    assert len({program.digest for program in (original, minus, turned, *other)}) == 3 + len(other)


def test_equal_digests_compute_the_same() -> None:
    generator = np.random.default_rng(3)
    by_digest: dict[str, Tensor] = {}
    program = adamw(0.1)
    for _ in range(400):
        program = mutate(program, generator) or program
        if len(program.statements) > 14:
            program = adamw(0.1)
        update, *_ = program.rule()(*vectors(), SIZES)
        before = by_digest.setdefault(program.digest, update)
        torch.testing.assert_close(update, before, equal_nan=True)
    assert 40 < len(by_digest) < 400


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.integers(1, 25), st.booleans())
def test_mutations_give_programs_that_run_or_nothing(seed: int, steps: int, lions: bool) -> None:
    generator = np.random.default_rng(seed)
    program = lion(1e-2) if lions else adamw(1e-2)
    for _ in range(steps):
        child = mutate(program, generator, longest=16)
        if child is None:
            continue
        change = len(child.statements) - len(program.statements)
        assert child.fault == "" and change in (-1, 0, 1) and child != program
        assert len(child.statements) <= 16
        if change == 0:
            assert sum(a != b for a, b in zip(child.statements, program.statements, strict=True)) == 1
        outputs = child.rule()(*vectors(seed), SIZES)
        assert all(output.shape == (sum(SIZES),) for output in outputs)
        assert from_json(child.to_json()) == child
        program = child


def test_a_full_program_only_shrinks_or_changes() -> None:
    generator = np.random.default_rng(0)
    program = adamw(1e-2)
    lengths = {len(child.statements) for _ in range(100) if (child := mutate(program, generator, longest=9))}
    assert lengths == {8, 9}


def test_constants_move_by_powers_of_two() -> None:
    """The log2 of the factors of mutated constants has mean 0 and deviation 1."""
    generator, program = np.random.default_rng(0), lion(0.5)
    before, steps = [value for *_, value in constants(program)], []
    for _ in range(3000):
        child = mutate(program, generator)
        after = [value for *_, value in constants(child)] if child else []
        if len(after) == len(before) and child and len(child.statements) == len(program.statements):
            steps += [np.log2(b / a) for a, b in zip(before, after, strict=True) if a > 0 and a != b]
    assert len(steps) > 200
    assert abs(np.mean(steps)) < 0.2 and 0.85 < np.std(steps) < 1.15


def random_programs(count: int) -> list[Program]:
    generator, found = np.random.default_rng(11), []
    for at in range(count):
        program = adamw(1e-2) if at % 2 else lion(1e-2)
        for _ in range(12):
            program = mutate(program, generator) or program
        found.append(program)
    return found


@pytest.mark.parametrize("program", [adamw(1e-2), lion(1e-2, decay=0.1), *random_programs(8)])
def test_the_printed_optimizer_is_the_interpreter(program: Program) -> None:
    space = compiled(program)
    for mine, other in pairwise([program.rule()(*vectors(), SIZES), space["train"](*vectors(), SIZES)]):  # type: ignore[operator]
        for name, a, b in zip(("update", "v1", "v2"), mine, other, strict=True):
            if name == "update" or name in program.states:
                torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    ours, theirs = parameters(), parameters()
    first, second = DiscoveredOptimizer(ours, program, lr=0.5), space["Discovered"](theirs, lr=0.5)  # type: ignore[operator]
    for step in range(3):
        slopes(step, ours)
        slopes(step, theirs)
        theirs[1].grad = ours[1].grad = None if step == 1 else ours[1].grad
        first.step()
        second.step()
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=0, equal_nan=True)
    names = {node.id for node in ast.walk(ast.parse(to_source(program))) if isinstance(node, ast.Name)}
    assert not names & {"exec", "eval", "open", "__import__"}


def test_the_optimizer_keeps_only_states_that_it_needs() -> None:
    for program, kept in ((lion(1e-2), {"v1"}), (adamw(1e-2), {"v1", "v2"})):
        ours = parameters()
        optimizer = DiscoveredOptimizer(ours, program)
        slopes(0, ours)
        optimizer.step()
        assert set(optimizer.state[ours[0]]) == kept
        again = DiscoveredOptimizer(ours, program)
        again.load_state_dict(optimizer.state_dict())
        torch.testing.assert_close(again.state[ours[0]]["v1"], optimizer.state[ours[0]]["v1"])


def test_a_schedule_scales_the_update() -> None:
    ours, theirs = parameters(), parameters()
    first, second = DiscoveredOptimizer(ours, lion(1e-2), lr=0.25), DiscoveredOptimizer(theirs, lion(0.25e-2))
    slopes(0, ours)
    slopes(0, theirs)
    first.step()
    second.step()
    torch.testing.assert_close(ours[0], theirs[0])
    with pytest.raises(SettingError):
        DiscoveredOptimizer(ours, lion(1e-2), lr=0.0)


def test_removals_drop_or_bypass() -> None:
    """Without the sign, lion's update is its interpolation; the decay can only be bypassed together with its reader."""
    program = lion(1e-2, decay=0.1)
    found = removals(program)
    dropped = Program((*program.statements[:1], *program.statements[2:]))
    assert dropped in found[1]
    for children in found.values():
        assert all(child.fault == "" and len(child.statements) == 6 for child in children)
    rates = [child.statements[-1].arguments for child in found[5]]
    assert ("update", "lr") in rates


@pytest.mark.parametrize("junk", [None, 3, [["a"]], [["update", "sign", [None]]], {"update": 1}])
def test_junk_is_no_program(junk: object) -> None:
    with pytest.raises(DataError):
        from_json(junk)
