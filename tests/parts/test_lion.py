import pytest
import torch
from lion_pytorch import Lion as Reference

from ontarget.errors import SettingError
from ontarget.parts.optimizers.lion import Lion, adamw_to_lion


def parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((4, 3), (3,))]


def test_steps_equal_the_reference() -> None:
    """lion-pytorch's own update, 20 steps with random gradients: two groups, a schedule, a weight without gradient."""

    def groups(chosen: list[torch.nn.Parameter]) -> list[dict[str, object]]:
        return [{"params": chosen[:1], "weight_decay": 0.1}, {"params": chosen[1:], "lr": 3e-2, "weight_decay": 0.0}]

    ours, theirs = parameters(), parameters()
    first = Lion(groups(ours), lr=1e-2, betas=(0.95, 0.98))
    second = Reference(groups(theirs), lr=1e-2, betas=(0.95, 0.98))
    generator = torch.Generator().manual_seed(1)
    for step in range(20):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator)
            other.grad = mine.grad.clone()
        if step % 5 == 0:
            ours[1].grad = theirs[1].grad = None
        first.step()
        second.step()
        for optimizer in (first, second):
            for group in optimizer.param_groups:
                group["lr"] *= 0.9
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=0)


def test_one_step_by_hand() -> None:
    """w=1, g=2, m=0: c=0.2, w <- 1*(1-0.1*0.5) - 0.1*1 = 0.85; m <- 0.01*2 = 0.02."""
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = Lion([weight], lr=0.1, weight_decay=0.5)
    weight.grad = torch.tensor([2.0])
    optimizer.step()
    assert weight.item() == pytest.approx(0.85)
    assert optimizer.state[weight]["momentum"].item() == pytest.approx(0.02)


def test_state_is_half_of_adamw_s() -> None:
    def state_bytes(optimizer: torch.optim.Optimizer) -> int:
        for group in optimizer.param_groups:
            for weight in group["params"]:
                weight.grad = torch.ones_like(weight)
        optimizer.step()
        tensors = [value for state in optimizer.state.values() for key, value in state.items() if key != "step"]
        return sum(value.numel() * value.element_size() for value in tensors)

    assert 2 * state_bytes(Lion(parameters())) == state_bytes(torch.optim.AdamW(parameters()))


def test_state_survives_saving() -> None:
    ours = parameters()
    optimizer = Lion(ours, lr=1e-2)
    for weight in ours:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    again = Lion(ours, lr=1e-2)
    again.load_state_dict(optimizer.state_dict())
    torch.testing.assert_close(again.state[ours[0]]["momentum"], optimizer.state[ours[0]]["momentum"])


def test_conversion_keeps_rate_times_decay() -> None:
    rate, decay = adamw_to_lion(1e-3, 1.0, factor=10)
    assert (rate, decay) == (pytest.approx(1e-4), pytest.approx(10.0))
    with pytest.raises(SettingError):
        adamw_to_lion(1e-3, 1.0, factor=20)


@pytest.mark.parametrize("wrong", [{"lr": 0}, {"betas": (1.0, 0.9)}, {"weight_decay": -1}])
def test_values_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(SettingError):
        Lion(parameters(), **wrong)  # type: ignore[arg-type]
