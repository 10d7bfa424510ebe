"""
What the evidence is made of. A row is one way to use gaze, trained and evaluated; a study has the rows of one world,
and says where its recipe, its runs and its results are. `evidence.py` makes them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parent.parent
SEEDS = (0, 1, 2)
NOISE = (2, 5, 10, 15, 20)  # percent of the frame


@dataclass(frozen=True)
class Row:
    """
    What is trained (`overrides` of the recipe; None: nothing, the frozen backbone answers) and under which conditions
    it is evaluated; `WORK` in them stands for the folder of all runs. `group`: the table that it stands in.
    `ringed`: its test videos show a ring around what is fixated. `base_model`: another backbone than the recipe's.
    `rates`: learning rates to choose from by accuracy on the validation split with the first seed, values of the
    recipe's key `rate_key`; none: the recipe's own. `adapter_of`: nothing is trained, the adapters of that row answer.
    `start_from`: training begins with the adapters of that row. `needs`: what has to be in the folder of all runs
    before, and is not made by the study.
    """

    name: str
    title: str
    group: str
    overrides: tuple[str, ...] | None = ()
    conditions: tuple[str, ...] = ("gaze",)
    seeds: tuple[int, ...] = SEEDS
    ringed: bool = False
    base_model: str | None = None
    rates: tuple[float, ...] = ()
    rate_key: str = "stage1.learning_rate"
    adapter_of: str | None = None
    start_from: str | None = None
    needs: str | None = None


def _ablation(name: str, title: str, *overrides: str) -> Row:
    return Row(name, title, "ablations", overrides, ("gaze", "shuffled"))


def _long(row: Row, stage1: int = 10, stage2: int = 10, words: str = "ten times the training", **more) -> Row:
    """Return a row with more training, for what the recipe's may be too short. `more`: what else differs."""
    overrides = (*more.pop("overrides", row.overrides), f"stage1.epochs={stage1}", f"stage2.epochs={stage2}")
    settings = {"title": f"{row.title}, {words}", "overrides": overrides, "group": "long", "seeds": (0,)}
    return replace(row, name=f"{row.name}-long", **settings | more)


def _second_family(
    name: str, title: str, overrides: tuple[str, ...] | None, conditions: tuple[str, ...], **more
) -> Row:
    backbone = "toyworld/backbone_qwen3_vl"
    return Row(f"qwen3-vl-{name}", title, "second family", overrides, conditions, base_model=backbone, **more)


