"""
The things of the kitchen: a noun, a colour, a category and a picture each.

The pictures are Microsoft's Fluent emoji (3D), MIT licence (`LICENSE-fluent-emoji`), as the npm package
`@lobehub/fluent-emoji-3d` 1.1.0 holds them: `sprites.png` has them at 64x64 pixels, in the order of `THINGS`, eight a
row. It was made by
`python -m gazeqwen.toyworld.kitchen.things PACKAGE_FOLDER` (`npm pack @lobehub/fluent-emoji-3d@1.1.0`, unpacked).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

SPRITE_PX = 64
SPRITES = Path(__file__).parent / "sprites.png"
_COLUMNS = 8


@dataclass(frozen=True)
class Thing:
    """What a thing is called and is like; `code_points` names its emoji."""

    noun: str
    color: str
    category: str
    code_points: str


THINGS = (
    Thing("apple", "red", "fruit", "1f34e"),
    Thing("strawberry", "red", "fruit", "1f353"),
    Thing("cherries", "red", "fruit", "1f352"),
    Thing("tomato", "red", "vegetable", "1f345"),
    Thing("chili", "red", "vegetable", "1f336-fe0f"),
    Thing("mushroom", "red", "vegetable", "1f344"),
    Thing("steak", "red", "dish", "1f969"),
    Thing("bacon", "red", "dish", "1f953"),
    Thing("crab", "red", "dish", "1f980"),
    Thing("teapot", "red", "drink", "1fad6"),
    Thing("scissors", "red", "tool", "2702-fe0f"),
    Thing("screwdriver", "red", "tool", "1fa9b"),
    Thing("lemon", "yellow", "fruit", "1f34b"),
    Thing("banana", "yellow", "fruit", "1f34c"),
    Thing("corn", "yellow", "vegetable", "1f33d"),
    Thing("cheese", "yellow", "dish", "1f9c0"),
    Thing("butter", "yellow", "dish", "1f9c8"),
    Thing("taco", "yellow", "dish", "1f32e"),
    Thing("beer", "yellow", "drink", "1f37a"),
    Thing("key", "yellow", "tool", "1f511"),
    Thing("bell", "yellow", "tool", "1f514"),
    Thing("bulb", "yellow", "tool", "1f4a1"),
    Thing("tangerine", "orange", "fruit", "1f34a"),
    Thing("peach", "orange", "fruit", "1f351"),
    Thing("carrot", "orange", "vegetable", "1f955"),
    Thing("shrimp", "orange", "dish", "1f364"),
    Thing("pretzel", "orange", "dish", "1f968"),
    Thing("hotdog", "orange", "dish", "1f32d"),
    Thing("pencil", "orange", "tool", "270f-fe0f"),
    Thing("sponge", "orange", "tool", "1f9fd"),
    Thing("pear", "green", "fruit", "1f350"),
    Thing("kiwi", "green", "fruit", "1f95d"),
    Thing("avocado", "green", "fruit", "1f951"),
    Thing("broccoli", "green", "vegetable", "1f966"),
    Thing("lettuce", "green", "vegetable", "1f96c"),
    Thing("cucumber", "green", "vegetable", "1f952"),
    Thing("juice", "green", "drink", "1f9c3"),
    Thing("bottle", "green", "drink", "1f37e"),
    Thing("battery", "green", "tool", "1f50b"),
    Thing("fish", "blue", "dish", "1f41f"),
    Thing("bucket", "blue", "tool", "1faa3"),
    Thing("bowl", "blue", "tool", "1f963"),
    Thing("pen", "blue", "tool", "1f58a-fe0f"),
    Thing("blueberries", "purple", "fruit", "1fad0"),
    Thing("grapes", "purple", "fruit", "1f347"),
    Thing("eggplant", "purple", "vegetable", "1f346"),
    Thing("wine", "purple", "drink", "1f377"),
    Thing("gloves", "purple", "tool", "1f9e4"),
    Thing("umbrella", "purple", "tool", "2602-fe0f"),
    Thing("coconut", "brown", "fruit", "1f965"),
    Thing("potato", "brown", "vegetable", "1f954"),
    Thing("chestnut", "brown", "fruit", "1f330"),
    Thing("bread", "brown", "dish", "1f35e"),
    Thing("donut", "brown", "dish", "1f369"),
    Thing("chocolate", "brown", "dish", "1f36b"),
    Thing("honey", "brown", "drink", "1f36f"),
    Thing("basket", "brown", "tool", "1f9fa"),
    Thing("hammer", "brown", "tool", "1f528"),
    Thing("garlic", "white", "vegetable", "1f9c4"),
    Thing("salt", "white", "dish", "1f9c2"),
    Thing("milk", "white", "drink", "1f95b"),
    Thing("tea", "white", "drink", "1f375"),
    Thing("spoon", "white", "tool", "1f944"),
    Thing("plate", "white", "tool", "1f37d-fe0f"),
)
NOUNS = tuple(thing.noun for thing in THINGS)
COLORS = tuple(dict.fromkeys(thing.color for thing in THINGS))
CATEGORIES = tuple(dict.fromkeys(thing.category for thing in THINGS))


@cache
def sprite(number: int) -> Image.Image:
    """Return the picture of `THINGS[number]`, RGBA with premultiplied alpha, 64x64."""
    row, column = divmod(number, _COLUMNS)
    with Image.open(SPRITES) as atlas:
        box = (column * SPRITE_PX, row * SPRITE_PX, (column + 1) * SPRITE_PX, (row + 1) * SPRITE_PX)
        return atlas.convert("RGBA").crop(box).convert("RGBa")


def build_atlas(package: str | Path) -> Image.Image:
    """Return all pictures in one, RGBA, read from the unpacked npm package."""
    rows = -(-len(THINGS) // _COLUMNS)
    atlas = Image.new("RGBA", (_COLUMNS * SPRITE_PX, rows * SPRITE_PX))
    for number, thing in enumerate(THINGS):
        with Image.open(Path(package) / "assets" / f"{thing.code_points}.webp") as picture:
            picture = picture.convert("RGBA").crop(picture.convert("RGBA").getbbox())
        side = max(picture.size)
        square = Image.new("RGBA", (side, side))
        square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        small = square.convert("RGBa").resize((SPRITE_PX, SPRITE_PX), Image.Resampling.LANCZOS).convert("RGBA")
        row, column = divmod(number, _COLUMNS)
        atlas.paste(small, (column * SPRITE_PX, row * SPRITE_PX))
    return atlas


if __name__ == "__main__":
    build_atlas(sys.argv[1]).save(SPRITES, optimize=True)
