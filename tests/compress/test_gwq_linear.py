import pytest
import torch

from ontarget.compress.gwq import outliers, quantized
from ontarget.compress.gwq_linear import MANY, GwqLinear, join
from ontarget.errors import SettingError


def matrix(bits: int, group: int, rows: int = 32, inputs: int = 128, share: float = 0.02):
    weight = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(bits)) * 0.05
    weight.view(-1)[::97] *= 8
    return quantized(weight, outliers(weight.abs(), share), bits=bits, group=group)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize(("rows", "inputs", "group"), [(32, 128, 64), (5, 50, 16), (3, 7, 8)])
def test_written_out_it_is_the_dequantised_matrix(bits: int, rows: int, inputs: int, group: int) -> None:
    packed = matrix(bits, group, rows, inputs)
    bias = torch.randn(rows)
    layer = GwqLinear(packed, bias, dtype=torch.float32, path="dequantize")
    given = torch.randn(2, 3, inputs)
    assert torch.equal(layer.weight_as(torch.float32), packed.dequantized())
    assert torch.equal(layer(given), torch.nn.functional.linear(given, packed.dequantized(), bias))


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("share", [0.0, 0.02])
def test_the_kernel_gives_the_same_to_rounding(bits: int, share: float) -> None:
    packed = matrix(bits, 64, share=share)
    layer = GwqLinear(packed, torch.ones(32))
    assert layer.path == "int4"
    given = torch.randn(4, 128).bfloat16()
    wanted = torch.nn.functional.linear(given.float(), packed.dequantized(), torch.ones(32))
    # bfloat16 holds 8 bits; a sum of 128 products of which each is rounded so.
    assert float((layer(given).float() - wanted).norm() / wanted.norm()) < 0.01
    many = torch.randn(MANY[bits] + 1, 128).bfloat16()  # more than the kernel is used for
    written = torch.nn.functional.linear(many, packed.dequantized().bfloat16(), torch.ones(32).bfloat16())
    assert torch.equal(layer(many), written)


def test_what_the_kernel_does_not_take() -> None:
    for packed, dtype in ((matrix(5, 64), torch.bfloat16), (matrix(4, 16), torch.bfloat16),
                          (matrix(4, 64), torch.float32), (matrix(4, 64, rows=20), torch.bfloat16)):  # fmt: skip
        assert GwqLinear(packed, dtype=dtype).path == "dequantize"
        with pytest.raises(SettingError, match="int4 kernel"):
            GwqLinear(packed, dtype=dtype, path="int4")
    with pytest.raises(SettingError, match="auto, dequantize, int4"):
        GwqLinear(matrix(4, 64), path="fast")


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("share", [0.0, 0.02])
@pytest.mark.parametrize("biased", [False, True])
def test_joined_layers_are_the_layers_beside_each_other(bits: int, share: float, biased: bool) -> None:
    layers = [
        GwqLinear(matrix(bits, 64, rows, share=share), torch.randn(rows) if biased else None) for rows in (32, 16, 64)
    ]
    made = join(layers)
    assert made is not None and made.out_features == 112
    for tokens in (1, 5, MANY[bits] + 1):
        given = torch.randn(tokens, 128).bfloat16()
        wanted = torch.cat([layer(given) for layer in layers], -1)
        torch.testing.assert_close(made(given), wanted, rtol=1.6e-2, atol=1e-2)
    assert torch.equal(made.weight_as(torch.float32), torch.cat([layer.weight_as(torch.float32) for layer in layers]))
    assert layers[0].out_features == 32 and len(layers[0].codes) == 32  # nothing of the layers was changed


def test_what_cannot_be_joined() -> None:
    first = GwqLinear(matrix(4, 64))
    others = (GwqLinear(matrix(3, 64)), GwqLinear(matrix(4, 32)), GwqLinear(matrix(4, 64, inputs=192)),
              GwqLinear(matrix(4, 64), torch.ones(32)), GwqLinear(matrix(4, 64), path="dequantize"))  # fmt: skip
    assert all(join([first, other]) is None for other in others)
