"""A made-up ``UtteranceLattice`` for tests: right in shape, arbitrary in its figures, the same for the same seed."""

import numpy as np

from rnnt_kd.report.lattice_data import ModelOnLattice, UtteranceLattice

TOKENS = ("\u2581", "M", "AR", "CH", "\u2581SIX", "TY")


def utterance_lattice(seed=0, T=20, tokens=TOKENS, s_range=3, student="sparse90_kd", **changed) -> UtteranceLattice:
    generator = np.random.default_rng(seed)
    S = len(tokens)
    last = max(S + 1 - s_range, 0)
    starts = np.round(np.linspace(0, last, T)).astype(np.int64)
    rows = starts[:, None] + np.arange(s_range)

    def model(name, errors, with_kl):
        shares = generator.dirichlet([0.6, 0.6, 0.6], (T, s_range))
        log_blank, log_label = np.log(shares[..., 0]), np.where(rows == S, -np.inf, np.log(shares[..., 1]))
        path, s = [], 0
        for t in range(T):
            path.append((t, s))
            while s < S and (s < starts[min(t + 1, T - 1)] or generator.random() < 0.2 and s + 1 < starts[t] + s_range):
                s += 1
                path.append((t, s))
        while s < S:
            s += 1
            path.append((T - 1, s))
        return ModelOnLattice(
            name=name,
            hyp=("MARCH", "SIX")[: 2 - errors],
            errors=errors,
            log_blank=_as_stored(log_blank, rows > S),
            log_label=_as_stored(log_label, rows > S),
            occupancy=_as_stored(generator.random((T, s_range)), rows > S),
            path=np.array(path, dtype=np.int32),
            kl=_as_stored(generator.exponential(0.5, (T, s_range)), rows > S) if with_kl else None,
            loss=float(generator.random()),
            kd=float(generator.random()) if with_kl else 0.0,
        )

    values = dict(
        utterance="spk-utt1", speaker="spk", test_set="test", search="greedy_search", chosen="gained", order=1,
        duration=0.04 * T, frame_seconds=0.04, prune_range=s_range, rnnt_type="regular", tokens=tuple(tokens),
        ref=("MARCH", "SIXTY"), starts=starts.astype(np.int32), loudness=generator.random(T).astype(np.float32),
        models={
            "teacher": model("teacher", 0, False), "twin": model("sparse90", 2, True),
            "student": model(student, 1, True),
        },
        audio=b"what a phone plays", audio_type="audio/mpeg",
    )  # fmt: skip
    return UtteranceLattice(**{**values, **changed})


def _as_stored(array, is_no_node):
    return np.where(is_no_node, np.nan, array).astype(np.float32)
