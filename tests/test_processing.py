"""The processor: one call from files to model inputs, in which video, gaze and time agree."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from support import BACKBONE, index_frames, write_fixations, write_video
from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor

from gazeqwen.processing_gazeqwen import GazeQwenInputs, GazeQwenProcessor
from gazeqwen.scanpath_gazeqwen import as_scanpath
from gazeqwen.video_gazeqwen import Clip, read_clip


@pytest.fixture
def files(tmp_path):
    video = write_video(tmp_path / "my clip.mp4", index_frames(100, 112, 112))
    table = write_fixations(tmp_path / "fixations.csv", [(0.5, 2.5, 0.2, 0.3), (5.0, 9.0, 0.7, 0.6)])
    return str(video), str(table)


def conversation(video, **item) -> list[dict]:
    content = [{"type": "video", "video": video, **item}, {"type": "text", "text": "Which object?"}]
    return [{"role": "user", "content": content}]


def test_a_chat_message_with_a_scanpath(files, toy_processor):
    video, table = files
    inputs = toy_processor.apply_chat_template(
        conversation(video, scanpath=table, end_s=6), tokenize=True, return_dict=True, add_generation_prompt=True
    )
    assert inputs["video_grid_thw"].tolist() == [[4, 8, 8]]
    assert (inputs["input_ids"] == toy_processor.video_token_id).sum() == 4 * 4 * 4
    assert inputs["video_encoder_pixel_values"].shape == (1, 8, 3, 64, 64)
    torch.testing.assert_close(
        inputs["scanpaths"][0],
        torch.tensor([[0.2, 0.3, 1.5, 2.0], [0.7, 0.6, 5.5, 1.0]]),  # the second is cut at 6 s
    )
    spans = inputs["step_spans_s"][0]
    assert spans[0, 0] == 0 and spans[-1, 1] == 6 and torch.equal(spans[1:, 0], spans[:-1, 1])
    clip = read_clip(video, 0, 6, num_frames=8)
    torch.testing.assert_close(spans.double(), torch.tensor(clip.step_spans_s()))
    assert inputs["second_per_grid_ts"].tolist() == [pytest.approx(clip.seconds_per_step())]


def test_both_kinds_of_pixels_show_the_same_moments(files, toy_processor):
    """A bright frame appears in Qwen's temporal step and in the encoder frames of the same place in time."""
    frames = np.zeros((8, 112, 112, 3), np.uint8)
    frames[5] = 255
    processed = toy_processor.process_clip(Clip(frames, np.arange(8.0), 0.0, 8.0))
    steps = processed["pixel_values_videos"].reshape(4, 64, 3, 2, 14, 14)
    qwen = steps.mean(dim=(1, 2, 4, 5)).flatten()  # (8,) in time order
    encoder = processed["video_encoder_pixel_values"].mean(dim=(1, 2, 3))
    assert qwen.argmax() == encoder.argmax() == 5
    assert processed["step_spans_s"][2].tolist() == [3.5, 5.5]


@pytest.mark.parametrize("settings", [{"num_frames": np.int64(4)}, {"num_frames": None, "fps": np.float32(2)}])
def test_a_setting_that_cannot_be_saved_is_refused_at_once(settings):
    """JSON has no NumPy numbers: such a processor could be trained with, and not be stored."""
    name = list(settings)[-1]
    with pytest.raises(ValueError, match=rf"{name}: got np\."):
        GazeQwenProcessor.from_base(str(BACKBONE), video_encoder_size=64, **settings)


def test_text_only_and_video_without_gaze(files, toy_processor):
    video, _ = files
    plain = toy_processor.apply_chat_template(conversation(video), tokenize=True, return_dict=True)
    assert "scanpaths" not in plain and "video_encoder_pixel_values" not in plain
    text = toy_processor(text="hello")
    assert set(text) == {"input_ids", "attention_mask", "mm_token_type_ids"}


def test_frames_for_the_encoder_are_made_for_gaze_alone(files, toy_processor):
    """Of a size that no memory holds: an error where they are made."""
    processor, (video, _) = copy.deepcopy(toy_processor), files
    processor.video_encoder_size = 10**7
    gaze = [[0.5, 0.5, 1.0, 1.0]]

    def ask(*scanpaths):
        return processor(text=processor.video_token, videos=[video], scanpaths=list(scanpaths) or None)

    def chat(**item):
        return processor.apply_chat_template(conversation(video, **item), tokenize=True, return_dict=True)

    assert all("pixel_values_videos" in inputs for inputs in (ask(), ask(None), chat()))
    for with_gaze in (lambda: ask(gaze), lambda: chat(scanpath=gaze)):
        with pytest.raises(RuntimeError, match="allocate memory"):
            with_gaze()


