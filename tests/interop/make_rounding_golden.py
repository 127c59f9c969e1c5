"""The steps of rounding with second moments, stated in float64 numpy, on one small matrix. Writes tests/golden/rounding.safetensors.

usage: make_rounding_golden.py OUT

A matrix `weights` (24 x 256, groups of 128, symmetric int4) with the second moments of its inputs: `moments` is the mean of x x^T over the
inputs of a partly quantized model, `cross` the mean of (x' - x) x^T, x' being those of the unquantized model, `residual` the mean of
(r' - r) x^T, r being the stream that the outputs are added to. Results: `target`, the matrix that is rounded; `scales.search`, `codes.search`
(to nearest) and `codes.feedback` (with errors fed back); `scales.descent`, `codes.descent`. The metadata hold the errors tr(D H D^T) of each.
The same matrix rounded with the metric of its outputs: `gradients` is the mean of g g^T over gradients g of the outputs; `codes.both` (with errors
fed back to columns and rows), `scales.whole` and `codes.whole` (the descent of the whole matrix); the errors tr(G D H D^T) are those of `both.*`.
An implementation in F32 may choose other codes if a decision is within rounding of a tie.
"""
import sys

import numpy as np
from safetensors.numpy import save_file

GROUP, QMIN, QMAX = 128, -8, 7
DAMP, TARGET_DAMP, OUTPUT_DAMP = 0.05, 0.01, 0.1


