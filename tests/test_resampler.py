"""The resampler: the paper's formula against golden numbers, and what the default encoding does differently."""

import copy
import itertools
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from support import ROOT, tiny_config

from gazeqwen.configuration_gazeqwen import GAZE_ENCODINGS
from gazeqwen.convert import load_checkpoint, reference_resampler_state
from gazeqwen.modeling_vjepa2_1 import VJEPA21Model
from gazeqwen.resampler_gazeqwen import (
    GazeResampler,
    HeatmapVector,
    align_video_features,
    decayed_weights,
    fixation_weights,
    mean_coordinate_encoding,
)

FIXTURES = ROOT / "tests" / "fixtures"
LAYERS = [6, 13, 20, 27]
ENCODINGS = list(GAZE_ENCODINGS)


def resampler_config(hidden_size=64, feature_dim=48, **kwargs) -> SimpleNamespace:
    settings = {
        "gaze_encoding": "foveated",
        "normalize_features": False,
        "fixation_weighting": None,
        "gaze_coordinate_scale": 1.0,
        "foveal_sigmas": [0.5, 1.0, 2.0],
        "heatmap_sigma": 1.0,
        "share_resampler": False,
        "num_latents": 4,
        "latent_dim": 16,
        "num_blocks": 2,
        **kwargs,
    }
    return SimpleNamespace(
        **settings,
        resolved_injection_layers=lambda: LAYERS,
        feature_dim=lambda: feature_dim,
        get_text_config=lambda: SimpleNamespace(hidden_size=hidden_size),
    )


def random_resampler(encoding: str = "foveated", **kwargs) -> GazeResampler:
    torch.manual_seed(0)
    resampler = GazeResampler(resampler_config(gaze_encoding=encoding, **kwargs))
    with torch.no_grad():
        for parameter in resampler.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return resampler


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    io = load_file(FIXTURES / "resampler_tiny_io.safetensors")
    times = io["frame_times"]
    io["step_spans_s"] = torch.stack([times - 0.4, times + 0.4], dim=1)  # coord_pe looks at the centres
    return io


def test_coord_pe_is_the_references_formula(golden):
    state = load_checkpoint(FIXTURES / "gazeqwen_tiny_original.pt")["state_dict"]
    resampler = GazeResampler(resampler_config(gaze_encoding="coord_pe"))
    resampler.load_state_dict(reference_resampler_state(state, LAYERS, num_blocks=2))
    residuals = resampler(golden["features"], golden["scanpath"], golden["step_spans_s"], (4, 6))
    assert not golden["gaze_active"].all() and golden["gaze_active"].any()
    for residual, layer in zip(residuals, LAYERS, strict=True):
        torch.testing.assert_close(residual, golden[f"residual.layer{layer}"], atol=1e-5, rtol=0)


def test_coordinate_encoding_is_the_references(golden):
    weights = fixation_weights("centre", golden["scanpath"], golden["step_spans_s"])[None]
    vector = mean_coordinate_encoding(golden["scanpath"][None], weights, 16, 1.0)
    torch.testing.assert_close(vector[0], golden["gaze_encoding"], atol=1e-6, rtol=0)
    scaled = mean_coordinate_encoding(golden["scanpath"][None], weights, 16, 6.28)
    assert (scaled - vector).abs().max() > 0.1


