"""V-JEPA 2.1 video and image encoder in transformers style, configuration included (one file: it travels alone).

Source: V-JEPA 2.1, arXiv 2603.14482; the official code is facebookresearch/vjepa2, `app/vjepa_2_1/models`. Parameter
names are the official ones, so `convert.py vjepa2_1` only strips a prefix. What differs from transformers'
`VJEPA2Model`: interleaved rotary angles, height and width positions rescaled to the pretraining grid, a modality
embedding and a patch embedding of their own for images, and an output norm that is the last of four.
"""

import torch
from torch import nn
from transformers import initialization as init
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils import can_return_tuple

ROTARY_BASE = 10000.0
NUM_OUTPUT_NORMS = 4


class VJEPA21Config(PreTrainedConfig):
    """Sizes of a V-JEPA 2.1 encoder. The defaults are ViT-B/16 at 384 pixels.

    Args:
        hidden_size: width D of a token.
        num_hidden_layers: number of blocks.
        num_attention_heads: heads per block; `hidden_size / num_attention_heads` is even and at least 6, because a
            head is split in three rotary parts of even size.
        intermediate_size: width of the MLP.
        num_channels: channels of a frame.
        patch_size: side of a patch, pixels.
        tubelet_size: frames per video token.
        pretrain_grid_size: patches per side in pretraining (256 pixels / patch size); height and width positions
            run from 0 to `pretrain_grid_size - 1` whatever the input's size.
        image_size: side of the square input the checkpoint is meant for, pixels. Advice to processors: the model
            itself takes any multiple of `patch_size`.
        layer_norm_eps: epsilon of every LayerNorm.
        initializer_range: standard deviation of new weights.

    Raises:
        ValueError: a size is not a positive integer, or the head size does not fit the rotary split.
    """

    model_type = "vjepa2_1"

    def __init__(
        self,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        num_channels: int = 3,
        patch_size: int = 16,
        tubelet_size: int = 2,
        pretrain_grid_size: int = 16,
        image_size: int = 384,
        layer_norm_eps: float = 1e-6,
        initializer_range: float = 0.02,
        **kwargs,
    ):
        sizes = {
            "hidden_size": hidden_size,
            "num_hidden_layers": num_hidden_layers,
            "num_attention_heads": num_attention_heads,
            "intermediate_size": intermediate_size,
            "num_channels": num_channels,
            "patch_size": patch_size,
            "tubelet_size": tubelet_size,
            "pretrain_grid_size": pretrain_grid_size,
            "image_size": image_size,
        }
        for name, value in sizes.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}: got {value!r}, expected a positive integer")
            setattr(self, name, value)
        if hidden_size % num_attention_heads:
            raise ValueError(
                f"hidden_size: got {hidden_size}, expected a multiple of num_attention_heads {num_attention_heads}"
            )
        head_size = hidden_size // num_attention_heads
        if head_size % 2 or head_size < 6:
            raise ValueError(
                f"hidden_size / num_attention_heads: got {head_size} ({hidden_size} / {num_attention_heads}), "
                "expected an even number of at least 6"
            )
        if image_size % patch_size:
            raise ValueError(f"image_size: got {image_size}, expected a multiple of patch_size {patch_size}")
        for name, real in {"layer_norm_eps": layer_norm_eps, "initializer_range": initializer_range}.items():
            if not real > 0:
                raise ValueError(f"{name}: got {real!r}, expected a positive number")
            setattr(self, name, real)
        super().__init__(**kwargs)


