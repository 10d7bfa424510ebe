"""The second toy world: pictures of kitchen things on textured grounds, seen from a head that drifts and turns."""

from gazeqwen.toyworld.kitchen.scene import make_scene
from gazeqwen.toyworld.kitchen.tracker import record_viewer

__all__ = ["make_scene", "record_viewer"]
