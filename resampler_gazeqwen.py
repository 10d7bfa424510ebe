"""
Gaze encodings and the GazeResampler (paper section 2.2): pure tensor maths, no I/O.

Shapes: V videos, T temporal steps, H x W visual tokens per step (N = H * W, raster order), F fixations, D_v features
of the video encoder, d latent width, K latents, L resamplers (one per injection layer, or 1 if shared), D hidden size.
Everything carries L and V as leading axes, so all layers, videos and steps are one computation.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

_FOVEAL_GAIN, _GLOBAL_GAIN = 4.0, 0.05  # initial gains of the two halves of the latents on foveal tokens
# Ends of the names of parameters without weight decay, beside norms and biases.
_UNDECAYED = ("amplitude", "foveal_gain", "heatmap_key", "decay_rate", "vector")
_DECAY_RATE = 0.5  # initial rate at which old fixations fade, per second


# ------------------------------------------------------------------ video features on the visual token grid
def align_video_features(tokens: torch.Tensor, size: tuple[int, int, int]) -> torch.Tensor:
    """
    Interpolate video-encoder tokens to the visual token grid: trilinear in time where the number of steps differs,
    then bilinear in space. `tokens` (..., t, h, w, D_v), `size` (T, H, W) -> (..., T, H*W, D_v).
    """
    *lead, t, h, w, dim = tokens.shape
    steps, height, width = size
    x = tokens.reshape(-1, t, h, w, dim).permute(0, 4, 1, 2, 3).float()  # (V, D_v, t, h, w)
    if t != steps:
        x = F.interpolate(x, size=(steps, h, w), mode="trilinear", align_corners=False)
    if (h, w) != (height, width):
        x = x.transpose(1, 2).flatten(0, 1)  # (V*T, D_v, h, w)
        x = F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)
        x = x.unflatten(0, (-1, steps)).transpose(1, 2)  # (V, D_v, T, H, W)
    x = x.permute(0, 2, 3, 4, 1).flatten(2, 3)  # (V, T, H*W, D_v)
    return x.reshape(*lead, steps, height * width, dim).to(tokens.dtype)


# ------------------------------------------------------------------ which fixation counts when
def fixation_shares(scanpaths: torch.Tensor, step_spans_s: torch.Tensor) -> torch.Tensor:
    """
    Return the share of each temporal step's span that each fixation covers, 0 to 1.
    `scanpaths` (..., F, 4) = x_norm, y_norm, t_mid_s, duration_s; `step_spans_s` (..., T, 2) -> (..., T, F).
    """
    mid, half = scanpaths[..., None, :, 2], scanpaths[..., None, :, 3] / 2
    begin, end = step_spans_s[..., :, None, 0], step_spans_s[..., :, None, 1]
    covered = (torch.minimum(mid + half, end) - torch.maximum(mid - half, begin)).clamp(min=0)
    return covered / (end - begin).clamp(min=1e-6)


def fixations_active(scanpaths: torch.Tensor, times_s: torch.Tensor) -> torch.Tensor:
    """
    Return whether each fixation is active at each time: |t - t_mid| <= duration / 2 (the paper's A_t).
    `scanpaths` (..., F, 4), `times_s` (..., T) -> bool (..., T, F).
    """
    return (times_s[..., :, None] - scanpaths[..., None, :, 2]).abs() <= scanpaths[..., None, :, 3] / 2


def check_scanpath_times(scanpaths: torch.Tensor, step_spans_s: torch.Tensor, is_step: torch.Tensor) -> None:
    """
    Raise ValueError unless `scanpaths` (V, F, 4) are finite and `step_spans_s` (V, T, 2) come in order of time, each
    ending no earlier than it begins; `is_step` (V, T) is False for padding.
    """
    if not torch.isfinite(scanpaths).all():
        raise ValueError("scanpaths hold values that are not finite")
    backwards = is_step & ~(step_spans_s[..., 1] >= step_spans_s[..., 0])
    backwards[:, 1:] |= is_step[:, 1:] & ~(step_spans_s[:, 1:, 0] >= step_spans_s[:, :-1, 0])
    if backwards.any():
        video, step = backwards.nonzero()[0].tolist()
        before = step_spans_s[video, max(step - 1, 0)].tolist()
        raise ValueError(
            f"step_spans_s of video {video}, step {step} is {step_spans_s[video, step].tolist()} after {before}, "
            "expected spans in order of time, each ending after it begins"
        )


def fixation_weights(weighting: str, scanpaths: torch.Tensor, step_spans_s: torch.Tensor) -> torch.Tensor:
    """
    Return how much each fixation counts in each temporal step: `"share"`, the share of the span that it covers;
    `"centre"`, 1 if it is active at the span's centre. `scanpaths` (..., F, 4), `step_spans_s` (..., T, 2) -> (..., T,
    F).
    """
    if weighting == "centre":
        return fixations_active(scanpaths, step_spans_s.mean(-1)).to(scanpaths.dtype)
    return fixation_shares(scanpaths, step_spans_s)


def decayed_weights(scanpaths: torch.Tensor, step_spans_s: torch.Tensor, rates: torch.Tensor) -> torch.Tensor:
    """
    Return exp(-rate * age) for each fixation that begins before the step ends, 0 for the others. Its age is the
    seconds from its end to the step's end, 0 while it lasts. `scanpaths` (V, F, 4), `step_spans_s` (V, T, 2), `rates`
    (L,) per second -> (L, V, T, F).
    """
    mid, half = scanpaths[:, None, :, 2], scanpaths[:, None, :, 3] / 2  # (V, 1, F)
    begin, end = mid - half, mid + half
    now = step_spans_s[..., 1:]  # (V, T, 1)
    age = (now - end).clamp(min=0)
    return torch.exp(-rates[:, None, None, None] * age) * (begin < now)


# ------------------------------------------------------------------ gaze encodings
def coordinate_encoding(xy_norm: torch.Tensor, dim: int, scale: float = 1.0) -> torch.Tensor:
    """
    Return the sinusoidal encoding of points (..., 2) -> (..., dim): the first half encodes x, the second y, each as
    alternating sine and cosine at frequencies 10000^(-2i / (dim/2)) of `scale * coordinate` (paper, equation 1).
    """
    half = dim // 2
    frequency = 10000.0 ** (-torch.arange(0, half, 2, device=xy_norm.device, dtype=xy_norm.dtype) / half)
    angle = scale * xy_norm[..., None] * frequency  # (..., 2, dim/4)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-3)


def mean_coordinate_encoding(scanpaths: torch.Tensor, weights: torch.Tensor, dim: int, scale: float) -> torch.Tensor:
    """
    Return the paper's gaze vector of each temporal step: the weighted mean encoding of the step's fixations, zeros
    where there is none. `scanpaths` (V, F, 4), `weights` (V, T, F) -> (V, T, dim).
    """
    encoding = coordinate_encoding(scanpaths[..., :2], dim, scale)  # (V, F, dim)
    total = weights.sum(-1, keepdim=True)
    return weights @ encoding / torch.where(total > 0, total, 1)


def gaussian_heat(
    scanpaths: torch.Tensor, weights: torch.Tensor, grids: torch.Tensor, num_tokens: int, sigmas: list[float]
) -> torch.Tensor:
    """
    Return how near each visual token is to the fixations of each temporal step, at each scale: the sum over fixations
    of weight * exp(-distance^2 / (2 sigma^2)), distances from the token's centre and sigmas in token-grid cells.
    `scanpaths` (V, F, 4), `weights` (..., V, T, F), `grids` (V, 2) = H, W -> (..., V, T, num_tokens, S).
    """
    height, width = grids[:, 0, None], grids[:, 1, None]  # (V, 1)
    index = torch.arange(num_tokens, device=scanpaths.device)[None]
    row, column = index // width + 0.5, index % width + 0.5  # (V, N): cell centres
    dx = column[:, None] - (scanpaths[..., 0] * width)[..., None]  # (V, F, N)
    dy = row[:, None] - (scanpaths[..., 1] * height)[..., None]
    variances = torch.tensor(sigmas, device=scanpaths.device) ** 2
    kernel = torch.exp(-(dx**2 + dy**2)[..., None] / (2 * variances))  # (V, F, N, S)
    return torch.einsum("...vtf,vfns->...vtns", weights, kernel)


# ------------------------------------------------------------------ layers that hold the weights of L resamplers
class LayerwiseLinear(nn.Module):
    """Apply L linear maps side by side: (L, ..., in) -> (L, ..., out)."""

    def __init__(self, num_layers: int, in_features: int, out_features: int, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_layers, out_features, in_features))
        self.bias = nn.Parameter(torch.empty(num_layers, out_features)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set weights as `nn.Linear` does, biases to zero."""
        bound = 1 / math.sqrt(self.weight.shape[-1])
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.flatten(1, -2)
        bias = self.bias
        y = rows @ self.weight.mT if bias is None else torch.baddbmm(bias[:, None], rows, self.weight.mT)
        return y.unflatten(1, x.shape[1:-1])