def test_a_batch_with_and_without_gaze(files, toy_processor):
    video, table = files
    inputs = toy_processor.apply_chat_template(
        [conversation(video, scanpath=table), conversation(video), conversation(video, scanpath=np.zeros((0, 4)))],
        tokenize=True,
        return_dict=True,
    )
    assert inputs["has_scanpath"].tolist() == [True, False, True]
    assert inputs["scanpath_mask"].tolist() == [[True, True], [False, False], [False, False]]


def test_casting_keeps_times_exact():
    inputs = GazeQwenInputs({"scanpaths": torch.tensor([[[0.1, 0.2, 700.3, 1.0]]]), "pixel_values": torch.ones(2)})
    inputs.to(dtype=torch.bfloat16)
    assert inputs["pixel_values"].dtype == torch.bfloat16
    assert inputs["scanpaths"].dtype == torch.float32 and inputs["scanpaths"][0, 0, 2] == torch.tensor(700.3)


def test_what_does_not_fit_is_refused(files, toy_processor):
    video, table = files
    clip = read_clip(video, num_frames=2)
    prompt = toy_processor.video_token
    for arguments, message in [
        ({"text": "no placeholder", "videos": [clip]}, "holds 0 video placeholders.*got 1 videos"),
        ({"text": prompt + prompt, "videos": [clip]}, "holds 2 video placeholders.*got 1 videos"),
        ({"text": prompt, "videos": [clip], "scanpaths": [None, table]}, "got 2 scanpaths for 1 videos"),
        ({"text": "hello", "scanpaths": [as_scanpath(table)]}, "without a video"),
        ({"text": prompt, "videos": [clip], "return_tensors": "np"}, "return_tensors"),
        ({"videos": [clip]}, "text: got None"),
    ]:
        with pytest.raises(ValueError, match=message):
            toy_processor(**arguments)
    with pytest.raises(ValueError, match="query time 30 s lies beyond the video"):
        toy_processor.apply_chat_template(conversation(video, scanpath=table, end_s=30), tokenize=True)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        toy_processor.apply_chat_template(conversation(video, scanpath="nowhere.csv"), tokenize=True)
    with pytest.raises(ValueError, match="expected the video under one of the keys"):
        toy_processor.apply_chat_template(conversation(None), tokenize=True)


def test_chats_snap_as_the_adapter_was_trained_unless_the_item_says_otherwise(files, toy_processor):
    """The second fixation begins 0.5 s after the query at 4.5 s: it fills the last step, and the first ends there."""
    video, _ = files
    table = as_scanpath([[0.2, 0.3, 2.25, 4.5], [0.7, 0.6, 7.0, 4.0]])

    def scanpath(trained_s: float, **item) -> tuple[torch.Tensor, torch.Tensor]:
        processor = copy.copy(toy_processor)
        processor.snap_s = trained_s
        chat = conversation(video, scanpath=table, end_s=4.5, **item)
        inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True)
        begin, end = inputs["step_spans_s"][0, -1].tolist()
        assert 3 < begin < end == 4.5
        return inputs["scanpaths"][0], torch.tensor(
            [[0.2, 0.3, begin / 2, begin], [0.7, 0.6, (begin + end) / 2, end - begin]]
        )

    torch.testing.assert_close(*scanpath(1.0))
    torch.testing.assert_close(*scanpath(0.0, snap_s=1.0))
    for found, _ in (scanpath(0.0), scanpath(1.0, snap_s=0), scanpath(0.4)):
        torch.testing.assert_close(found, torch.tensor([[0.2, 0.3, 2.25, 4.5]]))


def test_items_say_how_they_are_read_as_for_qwens_own_processor(files, toy_processor):
    """Ten seconds of 112 x 112 pixels, 16 visual tokens a step; beside it a video read as the processor is set."""
    video, _ = files
    processor = copy.copy(toy_processor)
    processor.video_processor = Qwen2VLVideoProcessor(size={"shortest_edge": 28**2, "longest_edge": 112**2})

    def grids(chat, **options) -> list[list[int]]:
        inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, **options)
        return inputs["video_grid_thw"].tolist()

    for item, grid in [
        ({"fps": 2.0}, [10, 8, 8]),
        ({"nframes": 6}, [3, 8, 8]),
        ({"fps": 2.0, "max_frames": 12}, [6, 8, 8]),
        ({"fps": 1.0, "start_s": 2, "end_s": 6}, [2, 8, 8]),
        ({"max_pixels": 56**2}, [4, 4, 4]),
        ({"max_pixels": 224**2}, [4, 8, 8]),  # at most: nothing is made larger
    ]:
        both = [conversation(f"file://{video}", **item), conversation(video)]
        assert grids(both) == [grid, [4, 8, 8]], item
        assert grids(both, num_frames=2, max_pixels=28**2)[0][:1] == ([1] if "max_pixels" in item else grid[:1]), item
    assert grids(conversation(video), num_frames=2, max_pixels=28**2) == [[1, 2, 2]]
    steps = processor.apply_chat_template(conversation(video, fps=2.0), tokenize=True, return_dict=True)
    assert steps["second_per_grid_ts"].tolist() == [pytest.approx(1.0, abs=0.01)]


