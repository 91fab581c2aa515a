"""Scores and losses of runs on images, compared with their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sepgroupy.training import Classification, Regression, Segmentation
from sepgroupy.training._image_scores import classification_scores, regression_scores, segmentation_scores
from sepgroupy.training._objective import IGNORE, balanced_weights


def test_scores_of_a_classification() -> None:
    torch.manual_seed(0)
    chances, targets = torch.randn(60, 3).softmax(1), torch.randint(3, (60,))
    found = classification_scores(chances, targets, ("a", "b", "c"))
    p, t = chances.double().numpy(), targets.numpy()
    taken = p.argmax(1)
    recalls, f1s, areas = [], [], []
    for k, row in enumerate(found.rows):
        right = int(((taken == k) & (t == k)).sum())
        precision, recall = right / (taken == k).sum(), right / (t == k).sum()
        pairs = p[t == k, k][:, None], p[t != k, k][None]
        area = ((pairs[0] > pairs[1]) + 0.5 * (pairs[0] == pairs[1])).mean()
        f1 = 2 * precision * recall / (precision + recall)
        assert row[:2] == ("abc"[k], int((t == k).sum()))
        assert row[2:] == pytest.approx((precision, recall, f1, area), abs=1e-6)
        recalls.append(recall)
        f1s.append(f1)
        areas.append(area)
    bins = np.minimum((p.max(1) * 15).astype(int), 14)
    ece = sum(
        (bins == b).mean() * abs((taken == t)[bins == b].mean() - p.max(1)[bins == b].mean()) for b in np.unique(bins)
    )
    expected = {
        "accuracy": (taken == t).mean(),
        "balanced_accuracy": np.mean(recalls),
        "macro_auroc": np.mean(areas),
        "macro_f1": np.mean(f1s),
        "ece": ece,
    }
    assert found.metrics == pytest.approx(expected, abs=1e-6)
    assert found.confusion is not None
    assert int(found.confusion[0, 1]) == int(((t == 0) & (taken == 1)).sum())


def test_scores_of_a_regression() -> None:
    targets = torch.tensor([[1.0, 5.0], [2.0, 5.0], [6.0, 5.0]])
    found = regression_scores(targets + torch.tensor([[1.0, 0.0], [-1.0, 3.0], [0.0, 0.0]]), targets, ("x", "y"))
    assert found.rows[0] == ("x", pytest.approx(2 / 3), pytest.approx(math.sqrt(2 / 3)), pytest.approx(1 - 2 / 14))
    assert math.isnan(float(found.rows[1][3]))
    assert found.metrics["mae"] == pytest.approx((2 / 3 + 1) / 2)


def test_scores_of_a_segmentation() -> None:
    found = segmentation_scores(torch.tensor([[6, 2], [1, 3]]), ("0", "7"))
    assert found.rows[0] == ("0", 8, pytest.approx(12 / 15), pytest.approx(6 / 9))
    assert found.metrics["iou"] == pytest.approx((6 / 9 + 3 / 6) / 2)
    assert found.metrics["pixel_accuracy"] == pytest.approx(9 / 12)


def test_losses_are_their_definitions() -> None:
    torch.manual_seed(1)
    logits, classes = torch.randn(5, 3), torch.randint(3, (5,))
    weights = balanced_weights(torch.tensor([4, 2, 1]))
    assert float((weights * torch.tensor([4, 2, 1])).sum()) == pytest.approx(7)
    logs = logits.log_softmax(1)
    plain = -logs[torch.arange(5), classes]
    objective = Classification(0.3, weights)
    torch.testing.assert_close(objective.losses(logits, classes), plain)
    smoothed = 0.7 * weights[classes] * plain + 0.1 * (-(weights * logs).sum(1))
    torch.testing.assert_close(objective.loss(logits, classes), smoothed.mean())
    numbers, std = torch.randn(4, 2), torch.tensor([2.0, 0.5])
    regression = Regression(torch.zeros(2), std)
    torch.testing.assert_close(regression.losses(numbers + std, numbers), torch.ones(4))
    torch.testing.assert_close(regression.errors(numbers + std, numbers), torch.full((4,), 1.25))
    masks = torch.tensor([[[0, 1], [2, IGNORE]], [[IGNORE] * 2] * 2])
    pixels = torch.randn(2, 3, 2, 2)
    expected = -sum(pixels.log_softmax(1)[0, k, y, x] for k, y, x in ((0, 0, 0), (1, 0, 1), (2, 1, 0))) / 3
    torch.testing.assert_close(Segmentation().losses(pixels, masks), torch.stack([expected, torch.tensor(0.0)]))
    right = torch.nn.functional.one_hot(torch.tensor([[[0, 1], [1, 0]]] * 2), 3).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(Segmentation().errors(right, masks), torch.tensor([1 / 3, 0.0]))
