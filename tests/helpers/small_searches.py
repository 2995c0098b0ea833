"""Quick settings and a photo for the tests of ``Hasher``."""

QUICK = {"epochs": 2, "batch": 16, "hidden": 16, "bits": 16}
MODELS = {"image_model": "mobilenet_v3_small", "image_weights": "random", "text_models": ("random", "de=bow")}


def photo(made, n):
    return made / f"mine/images/{n}.jpg"