def rotary_table(
    grid: tuple[int, int, int], head_size: int, pretrain_grid_size: int, device: torch.device | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines that rotate one head of every token, float32, each (N, head_size) with N = t * h * w.

    A head is time | height | width | rest; the three rotated parts have `2 * ((head_size // 3) // 2)` dimensions each
    and the rest has angle 0. Each angle stands twice in a row: pairs are neighbours. A side of one patch sits at
    position 0, where the official rescaling divides 0 by 0.
    """
    # N: tokens, P: pairs of one part
    pairs = (head_size // 3) // 2
    frequencies = 1.0 / ROTARY_BASE ** (torch.arange(pairs, dtype=torch.float32, device=device) / pairs)  # (P,)
    t, h, w = (torch.arange(size, dtype=torch.float32, device=device) for size in grid)
    h = h * (pretrain_grid_size - 1) / max(grid[1] - 1, 1)
    w = w * (pretrain_grid_size - 1) / max(grid[2] - 1, 1)
    positions = torch.cartesian_prod(t, h, w)  # (N, 3), raster order
    angles = (positions[:, :, None] * frequencies).repeat_interleave(2, dim=-1).flatten(1)  # (N, 3 * 2P)
    angles = nn.functional.pad(angles, (0, head_size - angles.shape[1]))  # (N, head_size)
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates neighbouring pairs of x (..., N, head_size) by the table's angles, in float32; returns x's dtype."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    quarter_turn = torch.stack((-odd, even), dim=-1).flatten(-2)
    return (x * cos + quarter_turn * sin).to(x.dtype)


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Attention written out, with transformers' attention interface: (B, heads, N, d) -> (B, N, heads, d), weights."""
    weights = (query @ key.transpose(-1, -2) * scaling).softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2), weights


class VJEPA21PatchEmbedding(nn.Module):
    """Non-overlapping tubelets of pixels to tokens, in raster order (t, h, w)."""

    def __init__(self, config: VJEPA21Config, tubelet_size: int):
        super().__init__()
        kernel = (tubelet_size, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(config.num_channels, config.hidden_size, kernel_size=kernel, stride=kernel)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.proj(pixels.transpose(1, 2)).flatten(2).transpose(1, 2)  # (B, F, C, H, W) -> (B, N, D)


class VJEPA21Attention(nn.Module):
    """Full self-attention with rotary queries and keys."""

    def __init__(self, config: VJEPA21Config):
        super().__init__()
        self.config = config
        self.head_size = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_size**-0.5
        self.is_causal = False
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        # B: batch, N: tokens, D: hidden size, h: heads, d: head size
        qkv = self.qkv(hidden_states).unflatten(-1, (3, -1, self.head_size))  # (B, N, 3, h, d)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, h, N, d)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        mixed, _ = attend(self, query, key, value, None, scaling=self.scaling, dropout=0.0)  # (B, N, h, d)
        return self.proj(mixed.flatten(2))  # (B, N, D)


class VJEPA21MLP(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, config: VJEPA21Config):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(hidden_states)))


