"""Layer swapping: the outer layers of a language expert around the middle layers of a task expert.

Bandarkar, Muller, Yuvraj, Hou, Singhal, Lv, Liu, "Layer Swapping for Zero-Shot Cross-Lingual Transfer in Large Language
Models", ICLR 2025, arXiv 2410.01335; no official code.
Claim: above both experts and above their average, without task data in the language.
Checked: tests/merge/test_merge_checkpoints.py; claims/39_layer_swapping.py, with the inverse swap as a control.

Layers 0 .. b-1 and L-u .. L-1 are the language expert's, the next t_b and t_u ones averages, the others
the task expert's; embeddings, last norm and head the language expert's (choice, as is 1/2 in the averages).
"""

from __future__ import annotations

from ontarget.errors import SettingError


def layer_swapping(
    layers: int, *, bottom: int | None = None, top: int | None = None, transition: int | None = None
) -> tuple[float, ...]:
    """Share of the language expert in each layer, 0 to 1.

    layers: L. bottom, top, transition: b, u and t_b = t_u; 5, 2 and 1 of 32, scaled to L by default. Raises
    SettingError where they do not fit.
    """
    bottom = max(1, round(5 * layers / 32)) if bottom is None else bottom
    top = max(1, round(2 * layers / 32)) if top is None else top
    if transition is None:
        transition = 1 if layers - bottom - top >= 3 else 0
    if min(bottom, top, transition) < 0 or bottom + top + 2 * transition > layers:
        raise SettingError(
            f"bottom is {bottom}, top {top}, transition {transition} in {layers} layers.",
            allowed=f"0 or more, bottom + top + 2 transition at most {layers}", option="--bottom, --top, --transition",
        )  # fmt: skip
    middle = layers - bottom - top - 2 * transition
    return (1.0,) * bottom + (0.5,) * transition + (0.0,) * middle + (0.5,) * transition + (1.0,) * top
