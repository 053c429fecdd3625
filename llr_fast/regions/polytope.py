"""Convex polytopes {u : a_k.u <= s_k}, rows a_k of length 1: distances from the origin, facets, centres."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import scipy  # whose parts are imported when they are used

from llr_fast import norms

THIN = 1e-9  # of the size of what is looked at: what is thinner may be made by rounding
_SLACK = 1e-8  # the same of solvers, by how much they may leave a halfspace


class Polytope(NamedTuple):
    """Halfspaces a @ u <= s with rows of length 1: normals [N, D], offsets [N], float64."""

    normals: np.ndarray
    offsets: np.ndarray

    def with_plane(self, i: int) -> Polytope:
        """Its face on the plane of row i."""
        return Polytope(np.vstack([self.normals, -self.normals[i]]), np.append(self.offsets, -self.offsets[i]))

    def coplanar(self, i: int, size: float) -> np.ndarray:
        """[N] bool: which rows have the plane of row i, from either side, up to rounding."""
        cosine = self.normals @ self.normals[i]
        gap = np.abs(self.offsets - np.sign(cosine) * self.offsets[i])
        apart = np.linalg.norm(self.normals - np.sign(cosine)[:, None] * self.normals[i], axis=1)
        same: np.ndarray = (apart <= THIN) & (gap <= THIN * size)
        same[i] = True
        return same


class Nearest(NamedTuple):
    """A lower bound of the distance of a polytope from the origin, and the point found there, None where there is none.

    The bound holds whatever the solver did: it is that of the multipliers w >= 0 which it found, since w.(a u) <= w.s
    for all u of the polytope. It is infinite where they prove that there is no such u.
    """

    bound: float
    point: np.ndarray | None


def length(u: np.ndarray, p: float) -> float:
    return float(np.linalg.norm(u, p))


def nearest(polytope: Polytope, p: float) -> Nearest:
    """The point of the polytope that is nearest to the origin in l_p."""
    violated = float(-polytope.offsets.min(initial=0.0))
    if not violated:
        return Nearest(0.0, np.zeros(polytope.normals.shape[1]))
    scaled = Polytope(polytope.normals, polytope.offsets / violated)
    multipliers, u = _by_least_squares(scaled) if p == 2 else _by_program(scaled, p)
    bound = 0.0 if multipliers is None else violated * _dual_bound(scaled, multipliers, p)
    inside = u is not None and (scaled.normals @ u - scaled.offsets).max() <= _SLACK * max(1.0, float(np.abs(u).max()))
    return Nearest(bound, violated * u if inside and u is not None else None)


def _dual_bound(polytope: Polytope, multipliers: np.ndarray, p: float) -> float:
    shortfall = -float(multipliers @ polytope.offsets)
    pull = length(polytope.normals.T @ multipliers, norms.dual(p))
    if shortfall <= 0:
        return 0.0
    return math.inf if pull <= 1e-13 * float(multipliers.sum()) else shortfall / pull


def _by_least_squares(polytope: Polytope) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Multipliers and point in l2: least distance programming (Lawson and Hanson, 1974, chapter 23)."""
    columns = -np.vstack([polytope.normals.T, polytope.offsets])
    target = np.zeros(len(columns))
    target[-1] = 1.0
    try:
        multipliers, _ = scipy.optimize.nnls(columns, target, maxiter=20 * columns.shape[1])
    except RuntimeError:  # too many iterations
        return None, None
    residual = columns @ multipliers - target
    return multipliers, (-residual[:-1] / residual[-1] if residual[-1] < -1e-14 else None)


def _by_program(polytope: Polytope, p: float) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The same in l1 or l_inf, by a linear program; where it has no solution, from that of the violation."""
    a, s = polytope
    size = a.shape[1]
    if p == 1:  # u is the difference of two vectors that are not negative
        found = scipy.optimize.linprog(np.ones(2 * size), np.hstack([a, -a]), s, method="highs")
        point = None if found.x is None else found.x[:size] - found.x[size:]
    else:  # the last variable is the length
        one = np.ones((size, 1))
        box = np.vstack([np.hstack([np.eye(size), -one]), np.hstack([-np.eye(size), -one])])
        rows = np.vstack([np.hstack([a, np.zeros((len(a), 1))]), box])
        cost = np.append(np.zeros(size), 1.0)
        limits = [(None, None)] * size + [(0, None)]
        found = scipy.optimize.linprog(cost, rows, np.append(s, np.zeros(2 * size)), bounds=limits, method="highs")
        point = None if found.x is None else found.x[:-1]
    if found.status == 0:
        return np.maximum(-found.ineqlin.marginals[: len(a)], 0.0), point
    rows = np.hstack([a, -np.ones((len(a), 1))])  # the smallest violation of all halfspaces is its last variable
    limits = [(None, None)] * size + [(0, None)]
    found = scipy.optimize.linprog(np.append(np.zeros(size), 1.0), rows, s, bounds=limits, method="highs")
    return (np.maximum(-found.ineqlin.marginals, 0.0) if found.status == 0 else None), None


def inside_of_facet(polytope: Polytope, i: int, near: np.ndarray, size: float) -> np.ndarray | None:
    """A point of the polytope on the plane of row i that no other plane touches, not far from `near` if that is one.

    None where there is none: the halfspace touches the polytope in a lower dimension or not at all. `size` is that of
    what is looked at.
    """
    a, s = polytope
    others = ~polytope.coplanar(i, size)
    foot: np.ndarray = near - (a[i] @ near - s[i]) * a[i]
    if (s[others] - a[others] @ foot).min(initial=math.inf) > 1e-3 * size:
        return foot
    return _deepest(Polytope(a[others], s[others]), foot, size, plane=(a[i], s[i]))


def _deepest(polytope: Polytope, near: np.ndarray, size: float, plane: tuple[np.ndarray, float]) -> np.ndarray | None:
    """A point of the plane far from all planes of the polytope, by at most `size`; in a box around `near` if one is."""
    a, s = polytope
    cost = np.append(np.zeros(a.shape[1]), -1.0)
    rows = np.hstack([a, np.ones((len(a), 1))])
    normal, offset = plane
    on = {"A_eq": np.append(normal, 0.0)[None], "b_eq": [(offset - normal @ near) / size]}
    shifted = (s - a @ near) / size
    for reach in (10.0, math.inf):
        limits = [(-reach, reach)] * a.shape[1] + [(None, 1.0)]
        found = scipy.optimize.linprog(cost, rows, shifted, **on, bounds=limits, method="highs")
        if found.status == 0 and found.x[-1] > THIN:
            deepest: np.ndarray = near + size * found.x[:-1]
            return deepest
    return None


def chebyshev(polytope: Polytope) -> tuple[np.ndarray, float]:
    """Centre [D] and radius of a largest l2 ball in the polytope; the radius is infinite where there is none."""
    a, s = polytope
    cost = np.append(np.zeros(a.shape[1]), -1.0)
    if len(a):
        limits = [(None, None)] * a.shape[1] + [(0, None)]
        found = scipy.optimize.linprog(cost, np.hstack([a, np.ones((len(a), 1))]), s, bounds=limits, method="highs")
        if found.status == 0:
            return found.x[:-1], float(found.x[-1])
    return np.zeros(a.shape[1]), math.inf
