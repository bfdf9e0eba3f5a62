import copy
import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ontarget.augment.adautomix import (
    MOMENTUM,
    adautomix,
    classifier_loss,
    ema_momentum,
    mixed_cross_entropy,
    mixer_loss,
    momentum_for,
    update_teacher,
)
from ontarget.augment.mixer import (
    Mixer,
    TimmStage,
    TwoHeads,
    backbone_widths,
    classifier_masks,
    draw_permutations,
    draw_ratios,
    mix,
    statistics_kept,
)
from ontarget.errors import DataError, SettingError
from ontarget.values import Context


class Tiny(nn.Module):
    """A convolution with batch norm: (map (N, 4, 4, 4), pooled (N, 4)) of 8 x 8 images."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.layers(images)
        return maps, maps.mean((2, 3))


def pictures(rows: int = 24, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noise with a bright half, upper or lower, by class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % 2
    images = 0.3 * torch.randn(rows, 1, 8, 8, generator=generator)
    images[labels == 0, :, :4] += 1
    images[labels == 1, :, 4:] += 1
    return images, labels


def grown(mixer: Mixer) -> Mixer:
    """Weights large enough that masks are far from even."""
    for weight in mixer.parameters():
        nn.init.normal_(weight, std=1.0)
    return mixer


# The mixer


@settings(deadline=None, max_examples=10)
@given(st.integers(2, 4), st.integers(1, 5), st.booleans(), st.integers(0, 1000))
def test_masks_sum_to_one_at_every_pixel(samples: int, rows: int, with_ratios: bool, seed: int) -> None:
    torch.manual_seed(seed)
    mixer = grown(Mixer(6, with_ratios=with_ratios))
    ratios = torch.rand(samples)
    masks = mixer([torch.randn(rows, 6, 3, 5) for _ in range(samples)], ratios / ratios.sum(), (12, 20))
    assert masks.shape == (rows, samples, 12, 20)
    torch.testing.assert_close(masks.sum(1), torch.ones(rows, 12, 20))
    assert masks.std() > 0.01


def test_mixer_against_loops() -> None:
    """The attention, position by position, as in the specification."""
    torch.manual_seed(0)
    mixer, maps = grown(Mixer(4)), [torch.randn(2, 4, 2, 3) for _ in range(3)]
    found = []
    for i in range(3):
        small = torch.zeros(2, 6)
        for row in range(2):
            flat = [each[row].reshape(4, 6).T for each in maps]  # (positions, channels)
            layers = {name: getattr(mixer, name) for name in ("query", "key", "value")}
            weight = {name: layer.weight.reshape(layer.out_channels, 4) for name, layer in layers.items()}
            for place in range(6):
                query = torch.relu(weight["query"] @ flat[i][place] + mixer.query.bias)
                scores = []
                for other in range(6):
                    keys = [torch.relu(weight["key"] @ flat[j][other] + mixer.key.bias) for j in range(3) if j != i]
                    scores.append(query @ sum(keys) / math.sqrt(2))
                values = torch.stack([weight["value"] @ flat[i][other] + mixer.value.bias for other in range(6)])
                small[row, place] = torch.softmax(torch.stack(scores), 0) @ values[:, 0]
        found.append(small.reshape(2, 1, 2, 3))
    large = nn.functional.interpolate(torch.cat(found, 1), scale_factor=4, mode="bilinear")
    torch.testing.assert_close(mixer(maps, torch.ones(3) / 3, (8, 12)), large.softmax(1))


def test_masks_are_even_at_first_and_ratios_matter_only_where_asked() -> None:
    torch.manual_seed(0)
    maps = [torch.randn(2, 4, 2, 2) for _ in range(3)]
    first, second = torch.tensor([0.1, 0.2, 0.7]), torch.tensor([0.6, 0.2, 0.2])
    torch.testing.assert_close(Mixer(4)(maps, first, (4, 4)), torch.full((2, 3, 4, 4), 1 / 3), atol=0.02, rtol=0)
    without, given_them = grown(Mixer(4)), grown(Mixer(4, with_ratios=True))
    assert torch.equal(without(maps, first, (4, 4)), without(maps, second, (4, 4)))
    assert not torch.allclose(given_them(maps, first, (4, 4)), given_them(maps, second, (4, 4)))


@pytest.mark.parametrize(
    ("first", "constant"), [(0.02, True), (0.03, True), (0.05, False), (0.5, False), (0.96, False), (0.98, True)]
)
def test_masks_are_the_ratios_near_the_ends(first: float, constant: bool) -> None:
    masks = torch.rand(2, 3, 4, 4, requires_grad=True)
    ratios = torch.tensor([first, 0.75 * (1 - first), 0.25 * (1 - first)], dtype=torch.float64)
    found = classifier_masks(masks, ratios, 0.03)
    assert not found.requires_grad
    assert found.shape == masks.shape
    assert torch.equal(found, ratios.view(1, 3, 1, 1).expand(2, 3, 4, 4)) == constant
    assert torch.equal(found, masks.detach()) != constant
    assert torch.equal(classifier_masks(masks, ratios, 0.0), masks.detach())


def test_mix_by_hand() -> None:
    images = torch.tensor([1.0, 10.0]).view(2, 1, 1, 1).expand(2, 1, 1, 2)
    masks = torch.tensor([[[[1.0, 0.25]], [[0.0, 0.75]]], [[[0.5, 0.0]], [[0.5, 1.0]]]])  # (2 rows, 2 parts, 1, 2)
    found = mix(images, torch.tensor([[0, 1], [1, 0]]), masks)
    # Row 0: 1 * 1 + 0 * 10, 0.25 * 1 + 0.75 * 10. Row 1: 0.5 * 10 + 0.5 * 1, 0 * 10 + 1 * 1.
    assert found.reshape(2, 2).tolist() == [[1.0, 7.75], [5.5, 1.0]]


def test_draws() -> None:
    generator = np.random.default_rng(0)
    first, second = draw_permutations(50, 3, generator), draw_permutations(50, 3, generator)
    assert all(sorted(line.tolist()) == list(range(50)) for line in (*first, *second))
    assert len({tuple(line.tolist()) for line in (*first, *second)}) == 6  # of each player, of each part
    ratios = torch.stack([draw_ratios(3, 1.0, generator) for _ in range(500)])
    torch.testing.assert_close(ratios.sum(1), torch.ones(500))
    drawn = np.random.default_rng(1).uniform(size=(20_000, 3))  # Beta(1, 1) is uniform
    expected = (drawn / drawn.sum(1, keepdims=True)).std()
    assert float(ratios.std()) == pytest.approx(expected, rel=0.05)


# The losses


def test_mixed_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [math.log(4.0), 0.0]])  # probabilities (1/4, 3/4) and (4/5, 1/5)
    labels, permutations = torch.tensor([0, 1]), torch.tensor([[0, 1], [1, 0]])
    # Unmoved: labels 0, 1: -(ln 1/4 + ln 1/5) / 2; exchanged: labels 1, 0: -(ln 3/4 + ln 4/5) / 2.
    expected = 0.7 * math.log(20) / 2 + 0.3 * -math.log(0.6) / 2
    assert float(mixed_cross_entropy(logits, labels, permutations, torch.tensor([0.7, 0.3]))) == pytest.approx(expected)
    # Linear in the target: the same as cross-entropy with mixed one-hot labels.
    soft = torch.tensor([[0.7, 0.3], [0.3, 0.7]])
    assert float(nn.functional.cross_entropy(logits, soft)) == pytest.approx(expected)


def test_signs_of_the_mixer_s_loss_by_hand() -> None:
    mixed, clean = torch.tensor([[3.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    labels, permutations, ratios = torch.tensor([1]), torch.tensor([[0], [0]]), torch.tensor([0.4, 0.6])
    entropy, cosine = math.log(1 + math.exp(3)), 9 / (3 * 5)
    odd = mixer_loss(mixed, clean, labels, permutations, ratios, beta=0.3, adversarial=False)
    even = mixer_loss(mixed, clean, labels, permutations, ratios, beta=0.3, adversarial=True)
    assert float(odd) == pytest.approx(entropy)
    assert float(even) == pytest.approx(-0.3 * entropy + 0.7 * cosine)


def test_the_even_step_makes_mixes_harder_and_the_odd_one_easier() -> None:
    """A step down each loss moves the cross-entropy of the teacher's logits up and down."""
    torch.manual_seed(0)
    labels, permutations, ratios = torch.arange(4), draw_permutations(4, 3, np.random.default_rng(0)), torch.ones(3) / 3
    clean = torch.randn(4, 4)
    for adversarial, direction in ((True, 1), (False, -1)):
        logits = torch.randn(4, 4, requires_grad=True)
        loss = mixer_loss(logits, clean, labels, permutations, ratios, beta=1.0, adversarial=adversarial)
        (slope,) = torch.autograd.grad(loss, logits)
        start = logits.detach()
        before, after = (
            float(mixed_cross_entropy(at, labels, permutations, ratios)) for at in (start, start - 0.1 * slope)
        )
        assert (after - before) * direction > 0


