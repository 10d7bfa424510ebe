"""The memory that a recipe would take on one accelerator, estimated from shapes alone."""

import math
from dataclasses import dataclass

import torch

from gazeqwen.backbones_gazeqwen import embed_dim, family_of
from gazeqwen.token_selection_gazeqwen import count_kept
from gazeqwen.training.recipe import Recipe

_BYTES_PER_4BIT = 0.55  # NF4 with its scales, of a linear layer
_BYTES_PER_TRAINED = 16  # float32: weight, gradient, two moments of Adam


@dataclass(frozen=True)
class ClipShape:
    """
    Hold the size of a sample: frames, and tokens of its prompt, those of the video and those of the text around it.
    """

    frames: int
    video_tokens: int
    text_tokens: int


@dataclass(frozen=True)
class Memory:
    """
    Hold bytes on one accelerator by what they are for: `persistent` ones are there at once, `transient` ones one after
    another.
    """

    persistent: dict[str, float]
    transient: dict[str, float]

    @property
    def peak(self) -> float:
        """Return the most bytes at once: all `persistent`, and the largest `transient`."""
        return sum(self.persistent.values()) + max(self.transient.values())


def parameter_counts(model) -> dict[str, int]:
    """Return the parameters of base model, video encoder, resampler and LoRA. A tied matrix counts once."""
    lora = sum(value.numel() for name, value in model.named_parameters() if "lora_" in name)
    return {
        "base model": _count(model.backbone) - lora,
        "video encoder": _count(model.video_encoder),
        "resampler": _count(model.resampler),
        "LoRA": lora,
    }


def _count(module: torch.nn.Module | None) -> int:
    """Return the number of a module's parameters, 0 for None."""
    return 0 if module is None else sum(value.numel() for value in module.parameters())


def feature_dim(model) -> int:
    """Return the width of the video encoder's features; 0 for a model without one."""
    return 0 if model.video_encoder is None else model.video_encoder.config.hidden_size


def count_trained(model, stage: int) -> int:
    """Return how many parameters a stage trains."""
    parameters = model.trained_parameters().items()
    return sum(value.numel() for name, value in parameters if stage == 2 or "lora_" not in name)


def base_dtype(recipe: Recipe, model) -> torch.dtype:
    """Return the type that the base model is loaded in. Raises ValueError if `model.dtype` names none."""
    if recipe.model.dtype == "auto":
        return model.config.load_backbone_config().dtype or torch.float32
    dtype = getattr(torch, recipe.model.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"model.dtype: got {recipe.model.dtype!r}, expected 'auto' or a type such as 'bfloat16'")
    return dtype


