"""The interface of an icefall transducer, in few lines."""

from functools import partial
from types import SimpleNamespace

import torch
from torch import nn

from rnnt_kd import rnnt_loss_pruned
from rnnt_kd.lattice import torch_backend
from rnnt_kd.lattice.prune_ranges import do_rnnt_pruning, get_rnnt_prune_ranges
from rnnt_kd.lattice.smoothed_loss import rnnt_loss_smoothed

k2 = SimpleNamespace(rnnt_loss_smoothed=partial(rnnt_loss_smoothed, backend=torch_backend), get_rnnt_prune_ranges=get_rnnt_prune_ranges,
                     do_rnnt_pruning=do_rnnt_pruning, rnnt_loss_pruned=rnnt_loss_pruned)  # fmt: skip


class Joiner(nn.Module):
    def __init__(self, D, J, C):
        super().__init__()
        self.encoder_proj, self.decoder_proj, self.output_linear = nn.Linear(D, J), nn.Linear(D, J), nn.Linear(J, C)

    def forward(self, am, lm, project_input=True):
        return self.output_linear(
            torch.tanh(self.encoder_proj(am) + self.decoder_proj(lm) if project_input else am + lm)
        )


class AsrModel(nn.Module):
    def __init__(self, D, C, context_size=2, blank_id=0):
        super().__init__()
        self.encoder, self.decoder, self.joiner = nn.Linear(80, D), nn.Embedding(C, D), Joiner(D, 16, C)
        self.decoder.blank_id, self.decoder.context_size = blank_id, context_size
        self.simple_am_proj, self.simple_lm_proj = nn.Linear(D, C), nn.Linear(D, C)

    def forward_encoder(self, x, x_lens):
        return self.encoder(x[:, ::4]), (x_lens + 3) // 4

    def forward_transducer(self, encoder_out, lens, y, y_lens, s_range):
        decoder_out = self.decoder(nn.functional.pad(y, (1, 0)))
        boundary = torch.stack([torch.zeros_like(lens), torch.zeros_like(lens), y_lens, lens], dim=1)
        simple_lm, simple_am = self.simple_lm_proj(decoder_out), self.simple_am_proj(encoder_out)
        with torch.autocast(encoder_out.device.type, enabled=False):
            simple, grads = k2.rnnt_loss_smoothed(simple_lm.float(), simple_am.float(), y, 0, 0.25, 0.0, boundary,
                                                  reduction="sum", return_grad=True)  # fmt: skip
        ranges = k2.get_rnnt_prune_ranges(px_grad=grads[0], py_grad=grads[1], boundary=boundary, s_range=s_range)
        am, lm = self.joiner.encoder_proj(encoder_out), self.joiner.decoder_proj(decoder_out)
        logits = self.joiner(*k2.do_rnnt_pruning(am=am, lm=lm, ranges=ranges), project_input=False)
        with torch.autocast(encoder_out.device.type, enabled=False):
            return simple, k2.rnnt_loss_pruned(logits=logits.float(), symbols=y, ranges=ranges, termination_symbol=0,
                                               boundary=boundary, reduction="sum")  # fmt: skip

    def forward(self, x, x_lens, y, y_lens, prune_range=5):
        return self.forward_transducer(*self.forward_encoder(x, x_lens), y, y_lens, prune_range)
