"""`convert.py` on files of others: one line that names the file, whatever it holds."""

import io
import pickle
import zipfile

import pytest
import torch
from support import BACKBONE, VIDEO_ENCODER

from gazeqwen.convert import main


def checkpoint(content) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def archive(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as written:
        written.writestr(name, content)
    return file.getvalue()


TENSOR = torch.zeros(2, 2)
SIZES = {"n_latents": 8, "d_latent": 16, "n_blocks": 1, "n_layers": 4, "d_llm": 64, "d_vjepa": 48}
FILES = {
    "empty": b"",
    "a text": b"no checkpoint is here",
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "an archive": archive("a.txt", b"a"),
    "an archive of a damaged pickle": archive("archive/data.pkl", b"\x80\x04no"),
    "a cut checkpoint": checkpoint({"encoder": {"a": TENSOR}})[:-100],
    "a pickle": pickle.dumps({"encoder": 5}),
    "a list": checkpoint([1, 2]),
    "a tensor": checkpoint(TENSOR),
    "an empty one": checkpoint({}),
    "an encoder that is a list": checkpoint({"encoder": [TENSOR]}),
    "an encoder that is None": checkpoint({"encoder": None}),
    "an encoder of no tensors": checkpoint({"encoder": {"a": 5}}),
    "an encoder without names": checkpoint({"encoder": {5: TENSOR}}),
    "an encoder of one tensor": checkpoint({"encoder": {"patch_embed.proj.weight": TENSOR}}),
    "an encoder of odd shapes": checkpoint({"encoder": {f"blocks.{i}.attn.qkv.weight": TENSOR for i in range(3)}}),
    "an adapter of lists": checkpoint({"state_dict": [1], "config": [1]}),
    "an adapter without sizes": checkpoint({"state_dict": {}, "config": {}}),
    "an adapter of odd sizes": checkpoint({"state_dict": {}, "config": dict.fromkeys(SIZES, "x")}),
    "an adapter of no tensors": checkpoint({"state_dict": {"latents": 5}, "config": SIZES}),
    "an adapter of a billion blocks": checkpoint({"state_dict": {}, "config": SIZES | {"n_blocks": 10**9}}),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["vjepa2_1", "gazeqwen", "dinov2_onnx"])
def test_files_of_others_are_named(tmp_path, capsys, kind, name):
    if kind == "dinov2_onnx":
        pytest.importorskip("onnx")
    file = tmp_path / "x.pt"
    file.write_bytes(FILES[name])
    models = ("--base_model", str(BACKBONE), "--video_encoder", str(VIDEO_ENCODER)) if kind == "gazeqwen" else ()
    with pytest.raises(SystemExit) as end:
        main([kind, str(file), str(tmp_path / "out"), *models])
    message = capsys.readouterr().err
    assert end.value.code == 1 and str(file) in message and "Traceback" not in message
    assert not (tmp_path / "out").exists()