def estimate_memory(recipe: Recipe, model, clip: ClipShape) -> dict[str, Memory]:
    """
    Return the memory of each phase (`filling the cache`, `stage 1`, `stage 2`, `validation`), every sample of a batch
    being as large as `clip`. An estimate for one accelerator that holds all weights; `model`: of `model_on_meta`.

    b is the bytes of a value of `model.dtype`, D, I, Q, K the widths of the decoder's hidden states, feed-forward (all
    experts of a position together), queries and keys (= values), P the positions of a batch (batch size times tokens
    of a prompt, of its video's those that stay, `keep_tokens`), N its video tokens, T its temporal steps. Terms, in
    bytes:

    - base model: b per parameter; with `load_in_4bit` 0.55 per parameter of linear layers other than the output's.
    - video encoder: b per parameter.
    - trained: 16 per trained parameter (float32: weight, gradient, Adam's two moments); 4 while a cache is filled.
    - inputs: b D per position (embeddings); b per value of the video encoder's features; for each network that runs,
      its pixels in float32, and once more in b.
    - residuals, float32 values: features N W (W: their width), the resampler's N l (d + k (2 blocks + 1)) and
      T l 16 k d blocks (l resamplers, k latents of width d), and T k D per injection layer; `heatmap_vector`: N, and
      T D per injection layer. Beside these b D per video token and injection layer: what is added is kept. Without a
      resampler none of it.
    - activations for backward: one layer keeps `kept` = 8 D + b (2 Q + 2 K + 3 I) per position: the norms' inputs in
      float32; queries, keys, values, result; the feed-forward's gate, its activation and the other factor. Norms of
      queries and keys keep 4 (Q + K) more, experts b D each that a position goes through and 4 each that there is.
      Frozen linear layers keep nothing. With LoRA 8 D + 8 rank more (its input in float32, for q and v). With padding
      (batches of several) keys and values are repeated to Q. `eager` attention keeps 4 (and b, unless it is 4) per
      head and pair of positions of a sample more. Layers with a graph: in stage 1 those after the first injection
      layer, in stage 2 all. With gradient checkpointing each keeps b D per position instead. The last norm: 4 D per
      position.
    - working space of the decoder: `kept` per position for one layer's gradients, once more with gradient
      checkpointing for the layer that is run again, (8 + b) D per video token for a dense residual, b + 1 per pair of
      positions of a sample for the mask of a padded batch; in 4 bits the largest linear layer in b.
    - working space of the vision tower per patch, of width D and feed-forward I: b (6 D + 3 I) + 16 D; of the video
      encoder per token of width W: (14 b + 8) W, and 4 W per video token. Zero where the cache holds what they give.
    - validation: no activations, but keys and values of all layers, 2 b K per position and layer.

    Not counted: the accelerator's context, the allocator's gaps, buffers of several processes.
    """
    dtype, embedded = base_dtype(recipe, model), recipe.data.cache == "embeddings"
    encoded = model.video_encoder is not None
    featured = recipe.data.cache != "none" and encoded
    frames = encoded and not featured  # the video encoder runs in training
    sizes = _Sizes(recipe, model, clip, dtype.itemsize)
    weights = {"base model": _base_bytes(recipe, model, dtype), "video encoder": sizes.b * _count(model.video_encoder)}
    batch, evaluation_batch = recipe.batch_size, recipe.evaluation_batch_size
    phases = {}
    if embedded or featured:
        phases["filling the cache"] = Memory(
            {
                **weights,
                "trained": 4 * _count(model.resampler),
                "inputs": sizes.inputs(evaluation_batch, pixels=embedded, frames=encoded),
            },
            sizes.towers(evaluation_batch, vision=embedded, video_encoder=encoded),
        )
    for number, stage in ((1, recipe.stage1), (2, recipe.stage2)):
        if stage.epochs:
            phases[f"stage {number}"] = Memory(
                {
                    **weights,
                    "trained": _BYTES_PER_TRAINED * count_trained(model, number),
                    "inputs": sizes.inputs(batch, pixels=not embedded, frames=frames),
                    "residuals": sizes.residuals(batch),
                    "activations for backward": sizes.activations(batch, number),
                },
                {
                    "decoder": sizes.decoder(batch, number, recipe.gradient_checkpointing),
                    **sizes.towers(batch, vision=not embedded, video_encoder=frames),
                },
            )
    last = 2 if recipe.stage2.epochs else 1
    phases["validation"] = Memory(
        {
            **weights,
            "trained": _BYTES_PER_TRAINED * count_trained(model, last),
            "inputs": sizes.inputs(evaluation_batch, pixels=not embedded, frames=frames),
            "residuals": sizes.residuals(evaluation_batch),
            "keys and values": sizes.keys_and_values(evaluation_batch),
        },
        {
            "decoder": sizes.decoder(evaluation_batch, last, False),
            **sizes.towers(evaluation_batch, vision=not embedded, video_encoder=frames),
        },
    )
    return phases


def _base_bytes(recipe: Recipe, model, dtype: torch.dtype) -> float:
    """Return the bytes of the base model's weights."""
    linear = sum(_linear_layers(model)) if recipe.model.load_in_4bit else 0
    return _BYTES_PER_4BIT * linear + dtype.itemsize * (parameter_counts(model)["base model"] - linear)


def _linear_layers(model) -> list[int]:
    """Return the weights of each linear layer of the base model that 4 bits can hold: all but the output's."""
    return [
        module.weight.numel()
        for name, module in model.backbone.named_modules()
        if isinstance(module, torch.nn.Linear) and "lora_" not in name and module is not model.get_output_embeddings()
    ]