def test_an_images_pixels_and_address(tmp_path, toy_processor):
    path = tmp_path / "picture.png"
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (112, 112, 3), dtype=np.uint8))
    picture.save(path)
    processor = copy.copy(toy_processor)
    processor.image_processor = Qwen2VLImageProcessor(size={"shortest_edge": 28**2, "longest_edge": 112**2})

    def inputs(*items):
        chat = [{"role": "user", "content": [*items, {"type": "text", "text": "What?"}]}]
        return processor.apply_chat_template(chat, tokenize=True, return_dict=True)

    whole = inputs({"type": "image", "image": picture})
    assert whole["image_grid_thw"].tolist() == [[1, 8, 8]]
    for item in (
        {"type": "image_url", "image_url": {"url": str(path)}},
        {"type": "image_url", "image_url": f"file://{path}"},
        {"type": "image", "image_url": str(path)},
    ):
        assert torch.equal(inputs(item)["pixel_values"], whole["pixel_values"]), item
        small = inputs({**item, "max_pixels": 56 * 56}, {"type": "image", "image": picture})
        assert small["image_grid_thw"].tolist() == [[1, 4, 4], [1, 8, 8]]
        size = {"shortest_edge": 28**2, "longest_edge": 56**2}
        own = processor.image_processor(images=[picture], size=size, return_tensors="pt")["pixel_values"]
        assert torch.equal(small["pixel_values"], torch.cat([own, whole["pixel_values"]]))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"fps": 2.0, "nframes": 4}, "got num_frames=4 and fps=2.0, expected one of them"),
        ({"fps": 0}, "fps: got 0, expected a positive number"),
        ({"fps": "2"}, "fps: got '2'"),
        ({"max_pixels": 700}, r"max_pixels: got 700, expected a whole number, at least 784 \(one token\)"),
        ({"max_pixels": 1e5}, "max_pixels: got 100000.0"),
        ({"max_pixels": True}, "max_pixels: got True"),
        ({"min_pixels": 784}, r"got the keys \['min_pixels'\] in a video item, expected \['end_s', 'fps',"),
        ({"total_pixels": 784}, r"got the keys \['total_pixels'\]"),
        (
            {"video": "a clip", "fps": 1.0, "end_s": 5},
            "got {'fps': 1.0, 'end_s': 5} in an item whose video is a `Clip`",
        ),
    ],
)
def test_what_an_item_asks_for_is_done_or_refused(files, toy_processor, item, message):
    video, _ = files
    video = read_clip(video, num_frames=2) if item.pop("video", None) else video
    with pytest.raises(ValueError, match=message):
        toy_processor.apply_chat_template(conversation(video, **item), tokenize=True)


def test_frames_for_the_encoder_are_normalised_with_imagenets_statistics(toy_processor):
    """Of a clip of one colour, every pixel is (colour / 255 - mean) / std; higher than wide, so that axes count."""
    frames = np.tile(np.array([255, 128, 0], dtype=np.uint8), (2, 112, 56, 1))
    pixels = toy_processor.process_clip(Clip(frames, np.arange(2.0), 0.0, 2.0))["video_encoder_pixel_values"]
    expected = torch.tensor([(1 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, (0 - 0.406) / 0.225])
    torch.testing.assert_close(pixels, expected[None, :, None, None].expand(2, 3, 64, 64))


def test_the_size_of_a_frame_on_a_grid_does_not_follow_from_their_number(toy_processor):
    """Of many frames the base model's processor makes smaller ones; on a grid each temporal step is sized alone."""
    processor = copy.deepcopy(toy_processor)
    processor.video_processor.size = {"shortest_edge": 784, "longest_edge": 12544}
    processor.video_processor.max_video_tokens = 64
    frames = np.random.default_rng(0).integers(0, 255, (12, 112, 112, 3), dtype=np.uint8)
    grids = {}
    for fps in (None, 1.0):
        whole, begin = (
            processor.process_clip(Clip(frames[:count], np.arange(count) + 0.5, 0.0, count, grid_fps=fps))
            for count in (12, 4)
        )
        grids[fps] = whole["video_grid_thw"].tolist(), begin["video_grid_thw"].tolist()
    assert grids[1.0] == ([6, 8, 8], [2, 8, 8]) and grids[None][0] != [6, 8, 8]
    assert torch.equal(whole["pixel_values_videos"][: 2 * 64], begin["pixel_values_videos"])
    assert torch.equal(whole["step_spans_s"][:2], begin["step_spans_s"])
    assert whole["second_per_grid_ts"] == begin["second_per_grid_ts"] == 2
    processor.sampling = "grid"
    assert processor.video_grid(12, 112, 112).tolist() == [6, 8, 8]
