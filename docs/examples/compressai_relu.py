"""A ReLU model of CompressAI, from its state dict to a bundle; that package is not needed.

    python docs/examples/compressai_relu.py bmshj2018-factorized-relu-4.pth.tar photos/ fitted.pt
    FITTED=fitted.pt edgecodec convert docs/examples/compressai_relu.py:load_codec -o my.bundle

It takes the transforms of `bmshj2018-factorized-relu`, or of any model with the same g_a and g_s,
and learns edgecodec's entropy model around them. Models with GDN are refused: it divides by the
root of a sum of squares, which no int8 kernel does.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from torch import Tensor, nn

from edgecodec.model.config import CodecConfig
from edgecodec.training.fitted import FittedCodec
from edgecodec.training.photos import load_photos

StateDict = dict[str, Tensor]
CONVOLUTIONS = (0, 2, 4, 6)
"""Their places in g_a and g_s; a ReLU between each two."""


class Scaled(nn.Module):
    """A network between other units."""

    def __init__(self, network: nn.Module, before: float, after: float) -> None:
        super().__init__()
        self.network, self.before, self.after = network, before, after

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, h, w)."""
        out: Tensor = self.network(x * self.before) * self.after
        return out


def transforms(state: StateDict) -> tuple[nn.Module, nn.Module]:
    """Return analysis and synthesis in levels, from the entries g_a.* and g_s.*.

    Raises:
        ValueError: other layers than four convolutions each, as with GDN.
    """
    found = {name for name in state if name.startswith(("g_a.", "g_s."))}
    wanted = {
        f"{n}.{i}.{k}" for n in ("g_a", "g_s") for i in CONVOLUTIONS for k in ("weight", "bias")
    }
    if found != wanted:
        which = ", ".join(sorted(found ^ wanted)[:3])
        raise ValueError(f"g_a and g_s are not four convolutions with ReLU between: {which}")
    networks = []
    for name in ("g_a", "g_s"):
        layers: list[nn.Module] = []
        for i in CONVOLUTIONS:
            first, second = state[f"{name}.{i}.weight"].shape[:2]
            if name == "g_a":
                layers += [nn.Conv2d(second, first, 5, 2, 2), nn.ReLU()]
            else:
                layers += [nn.ConvTranspose2d(first, second, 5, 2, 2, 1), nn.ReLU()]
        network = nn.Sequential(*layers[:-1])
        network.load_state_dict(
            {k.removeprefix(f"{name}."): state[k] for k in found if k.startswith(name)}
        )
        networks.append(network)
    return Scaled(networks[0], 1 / 255, 1.0), Scaled(networks[1], 1.0, 255.0)


def build(state: StateDict, trained_lambda: float) -> FittedCodec:
    """Return the codec with an entropy model that has learned nothing yet.

    Args:
        state: of the whole model.
        trained_lambda: of the loss `bpp + lambda * 255**2 * MSE`, 0.0018 to 0.18 for their
            qualities 1 to 8; ours span from a sixteenth to twice of it.
    """
    cfg = CodecConfig(lambda_min=trained_lambda / 16, lambda_max=2 * trained_lambda)
    return FittedCodec(*transforms(state), len(state["g_a.6.weight"]), cfg)


def load_codec() -> FittedCodec:
    """Return what `main` saved in the file that the variable FITTED names."""
    saved = torch.load(os.environ.get("FITTED", "fitted.pt"), weights_only=True)
    codec = build(saved["state"], float(saved["lambda"]))
    codec.load_state_dict(saved["fitted"], strict=False)  # without the transforms
    return codec


def main() -> None:
    """Learn the entropy model and save it with the transforms."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="state dict of CompressAI")
    parser.add_argument("images", type=Path, help="folder or tar file of photos")
    parser.add_argument("out", type=Path)
    parser.add_argument("--lambda", dest="trained_lambda", type=float, default=0.013)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--size", type=int, default=128, help="side of a crop")
    args = parser.parse_args()
    state = torch.load(args.model, map_location="cpu", weights_only=True)
    state = state.get("state_dict", state)
    codec = build(state, args.trained_lambda)
    photos = load_photos([args.images], min_side=args.size)
    codec.fit(photos, steps=args.steps, size=args.size, progress=print)
    kept = {name: value for name, value in state.items() if name.startswith("g_")}
    own = {k: v for k, v in codec.state_dict().items() if not k.startswith(("g_a.", "g_s."))}
    torch.save({"state": kept, "lambda": args.trained_lambda, "fitted": own}, args.out)


if __name__ == "__main__":
    main()
