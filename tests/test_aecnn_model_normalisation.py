"""Group and frozen normalisation take the place of batch normalisation and keep what was learnt."""

import pytest
import torch
from torch import nn

from aecnn.model.normalisation import FrozenNorm2d, replace_normalisation


def _network(num_channels: int = 48) -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, num_channels, 3, bias=False), nn.Sequential(nn.BatchNorm2d(num_channels, eps=1e-3))
    )
    norm = network[1][0]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    for tensor in (network[0].weight.data, norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
        tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return network


def test_frozen_gives_bit_for_bit_what_batch_normalisation_gives_in_evaluation() -> None:
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = _network().eval()(images)
    network = _network()
    replace_normalisation(network, "frozen", train_affine=True)
    for mode in (network.train(), network.eval()):
        assert torch.equal(mode(images), expected)


def test_frozen_is_no_batch_normalisation_and_its_statistics_are_no_parameters() -> None:
    network = _network()
    replace_normalisation(network, "frozen", train_affine=True)
    layer = network[1][0]
    assert isinstance(layer, FrozenNorm2d)
    assert not isinstance(layer, nn.modules.batchnorm._BatchNorm)
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
    assert [name for name, _ in layer.named_buffers()] == ["running_mean", "running_var"]


def test_training_never_moves_frozen_statistics() -> None:
    network = _network()
    replace_normalisation(network, "frozen", train_affine=True)
    before = [buffer.clone() for buffer in network.buffers()]
    network.train()(torch.rand(3, 3, 8, 8)).sum().backward()
    assert all(torch.equal(old, new) for old, new in zip(before, network.buffers(), strict=True))


@pytest.mark.parametrize("train_affine", [True, False])
def test_the_affine_part_of_frozen_trains_only_where_asked(train_affine: bool) -> None:
    network = _network()
    replace_normalisation(network, "frozen", train_affine=train_affine)
    assert {p.requires_grad for p in network[1].parameters()} == {train_affine}
    assert all(p.requires_grad for p in network[0].parameters())


def test_group_keeps_scale_shift_and_epsilon() -> None:
    original, network = _network(), _network()
    replace_normalisation(network, "group", train_affine=False)
    source, layer = original[1][0], network[1][0]
    assert isinstance(source, nn.BatchNorm2d)
    assert isinstance(layer, nn.GroupNorm)
    assert torch.equal(layer.weight, source.weight)
    assert torch.equal(layer.bias, source.bias)
    assert layer.eps == source.eps
    assert all(p.requires_grad for p in layer.parameters())


@pytest.mark.parametrize(("num_channels", "num_groups"), [(64, 32), (48, 16), (80, 16), (144, 16), (96, 32), (1, 1)])
def test_group_splits_the_channels_evenly_into_at_most_32(num_channels: int, num_groups: int) -> None:
    network = _network(num_channels)
    replace_normalisation(network, "group", train_affine=True)
    layer = network[1][0]
    assert isinstance(layer, nn.GroupNorm)
    assert layer.num_groups == num_groups


@pytest.mark.parametrize("normalisation", ["group", "frozen"])
def test_an_image_is_normalised_the_same_alone_and_in_company(normalisation: str) -> None:
    network = _network().train()
    replace_normalisation(network, "group" if normalisation == "group" else "frozen", train_affine=True)
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(network(images)[:1], network(images[:1]))


def test_batch_leaves_the_network_as_it_is() -> None:
    network = _network()
    replace_normalisation(network, "batch", train_affine=True)
    assert isinstance(network[1][0], nn.BatchNorm2d)
