"""The specification, in plain loops and float64: RNN-T losses and distillation terms.

Nothing here is fast or clever, and nothing comes from the package under test.  A lattice
is the list of all its paths; a path is the list of (t, s, kind) that it reads, kind being
"label" or "blank".  Tensors are used for their autograd only, so that gradients can be
compared as well.

    logits    (B, T, s_range, C), kept nodes only; k-th kept node of frame t is s = ranges[b][t][k]
    symbols   list of lists, without padding; their lengths are S_b
    ranges    nested list or tensor (B, T, s_range)
    frames    list of T_b
"""

import math

import torch


def joiner_logits(am, lm, weight, bias, ranges, activation=torch.tanh):
    """(B, T, s_range, C); am (B, T, J), lm (B, S + 1, J), each or pruned to (B, T, s_range, J); bias (C,) or None."""

    def at(b, t, k):
        am_row = am[b, t] if am.ndim == 3 else am[b, t, k]
        lm_row = lm[b, int(ranges[b][t][k])] if lm.ndim == 3 else lm[b, t, k]
        hidden = activation(am_row + lm_row)
        logits = torch.stack([(row * hidden).sum() for row in weight])
        return logits if bias is None else logits + bias

    return torch.stack(
        [
            torch.stack([torch.stack([at(b, t, k) for k in range(len(ranges[b][t]))]) for t in range(len(ranges[b]))])
            for b in range(len(ranges))
        ]
    )


def posteriors(logits, label, blank):
    """Log-probabilities of blank, of the label and of the rest at one node; None for a class that is empty.

    logits: (C,); ``label`` None where no symbol arc leaves.
    """
    total = log_add(list(logits))
    others = [logits[c] for c in range(len(logits)) if c not in (blank, label)]
    return (
        logits[blank] - total,
        None if label is None else logits[label] - total,
        log_add(others) - total if others else None,
    )


def hat(logits, blank):
    """Log-probabilities of HAT (arXiv 2003.07705), shaped like ``logits`` (B, T, s_range, C); logits of themselves.

    p(blank) = 1 / (1 + exp(-its logit)); any other symbol has its share of 1 - p(blank), by a softmax without blank.
    """

    def at(node):
        others = log_add([node[c] for c in range(len(node)) if c != blank])
        log_blank, log_not_blank = -(1 + (-node[blank]).exp()).log(), -(1 + node[blank].exp()).log()
        return torch.stack([log_blank if c == blank else log_not_blank + node[c] - others for c in range(len(node))])

    return torch.stack([at(node) for node in logits.reshape(-1, logits.shape[-1])]).reshape(logits.shape)


def all_paths(num_symbols, num_frames, rnnt_type, is_kept=lambda t, s: True):
    """Every path from (t, s) = (0, 0) to (T_b, S_b), as lists of (t, s, kind)."""

    def extend(t, s):
        if t == num_frames:
            if s == num_symbols:
                yield []
            return
        if not is_kept(t, s):
            return
        for rest in extend(t + 1, s):
            yield [(t, s, "blank")] + rest
        if s == num_symbols:
            return
        if rnnt_type == "regular":
            for rest in extend(t, s + 1):
                yield [(t, s, "label")] + rest
        elif rnnt_type == "modified":
            for rest in extend(t + 1, s + 1):
                yield [(t, s, "label")] + rest
        elif rnnt_type == "constrained":
            if is_kept(t, s + 1):
                for rest in extend(t + 1, s + 1):
                    yield [(t, s, "label"), (t, s + 1, "blank")] + rest

    return list(extend(0, 0))


def log_add(values):
    """log of the sum of exp(values); a list of 0-dim tensors."""
    values = torch.stack(values)
    largest = values.detach().max()
    return largest + (values - largest).exp().sum().log()


def path_scores(paths, log_prob, num_frames, delay_penalty=0.0):
    """Log-probability of each path; ``log_prob(t, s, kind)`` is one posterior."""
    scores = []
    for path in paths:
        score = torch.zeros((), dtype=torch.float64)
        for t, s, kind in path:
            score = score + log_prob(t, s, kind)
            if kind == "label":
                score = score + delay_penalty * ((num_frames - 1) / 2 - t)
        scores.append(score)
    return scores


def _log_prob_of(logits, symbols, ranges, b, blank):
    """(t, s, kind) -> log-probability on the kept nodes of utterance b."""

    def log_prob(t, s, kind):
        k = [int(x) for x in ranges[b][t]].index(s)
        row = logits[b, t, k]
        return row[symbols[b][s] if kind == "label" else blank] - log_add(list(row))

    return log_prob


def _kept_paths(symbols, ranges, frames, b, rnnt_type):
    return all_paths(len(symbols[b]), frames[b], rnnt_type, lambda t, s: s in [int(x) for x in ranges[b][t]])


