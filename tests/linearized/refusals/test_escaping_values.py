"""Numbers read out of a tensor that depends on x would make the rest of the network look constant."""

import pytest
import torch
from refusal_cases import DTYPE, Refused, X, check_refused, mixes, no_rule

import llr_fast


def branch(x):
    return x if x.sum() > 0 else -x


ESCAPES = {
    "item": mixes(lambda x: x * x.sum().item(), "sum"),
    "float": mixes(lambda x: x * float(x.sum()), "sum"),
    "tolist": no_rule(lambda x: x + torch.tensor(x.tolist()), "tolist"),
    "numpy": no_rule(lambda x: x + torch.from_numpy(x.detach().numpy()).square(), "numpy"),
    "array": no_rule(lambda x: x + torch.tensor(x.detach().__array__()).square(), "__array__"),
    "bool": mixes(lambda x: x if bool(x[:, 0].sum()) else -x, "sum"),
    "branch": mixes(branch, "sum"),
    "argmax": mixes(lambda x: x * x.argmax(), "argmax"),
    "nonzero": no_rule(lambda x: x + len(x.nonzero()), "nonzero"),
    "index_by_values": no_rule(lambda x: torch.arange(9.0, dtype=DTYPE)[x.long().clamp(0, 8)] + x, "long"),
    "long": no_rule(lambda x: x + x.long(), "long"),
    "data": no_rule(lambda x: x.data * x, "data"),
    "equality": no_rule(lambda x: x * float(x[:, 0] == 0.5) + x, "__float__"),
    "new_tensor": no_rule(lambda x: x * x.new_tensor(x), "new_tensor"),
    "torch_tensor": Refused(
        lambda x: x * torch.tensor(x), llr_fast.NotPiecewiseLinearError, ("aten._to_copy.default",)
    ),
    "equal": no_rule(lambda x: x if torch.equal(x, x) else -x, "equal"),
    "allclose": no_rule(lambda x: x if torch.allclose(x, x) else -x, "allclose"),
}


@pytest.mark.parametrize("name", ESCAPES)
def test_values_do_not_escape(name):
    check_refused(ESCAPES[name])


ESCAPES_OF_ONE_SAMPLE = {
    "item": no_rule(lambda x: x * x.sum(1).item(), "item"),
    "item_of_places": no_rule(lambda x: x * x.argmax(1).item(), "item"),
    "float": no_rule(lambda x: x * float(x.sum(1)), "__float__"),
    "int": no_rule(lambda x: x * int(x.sum(1)), "__int__"),
    "bool": no_rule(lambda x: x if bool(x.sum(1)) else -x, "__bool__"),
    "branch": no_rule(lambda x: x if x.sum(1) else -x, "__bool__"),
    "comparison": no_rule(lambda x: x if x.sum(1) > 0 else -x, "__bool__"),
    "bound": no_rule(lambda x: x if x.max() < 9 else -x, "__bool__"),
    "all": no_rule(lambda x: x if (x < 9).all() else -x, "__bool__"),
    "mask_as_index": no_rule(lambda x: x.sum() + x[x > 0], "__getitem__"),
    "count": no_rule(lambda x: x * (x > 0).sum().item(), "item"),
    "trunc": no_rule(lambda x: x.trunc(), "trunc"),
    "index": no_rule(lambda x: [x, -x][x.sum(1)], "__index__"),
}


@pytest.mark.parametrize("name", ESCAPES_OF_ONE_SAMPLE)
def test_values_of_one_sample_do_not_escape(name):
    """Nothing sums over the batch here, so it is the reading of the number that is refused."""
    check_refused(ESCAPES_OF_ONE_SAMPLE[name], x=X[:1])