@pytest.mark.parametrize("size", [(4, 4, 4), (7, 3, 5), (2, 6, 8)])
def test_alignment_is_the_references(size, tmp_path):
    from gazeqwen.convert import convert_vjepa2_1

    io = load_file(FIXTURES / "feature_alignment_io.safetensors")
    encoder = convert_vjepa2_1(FIXTURES / "vjepa2_1_tiny_official.pt", tmp_path, num_attention_heads=2, image_size=64)
    assert isinstance(encoder, VJEPA21Model)
    frames = io["frames"][torch.linspace(0, 12, 8).long()].float()
    frames = torch.nn.functional.interpolate(frames, size=(64, 64), mode="bilinear", align_corners=False) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    frames = (frames - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        tokens = encoder(frames[None]).last_hidden_state.unflatten(1, (4, 4, 4))[0]
    aligned = align_video_features(tokens, size)
    torch.testing.assert_close(aligned, io["aligned.{}x{}x{}".format(*size)], atol=1e-5, rtol=0)


def test_parameter_counts_of_the_reference_configuration():
    config = resampler_config(3584, 768, gaze_encoding="coord_pe", num_latents=32, latent_dim=256)
    with torch.device("meta"):
        resampler = GazeResampler(config)
    assert sum(p.numel() for p in resampler.parameters()) == 10_807_296 + len(LAYERS)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_normalized_features_have_no_size(encoding):
    plain, normalized = random_resampler(encoding), random_resampler(encoding, normalize_features=True)
    features = torch.randn(3, 6, 48, generator=torch.Generator().manual_seed(1))
    clip = torch.tensor([[0.3, 0.6, 0.2, 1.4]]), torch.tensor([[0.0, 1.0], [1.0, 2.0], [2.0, 3.0]]), (2, 3)
    expected = plain(
        (features - features.mean(-1, keepdim=True)) / features.std(-1, correction=0, keepdim=True), *clip
    )
    torch.testing.assert_close(normalized(features, *clip), expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(normalized(50 * features + 3, *clip), expected, atol=1e-3, rtol=0)
    assert (plain(50 * features + 3, *clip) - expected).abs().max() > 0.1
    # One that sees nothing, and padding, are finite.
    assert normalized(torch.zeros_like(features), *clip).isfinite().all()


def test_shares_of_steps():
    scanpath = torch.tensor([[0.5, 0.5, 1.0, 2.0], [0.5, 0.5, 2.5, 1.0]])  # 0 to 2 s, 2 to 3 s
    spans = torch.tensor([[0.0, 1.0], [1.0, 3.0], [3.0, 5.0]])
    weights = fixation_weights("share", scanpath, spans)
    torch.testing.assert_close(weights, torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 0.0]]))
    active = fixation_weights("centre", scanpath, spans)
    torch.testing.assert_close(active, torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]))


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal but for float32 rounding, which grows with the largest value that entered a sum."""
    torch.testing.assert_close(found, expected, atol=1e-5 * max(1.0, expected.abs().max().item()), rtol=0)


def random_case(seed: int, steps: int, height: int, width: int, count: int):
    draw = torch.Generator().manual_seed(seed)
    features = torch.randn(steps, height * width, 48, generator=draw)
    scanpath = torch.rand(count, 4, generator=draw) * torch.tensor([1, 1, steps, 2.0]) + torch.tensor([0, 0, 0, 0.05])
    spans = torch.stack([torch.arange(steps), torch.arange(1, steps + 1)], dim=1).float()
    return features, scanpath, spans, (height, width)


cases = st.tuples(
    st.integers(0, 1000), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.integers(0, 6)
).map(lambda numbers: random_case(*numbers))
encodings = st.sampled_from(ENCODINGS)


@settings(max_examples=25, deadline=None)
@given(cases, encodings, st.randoms(use_true_random=False))
def test_the_order_of_fixations_does_not_matter(case, encoding, random):
    features, scanpath, spans, grid = case
    order = list(range(len(scanpath)))
    random.shuffle(order)
    resampler = random_resampler(encoding)
    expected = resampler(features, scanpath, spans, grid)
    assert_same(resampler(features, scanpath[order], spans, grid), expected)


@settings(max_examples=25, deadline=None)
@given(st.lists(cases, min_size=2, max_size=3), encodings)
def test_a_padded_batch_equals_its_videos(batch, encoding):
    resampler = random_resampler(encoding)
    steps, tokens = max(len(case[0]) for case in batch), max(case[0].shape[1] for case in batch)
    most = max(len(case[1]) for case in batch)
    features, scanpaths = torch.randn(len(batch), steps, tokens, 48), torch.rand(len(batch), most, 4)
    present, spans = torch.zeros(len(batch), most, dtype=torch.bool), torch.zeros(len(batch), steps, 2)
    for row, (own, scanpath, own_spans, _) in enumerate(batch):
        features[row, : len(own), : own.shape[1]] = own
        scanpaths[row, : len(scanpath)], present[row, : len(scanpath)] = scanpath, True
        spans[row, : len(own)] = own_spans
    grids = torch.tensor([case[3] for case in batch])
    factors = resampler.factors(features, scanpaths, present, spans, grids)
    residual = torch.stack([factors.layer(index) for index in range(len(factors))])
    for row, (own, scanpath, own_spans, grid) in enumerate(batch):
        expected = resampler(own, scanpath, own_spans, grid)
        assert_same(residual[:, row, : len(own), : own.shape[1]], expected)


def spatial_attention(resampler: GazeResampler, case) -> torch.Tensor:
    """Block 1's attention of the latents over the visual tokens, renormalised over these: (L, T, K, N)."""
    seen = {}
    block = resampler.blocks[0]
    original = torch.Tensor.softmax

    def spy(self, dim):
        weights = original(self, dim)
        seen.setdefault("weights", weights)
        return weights

    torch.Tensor.softmax = spy
    try:
        resampler(*case)
    finally:
        torch.Tensor.softmax = original
    on_visual = seen["weights"][..., : case[0].shape[1]]
    assert block.query.weight.shape[0] == on_visual.shape[0]
    return on_visual / on_visual.sum(-1, keepdim=True)


