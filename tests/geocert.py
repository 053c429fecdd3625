"""GeoCert for one hidden layer of ReLU and l2, as in Jordan, Lewis and Dimakis (2019): regions are sign vectors.

It shares nothing with the library: the neighbour across a facet has one sign flipped, and projections are solved in
their dual by a bounded quasi-Newton method.
"""

import heapq

import numpy as np
from scipy.optimize import minimize


def project(x, rows, bounds, equal):
    """The nearest point to x with rows @ v <= bounds, in row `equal` with equality; None where there is none.

    By the dual: over multipliers m, m >= 0 but for the equality, the maximum of m.(rows x - bounds) - |rows^T m|^2 / 2.
    """
    gap = rows @ x - bounds

    def dual(m):
        pull = rows.T @ m
        return 0.5 * pull @ pull - m @ gap, rows @ pull - gap

    limits = [(None, None) if i == equal else (0, None) for i in range(len(rows))]
    options = {"maxiter": 5000, "maxfun": 50000, "ftol": 1e-16, "gtol": 1e-11, "maxcor": 50}
    found = minimize(dual, np.zeros(len(rows)), jac=True, method="L-BFGS-B", bounds=limits, options=options)
    v = x - rows.T @ found.x
    violation = max((rows @ v - bounds).max(), abs(rows[equal] @ v - bounds[equal]))
    return v if violation < 1e-5 else None


def distance(w1, b1, w2, b2, x):
    """The distance of x from the nearest input of another class, and how many regions were visited."""
    label = int(np.argmax(w2 @ np.maximum(w1 @ x + b1, 0) + b2))
    norm = np.linalg.norm(w1, axis=1)
    w, b = w1 / norm[:, None], b1 / norm
    best, ties, visited = np.inf, 0, set()
    queue = [(0.0, 0, tuple((w1 @ x + b1 > 0).tolist()))]
    while queue and queue[0][0] < best:
        _, _, signs = heapq.heappop(queue)
        if signs in visited:
            continue
        visited.add(signs)
        side = np.where(signs, -1.0, 1.0)
        rows, bounds = side[:, None] * w, -side * b
        for i in range(len(rows)):
            v = project(x, rows, bounds, i)
            if v is not None and np.linalg.norm(v - x) < best:
                ties += 1
                flipped = (*signs[:i], not signs[i], *signs[i + 1 :])
                heapq.heappush(queue, (np.linalg.norm(v - x), ties, flipped))
        active = w2 * np.array(signs)
        weight, bias = active @ w1, active @ b1 + b2
        for other in set(range(len(w2))) - {label}:
            row, bound = weight[label] - weight[other], bias[other] - bias[label]
            size = np.linalg.norm(row)
            v = project(x, np.vstack([rows, row / size]), np.append(bounds, bound / size), len(rows))
            if v is not None:
                best = min(best, np.linalg.norm(v - x))
    return best, len(visited)