class LayerwiseNorm(nn.Module):
    """Apply L LayerNorms side by side, over the last axis of (L, ..., d)."""

    def __init__(self, num_layers: int, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_layers, dim))
        self.bias = nn.Parameter(torch.zeros(num_layers, dim))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        over_rows = (-1,) + (1,) * (x.dim() - 2) + (x.shape[-1],)
        return F.layer_norm(x, x.shape[-1:]) * self.weight.view(over_rows) + self.bias.view(over_rows)


class ResamplerBlock(nn.Module):
    """
    Apply one cross-attention of the latents over [visual tokens; latents], then a feed-forward (paper, equations 3 and
    4). Keys and values of the visual tokens are never formed: `q W_K` meets the tokens, and `softmax(.) X` meets
    `W_V`. Terms that are the same for every key drop out of the softmax: of the gaze projection only `g W_G` remains.
    """

    def __init__(self, num_layers: int, dim: int, gaze_in_keys: bool):
        super().__init__()
        self.query = LayerwiseLinear(num_layers, dim, dim)
        self.key = LayerwiseLinear(num_layers, dim, dim)
        self.value = LayerwiseLinear(num_layers, dim, dim)
        self.gaze = LayerwiseLinear(num_layers, dim, dim) if gaze_in_keys else None
        # These biases add the same to every logit, so the softmax never sees them: the paper has them, none is
        # trained.
        for projection in (self.key, self.gaze):
            if projection is not None:
                projection.bias.requires_grad_(False)
        self.feed_forward_norm = LayerwiseNorm(num_layers, dim)
        self.feed_forward_up = LayerwiseLinear(num_layers, dim, 4 * dim)
        self.feed_forward_down = LayerwiseLinear(num_layers, 4 * dim, dim)
        self.norm = LayerwiseNorm(num_layers, dim)

    def forward(
        self,
        latents: torch.Tensor,
        visual: torch.Tensor,
        visual_bias: torch.Tensor,
        gaze_key: torch.Tensor | None = None,
        gaze_heat: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Return the new latents (L, B, K, d), and how much each attends to each visual token, (L, B, K, N).

        `latents` (L, B or 1, K, d), `visual` (L, B, N, d), with B = V * T. `visual_bias` (L or 1, B, K or 1, N) is
        added to the latents' logits on visual tokens. `gaze_key` (L or 1, B or 1, d) is G of equation 2, the same for
        every visual token, or times `gaze_heat` (L or 1, B, N).
        """
        query = self.query(latents)  # (L, B or 1, K, d)
        scale = 1 / math.sqrt(query.shape[-1])
        key_query = (query.flatten(1, 2) @ self.key.weight).view_as(query)  # q W_K
        on_visual = key_query @ visual.mT * scale + visual_bias  # (L, B, K, N)
        on_latents = (key_query @ latents.mT * scale).expand(-1, visual.shape[1], -1, -1)  # (L, B, K, K)
        if self.gaze is not None:
            gaze_query = (query.flatten(1, 2) @ self.gaze.weight).view_as(query)  # q W_G
            on_gaze = (gaze_query * gaze_key[:, :, None]).sum(-1, keepdim=True) * scale  # (L, B, K, 1)
            on_visual = on_visual + (on_gaze if gaze_heat is None else on_gaze * gaze_heat[:, :, None])
        weights = torch.cat([on_visual, on_latents], dim=-1).softmax(-1)
        on_visual, on_latents = weights.split([visual.shape[-2], latents.shape[-2]], dim=-1)
        latents = latents + self.value(on_visual @ visual + on_latents @ latents)
        latents = latents + self.feed_forward_down(F.gelu(self.feed_forward_up(self.feed_forward_norm(latents))))
        return self.norm(latents), on_visual


@dataclass
class ResidualFactors:
    """
    Hold the residuals of all injection layers as factors, because a step's residual has rank K at most: `read` (L or
    1, V, T, N, K), `latents` (layers, V, T, K, d) with the amplitude, `out` (L or 1, D, d). At 30 steps of 16x16
    tokens and width 3584 they take 8 MB, the residuals themselves 440 MB.
    """

    read: torch.Tensor
    latents: torch.Tensor
    out: torch.Tensor

    def __len__(self) -> int:
        return len(self.latents)

    def layer(self, index: int) -> torch.Tensor:
        """Return the residual of injection layer number `index`: (V, T, N, D)."""
        read = self.read[index] if len(self.read) > 1 else self.read[0]
        out = self.out[index] if len(self.out) > 1 else self.out[0]
        return read @ (self.latents[index] @ out.mT)


def _fixation_weighting(config) -> str:
    """Return the config's `fixation_weighting`, or its default for the gaze encoding."""
    return config.fixation_weighting or ("centre" if config.gaze_encoding == "coord_pe" else "share")


