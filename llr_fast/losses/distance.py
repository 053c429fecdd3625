"""Distance regularisation: a loss that makes margins large."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from llr_fast import norms
from llr_fast.certificates.agreement import model_dtype
from llr_fast.certificates.margin import margin
from llr_fast.checks import Loss, check_input, check_model, check_not_distributed, check_range
from llr_fast.linearized import layers
from llr_fast.linearized.directions import Directions
from llr_fast.linearized.evaluation import Evaluation, Settings
from llr_fast.linearized.torch_modes import as_written
from llr_fast.losses.estimators import linearize_hidden
from llr_fast.ops.common.arguments import accumulation_dtype


class _FirstOrder(torch.autograd.Function):
    """The same number; its gradient has no gradient."""

    @staticmethod
    def forward(ctx: Any, penalty: Tensor) -> Tensor:
        return penalty.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "MarginLoss: create_graph=True is not supported, because its direction counts as a constant; "
                "ROLLLoss can be differentiated twice"
            )
        return gradient


class MarginLoss(Loss):
    """Distance regularisation (Eq. 4 of Lee et al., 2019): penalty = -lam * mean over the batch of eps_2(x).

    The margin is found without a graph; then one direction, the unit gradient u of the neuron that bounds the region,
    gives ||grad z||_2 = <grad z, u> with its derivative by the parameters, so no double backward is needed. All of this
    is computed in float64, and the output by the model as it is. Samples whose margin is infinite contribute nothing.

    Args:
        model: a piecewise-linear network without layers in training mode; its forward takes x [B, ...].
        lam: weight of the penalty.

    Raises:
        ValueError: for a negative lam.

    Example:
        >>> import torch, llr_fast
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> output, penalty = llr_fast.MarginLoss(model, lam=0.1)(torch.randn(5, 4))
        >>> penalty.backward()
    """

    def __init__(self, model: nn.Module, *, lam: float = 1.0) -> None:
        super().__init__()
        check_model(model)
        self.model, self.lam = model, check_range("lam", lam, 0)

    @as_written
    def forward(self, x: Tensor) -> tuple[Any, Tensor]:
        """The model's output and the penalty, a scalar already times lam and averaged over the batch.

        Args:
            x: [B, ...], on the model's device.

        Raises:
            NotImplementedError: in the backward pass, where its gradient is to have a gradient.
            NotPiecewiseLinearError, ValueError: as `ROLLLoss` and `margin`.
        """
        self.lam = check_range("lam", self.lam, 0)
        check_not_distributed(self.model)
        check_input(self.model, x)
        found = margin(self.model, x)
        length = norms.norm(found.gradient, 2).view(-1, *[1] * (x.dim() - 1))
        unit = (found.gradient / length).masked_fill(length == 0, 0)
        settings = Settings(declared=model_dtype(self.model, x))
        with torch.autocast(x.device.type, enabled=False):
            directions = Directions(unit.unsqueeze(0))
            _, found_along = linearize_hidden(x.double(), directions, Evaluation(self.model, layers.tangents, settings))
        bounded = []
        for index, layer in enumerate(found_along):
            rows = (found.layer == index).nonzero().squeeze(1)
            at = rows, found.neuron[rows]
            bounded.append(layer.distance[at] / layer.tangents[0][at])
        penalty = -self.lam * torch.cat(bounded).sum() / x.size(0)
        penalty = penalty.to(accumulation_dtype(x.dtype))
        return self.model(x.clone()), _FirstOrder.apply(penalty)  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        return f"lam={self.lam}"
