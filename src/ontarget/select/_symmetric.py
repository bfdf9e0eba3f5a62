"""Reductions of symmetric matrices on one BLAS thread.

Half of their work is matrix-vector products, which wait for memory: a second thread gains little and spins, and on
a busy machine it made them 20 times slower. Large matrix products outside keep all threads.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from scipy.linalg import lapack
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

from ontarget.values import Array

_threads = ThreadpoolController()  # finds the BLAS libraries that numpy and scipy, imported above, have loaded

SMALL = 1e9  # multiply-adds, some 0.1 s: less is done on one thread, which wastes no CPU-seconds (choice)


def blas_threads(multiply_adds: float = 0.0) -> AbstractContextManager[Any]:
    """One BLAS thread within the block if it does fewer than `SMALL` multiply-adds, else no change."""
    return _threads.limit(limits=1, user_api="blas") if multiply_adds < SMALL else nullcontext()


def eigh(matrix: Array) -> tuple[Array, Array]:
    """Eigenvalues (K,), ascending, negative rounding errors set to 0, and eigenvectors (K, K) in columns."""
    with blas_threads():
        values, vectors = np.linalg.eigh(matrix)
    return np.maximum(values, 0.0), vectors


def tridiagonal(matrix: Array, right: Array) -> tuple[Array, Array, Array]:
    """T = Q' matrix Q with orthogonal Q: T's diagonal (K,) and off-diagonal (K - 1,), and Q' right (K, C).

    matrix: (K, K) float64, C-contiguous; overwritten. Costs 4/3 K^3, a fifth of `eigh` with its vectors.
    """
    size = len(matrix)
    if size == 1:
        return matrix[0].copy(), np.zeros(0), right.copy()
    with blas_threads():
        work = 24 * size  # blocks of 24 reflectors: up to 5% faster than LAPACK's own 32 below 1,024 rows (measured)
        # matrix.T is in Fortran order without a copy, and the same matrix.
        reflectors, diagonal, off, tau, _ = lapack.dsytrd(matrix.T, lower=1, lwork=work, overwrite_a=1)
        # Q leaves the first coordinate alone; its reflectors lie below the diagonal.
        rotated = np.empty(right.shape)
        rotated[0] = right[0]
        rotated[1:] = lapack.dormqr("L", "T", reflectors[1:, :-1], tau, right[1:], lwork=64 * right.shape[1])[0]
    return diagonal, off, rotated
