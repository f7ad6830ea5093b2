"""The nodes of a pruned lattice: which exist, which symbol leaves them, whether they connect.

Everything that a distillation term has to know about the lattice apart from the
logits on it.  Shapes: B = batch, T = frames, S = symbols, s_range = kept positions.
"""

from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor

from rnnt_kd.errors import UserError


@dataclass(frozen=True)
class KeptNodes:
    """The kept nodes of a batch, checked.

    symbols:    (B, S) int64, ``termination_symbol`` in place of padding.
    ranges:     (B, T, s_range) int64, symbol position of each kept node.
    boundary:   (B, 4) int64, rows [0, 0, S_b, T_b].
    labels:     (B, T, s_range) int64, symbol on the arc s -> s + 1.  No such arc leaves
                the nodes at s = S_b: ``termination_symbol`` stands there.
    node_mask:  (B, T, s_range) bool, True where t < T_b and s <= S_b.
    num_arcs:   (B,) int64, S_b + T_b.
    use_hat_loss:  how logits on a node become posteriors, see ``lattice.node_log_probs.normalised``.
    """

    symbols: Tensor
    ranges: Tensor
    boundary: Tensor
    labels: Tensor
    node_mask: Tensor
    num_arcs: Tensor
    termination_symbol: int
    rnnt_type: str
    use_hat_loss: bool = False


def kept_nodes(
    symbols: Tensor,
    ranges: Tensor,
    termination_symbol: int,
    boundary: Optional[Tensor],
    rnnt_type: str,
    use_hat_loss: bool = False,
) -> KeptNodes:
    """Describe the lattice that ``ranges`` keep.

    ``boundary`` None means that no utterance is padded.  Padding in ``symbols`` may hold
    anything, -1 included.

    Raises:
      UserError: shapes, dtypes or devices that do not fit; ``boundary`` or ``ranges`` that lie
        outside the lattice; blank among the symbols of an utterance; no path of an utterance in
        ``ranges``, see ``_check_paths``.
    """
    _check_tensors(symbols, ranges, boundary)
    B, S = symbols.shape
    T = ranges.shape[1]
    if boundary is None:
        boundary = torch.tensor([[0, 0, S, T]], device=symbols.device).expand(B, 4).contiguous()
    else:
        _check_boundary(boundary, S, T)
    _check_ranges(ranges, S)
    _check_paths(ranges, boundary, rnnt_type)

    num_symbols = boundary[:, 2:3]  # (B, 1)
    position = torch.arange(S, device=symbols.device)
    is_symbol = position < num_symbols  # (B, S)
    _check_no_blank(symbols, is_symbol, termination_symbol)
    symbols = torch.where(is_symbol, symbols, torch.full_like(symbols, termination_symbol))
    with_last = torch.nn.functional.pad(symbols, (0, 1), value=termination_symbol)
    labels = with_last.unsqueeze(1).expand(B, T, S + 1).gather(2, ranges)

    frame = torch.arange(T, device=ranges.device).reshape(1, T, 1)
    node_mask = (frame < boundary[:, 3].reshape(B, 1, 1)) & (ranges <= num_symbols.unsqueeze(2))
    return KeptNodes(
        symbols=symbols,
        ranges=ranges,
        boundary=boundary,
        labels=labels,
        node_mask=node_mask,
        num_arcs=boundary[:, 2] + boundary[:, 3],
        termination_symbol=termination_symbol,
        rnnt_type=rnnt_type,
        use_hat_loss=use_hat_loss,
    )


def _check_tensors(symbols: Tensor, ranges: Tensor, boundary: Optional[Tensor]) -> None:
    given = {"symbols": symbols, "ranges": ranges}
    if boundary is not None:
        given["boundary"] = boundary
    problem = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in given.items())
    fits = symbols.ndim == 2 and ranges.ndim == 3 and symbols.shape[0] == ranges.shape[0] and ranges.numel() > 0
    if not fits or (boundary is not None and boundary.shape != (symbols.shape[0], 4)):
        raise UserError("transducer loss", problem, "(B, S), (B, T, s_range) and (B, 4), with a frame at least")
    for name, tensor in given.items():
        if tensor.dtype != torch.int64:
            raise UserError(name, str(tensor.dtype), "int64")
    devices = {str(tensor.device) for tensor in given.values()}
    if len(devices) > 1:
        raise UserError("transducer loss", f"{', '.join(given)} on " + " and ".join(sorted(devices)), "one device")


