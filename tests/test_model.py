"""A `Model` beside its network."""

import copy

import pytest
import torch

from exports import small_model


def test_what_a_model_lacks_is_its_networks():
    model = small_model("image")
    x = torch.randn(2, model.config.in_channels, *model.config.input_size)
    assert model.eval() is model.network
    assert model.state_dict().keys() == model.network.state_dict().keys()
    assert torch.equal(model.forward_features(x), model.network.stages(x).encoded)
    assert copy.deepcopy(model).cls_token is not model.cls_token
    with pytest.raises(AttributeError, match="neither Model nor its VisionTransformer has 'colour'"):
        _ = model.colour
    assert not hasattr(model, "__array__")
