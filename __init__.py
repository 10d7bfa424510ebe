"""
GazeQwen: Qwen2-VL, Qwen2.5-VL and Qwen3-VL that know where the wearer looked.

    from gazeqwen import GazeQwenForConditionalGeneration, GazeQwenProcessor

The package registers its classes with `AutoConfig`, `AutoModel` and `AutoProcessor`, at once where transformers is
imported already, else as soon as it is: an adapter loaded through these then runs the package's code, and not the code
stored with it, whatever `trust_remote_code` says. Imported alone it is light: to read gaze needs no torch.
"""

import sys
from importlib import import_module
from importlib.abc import MetaPathFinder

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


class _RegisterWithTransformers(MetaPathFinder):
    """
    Register the classes once transformers is imported. Where it is a module of this package that imports it, the
    module is finished first.
    """

    def __init__(self):
        self.running = 0

    def find_spec(self, name, path=None, target=None):
        if name != "transformers" and not name.startswith(f"{__name__}."):
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            self._register_after(spec.loader)
        return spec

    def _register_after(self, loader) -> None:
        run = loader.exec_module

        def exec_module(module) -> None:
            self.running += 1
            try:
                run(module)
            finally:
                self.running -= 1
            if not self.running and "transformers" in sys.modules and self in sys.meta_path:
                sys.meta_path.remove(self)
                register_auto_classes()

        loader.exec_module = exec_module


if __name__ == "gazeqwen":  # and not as a checkout's folder, whose name it has where pytest collects tests
    if "transformers" in sys.modules:
        register_auto_classes()
    else:
        sys.meta_path.insert(0, _RegisterWithTransformers())

__all__ = [*_MODULES, "__version__", "register_auto_classes"]
