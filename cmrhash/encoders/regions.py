"""Region features: a Faster R-CNN of torchvision's finds the objects of a photo, and the mean of their vectors is the
photo's feature (Anderson et al., Bottom-Up and Top-Down Attention, CVPR 2018, with their 36 regions a photo).
"""

from __future__ import annotations

from typing import Any

import torch
import torchvision
from torch import Tensor
from torchvision.models.detection.image_list import ImageList

from cmrhash.encoders.pixels import Letterbox
from cmrhash.encoders.weights import load_state

REGIONS = 36  # at most, the surest first
LAYER = {"layer": "box head", "regions": REGIONS, "region_pooling": "mean"}  # for the recipe
TOGETHER = 4  # photos in one forward pass: their feature pyramids at 800 x 800 are large
CLASSES = "roi_heads.box_predictor.cls_score.weight"  # (classes, D): its first length varies between data sets


def models() -> list[str]:
    """The Faster R-CNNs of torchvision."""
    return list(torchvision.models.list_models(module=torchvision.models.detection, include="fasterrcnn_*"))


def detector(model: str, state: dict[str, Tensor] | None, where: Any) -> tuple[Any, int, Letterbox]:
    """The network pixels -> pooled regions, the number of its features, and the preparation that it takes.

    state: its weights, for any number of classes, from ``where``; None: drawn from torch's current seed.
    Raises EncoderError if they do not fit.
    """
    classes = {"num_classes": len(state[CLASSES])} if state is not None and CLASSES in state else {}
    options = {"weights": None, "weights_backbone": None, "box_detections_per_img": REGIONS, **classes}
    network = torchvision.models.get_model(model, **options)
    if state is None:
        _silence(network.roi_heads.box_head)
    else:
        load_state(network, state, model, where)
        if model == "fasterrcnn_resnet50_fpn":  # trained before torchvision's frozen batch norm had an epsilon
            for part in network.modules():
                if isinstance(part, torch.nn.BatchNorm2d):
                    part.eps = 0.0
    given = network.transform
    letterbox = Letterbox(given.min_size[-1], "BILINEAR", tuple(given.image_mean), tuple(given.image_std))
    dim: int = network.roi_heads.box_predictor.cls_score.in_features
    return Regions(network, letterbox), dim, letterbox


def _silence(head: torch.nn.Module) -> None:
    """No biases: an untrained MobileNet's signal is so faint that drawn ones would drown it in single precision."""
    for name, parameter in head.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.zeros_(parameter)


class Regions(torch.nn.Module):
    """(B, 3, S, S) normalised photos in a letterbox -> (B, D) float32, the mean vector of each one's regions."""

    fill: Tensor

    def __init__(self, network: Any, letterbox: Letterbox) -> None:
        super().__init__()
        self.network = network
        fill, mean, std = (torch.tensor(v).view(3, 1, 1) for v in (letterbox.fill, letterbox.mean, letterbox.std))
        self.register_buffer("fill", (fill / 255 - mean) / std, persistent=False)

    def forward(self, batch: Tensor) -> Tensor:
        """A few photos at a time."""
        return torch.cat([self._pool(part) for part in torch.split(batch, TOGETHER)])

    def _pool(self, batch: Tensor) -> Tensor:
        """The network's own steps, then its box head once more on the boxes that it has settled on."""
        rpn, heads = self.network.rpn, self.network.roi_heads
        maps = self.network.backbone(batch)
        sizes = self.sizes(batch)  # no box reaches beyond the photo
        square = [(batch.shape[2], batch.shape[3])] * len(batch)  # what the maps cover
        with torch.autocast(batch.device.type, enabled=False):  # boxes need all their digits
            maps = {name: values.float() for name, values in maps.items()}
            proposals, _ = rpn(ImageList(batch, sizes), maps)
            logits, shifts = heads.box_predictor(heads.box_head(heads.box_roi_pool(maps, proposals, square)))
            found, _, _ = heads.postprocess_detections(logits, shifts, proposals, sizes)
            boxes = [
                part if len(part) else part.new_tensor([[0, 0, wide, high]])
                for part, (high, wide) in zip(found, sizes, strict=True)
            ]
            vectors = heads.box_head(heads.box_roi_pool(maps, boxes, square))  # (all boxes, D)
            counts = [len(part) for part in boxes]
            return torch.stack([part.mean(0) for part in torch.split(vectors, counts)])

    def sizes(self, batch: Tensor) -> list[tuple[int, int]]:
        """Height and width of each photo: where the colour beside it begins."""
        photo = (batch - self.fill).abs().amax(1) > 1e-3  # (B, S, S) bool
        return [(_last(one.any(1)), _last(one.any(0))) for one in photo]


def _last(used: Tensor) -> int:
    """Length of (S,) bool up to the last that is true; all of it for a photo of nothing but that colour."""
    rows = used.nonzero()
    return int(rows[-1]) + 1 if len(rows) else len(used)
