"""Count what a GPU would be waited for, on a CPU."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

ATEN = torch.ops.aten
# Their result is a number for Python, or a tensor whose shape depends on values.
WAITING = {ATEN._local_scalar_dense, ATEN.nonzero, ATEN.masked_select, ATEN.equal, ATEN._unique2}
INDEXING = {ATEN.index, ATEN.index_put, ATEN.index_put_}


class WaitCounter(TorchDispatchMode):
    """Operations that need values of a tensor; copies from one device to another don't count."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        packet = function.overloadpacket
        if packet in INDEXING:
            masks = [index for index in args[1] if index is not None and index.dtype == torch.bool]
            self.count += len(masks)
        self.count += packet in WAITING
        return function(*args, **(kwargs or {}))