LORA_ALONE = ("adapter.resampler_type=none", "stage1.epochs=0", "stage2.epochs=2")
DEPTH = 6  # decoder layers of the toy backbone
PAPER_LAYERS = [(i + 1) * DEPTH // 4 - 1 for i in range(4)]  # 6, 13, 20, 27 of 28

PAPER = Row(
    "paper",
    "Paper: coord_pe after the paper's layers",
    "main",
    ("adapter.gaze_encoding=coord_pe", f"adapter.injection_layers={PAPER_LAYERS}"),
    ("gaze", "shuffled"),
)
HEATMAP_DECAY = _ablation("heatmap-decay", "Encoding: heatmap_decay", "adapter.gaze_encoding=heatmap_decay")
HEATMAP_DURATION = _ablation(
    "heatmap-duration", "Encoding: heatmap_duration", "adapter.gaze_encoding=heatmap_duration"
)

SHAPES_ROWS = (
    Row("frozen", "Frozen backbone", "main", None, ("text_only", "none", "text", "overlay", "saliency"), (0,)),
    Row(
        "ring",
        "Frozen backbone, gaze drawn as the ring it was pretrained on",
        "main",
        None,
        ("ring", "ring+shuffled"),
    ),
    Row("ring-centre", "Frozen backbone, that ring in the middle of the frame", "main", None, ("ring+centre",), (0,)),
    Row(
        "ring-noise",
        "Frozen backbone, that ring at noisy gaze",
        "main",
        None,
        ("ring+noise5", "ring+noise10"),
        (0,),
    ),
    Row("ringed", "Frozen backbone, what is fixated is ringed (ceiling)", "main", None, ("none",), (0,), ringed=True),
    Row(
        "gazeqwen",
        "GazeQwen",
        "main",
        conditions=("gaze", "zero", "shuffled", "shifted", *(f"noise{percent}" for percent in NOISE)),
    ),
    Row(
        "gazeqwen-controls",
        "GazeQwen, further controls",
        "main",
        conditions=("centre", "random_place", "permuted_times"),
        adapter_of="gazeqwen",
    ),
    Row("lora", "LoRA alone, no gaze", "main", LORA_ALONE),
    Row(
        "lora-overlay",
        "LoRA, gaze drawn on the frames",
        "main",
        (*LORA_ALONE, "data.gaze=overlay+model"),
        ("overlay+model",),
    ),
    Row("shuffled", "GazeQwen trained on shuffled gaze", "main", ("data.gaze=shuffled",), ("gaze", "shuffled")),
    PAPER,
    Row(
        "heatmap-vector",
        "Heatmap times one vector per layer",
        "main",
        ("adapter.resampler_type=heatmap_vector",),
        ("gaze", "shuffled"),
        rates=(3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0),
    ),
    Row(
        "heatmap-vector-controls",
        "Heatmap times one vector per layer, further controls",
        "main",
        conditions=("centre",),
        adapter_of="heatmap-vector",
    ),
    _ablation("coord-pe", "Encoding: coord_pe", "adapter.gaze_encoding=coord_pe"),
    HEATMAP_DECAY,
    HEATMAP_DURATION,
    _long(PAPER),
    _long(HEATMAP_DECAY),
    _long(HEATMAP_DURATION),
    _ablation("no-snap", "No snapping", "model.snap_s=0"),
    _ablation(
        "layers-paper",
        f"Injection after the paper's layers {PAPER_LAYERS}",
        f"adapter.injection_layers={PAPER_LAYERS}",
    ),
    _ablation("layers-early", "Injection after layer 0 alone", "adapter.injection_layers=[0]"),
    _ablation("layers-late", "Injection after layer 3 alone", "adapter.injection_layers=[3]"),
    _ablation("shared", "One resampler for all layers", "adapter.share_resampler=true"),
    _ablation("latents-8", "8 latents", "adapter.num_latents=8"),
    _ablation("latents-128", "128 latents", "adapter.num_latents=128"),
    _ablation(
        "dinov2",
        "DINOv2, random weights",
        "model.video_encoder=WORK/video_encoders/dinov2",
        "model.video_encoder_size=56",
    ),
    _ablation("label-smoothing", "Label smoothing 0.1", "label_smoothing=0.1"),
    _second_family("frozen", "Frozen backbone", None, ("none",), seeds=(0,)),
    _second_family(
        "ringed", "Frozen backbone, what is fixated is ringed (ceiling)", None, ("none",), seeds=(0,), ringed=True
    ),
    _second_family("gazeqwen", "GazeQwen", (), ("gaze", "shuffled")),
    _second_family("shuffled", "GazeQwen trained on shuffled gaze", ("data.gaze=shuffled",), ("gaze", "shuffled")),
    _second_family("lora", "LoRA alone, no gaze", LORA_ALONE, ("gaze",)),
)


@dataclass(frozen=True)
class Study:
    """
    The rows of one world. `recipe`: what all are trained by; `world`: arguments of `generate`; `work`: the folder of
    all runs, unless told otherwise; `results`: of the committed results, one for each row. The other rows are compared
    with the one that is called `default`.
    """

    recipe: Path
    world: dict
    work: Path
    results: Path
    rows: tuple[Row, ...]
    default: str = "gazeqwen"

    def row(self, name: str) -> Row:
        """Return the row of that name. Raises ValueError where there is none."""
        for row in self.rows:
            if row.name == name:
                return row
        raise ValueError(f"row: got {name!r}, expected one of {[row.name for row in self.rows]}")


def _lora_drawn(mark: str, how: str) -> Row:
    """Return a row of LoRA with gaze given as one mark, at the rate that is the ring's best."""
    condition = f"{mark}+model"
    return Row(
        f"lora-{mark}",
        f"LoRA, gaze {how}",
        "main",
        (*LORA_ALONE, f"data.gaze={condition}", "stage2.lora_learning_rate=0.002"),
        (condition, f"{condition}+shuffled"),
    )


def _normalized(row: Row, name: str) -> Row:
    """Return a row whose features are brought to one size."""
    overrides = (*row.overrides, "adapter.normalize_features=true")
    return replace(row, name=name, title=f"{row.title}, normalised", overrides=overrides)


def _trained_with_noise(row: Row, *overrides: str) -> Row:
    """Return a row that is trained, and chosen on validation, at gaze with noise of 10 % of the frame."""
    return Row(
        f"{row.name}-trained-with-noise",
        f"{row.title}, trained with noise",
        "noise",
        (*row.overrides, *overrides, "data.gaze=noise10"),
        ("gaze", "noise5", "noise10", "noise10+shuffled"),
    )


def under(gaze: str, word: str) -> str:
    """Return the condition of a row that is given gaze as `gaze`, changed by `word`: `ring+model+noise5`."""
    return word if gaze == "gaze" else f"{gaze}+{word}"


def _more_noise(row: Row) -> Row:
    """Return the row that asks a row's adapters under more noise."""
    conditions = tuple(under(row.conditions[0], f"noise{percent}") for percent in (15, 20))
    return Row(f"{row.name}-more-noise", f"{row.title}, more noise", "noise", (), conditions, adapter_of=row.name)


def _then_noise(row: Row, *overrides: str) -> Row:
    """
    Return a row that goes on with a row's adapters in stage 2, at noise of 10 % of the frame: new in each epoch, or
    where gaze is drawn, which is done once, the same in all. `overrides`: the rate that was found.
    """
    gaze = row.conditions[0]
    noise = "data.scanpath_noise=0.1" if gaze == "gaze" else f"data.gaze={under(gaze, 'noise10')}"
    return replace(
        row,
        name=f"{row.name}-then-noise",
        title=f"{row.title}, then trained with noise",
        group="noise",
        overrides=(*row.overrides, *overrides, "stage1.epochs=0", "stage2.epochs=5", noise),
        conditions=(gaze, *(under(gaze, word) for word in ("noise5", "noise10", "noise10+shuffled"))),
        rates=(),
        start_from=row.name,
    )


def _augmented(row: Row) -> Row:
    """Return a row that is trained at noise of 10 % of the frame that each epoch draws anew, and chosen without."""
    title, overrides = f"{row.title}, noise drawn anew in each epoch", (*row.overrides, "data.scanpath_noise=0.1")
    return replace(row, name=f"{row.name}-augmented", title=title, overrides=overrides)


KITCHEN_GAZEQWEN = Row(
    "gazeqwen", "GazeQwen", "main", conditions=("gaze", "zero", "shuffled", "centre", "noise5", "noise10")
)
OWN_EMBEDDINGS = Row(
    "own-embeddings",
    "GazeQwen on the base model's own embeddings, no video encoder",
    "main",
    ("adapter.resampler_features=base_model", "model.video_encoder=''"),
    ("gaze", "shuffled", "centre", "noise5", "noise10"),
)
NORMALIZED_EMBEDDINGS = _normalized(OWN_EMBEDDINGS, "normalized-embeddings")
KITCHEN_HEATMAP = Row(
    "heatmap-vector",
    "Heatmap times one vector per layer",
    "main",
    ("adapter.resampler_type=heatmap_vector",),
    ("gaze", "shuffled", "centre", "noise5", "noise10"),
    rates=(3e-3, 3e-2, 1e-1, 3e-1),
)
KITCHEN_HEATMAP_RATE = "stage1.learning_rate=0.1"  # the best of these
# At 112 pixels one of its patches is one visual token. docs/natural-video.md says where its weights are from.
KITCHEN_DINOV2 = Row(
    "dinov2",
    "GazeQwen on a pretrained DINOv2-S",
    "main",
    ("model.video_encoder=WORK/video_encoders/dinov2_small", "model.video_encoder_size=112"),
    ("gaze", "shuffled", "centre"),
    needs="video_encoders/dinov2_small",
)
# The resampler has Gaussians of half, one and two tokens, the first heatmap one of one.
KITCHEN_NARROW = replace(
    KITCHEN_HEATMAP,
    name="heatmap-vector-narrow",
    title="Heatmap half as wide times one vector per layer",
    overrides=(*KITCHEN_HEATMAP.overrides, "adapter.heatmap_sigma=0.5"),
    rates=(3e-2, 1e-1, 3e-1),
)
KITCHEN_RING = Row(
    "lora-ring",
    "LoRA, gaze drawn as a ring",
    "main",
    (*LORA_ALONE, "data.gaze=ring+model"),
    ("ring+model", "ring+model+shuffled", "ring+model+centre", "ring+model+noise5", "ring+model+noise10"),
    rates=(2e-4, 5e-4, 2e-3),
    rate_key="stage2.lora_learning_rate",
)
KITCHEN_RING_RATE = "stage2.lora_learning_rate=0.002"  # the best of these
KITCHEN_DINOV2_NORMALIZED = _normalized(KITCHEN_DINOV2, "dinov2-normalized")


def _longer(row: Row, *overrides: str) -> Row:
    """
    Return a row of which what gives gaze is trained five times as long, asked under noise, too: the resamplers in
    stage 1, and where gaze is drawn, LoRA. `overrides`: the rate that was found.
    """
    gaze, drawn = row.conditions[0], "stage1.epochs=0" in row.overrides
    conditions = (gaze, *(under(gaze, word) for word in ("shuffled", "noise5", "noise10")))
    epochs = (0, 10, "five times as long") if drawn else (5, 1, "stage 1 five times as long")
    return _long(row, *epochs, overrides=(*row.overrides, *overrides), conditions=conditions, rates=())


# The kitchen's rivals are drawn as its backbone was pretrained on: ring, cross, heat map, places in words.
KITCHEN_ROWS = (
    Row(
        "frozen",
        "Frozen backbone",
        "main",
        None,
        ("text_only", "none", "ring", "cross", "saliency", "text"),
        (0,),
    ),
    Row(
        "frozen-controls",
        "Frozen backbone, gaze drawn, controls",
        "main",
        None,
        ("ring+shuffled", "ring+centre", "cross+shuffled", "saliency+shuffled", "text+shuffled"),
        (0,),
    ),
    # The seed draws the noise: with the trained rows' seeds, it is the same for all.
    Row("frozen-noise", "Frozen backbone, ring at noisy gaze", "main", None, ("ring+noise5", "ring+noise10")),
    Row(
        "frozen-more-noise",
        "Frozen backbone, ring at noisier gaze",
        "noise",
        None,
        ("ring+noise15", "ring+noise20"),
    ),
    KITCHEN_GAZEQWEN,
    Row(
        "gazeqwen-controls",
        "GazeQwen, further controls",
        "main",
        conditions=("random_place", "permuted_times", "shifted"),
        adapter_of="gazeqwen",
    ),
    OWN_EMBEDDINGS,
    NORMALIZED_EMBEDDINGS,
    KITCHEN_HEATMAP,
    Row("lora", "LoRA alone, no gaze", "main", LORA_ALONE),
    KITCHEN_RING,
    _lora_drawn("cross", "drawn as a cross"),
    _lora_drawn("saliency", "as a heat map"),
    _lora_drawn("text", "as places in words"),
    Row("shuffled", "GazeQwen trained on shuffled gaze", "main", ("data.gaze=shuffled",), ("gaze", "shuffled")),
    replace(PAPER, conditions=("gaze", "shuffled", "centre")),
    KITCHEN_NARROW,
    KITCHEN_DINOV2,
    KITCHEN_DINOV2_NORMALIZED,
    *(_more_noise(row) for row in (KITCHEN_GAZEQWEN, NORMALIZED_EMBEDDINGS, KITCHEN_NARROW, KITCHEN_RING)),
    _trained_with_noise(KITCHEN_HEATMAP, KITCHEN_HEATMAP_RATE),
    _trained_with_noise(OWN_EMBEDDINGS),
    _trained_with_noise(NORMALIZED_EMBEDDINGS),
    _trained_with_noise(KITCHEN_GAZEQWEN),
    *(_then_noise(row) for row in (KITCHEN_DINOV2_NORMALIZED, NORMALIZED_EMBEDDINGS)),
    _then_noise(KITCHEN_NARROW, "stage2.learning_rate=0.03"),
    _then_noise(KITCHEN_RING, KITCHEN_RING_RATE),
    *(
        _longer(row, *overrides)
        for row, *overrides in (
            (KITCHEN_DINOV2_NORMALIZED,),
            (_augmented(KITCHEN_DINOV2_NORMALIZED),),
            (NORMALIZED_EMBEDDINGS,),
            (_augmented(NORMALIZED_EMBEDDINGS),),
            (KITCHEN_NARROW, KITCHEN_HEATMAP_RATE),
            (_augmented(KITCHEN_NARROW), KITCHEN_HEATMAP_RATE),
        )
    ),
    _longer(KITCHEN_RING, KITCHEN_RING_RATE),
)

SHAPES = Study(
    recipe=ROOT / "recipes" / "toyworld.yaml",
    world={"train": 600, "val": 80, "test": 240, "seed": 0, "per_task": 2, "most": (220, 40, 100)},
    work=Path("runs/evidence"),
    results=ROOT / "results" / "toyworld",
    rows=SHAPES_ROWS,
)
KITCHEN = Study(
    recipe=ROOT / "recipes" / "kitchen.yaml",
    world={"train": 300, "val": 40, "test": 120, "seed": 0, "per_task": 2, "most": (150, 30, 60), "kind": "kitchen"},
    work=Path("runs/kitchen"),
    results=ROOT / "results" / "kitchen",
    rows=KITCHEN_ROWS,
)
STUDIES = {"shapes": SHAPES, "kitchen": KITCHEN}