def test_only_the_default_encoding_moves_spatial_attention():
    """Equation 2 adds one vector to every visual key, so it cannot favour any of them; the default can."""
    features, _, spans, grid = random_case(0, 2, 4, 4, 1)
    corners = [torch.tensor([[x, x, 1.0, 2.0]]) for x in (0.1, 0.9)]
    moved = {}
    for encoding in ("coord_pe", "foveated"):
        resampler = random_resampler(encoding)
        here, there = (spatial_attention(resampler, (features, corner, spans, grid)) for corner in corners)
        moved[encoding] = (here - there).abs().max().item()
    assert moved["coord_pe"] < 1e-6 < 0.1 < moved["foveated"]


def written_out(resampler: GazeResampler, features, scanpath, spans, grid) -> torch.Tensor:
    """The resampler one layer, step and token at a time, in float64, as its docstrings and the paper have it."""
    exact, (height, width) = copy.deepcopy(resampler).double(), grid
    features, scanpath, spans = features.double(), scanpath.double(), spans.double()
    foveated = exact.gaze_encoding == "foveated"

    def heat_of(layer: int, begin: float, end: float) -> torch.Tensor:
        heat = torch.zeros(height * width, len(exact.sigmas)).double()
        for x, y, middle, duration in scanpath.tolist():
            first, last = middle - duration / 2, middle + duration / 2
            seconds = max(min(last, end) - max(first, begin), 0)
            if exact.gaze_encoding == "heatmap_decay":
                rate = F.softplus(exact.decay_rate[layer]).item()
                weight = math.exp(-rate * max(end - last, 0)) if first < end else 0
            else:
                weight = seconds if exact.gaze_encoding == "heatmap_duration" else seconds / (end - begin)
            for token, (scale, sigma) in itertools.product(range(height * width), enumerate(exact.sigmas)):
                row, column = divmod(token, width)
                squared = (column + 0.5 - x * width) ** 2 + (row + 0.5 - y * height) ** 2
                heat[token, scale] += weight * math.exp(-squared / (2 * sigma**2))
        return heat

    def linear(module, layer: int, x: torch.Tensor) -> torch.Tensor:
        return x @ module.weight[layer].T + module.bias[layer]

    def norm(module, layer: int, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:]) * module.weight[layer] + module.bias[layer]

    residual = torch.zeros(len(LAYERS), len(spans), height * width, exact.proj_out.weight.shape[1]).double()
    for layer, step in itertools.product(range(len(LAYERS)), range(len(spans))):
        heat = heat_of(layer, *spans[step].tolist())
        visual = features[step] @ exact.proj_in.weight[layer].T
        latents, scale = exact.latents[layer], exact.latents.shape[-1] ** -0.5
        for index, block in enumerate(exact.blocks):
            keys = linear(block.key, layer, visual)
            if not foveated:
                keys = keys + heat * exact.heatmap_key[layer] @ block.gaze.weight[layer].T
            keys = torch.cat([keys, linear(block.key, layer, latents)])
            logits = linear(block.query, layer, latents) @ keys.T * scale
            if foveated:
                logits[:, : height * width] += F.softplus(exact.foveal_gain[layer, index]) @ heat.T
            values = linear(block.value, layer, torch.cat([visual, latents]))
            latents = latents + logits.softmax(-1) @ values
            hidden = linear(block.feed_forward_up, layer, norm(block.feed_forward_norm, layer, latents))
            latents = norm(block.norm, layer, latents + linear(block.feed_forward_down, layer, F.gelu(hidden)))
        queries = visual + heat @ exact.foveal_query[layer] if foveated else visual
        read = (queries @ latents.T * scale).softmax(-1)
        residual[layer, step] = exact.amplitude[layer] * read @ latents @ exact.proj_out.weight[layer].T
    return residual