def test_classifier_loss_has_three_parts() -> None:
    torch.manual_seed(0)
    images, labels = pictures(6)
    network = TwoHeads(Tiny(), 4, 2).eval()
    for head in (network.one_hot, network.mix):
        nn.init.normal_(head.weight)
    permutations, ratios = draw_permutations(6, 3, np.random.default_rng(0)), torch.tensor([0.2, 0.3, 0.5])
    hard = torch.randn_like(images)
    blended = sum(ratio * images[rows] for rows, ratio in zip(permutations, ratios))
    targets = sum(ratio * nn.functional.one_hot(labels[rows], 2) for rows, ratio in zip(permutations, ratios))
    entropy = nn.functional.cross_entropy
    pooled = [network.backbone(inputs)[1] for inputs in (images, blended, hard)]
    expected = entropy(network.mix(pooled[2]), targets) + 0.5 * entropy(network.one_hot(pooled[0]), labels)
    expected = expected + 0.5 * entropy(network.mix(pooled[1]), targets)
    torch.testing.assert_close(classifier_loss(network, images, labels, hard, permutations, ratios), expected)


def test_no_gradient_crosses_between_the_players() -> None:
    torch.manual_seed(0)
    images, labels = pictures(6)
    classifier, mixer = TwoHeads(Tiny(), 4, 2), grown(Mixer(4))
    for head in (classifier.one_hot, classifier.mix):
        nn.init.normal_(head.weight)
    teacher = copy.deepcopy(classifier).requires_grad_(False)
    permutations, ratios = draw_permutations(6, 3, np.random.default_rng(0)), torch.tensor([0.2, 0.3, 0.5])
    with torch.no_grad():
        stage, clean = teacher.mixed(images)
    masks = mixer([stage[line] for line in permutations], ratios, (8, 8))
    _, mixed = teacher.mixed(mix(images, permutations, masks))
    for adversarial in (True, False):
        mixer.zero_grad()
        mixer_loss(mixed, clean, labels, permutations, ratios, adversarial=adversarial).backward(retain_graph=True)
        assert all(weight.grad is None for weight in (*classifier.parameters(), *teacher.parameters()))
        assert all(float(weight.grad.abs().sum()) > 0 for weight in mixer.parameters() if weight is not mixer.key.bias)
    before = [weight.grad.clone() for weight in mixer.parameters()]
    inputs = mix(images, permutations, classifier_masks(masks, ratios))
    classifier_loss(classifier, images, labels, inputs, permutations, ratios).backward()
    assert all(torch.equal(weight.grad, old) for weight, old in zip(mixer.parameters(), before))
    assert all(weight.grad is not None for weight in classifier.parameters())
    assert all(weight.grad is None for weight in teacher.parameters())