def rnnt_losses_pruned(logits, symbols, ranges, blank, frames, rnnt_type="regular", delay_penalty=0.0):
    """(B,) losses on the kept nodes."""
    losses = []
    for b in range(len(symbols)):
        paths = _kept_paths(symbols, ranges, frames, b, rnnt_type)
        log_prob = _log_prob_of(logits, symbols, ranges, b, blank)
        losses.append(-log_add(path_scores(paths, log_prob, frames[b], delay_penalty)))
    return torch.stack(losses)


def alignment_entropies(logits, symbols, ranges, blank, frames, rnnt_type="regular"):
    """(B,): -log of the probability that two paths, drawn independently, are the same."""
    entropies = []
    for b in range(len(symbols)):
        log_prob = _log_prob_of(logits, symbols, ranges, b, blank)
        scores = path_scores(_kept_paths(symbols, ranges, frames, b, rnnt_type), log_prob, frames[b])
        total = log_add(scores)
        entropies.append(-sum(((score - total).exp() ** 2 for score in scores), torch.zeros(())).log())
    return torch.stack(entropies)


def rnnt_losses_smoothed(
    lm, am, symbols, blank, frames, lm_only_scale, am_only_scale, rnnt_type="regular", delay_penalty=0.0
):
    """(B,) losses of the additive joiner; lm (B, S + 1, C), am (B, T, C), padding included."""
    B, S1, C = lm.shape
    unigram = torch.zeros(C, dtype=torch.float64)
    for b in range(B):
        for s in range(S1):
            total = log_add(list(lm[b, s]))
            unigram = unigram + (lm[b, s] - total).exp() / (B * S1)
    log_unigram = unigram.log()

    losses = []
    for b in range(B):

        def log_prob(t, s, kind):
            c = symbols[b][s] if kind == "label" else blank
            joint = am[b, t] + lm[b, s]
            am_only = am[b, t] + log_unigram
            return (
                (1 - lm_only_scale - am_only_scale) * (joint[c] - log_add(list(joint)))
                + lm_only_scale * (lm[b, s, c] - log_add(list(lm[b, s])))
                + am_only_scale * (am_only[c] - log_add(list(am_only)))
            )

        paths = all_paths(len(symbols[b]), frames[b], rnnt_type)
        losses.append(-log_add(path_scores(paths, log_prob, frames[b], delay_penalty)))
    return torch.stack(losses)


def node_reads(logits, symbols, ranges, blank, frames, b, rnnt_type, best_only=False):
    """{(t, s): expected number of reads} over all paths, or on the best one."""
    paths = _kept_paths(symbols, ranges, frames, b, rnnt_type)
    log_prob = _log_prob_of(logits.detach(), symbols, ranges, b, blank)
    scores = [float(score) for score in path_scores(paths, log_prob, frames[b])]
    best = max(scores)
    if best_only:
        shares = [1.0 if i == scores.index(best) else 0.0 for i in range(len(paths))]
    else:
        shares = [math.exp(score - best) for score in scores]
    reads = {}
    for path, share in zip(paths, shares):
        for t, s, _ in path:
            reads[t, s] = reads.get((t, s), 0.0) + share / sum(shares)
    return reads


def node_weights(weighting, logits, teacher_logits, symbols, ranges, blank, frames, b, rnnt_type="regular"):
    """{(t, s): weight}, summing to T_b + S_b."""
    num_symbols, num_frames = len(symbols[b]), frames[b]
    if weighting == "mixed":
        given = logits, teacher_logits, symbols, ranges, blank, frames, b, rnnt_type
        halves = [node_weights(half, *given) for half in ("uniform", "student-occupancy")]
        return {node: sum(half.get(node, 0.0) for half in halves) / 2 for node in halves[0]}
    if weighting == "uniform":
        weights = {(t, int(s)): 1.0 for t in range(num_frames) for s in ranges[b][t] if int(s) <= num_symbols}
    else:
        of = logits if weighting == "student-occupancy" else teacher_logits
        weights = node_reads(of, symbols, ranges, blank, frames, b, rnnt_type, best_only=weighting == "one-best")
    total = sum(weights.values())
    return {node: weight * (num_symbols + num_frames) / total for node, weight in weights.items()}


def divergence(variant, student, teacher, label, blank, class_scales=(1.0, 1.0, 1.0)):
    """KL(teacher || student) at one node; ``label`` None where no symbol arc leaves.

    student, teacher: (C,) logits.  A class's term is q log(q / p) - q + p, scaled.
    """
    p = [(x - log_add(list(student))).exp() for x in student]
    q = [(x - log_add(list(teacher))).exp() for x in teacher]
    classes = [[c] for c in range(len(p))]
    if variant == "collapsed":
        kept = [blank] if label is None else [blank, label]
        classes = [[c] for c in kept] + [[c for c in range(len(p)) if c not in kept]]
    value = 0.0
    for members in classes:
        if not members:
            continue
        scale = class_scales[0 if members == [blank] else 1 if members == [label] else 2]
        p_class, q_class = sum(p[c] for c in members), sum(q[c] for c in members)
        value = value + scale * (q_class * (q_class.log() - p_class.log()) - q_class + p_class)
    return value


