"""Reductions of symmetric matrices on one BLAS thread.

Half of their work is matrix-vector products, which wait for memory: a second thread gains little and spins, and on
a busy machine it made them 20 times slower. Large matrix products outside keep all threads.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from scipy.linalg import blas, lapack
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


def gram(rows: Array) -> Array:
    """(D, D) float64 rows' rows in Fortran order, its lower triangle only. rows: (N, D) float64, C-contiguous."""
    product: Array = blas.dsyrk(1.0, rows.T, lower=1)
    return product


def tridiagonal(matrix: Array, right: Array) -> tuple[Array, Array, Array]:
    """T = Q' matrix Q with orthogonal Q: T's diagonal (K,) and off-diagonal (K - 1,), and Q' right (K, C).

    matrix: (K, K) float64 in Fortran order; its lower triangle is read, and it is overwritten. Costs 4/3 K^3, a fifth
    of `eigh` with its vectors.
    """
    size = len(matrix)
    if size == 1:
        return matrix[0].copy(), np.zeros(0), right.copy()
    with blas_threads():
        work = 24 * size  # blocks of 24 reflectors: up to 5% faster than LAPACK's own 32 below 1,024 rows (measured)
        reflectors, diagonal, off, tau, _ = lapack.dsytrd(matrix, lower=1, lwork=work, overwrite_a=1)
        # Q leaves the first coordinate alone; its reflectors lie below the diagonal. Seen from there on in memory they
        # are a matrix whose last row is the first one's upper triangle: with zeros in it, nothing has to be copied.
        reflectors[0, 1:] = 0.0
        below = reflectors.ravel(order="K")[1 : 1 + size * (size - 1)].reshape(size, size - 1, order="F")
        rotated = np.zeros((size, right.shape[1]), order="F")
        rotated[:-1] = right[1:]
        found = lapack.dormqr("L", "T", below, tau, rotated, lwork=64 * right.shape[1], overwrite_c=1)[0]
        rotated = np.empty(right.shape)
        rotated[0], rotated[1:] = right[0], found[:-1]
    return diagonal, off, rotated