@pytest.mark.parametrize("encoding", [encoding for encoding in ENCODINGS if encoding != "coord_pe"])
@pytest.mark.parametrize("grid", [(2, 5), (4, 3)])
def test_residuals_are_what_the_formulas_written_out_give(encoding, grid):
    """Grids that are not square, steps of unequal length, a fixation across two of them and one before all."""
    resampler = random_resampler(encoding)
    features = torch.randn(3, grid[0] * grid[1], 48)
    spans = torch.tensor([[1.0, 2.0], [2.0, 4.5], [4.5, 5.0]])
    scanpath = torch.tensor([[0.9, 0.2, 1.8, 1.0], [0.3, 0.8, 4.2, 1.4], [0.5, 0.4, 0.5, 0.4]])
    expected = written_out(resampler, features, scanpath, spans, grid)
    assert_same(resampler(features, scanpath, spans, grid).double(), expected)
    assert expected.abs().max() > 0.1


def test_the_first_half_of_the_latents_is_foveal_at_the_start():
    gain = F.softplus(GazeResampler(resampler_config(num_latents=6)).foveal_gain)
    torch.testing.assert_close(gain[:, :, :3], torch.full_like(gain[:, :, :3], 4.0))
    torch.testing.assert_close(gain[:, :, 3:], torch.full_like(gain[:, :, 3:], 0.05))


def test_rates_of_decay_begin_at_one_half_per_second():
    rate = F.softplus(GazeResampler(resampler_config(gaze_encoding="heatmap_decay")).decay_rate)
    torch.testing.assert_close(rate, torch.full_like(rate, 0.5))


def test_old_fixations_fade_at_the_learned_rate():
    scanpath = torch.tensor([[0.5, 0.5, 1.0, 2.0]])  # 0 to 2 s
    spans = torch.tensor([[[0.0, 1.0], [1.0, 3.0], [3.0, 5.0]]])
    weights = decayed_weights(scanpath[None], spans, torch.tensor([0.0, 0.5]))[:, 0, :, 0]
    torch.testing.assert_close(weights[0], torch.ones(3))
    torch.testing.assert_close(weights[1], torch.tensor([0.0, -0.5, -1.5]).exp())
    later = decayed_weights(torch.tensor([[[0.5, 0.5, 4.0, 1.0]]]), spans, torch.tensor([0.5]))
    assert later[0, 0, :, 0].tolist() == [0, 0, pytest.approx(math.exp(-0.25))]
    at_the_end = decayed_weights(torch.tensor([[[0.5, 0.5, 3.5, 1.0]]]), spans, torch.tensor([0.5]))
    assert at_the_end[0, 0, :2, 0].tolist() == [0, 0]  # it begins at 3 s, where the second step ends


def test_long_fixations_count_by_their_seconds():
    features, _, _, grid = random_case(0, 1, 4, 4, 1)
    resampler, spans = random_resampler("heatmap_duration"), torch.tensor([[0.0, 4.0]])
    short, long = (torch.tensor([[0.3, 0.3, 2.0, seconds]]) for seconds in (1.0, 4.0))
    weights = [resampler._weights(s[None], torch.ones(1, 1, dtype=torch.bool), spans[None]) for s in (short, long)]
    assert [weight.item() for weight in weights] == [1.0, 4.0]
    here, there = (resampler(features, scanpath, spans, grid) for scanpath in (short, long))
    assert (here - there).abs().max() > 0.01