def kd_losses(
    logits,
    teacher_logits,
    symbols,
    ranges,
    blank,
    frames,
    rnnt_type="regular",
    *,
    variant,
    weighting,
    temperature=1.0,
    class_scales=(1.0, 1.0, 1.0),
):
    """(B,) distillation terms."""
    losses = []
    for b in range(len(symbols)):
        weights = node_weights(weighting, logits, teacher_logits, symbols, ranges, blank, frames, b, rnnt_type)
        value = torch.zeros((), dtype=torch.float64)
        for (t, s), weight in weights.items():
            k = [int(x) for x in ranges[b][t]].index(s)
            label = symbols[b][s] if s < len(symbols[b]) else None
            student, teacher = logits[b, t, k] / temperature, teacher_logits[b, t, k].detach() / temperature
            value = value + weight * divergence(variant, student, teacher, label, blank, class_scales)
        losses.append(value)
    return torch.stack(losses)


def shifted_starts(starts, shift):
    """First kept positions of one utterance's T_b frames, its teacher moved ``shift`` frames later."""
    T = len(starts)
    moved = [starts[max(t - shift, 0)] for t in range(T)]
    return [max(moved[t], min(starts[t], starts[T - 1] - (T - 1 - t))) for t in range(T)]


def aligned_starts(starts, num_frames, step):
    """First kept positions of one utterance's ``num_frames`` student frames, from those of its teacher's frames."""
    aligned = [starts[min(t, len(starts) - 1)] for t in range(num_frames)]
    aligned[-1] = starts[-1]
    for t in reversed(range(num_frames - 1)):
        aligned[t] = max(aligned[t], aligned[t + 1] - step)
    return aligned


def shifted_kd_losses(
    logits, teacher_logits, symbols, teacher_ranges, blank, frames, rnnt_type="regular", *, shift, weighting,
    teacher_frames=None,
):  # fmt: skip
    """(B,) distillation terms, collapsed, from a teacher known on ``teacher_ranges`` only.

    logits (B, T, s_range, C) on the ranges fitted to ``frames`` and moved ``shift`` frames later, teacher_logits on
    ``teacher_ranges``, which have ``teacher_frames`` (None: as many as the student's).
    """
    losses = []
    for b in range(len(symbols)):
        S, T = len(symbols[b]), frames[b]
        s_range = len(teacher_ranges[b][0])
        heard = T if teacher_frames is None else teacher_frames[b]
        starts = [int(teacher_ranges[b][t][0]) for t in range(heard)]
        starts = shifted_starts(aligned_starts(starts, T, s_range - 1 if rnnt_type == "regular" else 1), shift)
        ranges = {b: [[starts[t] + k for k in range(s_range)] for t in range(T)]}

        def known(t, s):
            """The teacher's log-probabilities at the student's node, or None."""
            before = max(t - shift, 0)
            kept = [int(x) for x in teacher_ranges[b][before]] if before < heard else []
            if s not in kept:
                return None
            return posteriors(
                teacher_logits[b, before, kept.index(s)].detach(), symbols[b][s] if s < S else None, blank
            )

        def teacher_log_prob(t, s, kind):
            found = known(t, s)
            return torch.tensor(math.log(0.5), dtype=torch.float64) if found is None else found[kind == "label"]

        def student(t, s):
            return posteriors(logits[b, t, s - starts[t]], symbols[b][s] if s < S else None, blank)

        def student_log_prob(t, s, kind):
            return student(t, s)[kind == "label"].detach()

        nodes = [(t, s) for t in range(T) for s in ranges[b][t] if s <= S]
        reads = dict.fromkeys(nodes, 1.0)
        if weighting != "uniform":
            of = student_log_prob if weighting in ("student-occupancy", "mixed") else teacher_log_prob
            paths = _kept_paths(symbols, ranges, frames, b, rnnt_type)
            scores = [float(score) for score in path_scores(paths, of, T)]
            best = max(scores)
            reads = dict.fromkeys(nodes, 0.0)
            for path, score in zip(paths, scores):
                share = math.exp(score - best)
                if weighting == "one-best":
                    share = float(score == best and scores.index(best) == paths.index(path))
                for t, s, _ in path:
                    reads[t, s] += share
        total = sum(reads.values())
        if weighting == "mixed":
            reads = {node: total / len(nodes) + share for node, share in reads.items()}
            total *= 2
        value = torch.zeros((), dtype=torch.float64)
        for t, s in nodes:
            teacher = known(t, s)
            if teacher is None:
                continue  # nothing to compare with; the other nodes' weights stay
            for p, q in zip(student(t, s), teacher):
                if q is not None:
                    value = value + reads[t, s] * (S + T) / total * q.exp() * (q - p)
        losses.append(value)
    return torch.stack(losses)
