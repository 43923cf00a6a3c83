"""The autoencoder: codes are nearest entries, the gradient passes straight through, losses against taming's own."""

from __future__ import annotations

import builtins

import pytest
import torch

from ggm_lightning.vqgan.network import Autoencoder, num_parameters, pixels, scaled, taming

SMALL = {"code_dim": 5, "width": 32, "multipliers": (1, 2), "num_blocks": 1, "attention_at": (), "latent_dim": 3}


@pytest.fixture
def network() -> Autoencoder:
    torch.manual_seed(0)
    made = Autoencoder((1, 8, 8), 11, **SMALL)
    torch.nn.init.normal_(made.quantize.embedding.weight)
    return made


@pytest.fixture
def x() -> torch.Tensor:
    return torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_bytes_and_back() -> None:
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert (pixels(scaled(every)) == every).all()
    assert scaled(every).aminmax() == (-1, 1)
    assert pixels(torch.tensor([-7.0, 7.0]).reshape(1, 1, 1, 2)).flatten().tolist() == [0, 255]


def test_codes_are_the_nearest_entries(network: Autoencoder, x: torch.Tensor) -> None:
    z = network.latents(x).movedim(1, -1)
    distance = (z[..., None, :] - network.quantize.embedding.weight).square().sum(-1)
    codes = network.codes(x)
    assert codes.shape == (2, *network.grid) == (2, 4, 4)
    assert (codes == distance.argmin(-1)).all()  # eq. (2)
    assert (codes != distance.argmax(-1)).any()  # control


def test_pictures_from_codes_are_the_reconstruction(network: Autoencoder, x: torch.Tensor) -> None:
    restored, _, codes = network(x)
    torch.testing.assert_close(network.decode(codes), restored)
    assert (network.decode((codes + 1) % 11) - restored).abs().max() > 1e-3  # control


def test_against_tamings_own_forward(network: Autoencoder, x: torch.Tensor) -> None:
    """The published model's steps, with its own modules and keys."""
    h = network.quant_conv(network.encoder(x))
    quant, _, info = network.quantize(h)
    restored = network.decoder(network.post_quant_conv(quant))
    ours, loss, codes = network(x)
    assert torch.equal(ours, restored)
    assert torch.equal(codes, info[2])
    e = network.quantize.embedding.weight[codes].movedim(-1, 1)
    torch.testing.assert_close(loss, 1.25 * (h - e).square().mean())


def test_the_gradient_passes_straight_through_and_beta_is_at_the_commitment(
    network: Autoencoder, x: torch.Tensor
) -> None:
    z = network.latents(x).detach().requires_grad_()
    entries, loss, (_, _, codes) = network.quantize(z)
    weights = torch.randn(entries.shape, generator=torch.Generator().manual_seed(2))
    (reached,) = torch.autograd.grad((entries * weights).sum(), z, retain_graph=True)
    assert torch.equal(reached, weights)  # as if there were no codebook between
    table = network.quantize.embedding.weight
    to_encoder, to_codebook = torch.autograd.grad(loss, [z, table])
    e = table[codes].movedim(-1, 1)
    torch.testing.assert_close(to_encoder, 0.25 * 2 * (z - e) / z.numel())  # eq. (4), second term
    expected = torch.zeros_like(table)
    expected.index_add_(0, codes.flatten(), (2 * (e - z) / z.numel()).movedim(1, -1).flatten(0, 2))
    torch.testing.assert_close(to_codebook, expected)  # first term
    _, _, quantizer = taming()
    legacy = quantizer(11, 5, beta=0.25)  # control: taming's default exchanges the weights
    legacy.embedding.weight = torch.nn.Parameter(table.detach().clone())
    (wrong,) = torch.autograd.grad(legacy(z)[1], z)
    torch.testing.assert_close(wrong, 4 * to_encoder)


def test_a_masked_code_does_not_matter(network: Autoencoder) -> None:
    codes = torch.randint(11, (2, 4, 4), generator=torch.Generator().manual_seed(3))
    masked = torch.zeros(2, 4, 4, dtype=torch.bool)
    masked[:, 1, 2] = True
    other = codes.clone()
    other[:, 1, 2] = (other[:, 1, 2] + 1) % 11
    assert torch.equal(network.decode(codes, masked), network.decode(other, masked))
    assert not torch.equal(network.decode(codes), network.decode(other))  # control


@pytest.mark.parametrize(("num_codes", "parameters"), [(1024, 72_141_699), (16384, 76_073_859)])
def test_the_released_sizes_on_the_meta_device(num_codes: int, parameters: int) -> None:
    """Derived from the architecture; with Adam's moments, the perceptual network (14.7 M) and the discriminator
    (2.8 M, with moments) the first is a file of 958 MB, as which a copy of it is listed."""
    with torch.device("meta"):
        network = Autoencoder((3, 256, 256), num_codes)
    assert num_parameters(network) == parameters
    assert network.grid == (16, 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (2, 8, 8)}, "they must be square, with 1 or 3 channels"),
        ({"shape": (1, 8, 4)}, "they must be square"),
        ({"num_codes": 1}, "a codebook has at least 2 entries"),
        ({"width": 48}, "each must be a multiple of 32"),
        ({"multipliers": ()}, "each must be a multiple of 32"),
        ({"multipliers": (1, 1, 1, 1, 1)}, "16 times smaller, and 8 is no multiple of it"),
        ({"num_blocks": 0}, "0 with multipliers of 1 alone"),
    ],
)
def test_sizes_that_cannot_be(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Autoencoder(**({"shape": (1, 8, 8), "num_codes": 11, **SMALL} | change))
    assert "\n" not in str(caught.value)


def test_without_taming_the_pip_line_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    found = builtins.__import__

    def hidden(name: str, *rest: object, **named: object) -> object:
        if name.startswith("taming"):
            raise ModuleNotFoundError(f"No module named '{name}'")
        return found(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", hidden)
    message = "pip install --no-deps taming-transformers-rom1504==0.0.6"
    with pytest.raises(ModuleNotFoundError, match=message) as caught:
        Autoencoder((1, 8, 8), 11, **SMALL)
    assert "\n" not in str(caught.value)


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    Autoencoder((1, 8, 8), 11, **SMALL)
    assert capsys.readouterr().out == ""
