"""k2's beam search over a graph, for all utterances at once (arXiv 2211.00484, section 2.5).

k2 keeps a lattice: in each frame states of (last tokens, place in the graph), hypotheses that end alike share one.
At most one symbol a frame, as in the other searches.  Made for k2 1.23.4.  Its traps, and what is done here:

  * The log-probabilities of the last frame a stream has seen are missing in its lattice (fixed in later
    versions), and that frame decides which states are an utterance's end.  So every stream sees one frame more,
    in which blank and the end cost nothing and no token comes.
  * It fills the context before the first token with 0; our predictor is fed [-1, ..., -1, blank] there.
  * Blank is 0.  ``<unk>`` counts as blank in this project: their probabilities are added up.
  * It cannot continue an utterance of no frames, and ends the process at NaN: neither reaches it.
"""

from typing import List, Sequence, Tuple

import k2
import torch
from torch import Tensor

from rnnt_kd.decoding.graphs import Graph, any_tokens
from rnnt_kd.decoding.hypotheses import Hypothesis, not_a_number
from rnnt_kd.decoding.options import SearchOptions, takes_options
from rnnt_kd.errors import UserError

LOG_BEAM = 20.0  # a state that is less probable than the best by more than this (natural log) is dropped
STATES_PER_CONTEXT = 8
NUM_PATHS = 100  # drawn from a lattice, in which the n-best list is looked for
FLATTER = 0.5  # log-probabilities are multiplied by this for the drawing, so that paths differ


@takes_options
@torch.no_grad()
def search(model, encoder_out: Tensor, encoder_out_lens: Tensor, options: SearchOptions) -> List[List[Hypothesis]]:
    """The best hypotheses of a batch.

    ``beam`` is the number of last tokens of hypotheses (contexts) kept after each frame, and of states 8 times as many.
    Best is the highest log-probability divided by length, as in ``modified_beam_search``; it is looked for among the
    best path and 100 paths sampled (with a fixed seed) from the lattice.  A score is the sum over all paths of
    the lattice with these tokens; times and token log-probabilities are those of the best of them.
    Where no path is at the graph's end in the last frame, all are taken, with half a word at their end.

    Raises UserError: see ``options.py``; blank is not 0, scorers are given, a graph of other tokens, a GPU and a k2
      for CPUs.
    """
    _check(options, encoder_out.device)
    lens = encoder_out_lens.tolist()
    heard = [place for place, length in enumerate(lens) if length > 0]
    found = [[Hypothesis([], [], 0.0, [])] for _ in lens]
    if heard:
        some = torch.tensor(heard, device=encoder_out.device)
        some_lens = [lens[place] for place in heard]
        lattice = _lattice(model, encoder_out[some], some_lens, options, heard)
        for place, hypotheses in zip(
            heard, _n_best(lattice, len(model.predictor.start_context()), options.nbest), strict=True
        ):
            found[place] = hypotheses
    return found


def _check(options: SearchOptions, device: torch.device) -> None:
    if options.blank_id != 0:
        problem = f"{options.blank_id} in fast_beam_search"
        raise UserError("blank_id", problem, "0, as k2 has it", "choose another search")
    reason = "searches in a lattice of k2's, where a language model or hot words are not supported"
    options.refuse("scorers", "fast_beam_search", reason, "take modified_beam_search")
    if device.type == "cuda" and not k2.with_cuda:
        raise UserError("fast_beam_search", "a GPU and a k2 without CUDA", "both on the CPU", "give --device cpu")


def _lattice(
    model,
    encoder_out: Tensor,
    lens: Sequence[int],
    options: SearchOptions,
    names: Sequence[int],
) -> "k2.Fsa":
    """One acceptor a stream, its arcs labelled by tokens, 0 for blank; all paths of stream i have lens[i] + 1 arcs.

    ``names``: what the utterances are called in messages.
    """
    device, frames = encoder_out.device, max(lens)
    ends = torch.tensor(lens, device=device)
    padding = torch.arange(frames, device=device) >= ends[:, None]
    am = model.joiner.encoder_proj(encoder_out[:, :frames].masked_fill(padding[:, :, None], 0.0))  # (N, T, J)
    predict, start = model.predictor.tabulated(), model.predictor.start_context()
    C = model.joiner(am[0, :1], model.joiner.predictor_proj(predict(torch.tensor([start], device=device)))).shape[1]
    graph = options.graph or any_tokens(C, 0, options.unk_id)
    if int(graph.labels.max()) >= C:
        raise UserError("graph", f"token {int(graph.labels.max())}", f"tokens below {C}", "take the system's own BPE")
    config = k2.RnntDecodingConfig(
        vocab_size=C,
        decoder_history_len=len(start),
        beam=LOG_BEAM,
        max_states=STATES_PER_CONTEXT * options.beam,
        max_contexts=options.beam,
    )
    acceptor = _acceptor(graph).to(device)
    silence = torch.full((1, C), -5 * LOG_BEAM, device=device)  # frames after an utterance's last
    silence[:, 0] = 0.0
    streams = k2.RnntDecodingStreams([k2.RnntDecodingStream(acceptor) for _ in lens], config)
    for frame in range(frames):
        shape, contexts = streams.get_contexts()  # [stream][context], (contexts, L)
        rows = shape.row_ids(1).long()
        lm = model.joiner.predictor_proj(predict(_with_start(contexts.long())))
        log_probs = model.joiner(am[rows, frame], lm).log_softmax(-1)
        if torch.isnan(log_probs).any():
            raise not_a_number(names[int(rows[torch.isnan(log_probs).any(-1)][0])])
        if options.unk_id is not None:
            log_probs[:, 0] = torch.logaddexp(log_probs[:, 0], log_probs[:, options.unk_id])
        streams.advance(torch.where(ends[rows, None] > frame, log_probs.float(), silence))
    shape, _ = streams.get_contexts()
    streams.advance(silence.repeat(shape.tot_size(1), 1))
    streams.terminate_and_flush_to_streams()
    return k2.connect(streams.format_output([length + 1 for length in lens], allow_partial=True))