# The teacher


def test_momentum_by_hand() -> None:
    steps = 1000
    assert ema_momentum(0, steps) == ema_momentum(99, steps) == 0.999
    assert ema_momentum(steps, steps) == pytest.approx(0.999999, abs=1e-12)
    assert ema_momentum(500, steps) == pytest.approx((0.999 + 0.999999) / 2)
    # After the warm tenth the cosine is counted from step 0: cos(pi / 10) = 0.951057.
    assert ema_momentum(100, steps) == pytest.approx(0.999999 - 0.000999 * 1.951057 / 2, abs=1e-9)
    assert all(ema_momentum(step, steps) <= ema_momentum(step + 1, steps) for step in range(steps))


def test_momentum_for_short_runs_averages_the_same_share() -> None:
    assert momentum_for(400_000) == momentum_for(10**6) == pytest.approx(MOMENTUM)
    # 1,000 of 400,000 steps are 2.5 of 1,000.
    assert momentum_for(1000) == pytest.approx((1 - 1 / 2.5, 1 - 1 / 2500))
    assert momentum_for(10)[0] == 0.0


def test_teacher_follows_weights_and_keeps_its_buffers() -> None:
    torch.manual_seed(0)
    teacher, classifier = Tiny(), Tiny()
    expected = {name: 0.9 * old + 0.1 * dict(classifier.named_parameters())[name] for name, old in
                teacher.named_parameters()}  # fmt: skip
    classifier.layers[1].running_mean.fill_(7.0)
    update_teacher(teacher, classifier, 0.9)
    for name, weight in teacher.named_parameters():
        torch.testing.assert_close(weight, expected[name])
    assert float(teacher.layers[1].running_mean.abs().sum()) == 0


