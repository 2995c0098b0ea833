"""Closed forms: heads that are computed, not trained step by step."""

from __future__ import annotations

from dataclasses import replace

from cmrhash.training import cca, label_forms, rotations
from cmrhash.training.auxiliary import label_and_posterior_coders
from cmrhash.training.methods.method import Method

KRR_AP = Method(
    None,
    "kernel ridge regression of the labels, leave-one-out on train items, Rifkin & Lippert "
    "(MIT-CSAIL-TR-2007-025); tie-aware AP, He et al. (CVPR 2018) eq. 8",
    kernel=True,
    parts=label_and_posterior_coders,
    labels=True,
)
METHODS = {
    "cca": Method(
        None,
        "CCA, Hotelling (Biometrika 1936); three views and more: Kettenring (Biometrika 1971)",
        cca.fit,
        draws=False,
    ),
    "scm": Method(
        None,
        "SCM, Zhang & Li (AAAI 2014), sequential; more views than two side by side",
        label_forms.scm,
        labels=True,
        draws=False,
    ),
    "cvh": Method(
        None,
        "CVH, Kumar & Udupa (IJCAI 2011), similarity by the cosine of labels",
        label_forms.cvh,
        labels=True,
        draws=False,
    ),
    "itq": Method(
        None, "ITQ, Gong & Lazebnik (CVPR 2011), on the images of one space with the texts", rotate=rotations.itq
    ),
    "sign": Method(
        None,
        "signs after a random rotation, Charikar (STOC 2002), Ji et al. (NIPS 2012), in one space with the texts",
        rotate=rotations.sign,
    ),
    "krr-ap": KRR_AP,
    "krr-ap-symmetric": replace(KRR_AP, symmetric=True),
}