class _Residuals(nn.Module):
    """Turn video features and gaze into residuals: `factors` for a batch, `forward` for one video, dense."""

    def no_weight_decay(self) -> set[str]:
        """
        Return the names of parameters that training does not decay: norms, biases, and what scales or places gaze.
        Only the weights of linear maps, the latents and the foveal queries decay.
        """
        names = {name for name, _ in self.named_parameters()}
        return {name for name in names if "norm" in name or name.endswith(("bias", *_UNDECAYED))}

    def _check_dtype(self) -> None:
        """Raise ValueError for weights that are not float32."""
        if self.amplitude.dtype != torch.float32:
            raise ValueError(
                f"the resampler's weights are {self.amplitude.dtype}, expected float32: choose the base model's dtype "
                "when loading (from_pretrained(..., dtype=...)) instead of casting the whole model"
            )

    def forward(
        self, features: torch.Tensor, scanpath: torch.Tensor, step_spans_s: torch.Tensor, grid: tuple[int, int]
    ) -> torch.Tensor:
        """
        Return the dense residual of one video, amplitude included. `features` (T, H*W, D_v), `scanpath` (F, 4),
        `step_spans_s` (T, 2), `grid` (H, W) -> (injection layers, T, H*W, D). Raises ValueError for other shapes.
        """
        height, width = grid
        for name, value, shape in (
            ("features", features, (len(step_spans_s), height * width, features.shape[-1])),
            ("scanpath", scanpath, (len(scanpath), 4)),
            ("step_spans_s", step_spans_s, (len(step_spans_s), 2)),
        ):
            if tuple(value.shape) != shape:
                raise ValueError(f"{name} is {tuple(value.shape)}, expected {shape} for the grid {tuple(grid)}")
        check_scanpath_times(
            scanpath[None], step_spans_s[None], torch.ones_like(step_spans_s[None, :, 0], dtype=torch.bool)
        )
        factors = self.factors(
            features[None],
            scanpath[None],
            torch.ones(1, scanpath.shape[0], dtype=torch.bool, device=scanpath.device),
            step_spans_s[None],
            torch.tensor([grid], device=features.device),
        )
        return torch.stack([factors.layer(index)[0] for index in range(len(factors))])


