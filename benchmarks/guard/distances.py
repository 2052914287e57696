"""Ways to measure how far an atom is from training atoms of its element; all in numpy.

Each takes training features [N, H], atomic numbers [N] and force errors [N], and gives a function
of features and numbers.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Score = Callable[[NDArray, NDArray], NDArray]


def mahalanobis(
    x: NDArray, z: NDArray, error: NDArray, components: int = 0, pooled: bool = False
) -> Score:
    """Of each element; ``pooled``: one covariance for all. ``components``: of a shared PCA."""
    kinds = np.unique(z)
    centre, spread = x.mean(0), x.std(0) + 1e-6

    def scaled(x: NDArray) -> NDArray:
        return (x - centre) / spread

    y = scaled(x)
    inside = np.concatenate([y[z == k] - y[z == k].mean(0) for k in kinds])
    shared, turn = np.cov(inside.T), np.eye(y.shape[1])
    if components:
        turn = np.linalg.eigh(shared)[1][:, ::-1][:, :components]
        shared = turn.T @ shared @ turn
    known = {}
    for k in kinds:
        mine = y[z == k] @ turn
        share = 1.0 if pooled else max(0.05, min(1.0, mine.shape[1] / len(mine)))
        own = np.cov(mine.T) if len(mine) > 2 else shared
        c = (1 - share) * own + share * shared
        c += 1e-6 * np.trace(c) / len(c) * np.eye(len(c))
        known[k] = mine.mean(0), np.linalg.inv(np.linalg.cholesky(c))

    def score(x: NDArray, z: NDArray) -> NDArray:
        y, out = scaled(x) @ turn, np.full(len(z), 1e9)
        for k, (mean, white) in known.items():
            out[z == k] = np.sqrt((((y[z == k] - mean) @ white.T) ** 2).mean(1))
        return out

    return score


def by_element(distance: Callable[..., Score], **options: object) -> Callable[..., Score]:
    """Over the 99 % quantile of training atoms of the element."""

    def make(x: NDArray, z: NDArray, error: NDArray) -> Score:
        score = distance(x, z, error, **options)
        found = score(x, z)
        unit = {k: np.quantile(found[z == k], 0.99) for k in np.unique(z)}
        return lambda x, z: score(x, z) / np.array([unit.get(k, 1.0) for k in z])

    return make


def neighbours(
    x: NDArray, z: NDArray, error: NDArray, components: int = 16, kept: int = 2048, k: int = 4
) -> Score:
    """Mean distance to the k nearest of ``kept`` training atoms, in whitened components."""
    rng = np.random.default_rng(0)
    centre, spread = x.mean(0), x.std(0) + 1e-6
    y = (x - centre) / spread
    inside = np.concatenate([y[z == e] - y[z == e].mean(0) for e in np.unique(z)])
    width, turn = np.linalg.eigh(np.cov(inside.T))
    turn = turn[:, ::-1][:, :components] / np.sqrt(width[::-1][:components] + 1e-8)
    trees = {
        e: cKDTree(rng.permutation(y[z == e] @ turn)[:kept])
        for e in np.unique(z)
        if (z == e).sum() >= k
    }

    def score(x: NDArray, z: NDArray) -> NDArray:
        y, out = (x - centre) / spread @ turn, np.full(len(z), 1e9)
        for e, tree in trees.items():
            if (z == e).any():
                out[z == e] = tree.query(y[z == e], k=k)[0].mean(1)
        return out

    return score


def itself(x: NDArray, z: NDArray, error: NDArray) -> Score:
    """The feature, if it is one number."""
    return lambda x, z: x[:, 0]


def expected_error(
    x: NDArray, z: NDArray, error: NDArray, distance: Callable[..., Score] = mahalanobis
) -> Score:
    """Distance times a regression of error over distance, for features of any kind;
    `mlpot.models.extrapolation` also averages the distance over neighbours."""
    kinds = np.unique(z)
    far = distance(x, z, error)

    def columns(x: NDArray, z: NDArray) -> NDArray:
        return np.hstack([x, (z[:, None] == kinds).astype(float)])

    a = columns(x, z)
    centre, spread = a.mean(0), a.std(0) + 1e-6
    scaled = (a - centre) / spread
    target = np.log(error + 1e-3) - np.log(far(x, z) + 1e-3)
    level = target.mean()
    w = np.linalg.solve(scaled.T @ scaled + 100.0 * np.eye(a.shape[1]), scaled.T @ (target - level))
    low, high = np.quantile(scaled @ w, [0.01, 0.99])

    def score(x: NDArray, z: NDArray) -> NDArray:
        trend = np.clip((columns(x, z) - centre) / spread @ w, low, high)
        return far(x, z) * np.exp(trend + level)

    return score