def test_the_heatmap_vector_is_a_heatmap_times_a_vector():
    baseline = HeatmapVector(resampler_config())
    assert sum(p.numel() for p in baseline.parameters()) == 260  # 4 layers of width 64, and their amplitudes
    features, _, spans, grid = random_case(0, 2, 4, 4, 1)
    scanpath = torch.tensor([[0.375, 0.625, 0.5, 1.0]])  # on the centre of column 1, row 2, all through the first step
    assert not baseline(features, scanpath, spans, grid).any()
    torch.nn.init.normal_(baseline.vector)
    residual = baseline(features, scanpath, spans, grid)
    torch.testing.assert_close(residual[:, 0, 9], baseline.vector)
    torch.testing.assert_close(residual[:, 0, 8], baseline.vector * math.exp(-0.5))
    assert not residual[:, 1].any()


def test_moving_a_fixation_moves_the_residual():
    features, _, spans, grid = random_case(0, 2, 4, 4, 1)
    resampler = random_resampler()
    here = resampler(features, torch.tensor([[0.1, 0.1, 0.5, 1.0]]), spans, grid)
    there = resampler(features, torch.tensor([[0.9, 0.9, 0.5, 1.0]]), spans, grid)
    assert (here - there)[:, 0].abs().max() > 0.1
    torch.testing.assert_close(here[:, 1], there[:, 1])  # not active in the second step


def test_an_empty_scanpath_is_a_step_without_fixation():
    features, _, spans, grid = random_case(0, 2, 4, 4, 1)
    for encoding in ("foveated", "coord_pe", "heatmap_duration"):
        resampler = random_resampler(encoding)
        none = resampler(features, torch.zeros(0, 4), spans, grid)
        elsewhere = resampler(features, torch.tensor([[0.5, 0.5, 50.0, 1.0]]), spans, grid)
        torch.testing.assert_close(none, elsewhere)


def test_a_new_resampler_adds_nothing():
    case = random_case(0, 2, 4, 4, 3)
    residual = GazeResampler(resampler_config())(*case)
    assert residual.shape == (4, 2, 16, 64) and not residual.any()


def test_shared_resamplers_differ_by_amplitude_alone():
    resampler = random_resampler(share_resampler=True)
    residual = resampler(*random_case(0, 2, 3, 3, 2))
    unit = residual / resampler.amplitude[:, None, None, None]
    torch.testing.assert_close(unit[1:], unit[:1].expand(3, -1, -1, -1), atol=1e-5, rtol=1e-3)
    assert resampler.proj_out.weight.shape[0] == 1


def test_gradients_reach_every_parameter_that_can_matter():
    for encoding in ENCODINGS:
        resampler = random_resampler(encoding)
        resampler(*random_case(0, 2, 3, 3, 3)).square().sum().backward()
        for name, parameter in resampler.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_shapes_that_do_not_fit_are_refused():
    features, scanpath, spans, _ = random_case(0, 2, 3, 4, 2)
    resampler = random_resampler()
    for arguments, message in [
        (
            (features, scanpath, spans, (3, 3)),
            r"features is \(2, 12, 48\), expected \(2, 9, 48\) for the grid",
        ),
        ((features, scanpath, spans[:1], (3, 4)), r"features is \(2, 12, 48\), expected \(1, 12, 48\)"),
        ((features, scanpath[:, :3], spans, (3, 4)), r"scanpath is \(2, 3\), expected \(2, 4\)"),
        ((features, scanpath * torch.nan, spans, (3, 4)), "not finite"),
        ((features, scanpath, spans.flip(0), (3, 4)), r"step 1 is \[0.0, 1.0\] after \[1.0, 2.0\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            resampler(*arguments)


def test_configs_refuse_bad_values():
    for arguments, message in [
        ({"gaze_encoding": "gabor"}, "gaze_encoding: got 'gabor'"),
        ({"num_latents": 0}, "num_latents: got 0"),
        ({"injection_layers": [2, 1]}, r"injection_layers: got \[2, 1\]"),
        ({"foveal_sigmas": [0.0]}, "foveal_sigmas"),
        ({"gaze_encoding": "coord_pe", "latent_dim": 6}, "latent_dim: got 6"),
    ]:
        with pytest.raises(ValueError, match=message):
            tiny_config(**arguments)
    with pytest.raises(ValueError, match="below the base model's 4 layers"):
        tiny_config(injection_layers=[0, 9]).resolved_injection_layers()
    assert tiny_config().resolved_injection_layers() == [0, 1, 2]
