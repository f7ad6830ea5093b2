"""A train.py of icefall's form: its functions, mp.spawn, DDP, model_avg by deepcopy, checkpoints."""

import argparse
import copy
import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.multiprocessing as mp
from model import AsrModel

torch.set_num_threads(1)
torch.set_num_interop_threads(1)


def get_params():
    return {"blank_id": 0, "vocab_size": 12, "subsampling_factor": 4, "batch_idx_train": 0, "average_period": 1}


def get_model(params):
    return AsrModel(int(params["dim"]), params["vocab_size"], params["context_size"], params["blank_id"])


def compute_loss(params, model, sp, batch, is_training):
    found = batch["supervisions"]
    losses = model(x=batch["inputs"], x_lens=found["num_frames"], y=batch["y"], y_lens=batch["y_lens"])
    info = defaultdict(float, zip(("simple_loss", "pruned_loss"), (x.item() for x in losses)))
    return sum(losses), info


def batch_of(n, rank):
    noise, lens = torch.Generator().manual_seed(10 * n + rank), torch.tensor([80, 64, 48])
    found = {"num_frames": lens, "cut": [SimpleNamespace(id=f"u{n}-{rank}-{b}") for b in range(3)]}
    y = torch.randint(1, 12, (3, 6), generator=noise)
    return {
        "inputs": torch.randn(3, 80, 80, generator=noise),
        "supervisions": found,
        "y": y,
        "y_lens": torch.tensor([6, 5, 4]),
    }


def load_checkpoint_if_available(params, model, model_avg=None):
    if params["start_epoch"] == 1:
        return None
    saved = torch.load(params["exp_dir"] / f"epoch-{params['start_epoch'] - 1}.pt", weights_only=False)
    model.load_state_dict(saved["model"]), model_avg is None or model_avg.load_state_dict(saved["model_avg"])
    params["batch_idx_train"] = saved["batch_idx_train"]
    return saved


def run(rank, world_size, args):
    params = {**get_params(), **vars(args)}
    torch.manual_seed(1)
    model = get_model(params)
    model_avg = copy.deepcopy(model).to(torch.float64)
    load_checkpoint_if_available(params, model, model_avg)
    if world_size > 1:
        torch.distributed.init_process_group("gloo", f"file://{args.exp_dir}/meet", rank=rank, world_size=world_size)
        model = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for epoch in range(args.start_epoch, args.num_epochs + 1):
        for n in range(3):
            params["batch_idx_train"] += 1
            loss, info = compute_loss(params, model, None, batch_of(n, rank), is_training=True)
            optimizer.zero_grad(), loss.backward(), optimizer.step()
            weight = 1 / params["batch_idx_train"]
            for mean, now in zip(
                model_avg.state_dict().values(), getattr(model, "module", model).state_dict().values()
            ):
                mean.mul_(1 - weight).add_(now, alpha=weight)
            with open(args.exp_dir / f"log-{rank}", "a") as log:
                print(json.dumps(info), file=log)
        states = {"model": getattr(model, "module", model).state_dict(), "model_avg": model_avg.float().state_dict()}
        model_avg.to(torch.float64)
        if rank == 0:
            torch.save({**states, **params}, args.exp_dir / f"epoch-{epoch}.pt")


def get_parser():
    parser = argparse.ArgumentParser()
    for name, value in dict(world_size=1, dim=8, context_size=2, start_epoch=1, num_epochs=1, enable_spec_aug=1,
                            spec_aug_time_warp_factor=80, concatenate_cuts=0, return_cuts=1).items():  # fmt: skip
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=value)
    parser.add_argument("--exp-dir", type=Path, required=True)
    parser.add_argument("--bpe-model")
    return parser


def main():
    args = get_parser().parse_args()
    args.exp_dir.mkdir(parents=True, exist_ok=True)
    if args.world_size > 1:
        mp.spawn(run, args=(args.world_size, args), nprocs=args.world_size, join=True)
    else:
        run(rank=0, world_size=1, args=args)


if __name__ == "__main__":
    main()
