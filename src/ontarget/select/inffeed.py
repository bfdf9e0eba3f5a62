"""InfFeed: influence functions correct labels, and choose which machine-made labels a person should look at again.

Somnath Banerjee, Maulindu Sarkar, Punyajoy Saha, Binny Mathew, Animesh Mukherjee, "InfFeed: Influence Functions as a
Feedback to Improve the Performance of Subjective Tasks", LREC-COLING 2024, arXiv 2402.14702. Official code: not
obtained; the loop's details are choices. Influence: Koh, Liang, ICML 2017, arXiv 1703.04730; relative influence:
Barshan, Brunet, Dziugaite, AISTATS 2020, arXiv 2003.11630.
Claim: macro-F1 rises by up to 4 points on hate, stance, irony and sarcasm; correcting about 1/1000 of a silver-labelled
extension set, chosen by influence, comes close to correcting all of it.
Left out: layers below the last (they are frozen here; influence is exact for a linear head).
Checked in tests/select/test_inffeed.py (retraining without a row, a planted duplicate, finite differences) and
claims/80_inffeed.py.

For a softmax head trained with loss L and L2 penalty, H the Hessian of its training loss (damped):

    I(z, x) = grad L(x)' H^-1 grad L(z),       positive: keeping z lowers the loss at x
    relative: I(z, x) / sqrt(grad L(z)' H^-1 grad L(z)),    so that outliers of large loss do not win everywhere

>>> import numpy as np
>>> rows = np.array([[-2.0], [-1.0], [1.0], [2.0], [2.5]])
>>> labels = np.array([0, 0, 1, 1, 0])  # the last is wrong
>>> int(recheck(rows, labels, rows[:4], labels[:4])[0])
4
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from ontarget.errors import DataError, SettingError
from ontarget.values import Array

NEIGHBOURS = 20  # k: influencers that vote on a label (choice)
VOTE_MARGIN = 0.2  # m: by how much the vote must oppose the label (choice)
ROUNDS = 3  # of relabelling at most (choice)
SETTLED = 0.01  # share of labels below which a round's changes end the loop (choice)
DAMPING = 1e-3  # of the mean diagonal, added to the Hessian (choice)
LARGEST = 8000  # parameters of the head up to which the Hessian is held: 0.5 GB


@dataclass(frozen=True)
class Head:
    """A softmax head in reduced coordinates with the factor of its damped Hessian.

    weight: (C, D + 1), the bias last. l2: its penalty. factor: from scipy's cho_factor.
    """

    weight: Array
    l2: float
    factor: tuple[Array, bool]


def fit_head(features: Array, labels: Array, *, classes: int | None = None, l2: float | None = None) -> Head:
    """Multinomial logistic regression (sum of losses + l2/2 |W|^2 without the bias) and its Hessian.

    features: (N, D) float. labels: (N,) int. l2: chosen on held-out folds where None.
    Raises DataError: NaN, a single class; SettingError: more than LARGEST parameters (reduce D first).
    """
    from ontarget.adapt.tune.linear_head import linear_head
    from ontarget.adapt.tune.logistic import logistic_path

    features = np.asarray(features, dtype=np.float64)
    labels = np.asarray(labels).astype(np.int64)
    count = classes or int(labels.max()) + 1
    if len(np.unique(labels)) < 2:
        raise DataError(f"All {len(labels)} labels are {labels[0] if len(labels) else 'missing'}.")
    size = count * (features.shape[1] + 1)
    if size > LARGEST:
        raise SettingError(
            f"The head has {size:,} parameters.",
            allowed=f"at most {LARGEST:,} (classes x (features + 1))",
            next_step="reduce the features, e.g. to principal components",
        )
    if l2 is None:
        l2 = linear_head(features, labels, outputs=count, kind="classification", class_weight=None).l2
    ((_, weight, bias),) = logistic_path(features, labels, outputs=count, l2_grid=(l2,), tolerance=1e-6, iterations=500)
    full = np.concatenate([weight, bias[:, None]], axis=1)
    return Head(full, l2, cho_factor(_hessian(full, features, l2), lower=True))


def influence(
    head: Head, features: Array, labels: Array, at_features: Array, at_labels: Array, *, relative: bool = False
) -> Array:
    """(N, M) I(z, x) of training rows z on rows x: positive where keeping z lowers the loss of x.

    features: (N, D), labels: (N,) of the training rows; at_features: (M, D), at_labels: (M,) of the others.
    Source: arXiv 1703.04730, eq. 2, with the sign turned; arXiv 2003.11630, eq. 5.
    """
    gradients = loss_gradients(head, features, labels)
    solved = cho_solve(head.factor, gradients.T)  # (P, N)
    found: Array = (loss_gradients(head, at_features, at_labels) @ solved).T
    if relative:
        own = np.einsum("np,pn->n", gradients, solved)
        found /= np.sqrt(np.maximum(own, 1e-30))[:, None]
    return found


def recheck(
    features: Array,
    labels: Array,
    validation_features: Array,
    validation_labels: Array,
    *,
    candidates: Array | None = None,
    l2: float | None = None,
) -> Array:
    """Objective B: positions of training rows in the order in which a person should look at their labels again.

    A head is trained on all rows; a row's total influence on the validation rows' loss decides, most harmful first.
    candidates: positions that may be listed (the machine-labelled ones); all by default. Rows that help come last.
    Source: arXiv 2402.14702, section on silver annotation, as recalled in its terms (choice: exact last layer).
    """
    found = harm(features, labels, validation_features, validation_labels, l2=l2)
    chosen = np.arange(len(found)) if candidates is None else np.asarray(candidates)
    ordered: Array = chosen[np.argsort(-found[chosen], kind="stable")]
    return ordered


def harm(
    features: Array, labels: Array, validation_features: Array, validation_labels: Array, *, l2: float | None = None
) -> Array:
    """(N,) minus each row's total influence on the validation rows: how much their loss would fall without it."""
    labels, validation_labels = np.asarray(labels), np.asarray(validation_labels)
    classes = int(max(labels.max(), validation_labels.max())) + 1
    head = fit_head(features, labels, classes=classes, l2=l2)
    towards = loss_gradients(head, validation_features, validation_labels).sum(axis=0)
    found: Array = -loss_gradients(head, features, labels) @ cho_solve(head.factor, towards)
    return found