class _Sizes:
    """
    Compute the terms of `estimate_memory`, in bytes, for batches of `batch` samples of the size `clip`. `b`: bytes of
    a value of the base model.
    """

    def __init__(self, recipe: Recipe, model, clip: ClipShape, b: int):
        self.recipe, self.model, self.clip, self.b = recipe, model, clip, b
        self.text = text = model.config.get_text_config()
        backbone = model.config.load_backbone_config()
        self.family, self.vision = family_of(backbone), backbone.vision_config
        self.steps = clip.frames / self.vision.temporal_patch_size
        self.kept_tokens = self._kept_tokens()
        self.length = self.kept_tokens + clip.text_tokens
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        self.queries, self.keys = head * text.num_attention_heads, head * text.num_key_value_heads
        self.width = feature_dim(model)

    def _kept_tokens(self) -> int:
        """Return how many video tokens enter a prompt, at most."""
        steps, recipe = max(1, round(self.steps)), self.recipe
        in_step = self.clip.video_tokens // steps
        return max(steps * count_kept(keep, in_step) for keep in recipe.data.keep_tokens or [recipe.model.keep_tokens])

    def kept(self, batch: int, stage: int) -> float:
        """Return what one decoder layer with a graph keeps per position."""
        text, keys = self.text, self.keys if batch == 1 else self.queries
        kept = 8 * text.hidden_size + self.b * (2 * self.queries + 2 * keys)
        if self.family.has_query_norm:
            kept += 4 * (self.queries + self.keys)
        if self.family.has_experts:
            each = self.b * (3 * text.moe_intermediate_size + text.hidden_size)
            kept += text.num_experts_per_tok * each + 4 * text.num_experts
        else:
            kept += self.b * 3 * text.intermediate_size
        if stage == 2:
            kept += 8 * text.hidden_size + 8 * self.recipe.lora_rank
        if self.recipe.model.attn_implementation == "eager":
            kept += (4 if self.b == 4 else 4 + self.b) * text.num_attention_heads * self.length
        return kept

    def activations(self, batch: int, stage: int) -> float:
        """Return what all decoder layers keep for the backward pass."""
        depth, hidden = self.text.num_hidden_layers, self.text.hidden_size
        layers = depth if stage == 2 else depth - 1 - self.model.config.resolved_injection_layers()[0]
        per_layer = self.b * hidden if self.recipe.gradient_checkpointing else self.kept(batch, stage)
        return batch * self.length * (layers * per_layer + 4 * hidden)

    def decoder(self, batch: int, stage: int, checkpointed: bool) -> float:
        """Return the decoder's working space."""
        working = batch * self.length * self.kept(batch, stage) * (2 if checkpointed else 1)
        if self.model.config.has_resampler:
            working += batch * self.clip.video_tokens * (8 + self.b) * self.text.hidden_size
        if batch > 1:
            working += batch * self.length**2 * (self.b + 1)
        if self.recipe.model.load_in_4bit:
            working += self.b * max(_linear_layers(self.model))
        return working

    def keys_and_values(self, batch: int) -> float:
        """Return the cache of keys and values of all layers."""
        return 2 * self.b * self.keys * self.text.num_hidden_layers * batch * self.length

    def inputs(self, batch: int, pixels: bool, frames: bool) -> float:
        """
        Return the model's inputs; with `pixels`, those of the vision tower, and `frames`, those of the video encoder.
        """
        kept = self.width + embed_dim(self.model.config.load_backbone_config()) - self.text.hidden_size
        values = self.text.hidden_size * (self.length - self.kept_tokens) + kept * self.clip.video_tokens
        values += self.text.hidden_size * self.clip.video_tokens
        patch = self.vision.in_channels * self.vision.temporal_patch_size * self.vision.patch_size**2
        raw = 0.0
        if pixels:
            raw += self._patches() * patch
        if frames:
            raw += self.clip.frames * 3 * self.recipe.model.video_encoder_size**2
        return batch * (self.b * values + (4 + self.b) * raw)

    def residuals(self, batch: int) -> float:
        """Return what computing and adding the residuals keeps; 0 without a resampler."""
        config, tokens, steps = self.model.config, self.clip.video_tokens, self.steps
        if not config.has_resampler:
            return 0.0
        layers, hidden = len(config.resolved_injection_layers()), self.text.hidden_size
        added = self.b * layers * self.kept_tokens * hidden
        if config.resampler_type == "heatmap_vector":
            return batch * (4 * (tokens + layers * steps * hidden) + added)
        own, latents, dim = 1 if config.share_resampler else layers, config.num_latents, config.latent_dim
        values = tokens * (config.feature_dim() + own * (dim + latents * (2 * config.num_blocks + 1)))
        values += steps * own * 16 * latents * dim * config.num_blocks
        values += steps * layers * latents * hidden
        return batch * (4 * values + added)

    def towers(self, batch: int, vision: bool, video_encoder: bool) -> dict[str, float]:
        """Return the working space of the vision tower and of the video encoder, 0 for the one that does not run."""
        tower = encoder = 0.0
        if vision:
            block = self.model.backbone.model.visual.blocks[0]
            hidden = block.norm1.weight.numel()
            inner = max(layer.out_features for layer in block.mlp.modules() if isinstance(layer, torch.nn.Linear))
            tower = self._patches() * (self.b * (6 * hidden + 3 * inner) + 16 * hidden)
        if video_encoder:
            side = self.recipe.model.video_encoder_size
            tokens = math.prod(self.model.video_encoder.token_grid(self.clip.frames, side, side))
            encoder = (14 * self.b + 8) * self.width * tokens + 4 * self.width * self.clip.video_tokens
        return {"vision tower": batch * tower, "video encoder": batch * encoder}

    def _patches(self) -> int:
        """Return the vision tower's patches of a sample."""
        return self.clip.video_tokens * self.vision.spatial_merge_size**2


__all__ = [
    "ClipShape",
    "Memory",
    "base_dtype",
    "count_trained",
    "estimate_memory",
    "feature_dim",
    "parameter_counts",
]