def _acceptor(graph: Graph) -> "k2.Fsa":
    """The graph in k2's form: an arc with the label -1 leads from the state of an end to one more, the last."""
    last = graph.num_states
    rows = torch.stack((graph.sources, graph.destinations, graph.labels, torch.zeros_like(graph.labels)), 1)
    rows = torch.cat((rows, torch.tensor([[0, last, -1, 0]])))
    order = rows[:, 0].sort(stable=True).indices
    return k2.Fsa(rows[order].to(torch.int32))  # the last column are the bits of a float: 0


def _with_start(contexts: Tensor) -> Tensor:
    """k2's contexts as our predictor wants them: (n, L) int64, the zeros before the start's blank become -1."""
    before = torch.zeros_like(contexts, dtype=torch.bool)
    before[:, :-1] = contexts[:, 1:] == 0  # no token is 0, so what stands before a 0 is before the start
    return contexts.masked_fill(before, -1)


def _n_best(lattice: "k2.Fsa", context_size: int, nbest: int) -> List[List[Hypothesis]]:
    """Best first, for each acceptor of ``lattice``."""
    lattice = k2.arc_sort(lattice)
    texts = _some_texts(lattice)  # [utterance][text][token]
    utterances = texts.shape.row_ids(1)
    texts = texts.remove_axis(0)
    loops = k2.add_epsilon_self_loops(k2.linear_fsa(texts))
    paths = k2.intersect_device(lattice, loops, b_to_a_map=utterances, sorted_match_a=True)  # those of each text
    scores = paths.get_tot_scores(use_double_scores=True, log_semiring=True).tolist()
    best = k2.shortest_path(paths, use_double_scores=True)
    bounds = best.arcs.shape().remove_axis(1).row_splits(1).tolist()
    labels, arc_scores = best.labels.tolist(), best.scores.tolist()
    found: List[List[Tuple[float, Hypothesis]]] = [[] for _ in range(lattice.shape[0])]
    for utterance, score, begin, end in zip(utterances.tolist(), scores, bounds, bounds[1:]):
        times = [frame for frame, label in enumerate(labels[begin:end]) if label > 0]
        tokens = [labels[begin + frame] for frame in times]
        log_probs = [arc_scores[begin + frame] for frame in times]
        rank = score / (len(tokens) + context_size)
        found[utterance].append((rank, Hypothesis(tokens, times, score, log_probs)))
    ranked = (sorted(some, key=lambda pair: -pair[0]) for some in found)  # stable
    return [[hypothesis for _, hypothesis in some[:nbest]] for some in ranked]


def _some_texts(lattice: "k2.Fsa") -> "k2.RaggedTensor":
    """Different token sequences of each acceptor, that of its best path among them: [utterance][text][token]."""
    best = k2.shortest_path(lattice, use_double_scores=True)
    arcs = best.arcs.shape().remove_axis(1)  # [utterance][arc]
    one_each = k2.ragged.regular_ragged_shape(lattice.shape[0], 1)
    best_labels = k2.RaggedTensor(one_each.compose(arcs), best.labels.contiguous())
    flat = lattice.clone()
    flat.scores = lattice.scores * FLATTER
    drawn = k2.random_paths(flat, use_double_scores=True, num_paths=NUM_PATHS)
    labels = k2.ragged.index(lattice.labels.contiguous(), drawn)  # [utterance][path][token]
    both = k2.ragged.cat([best_labels, labels], axis=1)
    texts, _, _ = both.remove_values_leq(0).unique(need_num_repeats=False, need_new2old_indexes=False)
    return texts