@dataclass(frozen=True)
class Corrected:
    """labels: (N,) int after the changes. changed: positions of rows whose label is another. rounds: how many ran.

    influencers: for each changed row, the positions of its NEIGHBOURS strongest influencers, strongest first.
    """

    labels: Array
    changed: Array
    rounds: int
    influencers: tuple[Array, ...]


def inffeed(
    features: Array,
    labels: Array,
    feedback_features: Array,
    feedback_labels: Array,
    *,
    neighbours: int = NEIGHBOURS,
    margin: float = VOTE_MARGIN,
    rounds: int = ROUNDS,
    l2: float | None = None,
) -> Corrected:
    """Objective A: correct the labels of the feedback rows by the votes of their strongest influencers.

    features, labels: training rows (N, D), (N,). feedback_features, feedback_labels: rows (M, D), (M,) whose labels may
    be wrong, never the test split; they are trained on too, with their labels of the moment, but have no vote: their
    errors would vote for each other. A training row votes for its own label if it pulls the feedback row towards it,
    with its relative influence as weight; where the vote for another label leads that for the row's own by ``margin``
    (share of the vote), the label is changed. Then the head is trained again, for at most ``rounds`` rounds, or until
    fewer than SETTLED of the labels change.
    Returns the feedback rows' labels. Report changes by class: a majority can vote a minority's reading away.
    Raises DataError, SettingError as `fit_head`; SettingError: a margin outside 0 to 1.
    """
    if not 0 <= margin <= 1:
        raise SettingError(f"margin is {margin}.", allowed="0 to 1", option="margin")
    base, base_labels = np.asarray(features, dtype=np.float64), np.asarray(labels).astype(np.int64)
    rows, given = np.asarray(feedback_features, dtype=np.float64), np.asarray(feedback_labels).astype(np.int64)
    classes = int(max(base_labels.max(), given.max())) + 1
    current, done = given.copy(), 0
    strongest: Array = np.zeros((len(rows), 0), dtype=np.int64)
    while done < rounds:
        everything, all_labels = np.concatenate([base, rows]), np.concatenate([base_labels, current])
        head = fit_head(everything, all_labels, classes=classes, l2=l2)
        l2 = head.l2  # chosen once: a penalty that moves would change labels by itself
        proposed, strongest = _voted(head, base, base_labels, rows, current, neighbours, margin)
        moved = int((proposed != current).sum())
        current, done = proposed, done + 1
        if moved < SETTLED * len(rows):
            break
    changed = np.flatnonzero(current != given)
    return Corrected(current, changed, done, tuple(strongest[row] for row in changed))


