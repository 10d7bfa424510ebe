"""Video files of strangers: playlists, damage, huge frames, several streams, pictures, and formats that seek badly."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from support import frame_index, index_frames, write_video

from gazeqwen.video_gazeqwen import each_frame, each_live_frame, frame_times_s, read_clip, read_frames, video_info

READERS = (read_clip, video_info, frame_times_s, lambda path: list(each_frame(path)))


def refused(path: Path, message: str) -> None:
    for read in READERS:
        with pytest.raises(ValueError, match=message) as error:
            read(path)
        assert type(error.value) is ValueError and str(path) in str(error.value)


# ---------------------------------------------------------------- files that open others, and texts
PLAYLISTS = {
    "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{0}\n#EXT-X-ENDLIST\n",
    "list.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{0}\n#EXT-X-ENDLIST\n",
    "list.ffconcat": "ffconcat version 1.0\nfile '{0.name}'\n",
    "notes.txt": "What the wearer said.\n" * 40,
    "notes.nfo": "What the wearer said.\n" * 40,
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_playlists_and_texts_are_no_videos(tmp_path, name):
    private = write_video(tmp_path / "private.ts", index_frames(50))
    assert len(read_clip(private, num_frames=4).frames) == 4
    (tmp_path / name).write_text(PLAYLISTS[name].format(private))
    refused(tmp_path / name, f"{name}: not a readable video")


def test_a_playlist_is_no_live_source_of_local_files(tmp_path):
    private = write_video(tmp_path / "private.ts", index_frames(50))
    (tmp_path / "list.m3u8").write_text(PLAYLISTS["list.m3u8"].format(private))
    with pytest.raises(ValueError, match="list.m3u8: not a readable video"):
        next(each_live_frame(f"file://{tmp_path / 'list.m3u8'}"))


def test_a_name_that_looks_like_a_protocol_is_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "v.mp4", index_frames(20)).rename(tmp_path / "concat:a|b.mp4")
    assert len(read_clip("concat:a|b.mp4", num_frames=2).frames) == 2


def test_pictures_are_no_videos(tmp_path):
    picture = Image.fromarray(index_frames(3)[2])
    picture.save(tmp_path / "still.gif")
    picture.save(tmp_path / "still.avif")
    write_video(tmp_path / "one.mp4", index_frames(1))
    for name in ("still.gif", "still.avif", "one.mp4"):
        refused(tmp_path / name, f"{name}: a picture, expected a video")
    frames = [Image.fromarray(frame) for frame in index_frames(10)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:], duration=100)
    assert [frame_index(frame) for frame in read_frames(tmp_path / "moving.gif", [0.05, 0.55])[0]] == [0, 5]


# ---------------------------------------------------------------- damage
def noisy_frames(count: int) -> np.ndarray:
    """Frames that carry their number under noise, so that their bytes are spread evenly over time."""
    noise = np.random.default_rng(0).integers(0, 50, (count, 48, 64, 3), dtype=np.uint8)
    return index_frames(count) // 2 + noise


def zeroed(data: bytes, share: float) -> bytes:
    at = int(share * len(data))
    return data[:at] + bytes(64) + data[at + 64 :]


def without_a_ts_packet(data: bytes, share: float) -> bytes:
    at = int(share * len(data)) // 188 * 188
    return data[:at] + data[at + 188 :]


# {id: (name, how it is written, damage, how many of five damaged files may pass for whole). H.264's arithmetic coding
# reads most damage as other pictures: nothing in the file says that they are wrong. MPEG-2 skips a lost start code.
DAMAGED = {
    "H.264": ("v.mp4", {}, zeroed, 3),
    "Motion JPEG": ("v.mov", {"codec": "mjpeg", "pix_fmt": "yuvj420p", "options": {"q": "3"}}, zeroed, 0),
    "MPEG-2": ("v.mpg", {"codec": "mpeg2video", "fps": 25, "options": {"qscale": "3"}}, zeroed, 1),
    "a packet of a transport stream lacks": ("v.ts", {}, without_a_ts_packet, 0),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damage_in_the_middle_is_named_where_it_can_be_told(tmp_path, kind):
    name, arguments, damage, most_silent = DAMAGED[kind]
    path = write_video(tmp_path / name, noisy_frames(50), **arguments)
    whole, data = [frame for _, frame in each_frame(path)], path.read_bytes()
    assert len(whole) == 50
    named = silent = 0
    for share in (0.3, 0.4, 0.5, 0.6, 0.7):
        path.write_bytes(damage(data, share))
        try:
            frames = [frame for _, frame in each_frame(path)]
        except ValueError as error:
            assert str(path) in str(error) and "damaged" in str(error)
            named += 1
        else:
            silent += len(frames) != 50 or not all(map(np.array_equal, frames, whole))
    assert named >= 2 and silent <= most_silent


def test_a_recording_cut_at_an_open_group_of_pictures_begins_at_its_keyframe(tmp_path):
    """What is shown before its first keyframe refers to pictures that were cut away: left out, and no damage."""
    options = {"bf": "3", "g": "15", "x264-params": "open-gop=1:b-adapt=0:scenecut=0"}
    path = write_video(tmp_path / "v.mkv", index_frames(60), options=options)
    with av.open(str(path)) as whole, av.open(str(tmp_path / "cut.mkv"), "w") as cut:
        stream = cut.add_stream_from_template(whole.streams.video[0])
        packets = [packet for packet in whole.demux(video=0) if packet.size]
        begin = [number for number, packet in enumerate(packets) if packet.is_keyframe][1]
        assert min(packet.pts for packet in packets[begin:]) < packets[begin].pts  # pictures that lead it
        keyframe_s = float(packets[begin].pts * packets[begin].time_base)
        for packet in packets[begin:]:
            packet.stream = stream
            cut.mux(packet)
    frames = [(time_s, frame_index(frame)) for time_s, frame in each_frame(tmp_path / "cut.mkv")]
    assert [index for _, index in frames] == list(range(round(10 * keyframe_s), 60))
    (frame,), _ = read_frames(tmp_path / "cut.mkv", [frames[7][0] + 0.01])
    assert frame_index(frame) == frames[7][1]


# ---------------------------------------------------------------- size
def still_film(path: Path, width: int, height: int, codec: str, pix_fmt: str, options: dict) -> Path:
    """Four frames, the left half bright."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=2, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        pixels = np.zeros((height, width) if pix_fmt == "gray" else (height * 3 // 2, width), np.uint8)
        pixels[height:] = 128
        pixels[:height, : width // 2] = 200
        frame = av.VideoFrame.from_ndarray(pixels, format=pix_fmt)
        for number in range(4):
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_large_frames_are_kept_small(tmp_path):
    path = still_film(tmp_path / "4k.mp4", 3840, 2160, "libx264", "yuv420p", {"preset": "ultrafast"})
    info, clip = video_info(path), read_clip(path, num_frames=4)
    assert (info.width, info.height) == (3840, 2160)  # what gaze in pixels is relative to
    height, width = clip.frames.shape[1:3]
    assert width * height <= 1920 * 1440 and width / height == pytest.approx(16 / 9, abs=0.002)
    bright = clip.frames[:, height // 2].mean(-1) > 100
    assert bright[:, : width // 2 - 2].all() and not bright[:, width // 2 + 2 :].any()
    (_, frame), *_ = each_frame(path)
    np.testing.assert_array_equal(frame, clip.frames[0])


def test_frames_too_large_to_be_decoded_are_refused(tmp_path):
    path = still_film(tmp_path / "huge.mov", 12000, 3000, "qtrle", "gray", {})
    refused(path, "huge.mov: (no size, or more than 35,651,584 pixels|damaged)")


def test_frames_of_two_sizes_are_refused(tmp_path):
    path = tmp_path / "v.ts"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index, array in enumerate(index_frames(20)):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        other = av.CodecContext.create("libx264", "w")
        other.width, other.height, other.pix_fmt, other.time_base = 96, 48, "yuv420p", Fraction(1, 10)
        for index, array in enumerate(index_frames(20, 48, 96)):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts, frame.time_base = 20 + index, Fraction(1, 10)
            for packet in other.encode(frame):
                packet.stream = stream
                container.mux(packet)
        for packet in other.encode(None):
            packet.stream = stream
            container.mux(packet)
    with pytest.raises(ValueError, match="v.ts: frames change their size from 64 x 48 to 96 x 48, expected one size"):
        read_clip(path, num_frames=8)


# ---------------------------------------------------------------- several streams
@pytest.mark.parametrize("small_first", [True, False])
def test_of_two_streams_the_larger_one_is_read(tmp_path, small_first):
    path, sizes = tmp_path / "v.mp4", [(16, 16), (64, 48)]
    with av.open(str(path), "w") as container:
        streams = []
        for width, height in sizes if small_first else sizes[::-1]:
            stream = container.add_stream("libx264", rate=10, options={"crf": "10"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            streams.append(stream)
        for index in range(30):
            for stream in streams:
                array = index_frames(30, stream.height, stream.width)[index]
                container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        for stream in streams:
            container.mux(stream.encode(None))
    assert (video_info(path).width, video_info(path).height) == (64, 48)
    frames, times = read_frames(path, [1.05, 2.05])
    assert [frame_index(frame) for frame in frames] == [10, 20] and times.tolist() == [1.0, 2.0]


# ---------------------------------------------------------------- a format that seeks badly
@pytest.mark.parametrize("codec", ["mpeg1video", "mpeg2video"])
def test_a_program_stream_shows_the_frame_of_the_time(tmp_path, codec):
    path = write_video(tmp_path / "v.mpg", index_frames(200), codec=codec, fps=25, options={"qscale": "2"})
    with av.open(str(path)) as container:
        times = np.array([float(frame.pts * frame.time_base) for frame in container.decode(video=0)])
    assert len(times) == 200 and video_info(path).end_s == pytest.approx(times[-1] + 0.04)
    for time_s in np.arange(times[0] + 0.01, times[-1], 0.81):
        (frame,), (shown_s,) = read_frames(path, [time_s])
        expected = int(np.searchsorted(times, time_s + 1e-6, side="right")) - 1
        assert (frame_index(frame), shown_s) == (expected, times[expected])
    frames, _ = read_frames(path, times[[3, 90, 180]])
    assert [frame_index(frame) for frame in frames] == [3, 90, 180]