class VJEPA21Block(GradientCheckpointingLayer):
    """Pre-norm transformer block."""

    def __init__(self, config: VJEPA21Config):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attn = VJEPA21Attention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = VJEPA21MLP(config)

    def forward(self, hidden_states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        hidden_states = hidden_states + self.attn(self.norm1(hidden_states), cos, sin)
        return hidden_states + self.mlp(self.norm2(hidden_states))


class VJEPA21Model(PreTrainedModel):
    """V-JEPA 2.1 encoder: frames in, one token per patch (image) or tubelet (video) out. See `forward`."""

    config_class = VJEPA21Config
    base_model_prefix = "vjepa2_1"
    main_input_name = "pixel_values_videos"
    input_modalities = ("video", "image")
    supports_gradient_checkpointing = True
    _no_split_modules = ("VJEPA21Block",)
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: VJEPA21Config):
        super().__init__(config)
        self.patch_embed = VJEPA21PatchEmbedding(config, config.tubelet_size)
        self.patch_embed_img = VJEPA21PatchEmbedding(config, tubelet_size=1)
        self.video_mod_embed = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.img_mod_embed = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.blocks = nn.ModuleList([VJEPA21Block(config) for _ in range(config.num_hidden_layers)])
        # One norm per depth quarter. Only the last makes the output; the others read intermediate depths in
        # pretraining and are kept so that a converted checkpoint holds every tensor of the original.
        self.norms_block = nn.ModuleList(
            [nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) for _ in range(NUM_OUTPUT_NORMS)]
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.patch_embed

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear | nn.Conv3d):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, VJEPA21Model):
            init.normal_(module.video_mod_embed, std=1e-6)
            init.normal_(module.img_mod_embed, std=1e-6)

    def token_grid(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """The grid (t, h, w) of tokens that an input of this many frames and pixels gives; one frame is an image.

        Raises:
            ValueError: no frame, more than one frame and not a multiple of the tubelet size, or a side that is not a
                multiple of the patch size.
        """
        patch, tubelet = self.config.patch_size, self.config.tubelet_size
        if num_frames != 1 and (num_frames < 1 or num_frames % tubelet):
            raise ValueError(f"frames: got {num_frames}, expected 1 (an image) or a multiple of {tubelet}")
        for name, size in (("height", height), ("width", width)):
            if size < 1 or size % patch:
                raise ValueError(f"{name}: got {size} pixels, expected a multiple of the patch size {patch}")
        return max(num_frames // tubelet, 1), height // patch, width // patch

    @can_return_tuple
    def forward(self, pixel_values_videos: torch.Tensor, output_hidden_states: bool | None = None) -> BaseModelOutput:
        """Encodes a batch of videos, or of images (F = 1).

        Args:
            pixel_values_videos: (B, F, C, H, W), frames scaled to 0..1 and normalised with ImageNet statistics;
                cast to the dtype of the weights. F is 1 or a multiple of the tubelet size, H and W are multiples of
                the patch size and need not be equal.
            output_hidden_states: also return the tokens before the first and after each block, without output norm.

        Returns:
            `last_hidden_state` (B, t * h * w, D) in raster order, with (t, h, w) from `token_grid`, and
            `hidden_states`, None or `num_hidden_layers + 1` tensors of that shape.

        Raises:
            ValueError: wrong rank, channels, frame count, height or width, or integer pixels.
        """
        # B: videos, F: frames, C: channels, N = t * h * w: tokens, D: hidden size
        if pixel_values_videos.ndim != 5:
            raise ValueError(
                f"pixel_values_videos: got {pixel_values_videos.ndim} dimensions {tuple(pixel_values_videos.shape)}, "
                "expected 5 (batch, frames, channels, height, width)"
            )
        _, frames, channels, height, width = pixel_values_videos.shape
        if channels != self.config.num_channels:
            raise ValueError(
                f"channels (dimension 2 of pixel_values_videos): got {channels}, expected {self.config.num_channels}"
            )
        if not pixel_values_videos.is_floating_point():
            raise ValueError(f"pixel_values_videos: got {pixel_values_videos.dtype}, expected normalised floats")
        grid = self.token_grid(frames, height, width)

        is_image = frames == 1
        embed, modality = (
            (self.patch_embed_img, self.img_mod_embed) if is_image else (self.patch_embed, self.video_mod_embed)
        )
        hidden_states = embed(pixel_values_videos.to(embed.proj.weight.dtype)) + modality  # (B, N, D)
        head_size = self.config.hidden_size // self.config.num_attention_heads
        cos, sin = rotary_table(grid, head_size, self.config.pretrain_grid_size, hidden_states.device)

        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        all_hidden_states: tuple[torch.Tensor, ...] | None = (hidden_states,) if output_hidden_states else None
        for block in self.blocks:
            hidden_states = block(hidden_states, cos, sin)
            if output_hidden_states:
                all_hidden_states += (hidden_states,)
        return BaseModelOutput(last_hidden_state=self.norms_block[-1](hidden_states), hidden_states=all_hidden_states)


VJEPA21Config.register_for_auto_class()
VJEPA21Model.register_for_auto_class("AutoModel")

__all__ = ["VJEPA21Config", "VJEPA21Model"]
