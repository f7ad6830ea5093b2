"""The loop over frames of modified beam search, compiled by numba: one utterance, one thread, float32 or float64.

Greedy search is a beam of 1.  Hypotheses are chains of nodes, one node a token, that share their beginnings.  The
first call compiles; the result is kept beside this file for later processes, or in the user's cache folder.
"""

import math

import numpy as np
from numba import njit

FUSE = {"contract"}  # multiply and add in one instruction where there is one
ANY_ORDER = {"contract", "reassoc", "nsz"}
MAGIC = 6755399441055744.0  # 1.5 * 2**52: added to a small x, it leaves round(x) in the lowest bits
LOG2_E, LN2_HIGH, LN2_LOW = 1.4426950408889634, 0.6931471803691238, 1.9082149292705877e-10
FACTORS = tuple(1.0 / math.factorial(power) for power in range(14))  # exp's series: 4e-18 for |x| <= ln(2) / 2


def _kept(function):
    try:
        return njit(cache=True, error_model="numpy")(function)
    except RuntimeError:  # no folder where it could be kept
        return njit(error_model="numpy")(function)


@njit(error_model="numpy", fastmath=FUSE)
def _exp(x, powers, count):
    """exp in place of ``count`` float64 numbers up to 0, those below -700 as -700; ``powers`` is overwritten."""
    for i in range(count):
        value = max(x[i], -700.0)
        shifted = value * LOG2_E + MAGIC
        power = shifted - MAGIC
        r = (value - power * LN2_HIGH) - power * LN2_LOW
        high = FACTORS[13] * r + FACTORS[12]
        high = (((high * r + FACTORS[11]) * r + FACTORS[10]) * r + FACTORS[9]) * r + FACTORS[8]
        high = (((high * r + FACTORS[7]) * r + FACTORS[6]) * r + FACTORS[5]) * r + FACTORS[4]
        x[i] = (((high * r + FACTORS[3]) * r + FACTORS[2]) * r + 1.0) * r + 1.0
        powers[i] = shifted
    bits, shifts = x.view(np.int64), powers.view(np.int64)
    for i in range(count):
        bits[i] += shifts[i] << 52


@njit(error_model="numpy", fastmath=ANY_ORDER)
def _sum(x, count):
    total = 0.0
    for i in range(count):
        total += x[i]
    return total


@njit(error_model="numpy", fastmath=FUSE)
def _affine(x, rows, weights, bias, out):
    """out[row] = bias + sum over k of x[row, k] * weights[k]; the weights of four k at a time serve all rows."""
    inner = x.shape[1]
    for row in range(rows):
        for j in range(len(bias)):
            out[row, j] = bias[j]
    whole = inner - inner % 4
    for k in range(0, whole, 4):
        w0, w1, w2, w3 = weights[k], weights[k + 1], weights[k + 2], weights[k + 3]
        for row in range(rows):
            x0, x1, x2, x3, y = x[row, k], x[row, k + 1], x[row, k + 2], x[row, k + 3], out[row]
            for j in range(len(y)):
                y[j] = y[j] + x0 * w0[j] + x1 * w1[j] + x2 * w2[j] + x3 * w3[j]
    for k in range(whole, inner):
        for row in range(rows):
            y, w0, x0 = out[row], weights[k], x[row, k]
            for j in range(len(y)):
                y[j] += x0 * w0[j]


@njit(error_model="numpy")
def _tanh_of_sum(a, b, out, work, powers):
    for i in range(len(out)):
        work[i] = -2.0 * abs(np.float64(a[i] + b[i]))
    _exp(work, powers, len(out))
    for i in range(len(out)):
        x = np.float64(a[i] + b[i])
        y = (1.0 - work[i]) / (1.0 + work[i])
        out[i] = x if x != x else (y if x > 0 else -y)


@njit(error_model="numpy")
def _equal(a, b):
    for i in range(len(a)):
        if a[i] != b[i]:
            return False
    return True


@njit(error_model="numpy")
def _embed(context, embedding, out):
    """The labels' embeddings in a row, zeros for "no label"."""
    dim = embedding.shape[1]
    for i in range(len(context)):
        label = context[i]
        for j in range(dim):
            out[i * dim + j] = embedding[max(label, 0), j] * (label >= 0)


@njit(error_model="numpy")
def _same(first, second, previous, labels):
    """Do two chains hold the same tokens?"""
    while first != second:
        if first < 0 or second < 0 or labels[first] != labels[second]:
            return False
        first, second = previous[first], previous[second]
    return True


