"""Region features: the mean feature vector of the objects that a Faster R-CNN detects.

Source: Anderson et al., Bottom-Up and Top-Down Attention, CVPR 2018, with 36 regions per photo.
"""

from __future__ import annotations

from typing import Any

import torch
import torchvision
from torch import Tensor
from torchvision.models.detection.image_list import ImageList

from cmrhash.encoders.pixels import Letterbox
from cmrhash.encoders.weights import load_state

REGIONS = 36  # most regions per photo, by confidence
LAYER = {"layer": "box head", "regions": REGIONS, "region_pooling": "mean"}  # for the recipe
TOGETHER = 4  # photos per forward pass: feature pyramids of 800 x 800 pixels are large
CLASSES = "roi_heads.box_predictor.cls_score.weight"  # (classes, D); the number of classes depends on the data set


def models() -> list[str]:
    """Names of torchvision's Faster R-CNNs."""
    return list(torchvision.models.list_models(module=torchvision.models.detection, include="fasterrcnn_*"))


def network(model: str, state: dict[str, Tensor] | None, where: Any) -> tuple[Any, int, Letterbox, dict[str, Any]]:
    """The network (pixels -> mean region feature), its number of features, its preparation, and its layer.

    state: weights for any number of classes, read from ``where``; None: drawn from torch's current seed.
    Raises EncoderError if the weights do not fit.
    """
    classes = {"num_classes": len(state[CLASSES])} if state is not None and CLASSES in state else {}
    options = {"weights": None, "weights_backbone": None, "box_detections_per_img": REGIONS, **classes}
    detector = torchvision.models.get_model(model, **options)
    if state is None:
        _zero_biases(detector.roi_heads.box_head)
    else:
        load_state(detector, state, model, where)
        if model == "fasterrcnn_resnet50_fpn":  # trained before torchvision's frozen BatchNorm had an epsilon
            for part in detector.modules():
                if isinstance(part, torch.nn.BatchNorm2d):
                    part.eps = 0.0
    given = detector.transform
    letterbox = Letterbox(given.min_size[-1], "BILINEAR", tuple(given.image_mean), tuple(given.image_std))
    dim: int = detector.roi_heads.box_predictor.cls_score.in_features
    return Regions(detector, letterbox), dim, letterbox, LAYER


def _zero_biases(head: torch.nn.Module) -> None:
    """Set all biases to zero.

    The signal of an untrained MobileNet is so weak that random biases would hide it in single precision.
    """
    for name, parameter in head.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.zeros_(parameter)


class Regions(torch.nn.Module):
    """(B, 3, S, S) normalised, padded photos -> (B, D) float32, the mean region feature of each."""

    fill: Tensor

    def __init__(self, network: Any, letterbox: Letterbox) -> None:
        super().__init__()
        self.network = network
        fill, mean, std = (torch.tensor(v).view(3, 1, 1) for v in (letterbox.fill, letterbox.mean, letterbox.std))
        self.register_buffer("fill", (fill / 255 - mean) / std, persistent=False)

    def forward(self, batch: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, D), TOGETHER photos at a time to save memory."""
        return torch.cat([self._pool(part) for part in torch.split(batch, TOGETHER)])

    def _pool(self, batch: Tensor) -> Tensor:
        """Detect boxes with the network's own steps, then run its box head on the final boxes.

        A photo without detections is one box of its full size.
        """
        rpn, heads = self.network.rpn, self.network.roi_heads
        maps = self.network.backbone(batch)
        sizes = self.sizes(batch)  # boxes are clipped to the photo
        square = [(batch.shape[2], batch.shape[3])] * len(batch)  # area of the feature maps
        with torch.autocast(batch.device.type, enabled=False):  # boxes need float32
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
        """Height and width of each photo without its padding."""
        photo = (batch - self.fill).abs().amax(1) > 1e-3  # (B, S, S) bool
        return [(_used_length(one.any(1)), _used_length(one.any(0))) for one in photo]


def _used_length(used: Tensor) -> int:
    """Number of entries of a (S,) bool tensor up to the last True; S if none is True."""
    rows = used.nonzero()
    return int(rows[-1]) + 1 if len(rows) else len(used)
