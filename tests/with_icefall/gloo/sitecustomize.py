"""For ranks on a CPU: icefall asks for nccl and a GPU of each rank's own; here they are gloo and none."""

import torch
from torch.nn.parallel import DistributedDataParallel as DDP

_init_process_group, _init = torch.distributed.init_process_group, DDP.__init__
torch.distributed.init_process_group = lambda backend=None, **kwargs: _init_process_group("gloo", **kwargs)
DDP.__init__ = lambda self, module, device_ids=None, **kwargs: _init(self, module, **kwargs)
torch.cuda.set_device = lambda device: None