@_kept
def search(
    am, embedding, context_weights, context_bias, predictor_weights, predictor_bias, output_weights, output_bias,
    start, blank, unk, beam, known, projected,
):  # fmt: skip
    """Search one utterance.

    Args:
      am:        (T, J), the encoder's side of the joiner.
      embedding: (C, D), of labels; weights and biases of the maps from L of them to the predictor's output, rectified,
                 from it to the joiner and from there to logits: (L D, P), (P,), (P, J), (J,), (J, C), (C,).
      start:     (L,) int64, labels before the first one; below zero: none.
      unk:       counts as blank; below zero: there is none.
      known, projected: (S, L) int64 and (S, J): contexts met so far, each in the place of its hash, and what the
                 joiner adds for them.  -2 fills ``known`` at first.
    Returns:
      scores, lengths (K,) of the hypotheses that are left, in the order of their scores before the last merging;
      tokens, frames, token log-probabilities (K, T) of each.  K is 0 where the model's output is not a number.
    """
    T, J = am.shape
    L, P, C = len(start), len(context_bias), len(output_bias)
    # hypotheses: before and after a frame
    ends, new_ends = np.full(beam, -1), np.full(beam, -1)
    scores, new_scores = np.zeros(beam), np.zeros(beam)
    lengths, new_lengths = np.zeros(beam, np.int64), np.zeros(beam, np.int64)
    contexts, new_contexts = np.empty((beam, L), np.int64), np.empty((beam, L), np.int64)
    contexts[0] = start
    live = 1
    # nodes
    room = T * beam
    previous, labels, times = np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room, np.int64)
    sure, nodes = np.empty(room), 0
    # of a frame
    chosen, parents, said = np.empty(beam), np.empty(beam, np.int64), np.empty(beam, np.int64)
    hidden, logits = np.empty((beam, J), am.dtype), np.empty((beam, C), am.dtype)
    embedded, predicted = np.empty((1, len(context_weights)), am.dtype), np.empty((1, P), am.dtype)
    work, powers = np.empty(max(J, C)), np.empty(max(J, C))
    for t in range(T):
        for slot in range(live):
            place = 0
            for i in range(L):
                place = (place * 7919 + contexts[slot, i] + 1) % len(known)
            if not _equal(known[place], contexts[slot]):
                for i in range(L):
                    known[place, i] = contexts[slot, i]
                _embed(contexts[slot], embedding, embedded[0])
                _affine(embedded, 1, context_weights, context_bias, predicted)
                for i in range(P):
                    predicted[0, i] = max(predicted[0, i], predicted[0, i] * 0)
                _affine(predicted, 1, predictor_weights, predictor_bias, projected[place : place + 1])
            _tanh_of_sum(am[t], projected[place], hidden[slot], work, powers)
        _affine(hidden, live, output_weights, output_bias, logits)
        count = 0
        for slot in range(live):
            row = logits[slot]
            largest = row[0]
            for c in range(1, C):
                largest = max(largest, row[c])
            for c in range(C):
                work[c] = np.float64(row[c]) - np.float64(largest)
            if not _sum(work, C) <= 0.0:
                return (
                    new_scores[:0],
                    lengths[:0],
                    np.empty((0, T), np.int64),
                    np.empty((0, T), np.int64),
                    np.empty((0, T)),
                )
            _exp(work, powers, C)
            log_sum = math.log(_sum(work, C))
            for c in range(C):
                log_prob = (np.float64(row[c]) - np.float64(largest)) - log_sum
                total = scores[slot] + log_prob
                if count < beam or total > new_scores[count - 1]:
                    place = min(count, beam - 1)
                    while place > 0 and total > new_scores[place - 1]:
                        new_scores[place], chosen[place] = new_scores[place - 1], chosen[place - 1]
                        parents[place], said[place] = parents[place - 1], said[place - 1]
                        place -= 1
                    new_scores[place], chosen[place], parents[place], said[place] = total, log_prob, slot, c
                    count = min(count + 1, beam)
        # continuations with the same tokens become the first of them
        kept = 0
        for i in range(count):
            parent, token = parents[i], said[i]
            end, length = ends[parent], lengths[parent]
            if token != blank and token != unk:
                previous[nodes], labels[nodes], times[nodes], sure[nodes] = end, token, t, chosen[i]
                end, length = nodes, length + 1
                nodes += 1
            first = 0
            while first < kept and not (new_lengths[first] == length and _same(new_ends[first], end, previous, labels)):
                first += 1
            if first < kept:
                high, low = max(new_scores[first], new_scores[i]), min(new_scores[first], new_scores[i])
                new_scores[first] = high + math.log1p(math.exp(low - high))
                continue
            new_scores[kept], new_ends[kept], new_lengths[kept] = new_scores[i], end, length
            grown = length - lengths[parent]
            for i in range(L):
                new_contexts[kept, i] = contexts[parent, i + grown] if i + grown < L else token
            kept += 1
        live = kept
        scores, new_scores, ends, new_ends = new_scores, scores, new_ends, ends
        lengths, new_lengths, contexts, new_contexts = new_lengths, lengths, new_contexts, contexts
    tokens, frames = np.empty((live, T), np.int64), np.empty((live, T), np.int64)
    log_probs = np.empty((live, T))
    for slot in range(live):
        node = ends[slot]
        for i in range(lengths[slot] - 1, -1, -1):
            tokens[slot, i], frames[slot, i], log_probs[slot, i] = labels[node], times[node], sure[node]
            node = previous[node]
    return scores[:live], lengths[:live], tokens, frames, log_probs