def bf16(x):
    bits = np.asarray(x, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return rounded.astype(np.uint32).view(np.float32).astype(np.float64)


def code(x):
    return np.clip(np.rint(x), QMIN, QMAX)


def damped(H, share):
    return H + share * H.diagonal().mean() * np.eye(len(H))


def target(W, H, E, R):
    """argmin |(W x' + r') - (T x + r)|^2 + lambda |T - W|^2."""
    return W + np.linalg.solve(damped(H, TARGET_DAMP), (W @ E + R).T).T


def search(T, weights):
    """For each row and group the scale with the least error, each column counting by the part of its error that no other can make good."""
    S = np.full((len(T), T.shape[1] // GROUP), 2.0**-7)
    for i, g in np.ndindex(S.shape):
        w, v = (x[..., g * GROUP : (g + 1) * GROUP] for x in (T[i], weights))
        least = np.inf
        for k in range(61):
            scale = float(bf16(np.float32((0.5 + 0.01 * k) * np.abs(w).max() / 7.5)))
            if scale == 0:
                continue
            error = (v * (w - scale * code(w / scale)) ** 2).sum()
            if error < least:
                least, S[i, g] = error, scale
    return S


def feedback(T, H, S):
    """Column by column, those with the strongest inputs first; each error is passed on to the columns that are left. Groups stay in place."""
    order = np.argsort(-H.diagonal(), kind="stable")
    U = np.linalg.cholesky(np.linalg.inv(H[np.ix_(order, order)])).T
    left, Q = T[:, order].copy(), np.empty_like(T)
    for j, column in enumerate(order):
        scale = S[:, column // GROUP]
        q = code(left[:, j] / scale)
        Q[:, column] = q
        left[:, j + 1 :] -= np.outer((left[:, j] - q * scale) / U[j, j], U[j, j + 1 :])
    return Q


def refit(Q, S, P, H):
    """Each group's scale anew, if its rounded value lessens the error."""
    changed = 0
    for i, g in np.ndindex(S.shape):
        part = slice(g * GROUP, (g + 1) * GROUP)
        c = Q[i, part]
        h = c @ H[part]
        a, b = h[part] @ c, P[i, part] @ c
        if a <= 0:
            continue
        scale = float(bf16(np.float32(S[i, g] - b / a)))
        step = scale - S[i, g]
        if step == 0 or scale == 0 or scale * S[i, g] < 0 or step * b + 0.5 * step * step * a >= 0:
            continue
        S[i, g] = scale
        P[i] += step * h
        changed += 1
    return changed


def descent(Q, S, P, H):
    """Each code anew, given all others, if that lessens the error."""
    changed = 0
    for j in range(Q.shape[1]):
        scale, k = S[:, j // GROUP], H[j, j]
        q = code(Q[:, j] - P[:, j] / (k * scale))
        step = (q - Q[:, j]) * scale
        step[step * P[:, j] + 0.5 * k * step * step >= 0] = 0
        moved = step != 0
        Q[moved, j] = q[moved]
        P += np.outer(step, H[j])
        changed += int(moved.sum())
    return changed


def upper(M, order):
    return np.linalg.cholesky(np.linalg.inv(M[np.ix_(order, order)])).T


def feedback_of_both(T, H, G, S):
    """Row by row, each as in `feedback`; what a row could not make good is passed on to the rows that are left."""
    columns, rows = (np.argsort(-M.diagonal(), kind="stable") for M in (H, G))
    UH, UG = upper(H, columns), upper(G, rows)
    left, Q = T[np.ix_(rows, columns)].copy(), np.empty_like(T)
    for i, row in enumerate(rows):
        own, errors = left[i].copy(), np.empty(len(columns))
        for j, column in enumerate(columns):
            scale = S[row, column // GROUP]
            Q[row, column] = code(own[j] / scale)
            error = own[j] - Q[row, column] * scale
            errors[j] = error / (UG[i, i] * UH[j, j])
            own[j + 1 :] -= error / UH[j, j] * UH[j, j + 1 :]
        left[i + 1 :] -= np.outer(UG[i, i + 1 :], errors @ UH)
    return Q


def refit_of_both(Q, S, P, H, G):
    changed = 0
    for i in range(len(Q)):
        slopes = G[i] @ P
        for g in range(S.shape[1]):
            part = slice(g * GROUP, (g + 1) * GROUP)
            h = Q[i, part] @ H[part]
            a, b = G[i, i] * (h[part] @ Q[i, part]), slopes[part] @ Q[i, part]
            if a <= 0:
                continue
            scale = float(bf16(np.float32(S[i, g] - b / a)))
            step = scale - S[i, g]
            if step == 0 or scale == 0 or scale * S[i, g] < 0 or step * b + 0.5 * step * step * a >= 0:
                continue
            S[i, g] = scale
            P[i] += step * h
            slopes += G[i, i] * step * h
            changed += 1
    return changed


def descent_of_both(Q, S, P, H, G):
    changed = 0
    for j in range(Q.shape[1]):
        slopes, scale = G @ P[:, j], S[:, j // GROUP]
        for i in range(len(Q)):
            k = G[i, i] * H[j, j]
            q = code(Q[i, j] - slopes[i] / (k * scale[i]))
            step = (q - Q[i, j]) * scale[i]
            if step != 0 and step * slopes[i] + 0.5 * k * step * step < 0:
                Q[i, j] = q
                P[i] += step * H[j]
                slopes += step * H[j, j] * G[:, i]
                changed += 1
    return changed


def main():
    rng = np.random.default_rng(1)
    r, c, n = 24, 256, 1024
    A = rng.standard_normal((c, c)) / 16 + np.diag(np.exp(rng.standard_normal(c)))
    unquantized = rng.standard_normal((n, c)) @ A
    inputs = unquantized + 0.05 * rng.standard_normal((n, c)) @ A
    W = bf16(0.05 * rng.standard_normal((r, c))).reshape(r, c)
    streams = 0.02 * rng.standard_normal((n, r))
    single = lambda x: x.astype(np.float32).astype(np.float64)
    H, R = single(inputs.T @ inputs / n), single(streams.T @ inputs / n)
    E = single(unquantized.T @ inputs / n) - H
    gradients = rng.standard_normal((200, r)) @ (rng.standard_normal((r, r)) / 5 + np.diag(np.exp(0.5 * rng.standard_normal(r))))
    G = single(gradients.T @ gradients / 200)

    T = target(W, H, E, R)
    Hd = damped(H, DAMP)
    S = search(T, 1 / np.linalg.inv(Hd).diagonal())
    wide = lambda S: np.repeat(S, GROUP, 1)
    error = lambda Q, S: float((((Q * wide(S) - T) @ Hd) * (Q * wide(S) - T)).sum())
    out = {"weights": W, "moments": H, "cross": E, "residual": R, "target": T, "scales.search": S}
    nearest = code(T / wide(S))
    Q = feedback(T, Hd, S)
    errors = {"nearest": error(nearest, S), "feedback": error(Q, S)}
    codes = {"codes.search": nearest, "codes.feedback": Q.copy()}
    searched, S = S, S.copy()
    for _ in range(4):
        P = (Q * wide(S) - T) @ Hd
        changed = sum(refit(Q, S, P, Hd) for _ in range(2))
        P = (Q * wide(S) - T) @ Hd
        for _ in range(10):
            moved = descent(Q, S, P, Hd)
            changed += moved
            if not moved:
                break
        if not changed:
            break
    errors["descent"] = error(Q, S)
    out["scales.descent"], codes["codes.descent"] = S, Q

    Gd = damped(G, OUTPUT_DAMP)
    both = lambda Q, S: float(((Gd @ (Q * wide(S) - T) @ Hd) * (Q * wide(S) - T)).sum())
    S = searched.copy()
    Q = feedback_of_both(T, Hd, Gd, S)
    errors |= {"both.nearest": both(nearest, S), "both.feedback": both(Q, S)}
    codes["codes.both"] = Q.copy()
    for _ in range(3):
        P = (Q * wide(S) - T) @ Hd
        changed = refit_of_both(Q, S, P, Hd, Gd)
        P = (Q * wide(S) - T) @ Hd
        for _ in range(4):
            moved = descent_of_both(Q, S, P, Hd, Gd)
            changed += moved
            if not moved:
                break
        if not changed:
            break
    errors["both.whole"] = both(Q, S)
    out["gradients"], out["scales.whole"], codes["codes.whole"] = G, S, Q
    tensors = {name: np.ascontiguousarray(x, dtype=np.float32) for name, x in out.items()}
    tensors |= {name: np.ascontiguousarray(x, dtype=np.int8) for name, x in codes.items()}
    save_file(tensors, sys.argv[1], {f"error.{name}": repr(x) for name, x in errors.items()})
    print(errors)


if __name__ == "__main__":
    main()
