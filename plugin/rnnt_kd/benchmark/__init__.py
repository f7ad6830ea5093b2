"""How fast and how big: what the commands ``bench_loss`` and ``bench_train_step`` are made of.

    shapes       lengths of real utterances, or of utterances like them, in batches as training has them
    loss_inputs  random tensors of such a batch, and the ranges that an alignment gives
    ours, peers  what is measured: functions from these inputs to a loss
    train_step   the same for whole training steps
    measure      seconds and peak memory of one pass
    worker       a process that measures one subject, and nothing else, when it is told to
    rounds       starts the workers and lets them take turns
    results      medians, ratios, goals and slopes
    table, plot  for people

Every subject has a process of its own, so that none inherits another's memory or warm caches; they
take turns, batch by batch, so that a busy minute of the machine falls on all of them.
"""