def _check_boundary(boundary: Tensor, S: int, T: int) -> None:
    ends = boundary[:, 2:]
    is_wrong = (boundary[:, :2] != 0) | (ends < 0) | (ends > ends.new_tensor([S, T]))
    if bool(is_wrong.any()):
        row = boundary[is_wrong.any(dim=1)][0].tolist()
        raise UserError("boundary", f"row {row}", f"[0, 0, S_b, T_b] with S_b <= {S}, T_b <= {T}")


def _check_ranges(ranges: Tensor, S: int) -> None:
    """Positions of a frame follow one another: the recursions rely on it."""
    is_wrong = (ranges < 0) | (ranges > S)
    is_wrong[:, :, 1:] |= ranges[:, :, 1:] != ranges[:, :, :-1] + 1
    if bool(is_wrong.any()):
        utterance, frame, _ = is_wrong.nonzero()[0].tolist()
        raise UserError(
            "ranges",
            f"{ranges[utterance, frame].tolist()} in frame {frame} of utterance {utterance}",
            f"consecutive symbol positions, 0 to {S}",
            "make them by get_rnnt_prune_ranges for this batch",
        )


def check_classes(nodes: KeptNodes, C: int) -> None:
    """Raises UserError where blank or a label is not one of the joiner's ``C`` classes."""
    if not 0 <= nodes.termination_symbol < C:
        raise UserError("termination symbol", str(nodes.termination_symbol), f"a class, 0 to {C - 1}")
    is_wrong = (nodes.labels < 0) | (nodes.labels >= C)
    if bool(is_wrong.any()):
        wrong = int(nodes.labels[is_wrong][0])
        raise UserError("symbols", f"symbol {wrong}", f"classes of the joiner, 0 to {C - 1}")


def _check_no_blank(symbols: Tensor, is_symbol: Tensor, termination_symbol: int) -> None:
    """Blank is no label: as one it would end its utterance's lattice in the middle."""
    is_wrong = is_symbol & (symbols == termination_symbol)
    if bool(is_wrong.any()):
        utterance, position = is_wrong.nonzero()[0].tolist()
        raise UserError(
            f"utterance {utterance} of the batch",
            f"symbol {position} is {termination_symbol}, the blank",
            "labels other than blank",
            "check blank's number, and that the text is encoded without it",
        )


def _check_paths(ranges: Tensor, boundary: Tensor, rnnt_type: str) -> None:
    """An utterance without any path has an infinite loss: say which, and why.

    ``get_rnnt_prune_ranges`` leaves none if there are more symbols than frames (where
    every arc uses up a frame) or more than ``s_range - 1`` symbols a frame, so that the
    ranges end below S_b; and with s_range 1 a "constrained" symbol arc lacks its target.
    Those of another batch may begin above 0, leap over positions, or end above S_b.
    """
    (B, T, s_range), is_regular = ranges.shape, rnnt_type == "regular"
    s_end, t_end = boundary[:, 2], boundary[:, 3]
    frame = torch.minimum(torch.arange(T, device=ranges.device).expand(B, T), (t_end - 1).clamp(min=0).reshape(B, 1))
    starts = ranges[:, :, 0].gather(1, frame)  # those of padding: the last frame's
    highest = starts[:, -1] + s_range - 1
    if rnnt_type == "modified":
        highest = highest + 1  # a symbol arc leads out of the last frame
    if not is_regular:
        highest = torch.minimum(highest, t_end)
    if rnnt_type == "constrained" and s_range == 1:
        highest = torch.zeros_like(highest)
    lowest = starts.cummax(dim=1).values  # that a path can be at
    leaps = starts[:, 1:] - starts[:, :-1] > s_range - is_regular
    is_cut = (starts[:, 0] > 0) | leaps.any(dim=1) | (lowest > starts + s_range - 1).any(dim=1)
    has_no_path = (t_end < 1) | (s_end > highest) | (s_end < lowest[:, -1]) | is_cut
    if not bool(has_no_path.any()):
        return
    utterance = int(has_no_path.nonzero()[0])
    raise UserError(
        f"utterance {utterance} of the batch",
        f"no path of the pruned lattice takes its {int(s_end[utterance])} symbols through its "
        f"{int(t_end[utterance])} frames (rnnt_type {rnnt_type}, s_range {s_range})",
        "no more symbols than frames, and ranges of this batch",
        "omit such utterances, or take a larger prune range",
    )
