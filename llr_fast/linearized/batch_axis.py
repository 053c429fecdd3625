"""Which axis of a tensor holds the samples of the batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llr_fast.errors import MixedSamplesError


@dataclass(frozen=True)
class Samples:
    """Axis `dim` has size `outer * count * inner`; its entry `(o * count + b) * inner + i` belongs to sample b.

    `inner` and `outer` are 1 until the model merges axes, as in `x.reshape(batch * time, -1)`.
    """

    count: int
    dim: int = 0
    inner: int = 1

    def rows(self, tensor: Tensor, lead: int = 0) -> Tensor:
        """Views `tensor` (after `lead` extra axes) as [..., count, n]: the entries of each sample in a row."""
        if self.count == 1:
            return (tensor if tensor.dim() > lead else tensor.unsqueeze(lead)).flatten(lead).unsqueeze(lead)
        dim = self.dim + lead
        if self.dim or tensor.size(dim) != self.count:
            tensor = tensor.unflatten(dim, (-1, self.count, self.inner)).movedim(dim + 1, lead)
        return tensor.flatten(lead + 1) if tensor.dim() > lead + 1 else tensor.unsqueeze(-1)

    def kept(self, forbidden: Sequence[int], function: str) -> Samples:
        """The same axis, for a function that treats every axis but the `forbidden` ones entry by entry."""
        if self.count > 1 and self.dim in forbidden:
            raise MixedSamplesError(f"{function} works along axis {self.dim}, which holds the samples of the batch")
        return self

    def shifted(self, axes: int) -> Samples:
        """The axis after `axes` new ones in front (broadcasting)."""
        return replace(self, dim=self.dim + axes)

    def reshaped(self, old: Sequence[int], new: Sequence[int], function: str) -> Samples:
        """The axis after a reshape: in memory order, the distance between samples is what stays."""
        if self.count == 1:
            return self
        distance = self.inner * math.prod(old[self.dim + 1 :])
        for dim, size in enumerate(new):
            below = math.prod(new[dim + 1 :])
            inner = distance // below if below else 0
            if inner and distance % below == 0 and size % (inner * self.count) == 0:
                return replace(self, dim=dim, inner=inner)
        raise MixedSamplesError(f"{function} from {tuple(old)} to {tuple(new)} splits the axis that holds the samples")

    def owners(self, tensor: Tensor) -> Tensor:
        """Of the shape of `tensor`: the number of the sample that each entry belongs to."""
        return self.spread(torch.arange(self.count, device=tensor.device), tensor).expand(tensor.shape)

    def spread(self, of_samples: Tensor, tensor: Tensor) -> Tensor:
        """Numbers of the samples [count], to be broadcast to `tensor`: each entry's is that of its sample."""
        if self.count == 1:
            return of_samples.view([1] * tensor.dim())
        owner = torch.arange(tensor.size(self.dim), device=tensor.device) // self.inner % self.count
        return of_samples[owner].view(-1, *[1] * (tensor.dim() - self.dim - 1))

    def located(self, owners: Tensor, function: str) -> Samples:
        """The axis along which the samples lie where entries belong to `owners`."""
        for dim in range(owners.dim()):
            if owners.size(dim) > 1 and (owners.stride(dim) == 0 or (owners == owners.narrow(dim, 0, 1)).all()):
                owners = owners.narrow(dim, 0, 1)
        varying = [dim for dim, size in enumerate(owners.shape) if size > 1]
        if len(varying) == 1:
            along = owners.flatten()
            inner = int((along != along[0]).nonzero()[0])
            found = replace(self, dim=varying[0], inner=inner)
            if len(along) % (self.count * inner) == 0 and torch.equal(along, found.owners(owners).flatten()):
                return found
        raise MixedSamplesError(f"{function} drops, selects or mixes samples along the batch axis")

    def probed(self, old: Sequence[int], new: Sequence[int], grown: Sequence[int], function: str) -> Samples:
        """The axis that grew to `grown` when the input's axis of samples was made twice as long."""
        if self.count == 1:
            return self
        changed = [dim for dim, (a, b) in enumerate(zip(new, grown, strict=True)) if a != b]
        whole = len(changed) == 1 and grown[changed[0]] == 2 * new[changed[0]]
        if not whole or new[changed[0]] % old[self.dim]:
            raise MixedSamplesError(f"{function} drops, selects or mixes samples along the batch axis")
        return replace(self, dim=changed[0])