def test_statistics_are_kept_and_the_batch_s_are_used() -> None:
    torch.manual_seed(0)
    network, images = Tiny().train(), pictures()[0]
    with statistics_kept(network):
        inside = network(images)[0]
    assert int(network.layers[1].num_batches_tracked) == 0
    torch.testing.assert_close(inside, network(images)[0])
    assert int(network.layers[1].num_batches_tracked) == 1


def test_teacher_on_a_permuted_batch_is_its_permuted_output() -> None:
    """What lets the teacher's clean pass be shared: also where batch norm uses the batch."""
    torch.manual_seed(0)
    network, images = Tiny().train(), pictures()[0]
    order = torch.randperm(len(images))
    torch.testing.assert_close(network(images[order])[0], network(images)[0][order])


# The training


def train(**changed: object) -> object:
    images, labels = pictures()
    torch.manual_seed(3)
    settings_: dict[str, object] = {"classes": 2, "steps": 30, "batch_size": 12, "momentum": (0.5, 0.9), **changed}
    return adautomix(Tiny(), images, labels, **settings_)  # type: ignore[arg-type]


def test_learns_twice_the_same() -> None:
    first, second = train(), train()
    images, labels = pictures(60, seed=1)
    assert float((first.classifier(images).argmax(1) == labels).float().mean()) > 0.9
    assert float((first.teacher(images).argmax(1) == labels).float().mean()) > 0.9
    assert torch.equal(first.teacher(images), second.teacher(images))
    assert not (first.classifier.training or first.teacher.training or first.mixer.training)
    assert [line["step"] for line in first.curve] == [1, 4, 7, 10, 13, 16, 19, 22, 25, 28, 30]
    assert not torch.equal(train(context=Context(seed=1)).classifier(images), first.classifier(images))


@pytest.mark.parametrize("adversarial", [True, False])
def test_one_step_against_the_official_order(adversarial: bool) -> None:
    """Every weight of both players after a step whose teacher sees each permuted batch by itself, as in the code."""
    images, labels = pictures(12)
    torch.manual_seed(3)
    backbone = Tiny()
    found = adautomix(
        copy.deepcopy(backbone), images, labels, classes=2, steps=1, batch_size=12, momentum=(0.5, 0.5),
        learning_rate=0.2, weight_decay=0.01, adversarial=adversarial, context=Context(seed=5),
    )  # fmt: skip
    torch.manual_seed(5)
    classifier, mixer, generator = TwoHeads(backbone, 4, 2).train(), Mixer(4), np.random.default_rng(5)
    teacher = copy.deepcopy(classifier).requires_grad_(False)
    rows = torch.from_numpy(generator.permutation(12))
    x, y = images[rows], labels[rows]
    made, used = ([torch.from_numpy(generator.permutation(12)) for _ in range(3)] for _ in range(2))
    r = generator.beta(1, 1, 3)
    r = [float(part) for part in r / r.sum()]
    assert 0.03 < r[0] < 0.97  # else the masks would be constant
    entropy = nn.functional.cross_entropy
    masks = [mixer([teacher.mixed(x[line])[0] for line in lines], torch.tensor(r), (8, 8)) for lines in (made, used)]
    for_mixer = sum(masks[0][:, s, None] * x[made[s]] for s in range(3))
    for_classifier = sum(masks[1].detach()[:, s, None] * x[used[s]] for s in range(3))
    guess = teacher.mixed(for_mixer)[1]
    hard = sum(r[s] * entropy(guess, y[made[s]]) for s in range(3))
    likeness = sum(r[s] * torch.cosine_similarity(guess, teacher.mixed(x[made[s]])[1]) for s in range(3)).mean()
    loss = -0.3 * hard + 0.7 * likeness if adversarial else hard
    mixed, blended = classifier.mixed(for_classifier)[1], classifier.mixed(sum(r[s] * x[used[s]] for s in range(3)))[1]
    for s in range(3):
        loss = loss + r[s] * (entropy(mixed, y[used[s]]) + entropy(blended, y[used[s]]) / 2)
    (loss + entropy(classifier(x), y) / 2).backward()
    for ours, theirs in ((found.classifier, classifier), (found.mixer, mixer)):
        for weight, start in zip(ours.parameters(), theirs.parameters(), strict=True):
            expected = start - 0.2 * (start.grad + 0.01 * start)
            torch.testing.assert_close(weight, expected, rtol=1e-4, atol=1e-6)
    assert float(mixer.value.weight.grad.abs().max()) > 1e-4
    for old, start, new in zip(found.teacher.parameters(), teacher.parameters(), found.classifier.parameters()):
        torch.testing.assert_close(old, (start + new) / 2)
    assert not any(weight.requires_grad for weight in found.teacher.parameters())
    batches = [part.backbone.layers[1].num_batches_tracked.item() for part in (found.classifier, found.teacher)]
    assert batches == [3, 1]  # clean, blended, mixed; clean alone


