"""The evaluation suites of others: what they need to ask GazeQwen, with this package's answers and scores."""


def lmms_manifest():
    """Return the manifest of `--model gazeqwen`, which lmms-eval finds by its entry-point group `lmms_eval.models`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("gazeqwen", simple_class_path="gazeqwen.suites.lmms_plugin.GazeQwen")