class HeatmapVector(_Residuals):
    """
    Turn gaze alone into residuals, the baseline without a resampler: one Gaussian heatmap times one learned vector per
    injection layer. It sees no video features.
    """

    def __init__(self, config):
        super().__init__()
        self.sigma, self.weighting = config.heatmap_sigma, _fixation_weighting(config)
        num_layers = len(config.resolved_injection_layers())
        self.vector = nn.Parameter(torch.empty(num_layers, config.get_text_config().hidden_size))
        self.amplitude = nn.Parameter(torch.empty(num_layers))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the vectors to zero: a new baseline adds nothing."""
        nn.init.zeros_(self.vector)
        nn.init.ones_(self.amplitude)

    def factors(self, features, scanpaths, fixation_mask, step_spans_s, grids) -> ResidualFactors:
        """Return what `GazeResampler.factors` returns, with K = d = 1."""
        self._check_dtype()
        with torch.autocast(scanpaths.device.type, enabled=False):
            scanpaths = scanpaths.float()
            weights = fixation_weights(self.weighting, scanpaths, step_spans_s.float()) * fixation_mask[:, None]
            heat = gaussian_heat(scanpaths, weights, grids, features.shape[2], [self.sigma])  # (V, T, N, 1)
            ones = self.amplitude[:, None, None, None, None].expand(-1, *heat.shape[:2], 1, 1)
            return ResidualFactors(heat[None], ones, self.vector[:, :, None])


class GazeResampler(_Residuals):
    """
    Turns video features and gaze into residuals for the video tokens of every injection layer (paper section 2.2).

    `config` is a GazeQwenConfig. Deviations of the default (`foveated`) from the paper: gaze enters the latents'
    logits as a per-token bias with a learned non-negative gain per latent and scale, where equation 2 adds one vector
    to all visual keys and so cannot favour any of them; and the reverse read (equation 5) sees the same foveal map,
    where the paper's sees token content alone.

    `heatmap_decay` and `heatmap_duration` are the variants of the paper's Table 2, which names them without formulas;
    here G of equation 2 is a learned vector times a Gaussian heatmap (`heatmap_sigma`), and fixations count by
    exp(-rate * age) with a learned rate, or by the seconds that they last within the step.
    """

    def __init__(self, config):
        super().__init__()
        self.gaze_encoding = config.gaze_encoding
        self.gaze_coordinate_scale = config.gaze_coordinate_scale
        self.normalize_features = config.normalize_features
        self.weighting = _fixation_weighting(config)
        self.sigmas = config.foveal_sigmas if self.gaze_encoding == "foveated" else [config.heatmap_sigma]
        self.num_injection_layers = len(config.resolved_injection_layers())
        num_layers = 1 if config.share_resampler else self.num_injection_layers
        dim, num_latents = config.latent_dim, config.num_latents
        feature_dim = config.feature_dim()
        hidden_size = config.get_text_config().hidden_size

        self.latents = nn.Parameter(torch.empty(num_layers, num_latents, dim))
        self.proj_in = LayerwiseLinear(num_layers, feature_dim, dim, bias=False)
        self.blocks = nn.ModuleList(
            ResamplerBlock(num_layers, dim, gaze_in_keys=self.gaze_encoding != "foveated")
            for _ in range(config.num_blocks)
        )
        self.proj_out = LayerwiseLinear(num_layers, dim, hidden_size, bias=False)
        self.amplitude = nn.Parameter(torch.empty(self.num_injection_layers))
        if self.gaze_encoding == "foveated":
            num_scales = len(self.sigmas)
            self.foveal_gain = nn.Parameter(torch.empty(num_layers, config.num_blocks, num_latents, num_scales))
            self.foveal_query = nn.Parameter(torch.empty(num_layers, num_scales, dim))
        elif self.gaze_encoding != "coord_pe":
            self.heatmap_key = nn.Parameter(torch.empty(num_layers, dim))
        if self.gaze_encoding == "heatmap_decay":
            self.decay_rate = nn.Parameter(torch.empty(num_layers))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set random weights, but a zero `proj_out`: a new resampler adds nothing."""
        for module in self.modules():
            if isinstance(module, (LayerwiseLinear, LayerwiseNorm)):
                module.reset_parameters()
        nn.init.normal_(self.latents, std=1.0)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.ones_(self.amplitude)
        if self.gaze_encoding == "foveated":
            gain = torch.full_like(self.foveal_gain, _GLOBAL_GAIN)
            gain[:, :, : gain.shape[2] // 2] = _FOVEAL_GAIN
            self.foveal_gain.copy_(gain.expm1().log())  # softplus(foveal_gain) == gain
            nn.init.normal_(self.foveal_query, std=1.0)
        elif self.gaze_encoding != "coord_pe":
            nn.init.normal_(self.heatmap_key, std=1.0)
        if self.gaze_encoding == "heatmap_decay":
            nn.init.constant_(self.decay_rate, math.log(math.expm1(_DECAY_RATE)))

    def factors(
        self,
        features: torch.Tensor,
        scanpaths: torch.Tensor,
        fixation_mask: torch.Tensor,
        step_spans_s: torch.Tensor,
        grids: torch.Tensor,
        attention: list[torch.Tensor] | None = None,
    ) -> ResidualFactors:
        """
        Return the residuals of all injection layers and videos, computed at once and kept as factors.

        `features` (V, T, N, D_v), `scanpaths` (V, F, 4), `fixation_mask` (V, F) bool, `step_spans_s` (V, T, 2),
        `grids` (V, 2) = H, W; steps and tokens beyond a video's own are padding: never attended to, and their rows
        mean nothing. Computed in float32. A list given as `attention` receives, of each block, how much the latents
        attend to the visual tokens, (L, V, T, K, N).
        """
        self._check_dtype()
        with torch.autocast(features.device.type, enabled=False):
            num_videos, steps, tokens, _ = features.shape
            features, scanpaths, step_spans_s = features.float(), scanpaths.float(), step_spans_s.float()
            if self.normalize_features:
                features = F.layer_norm(features, features.shape[-1:], eps=1e-6)
            num_layers, _, dim = self.latents.shape
            # One product for all layers, (V*T*N, L*d): broadcasting over layers would copy the features for each.
            visual = features.flatten(0, 2) @ self.proj_in.weight.flatten(0, 1).mT
            visual = visual.view(-1, num_layers, dim).transpose(0, 1).contiguous()
            visual = visual.view(num_layers, num_videos * steps, tokens, dim)

            padding = torch.arange(tokens, device=grids.device) >= grids.prod(-1, keepdim=True)  # (V, N)
            mask = torch.zeros_like(padding, dtype=torch.float32).masked_fill(padding, -math.inf)
            mask = mask.repeat_interleave(steps, 0)[None, :, None]  # (1, V*T, 1, N)

            weights = self._weights(scanpaths, fixation_mask, step_spans_s)  # (L or 1, V, T, F)
            heat = gaze_key = gaze_heat = None
            if self.gaze_encoding == "coord_pe":
                gaze_key = mean_coordinate_encoding(scanpaths, weights[0], dim, self.gaze_coordinate_scale)
                gaze_key = gaze_key.flatten(0, 1)[None]  # (1, V*T, d)
            else:
                heat = gaussian_heat(scanpaths, weights, grids, tokens, self.sigmas).flatten(1, 2)  # (L|1, V*T, N, S)
                if self.gaze_encoding != "foveated":
                    gaze_key, gaze_heat = self.heatmap_key[:, None], heat.squeeze(-1)

            latents = self.latents[:, None]  # (L, 1, K, d): the same for all steps until the first block has read them
            for index, block in enumerate(self.blocks):
                bias = mask
                if self.gaze_encoding == "foveated":
                    gain = F.softplus(self.foveal_gain[:, index])  # (L, K, S)
                    bias = mask + torch.einsum("lks,bns->lbkn", gain, heat[0])
                latents, on_visual = block(latents, visual, bias, gaze_key, gaze_heat)
                if attention is not None:
                    attention.append(on_visual.unflatten(1, (num_videos, steps)))

            logits = visual @ latents.mT  # (L, V*T, N, K)
            if self.gaze_encoding == "foveated":  # queries X_i + sum_s heat_s(i) u_s
                logits = logits + heat @ (self.foveal_query[:, None] @ latents.mT)
            read = (logits / math.sqrt(dim)).softmax(-1)
            latents = latents * self.amplitude[:, None, None, None]
            per_video = (num_videos, steps)
            return ResidualFactors(read.unflatten(1, per_video), latents.unflatten(1, per_video), self.proj_out.weight)

    def _weights(self, scanpaths, fixation_mask, step_spans_s) -> torch.Tensor:
        """Return how much each fixation counts in each temporal step, (L or 1, V, T, F); 0 for padding."""
        if self.gaze_encoding == "heatmap_decay":
            weights = decayed_weights(scanpaths, step_spans_s, F.softplus(self.decay_rate))
        else:
            weights = fixation_weights(self.weighting, scanpaths, step_spans_s)[None]
        if self.gaze_encoding == "heatmap_duration":
            weights = weights * step_spans_s.diff(dim=-1)  # seconds
        return weights * fixation_mask[:, None]


def build_resampler(config) -> nn.Module:
    """Return the module that `config.resampler_type` names; for `none` an empty one."""
    if not config.has_resampler:
        return nn.Module()
    return {"attention": GazeResampler, "heatmap_vector": HeatmapVector}[config.resampler_type](config)


__all__ = [
    "GazeResampler",
    "HeatmapVector",
    "ResidualFactors",
    "align_video_features",
    "build_resampler",
    "check_scanpath_times",
    "fixation_weights",
]