def test_the_mixer_s_loss_alternates() -> None:
    """With beta 1 it is minus a cross-entropy in even steps, and a cross-entropy in odd ones."""
    assert [line["mixer"] < 0 for line in train(beta=1.0, steps=8).curve] == [True, False] * 4
    assert all(line["mixer"] > 0 for line in train(beta=1.0, steps=8, adversarial=False).curve)


def test_two_images_a_mix_and_ratios_of_their_own() -> None:
    images = pictures(4)[0]
    plain = train(steps=5)
    for changed in ({"samples": 2}, {"shared_ratios": False}, {"with_ratios": True}, {"adversarial": False}):
        found = train(steps=5, **changed)
        assert torch.isfinite(found.classifier(images)).all()
        assert not torch.equal(found.classifier(images), plain.classifier(images)), changed


def test_stops_at_the_deadline_and_reports() -> None:
    seen: list[tuple[int, int, str]] = []
    found = train(context=Context(deadline=time.monotonic() - 1, progress=lambda *line: seen.append(line)))
    assert len(found.curve) == 1
    assert seen == [(1, 30, "training on mixed images")]


def test_a_timm_network_s_stage() -> None:
    import timm

    torch.manual_seed(0)
    backbone = TimmStage(timm.create_model("resnet18", num_classes=0, in_chans=1), stage=3)
    images, labels = torch.randn(4, 1, 32, 32), torch.tensor([0, 1, 0, 1])
    assert backbone_widths(backbone, images) == (256, 512)
    assert backbone(images)[0].shape == (4, 256, 2, 2)
    found = adautomix(backbone, images, labels, classes=2, steps=2, batch_size=4)
    assert found.classifier(images).shape == (4, 2)


@pytest.mark.parametrize(
    ("option", "value"),
    [("steps", 0), ("batch_size", 1), ("samples", 1), ("alpha", 0.0), ("beta", 1.1), ("margin", 0.5),
     ("momentum", (0.9, 0.5))],
)  # fmt: skip
def test_settings_out_of_range(option: str, value: object) -> None:
    with pytest.raises(SettingError, match=option):
        train(**{option: value})


def test_data_that_do_not_fit() -> None:
    images, labels = pictures(8)
    for pixels, codes in ((images.byte(), labels), (images[:, 0], labels), (images, labels[:-1])):
        with pytest.raises(DataError, match="images are"):
            adautomix(Tiny(), pixels, codes, classes=2, steps=1)
    with pytest.raises(DataError, match=r"0\.\.1"):
        adautomix(Tiny(), images, labels, classes=1, steps=1)
    with pytest.raises(SettingError, match="TimmStage"):
        adautomix(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), images, labels, classes=2, steps=1)
    with pytest.raises(DataError, match="not finite"):
        adautomix(Tiny(), images * float("inf"), labels, classes=2, steps=1, batch_size=8)