def _voted(
    head: Head, features: Array, labels: Array, rows: Array, current: Array, neighbours: int, margin: float
) -> tuple[Array, Array]:
    """New labels of the feedback rows, and which training rows influence them most, (M, k) positions."""
    found = influence(head, features, labels, rows, current, relative=True)
    own = np.arange(len(rows))
    count = min(neighbours, len(features))
    strongest = np.argsort(-np.abs(found), axis=0, kind="stable")[:count].T  # (M, k)
    votes = np.zeros((len(rows), len(head.weight)))
    for place in range(count):
        voter = strongest[:, place]
        value = found[voter, own]
        # Keeping z lowers the loss at x's label: it pulls x there. One that raises it pulls x to its own label.
        agrees = labels[voter] == current
        counts = np.where(agrees, np.maximum(value, 0.0), np.maximum(-value, 0.0))
        np.add.at(votes, (own, labels[voter]), counts)
    total = votes.sum(axis=1, keepdims=True)
    shares = np.divide(votes, total, out=np.zeros_like(votes), where=total > 0)
    best = shares.argmax(axis=1)
    opposed = shares[own, best] - shares[own, current] > margin
    return np.where(opposed & (best != current), best, current), strongest


def loss_gradients(head: Head, features: Array, labels: Array) -> Array:
    """(N, C * (D + 1)) gradients of each row's cross-entropy by the head's weights."""
    design = _with_bias(features)
    error = _softmax(design @ head.weight.T)
    error[np.arange(len(design)), np.asarray(labels).astype(np.int64)] -= 1
    return (error[:, :, None] * design[:, None, :]).reshape(len(design), -1)


def _hessian(weight: Array, features: Array, l2: float) -> Array:
    """Of the summed loss plus the penalty, damped: (C (D + 1), C (D + 1))."""
    design = _with_bias(features)
    shares = _softmax(design @ weight.T)
    classes, width = weight.shape
    found = np.zeros((classes, width, classes, width))
    for one in range(classes):
        for other in range(one, classes):
            curvature = shares[:, one] * ((one == other) - shares[:, other])
            found[one, :, other, :] = design.T @ (curvature[:, None] * design)
            if one != other:
                found[other, :, one, :] = found[one, :, other, :].T
    matrix: Array = found.reshape(classes * width, classes * width)
    penalty = np.full((classes, width), l2)
    penalty[:, -1] = 0.0
    matrix[np.diag_indices(len(matrix))] += penalty.ravel() + DAMPING * float(np.diag(matrix).mean() + l2)
    return matrix


def _with_bias(features: Array) -> Array:
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2 or not np.isfinite(features).all():
        raise DataError(f"features have shape {features.shape} or hold NaN.", allowed="(N, D) finite numbers")
    return np.concatenate([features, np.ones((len(features), 1))], axis=1)


def _softmax(logits: Array) -> Array:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    found: Array = shifted / shifted.sum(axis=1, keepdims=True)
    return found
