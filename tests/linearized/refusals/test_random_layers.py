"""Layers in training mode, and weights that change with every call, have no certificate."""

import networks
import pytest
import torch.nn.functional as F
from compare import refused
from refusal_cases import CERTIFICATES, Refused, X, check_refused, inside
from torch import nn

import llr_fast


def in_training(module, function):
    """Refused, as a block in training mode, for this function of torch."""
    return Refused(lambda: inside(module).train(), ValueError, (function, "block.act"))


TRAINING = {
    "BatchNorm1d": in_training(nn.BatchNorm1d(4), "batch_norm"),
    "Dropout": in_training(nn.Dropout(0.5), "dropout"),
}


@pytest.mark.parametrize("certificate", CERTIFICATES)
@pytest.mark.parametrize("name", TRAINING)
def test_training_mode_has_no_certificate(name, certificate):
    case = TRAINING[name]
    with refused(case.error, *case.names):
        CERTIFICATES[certificate](case.run(), X)


OTHER_RANDOM_LAYERS = {
    "AlphaDropout": in_training(nn.AlphaDropout(0.5), "alpha_dropout"),
    "FeatureAlphaDropout": in_training(nn.FeatureAlphaDropout(0.5), "feature_alpha_dropout"),
    "RReLU": in_training(nn.RReLU(), "rrelu"),
    "Dropout1d": in_training(nn.Dropout1d(0.5), "dropout1d"),
}


@pytest.mark.parametrize("name", OTHER_RANDOM_LAYERS)
def test_other_random_layers_have_no_certificate(name):
    case = OTHER_RANDOM_LAYERS[name]
    check_refused(case, case.run())


SPECTRAL_NORMS = {
    "0.weight_u": nn.utils.spectral_norm,
    "0.parametrizations.weight.0._u": nn.utils.parametrizations.spectral_norm,
}


@pytest.mark.parametrize("buffer", SPECTRAL_NORMS)
def test_weights_that_change_with_every_call_have_no_certificate(buffer):
    model = nn.Sequential(SPECTRAL_NORMS[buffer](nn.Linear(4, 3)), nn.ReLU()).double()
    with refused(ValueError, buffer, match=r"'0\..*_u' updated; call model.eval\(\)"):
        llr_fast.margin(model, X)
    assert llr_fast.margin(model.eval(), X).value.isfinite().all()


def test_dropout_that_is_always_on_says_so():
    model = networks.Apply(lambda x: F.dropout(x, 0.5).relu()).eval()
    hint = r"dropout .* which the module is not; pass training=self\.training"
    with refused(ValueError, "dropout", "Apply", match=hint):
        llr_fast.margin(model, X)
