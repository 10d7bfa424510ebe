"""
GazeQwen: Qwen2.5-VL that knows where the wearer looked.

    from gazeqwen import GazeQwenForConditionalGeneration, GazeQwenProcessor

Imported where transformers is imported already, or as soon as one of its classes is, the package registers them with
`AutoConfig`, `AutoModel` and `AutoProcessor`: an adapter loaded through these then runs the package's code, and not
the code stored with it, whatever `trust_remote_code` says. Imported alone it is light: to read gaze needs no torch.
"""

import sys
from importlib import import_module

__version__ = "0.1.0"

_MODULES = {
    "Clip": "video_gazeqwen",
    "GazeQwenConfig": "configuration_gazeqwen",
    "GazeQwenForConditionalGeneration": "modeling_gazeqwen",
    "GazeQwenProcessor": "processing_gazeqwen",
    "Scanpath": "scanpath_gazeqwen",
}


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name.startswith("GazeQwen"):
        register_auto_classes()
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def register_auto_classes() -> None:
    """Make transformers' Auto classes load adapters with this package's classes. Imports torch and transformers."""
    transformers = import_module("transformers")
    config = import_module(".configuration_gazeqwen", __name__).GazeQwenConfig
    modeling = import_module(".modeling_gazeqwen", __name__)
    processor = import_module(".processing_gazeqwen", __name__).GazeQwenProcessor
    transformers.AutoConfig.register(config.model_type, config, exist_ok=True)
    for name in modeling.AUTO_CLASSES:
        auto_class = getattr(transformers, name)
        auto_class.register(config, modeling.GazeQwenForConditionalGeneration, exist_ok=True)
    transformers.AutoProcessor.register(config, processor, exist_ok=True)


if "transformers" in sys.modules:
    register_auto_classes()

__all__ = [*_MODULES, "__version__", "register_auto_classes"]
