"""
Project Aria's eye gaze: rows and calibrations of the recordings in facebookresearch/projectaria_tools (Apache-2.0),
and the pixels that its own package gives for them; the VRS file itself is read in addition where it is (`REAL`).
"""

import sys
from types import SimpleNamespace

import av
import numpy as np
import pytest
from support import REAL, index_frames, write_video

from gazeqwen.gaze_sources import SOURCES, Status, aria
from gazeqwen.gaze_sources.aria import AriaCamera, read

UNTRACKED, UNKNOWN, OUT = Status.UNTRACKED, Status.UNKNOWN, Status.OUT_OF_FRAME

# data/gen1/aria_everyday_activities_test_data/recording.vrs: eight color frames.
FRAMES_NS = np.array(
    [86385246037, 86435217662, 86485218862, 86535221450, 86585216737, 86635223987, 86685220112, 86735213662]
)
DEVICE_CPF = [
    [-3.18601373e-02, -9.98629532e-01, -4.15209507e-02, 4.95295847e-03],
    [7.93353401e-01, 1.74815473e-09, -6.08761350e-01, -4.91483682e-02],
    [6.07927062e-01, -5.23360076e-02, 7.92266136e-01, -4.91854614e-02],
    [0, 0, 0, 1],
]
DEVICE_CAMERA = [
    [0.99477816, -0.03844146, 0.09454455, -0.00455473],
    [0.08878896, 0.78276625, -0.61594929, -0.01169138],
    [-0.05032829, 0.62112741, 0.78209194, -0.00491879],
    [0, 0, 0, 1],
]
PARAMETERS = [
    *(6.07012997e02, 7.18517935e02, 7.03047929e02),
    *(4.04985506e-01, -4.96065517e-01, 2.36688974e-01, 9.94819149e-01, -1.57394808e00, 6.08672819e-01),
    *(-3.67219054e-04, -7.41390536e-04, -5.83998484e-04, -2.19341242e-04, 1.93626855e-04, -2.04247340e-04),
]
GEN1 = AriaCamera(
    np.linalg.inv(DEVICE_CAMERA) @ DEVICE_CPF, np.array(PARAMETERS), (1408, 1408), 707.5, 1.0, True, FRAMES_NS
)
# data/gen2/aria_gen2_unit_test_sequence_with_bluetooth.vrs
GEN2 = AriaCamera(
    np.array(
        [
            [-0.9999534481910336, 0.002732676885466925, 0.009253860162213525, 0.0563578525688261],
            [-0.0036202774010809656, -0.9952483430249986, -0.09730174354827553, 0.0076874453648290535],
            [0.008943994767517971, -0.09733071551691558, 0.9952119054626325, -0.01511449369232464],
            [0, 0, 0, 1],
        ]
    ),
    np.array(
        [
            *(8.78166350e02, 9.92053819e02, 7.52380590e02),
            *(-3.06271524e-02, 2.03825165e-02, 1.21134063e-01, -2.20323478e-01, 1.34417904e-01, -2.89552850e-02),
            *(-9.16926073e-04, 1.40041662e-04, 5.34620607e-04, 6.65385818e-04, -4.59858199e-04, 1.79871032e-04),
        ]
    ),
    (2016, 1512),
    1101.0,
    1.4,
    False,
    np.array([7385797614063, 7385898450896, 7385996779437]),
)

GENERAL = """tracking_timestamp_us,yaw_rads_cpf,pitch_rads_cpf,depth_m,session_uid
86435306,-0.36566,-0.121962,,e7e91580-ee57-41c0-98c6-5f1272a7176e
86535306,-0.205619,-0.14999300000000002,,e7e91580-ee57-41c0-98c6-5f1272a7176e
86635306,-0.095982,-0.147992,,e7e91580-ee57-41c0-98c6-5f1272a7176e
86735306,-0.003813,-0.157194,,e7e91580-ee57-41c0-98c6-5f1272a7176e
"""
SENSOR_PX = [(713.63749, 444.45551), (731.48008, 550.65747), (730.75583, 619.27345), (736.85439, 675.48178)]
VERGENCE = """tracking_timestamp_us,left_yaw_rads_cpf,right_yaw_rads_cpf,pitch_rads_cpf,depth_m
148502622,0.801510214805603,0.7736955881118774,-0.020560525357723236,1.598123690675182
148602622,0.7955197095870972,0.7748700976371765,-0.01710202544927597,2.1578350791793324
"""
GEN2_ROWS = """tracking_timestamp_us,yaw_rads_cpf,pitch_rads_cpf,left_yaw_rads_cpf,right_yaw_rads_cpf,\
left_pitch_rads_cpf,right_pitch_rads_cpf,tx_left_eye_cpf,ty_left_eye_cpf,tz_left_eye_cpf,\
tx_right_eye_cpf,ty_right_eye_cpf,tz_right_eye_cpf
1130889351,0.07778378224032466,-0.36552523325782504,0.01876476162672043,0.13680238223075866,\
-0.3649531942118841,-0.36493456179992734,0.0325,0.0,0.0,-0.0325,0.0,0.0
1130900462,0.07440283203563364,-0.367955632326911,0.015397038102149964,0.13340818977355956,\
-0.3673809867610174,-0.3673618000258642,0.0325,0.0,0.0,-0.0325,0.0,0.0
"""


def table(tmp_path, text: str, name: str = "general_eye_gaze.csv"):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def gen1(monkeypatch):
    """Let any VRS file have the calibration of the recording."""
    monkeypatch.setattr(aria, "read_camera", lambda vrs: GEN1)


def pixels(samples, size) -> np.ndarray:
    return samples.recorded_xy * size - 0.5


def test_generation_1_lands_where_project_arias_tools_put_it(tmp_path, gen1):
    path = table(tmp_path, GENERAL)
    as_sensor = read(path, vrs="a.vrs", upright=False)
    np.testing.assert_allclose(pixels(as_sensor, 1408), SENSOR_PX, atol=1e-3)
    upright = read(path, vrs="a.vrs")
    np.testing.assert_allclose(pixels(upright, 1408), [(1407 - y, x) for x, y in SENSOR_PX], atol=1e-3)
    np.testing.assert_allclose(upright.times_s, [0.05005996, 0.15005996, 0.25005996, 0.35005996], atol=1e-7)
    assert upright.frame_size == (1408, 1408) and upright.in_frame.all()
    assert upright.notes == (
        "calibration: a.vrs",
        "4 of 4 samples have no depth: taken as 1 m (gaze_distance_m)",
        "clock: the first frame is at 86.385246 s of the device's, by the color frames of a.vrs",
    )
    nearer = read(path, vrs="a.vrs", gaze_distance_m=0.3)
    assert "taken as 0.3 m" in nearer.notes[1] and np.abs(nearer.xy - upright.xy).max() > 0.01


def test_vergence_has_its_own_depth_and_one_yaw_of_two(tmp_path, gen1):
    samples = read(table(tmp_path, VERGENCE), vrs="a.vrs", upright=False)
    expected = [(661.7273, 1252.6867), (658.8840, 1255.2540)]  # at their depths
    np.testing.assert_allclose(pixels(samples, 1408), expected, atol=1e-3)
    assert not any("depth" in note for note in samples.notes)
    without = read(table(tmp_path, VERGENCE.replace("1.598123690675182", "")), vrs="a.vrs", upright=False)
    np.testing.assert_allclose(pixels(without, 1408)[0], (663.6163, 1241.9623), atol=1e-3)  # at 1 m
    assert "1 of 2 samples have no depth: taken as 1 m (gaze_distance_m)" in without.notes


def test_generation_2_looks_where_its_rays_meet_and_is_not_turned(tmp_path, monkeypatch):
    monkeypatch.setattr(aria, "read_camera", lambda vrs: GEN2)
    samples = read(table(tmp_path, GEN2_ROWS), vrs="a.vrs", offset_s=1130.889351)
    expected = [(1020.0649, 1005.1036), (1022.8562, 1007.1621)]
    np.testing.assert_allclose(pixels(samples, (2016, 1512)), expected, atol=5e-3)  # the tools' points are float32
    np.testing.assert_allclose(samples.times_s, [0, 0.011111], atol=1e-9)
    assert samples.notes[1] == "clock: the video begins at 1130.89 s of the device's (offset_s)"
    parallel = GEN2_ROWS.replace("0.01876476162672043", "0.13680238223075866")  # rays that do not meet
    at_a_metre = read(table(tmp_path, parallel), vrs="a.vrs", offset_s=0)
    assert "1 of 2 samples have no depth: taken as 1 m (gaze_distance_m)" in at_a_metre.notes
    point = np.array([np.tan(0.07778378224032466), np.tan(-0.36552523325782504), 1])
    expected, _ = aria.project(point[None] / np.linalg.norm(point), GEN2)
    np.testing.assert_allclose(pixels(at_a_metre, (2016, 1512))[0], expected[0], atol=1e-9)


def test_what_the_lens_does_not_show_is_out_of_frame_and_what_is_not_recorded_untracked(tmp_path, gen1):
    header = "tracking_timestamp_us,yaw_rads_cpf,pitch_rads_cpf\n"
    rows = ["0,0.85,0.7", "10,-0.6,-0.6", "20,,0.1", "30,0.0,1.5"]  # a corner; a nearer one; no yaw; above the head
    samples = read(table(tmp_path, header + "\n".join(rows) + "\n"), vrs="a.vrs", offset_s=0)
    assert samples.status.tolist() == [OUT, UNKNOWN, UNTRACKED, UNTRACKED]
    assert (samples.recorded_xy[0] < 1).all() and (samples.recorded_xy[0] > 0).all()  # in the frame, outside the lens
    assert "1 samples behind the color camera are untracked" in samples.notes


def test_the_videos_clock_is_that_of_its_frames(tmp_path, gen1):
    """One frame per color frame; times that vrs_to_mp4 wrote, beside the video and in it; a given offset."""
    path = table(tmp_path, GENERAL)
    uneven = [0.0, 0.1, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    video = write_video(tmp_path / "v.mp4", index_frames(8, 64), uneven)
    samples = read(path, video, "a.vrs")
    expected = np.interp([0.05005996, 0.15005996, 0.25005996], (FRAMES_NS - FRAMES_NS[0]) / 1e9, uneven)
    np.testing.assert_allclose(samples.times_s[:3], expected, atol=1e-6)
    assert samples.frame_size == (64, 64)

    begin = 86335306000  # the second frame repeats the first
    written = [begin, begin, *(begin + 10**8 * index for index in range(1, 7))]
    lines = "".join(f"{index},{ns - begin},{ns}\n" for index, ns in enumerate(written))
    table(tmp_path, "mp4_time_ns,relative_vrs_device_time_ns,vrs_device_time_ns\n" + lines, "v_mp4_to_vrs_time_ns.csv")
    samples = read(path, video, "a.vrs")
    np.testing.assert_allclose(samples.times_s[:3], [0.3, 0.4, 0.5], atol=1e-6)
    assert "by " in samples.notes[2] and "v_mp4_to_vrs_time_ns.csv" in samples.notes[2]

    tagged = tmp_path / "tagged.mp4"
    with av.open(str(video)) as source, av.open(str(tagged), "w") as target:
        target.metadata["description"] = str([ns + 10**8 for ns in written])
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    samples = read(path, tagged, "a.vrs")
    np.testing.assert_allclose(samples.times_s[1:3], [0.3, 0.4], atol=1e-6)
    assert "by the video's description" in samples.notes[2]
    assert read(path, tagged, "a.vrs", offset_s=86.0).times_s[0] == pytest.approx(0.435306)


def test_a_video_of_another_shape_and_a_recording_without_frames_are_named(tmp_path, monkeypatch, gen1):
    path, video = table(tmp_path, GENERAL), write_video(tmp_path / "wide.mp4", index_frames(8))
    with pytest.raises(ValueError, match="a.vrs: its color frames are 1408 x 1408, the video 64 x 48: another shape"):
        read(path, video, "a.vrs")
    no_frames = AriaCamera(*(*(getattr(GEN1, name) for name in list(vars(GEN1))[:-1]), np.zeros(0, np.int64)))
    monkeypatch.setattr(aria, "read_camera", lambda vrs: no_frames)
    with pytest.raises(ValueError, match="a.vrs: it holds no color frames, so say with offset_s when"):
        read(path, vrs="a.vrs")
    assert read(path, vrs="a.vrs", offset_s=86).times_s[0] == pytest.approx(0.435306)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (GENERAL.replace("-0.205619", "-11.78"), r"csv, line 3: yaw_rads_cpf is -11.78, expected radians .*degrees\?"),
        (GENERAL.replace("-0.36566", "left"), "csv, line 2: yaw_rads_cpf is 'left', expected a number"),
        (GENERAL.replace("86635306", "86635.306"), "csv, line 4: tracking_timestamp_us is .* expected a whole number"),
        (GENERAL.replace("86635306", "86435305"), "csv, line 4: time 0.05"),
        (GENERAL.replace(",,", ",-2,"), "csv, line 2: depth_m is -2.0, expected 0 or more metres"),
        (GENERAL.replace("pitch_rads_cpf", "pitch"), "csv: no column pitch_rads_cpf with yaw_rads_cpf, or left_ and"),
        (VERGENCE.replace("right_yaw_rads_cpf", "right"), "csv: no column pitch_rads_cpf with yaw_rads_cpf, or left_"),
        ("time,x,y\n0,1,1\n", "csv: no column tracking_timestamp_us"),
    ],
)
def test_a_wrong_table_is_named(tmp_path, gen1, text, named):
    with pytest.raises(ValueError, match=named):
        read(table(tmp_path, text), vrs="a.vrs")


def test_the_table_and_the_vrs_file_are_found(tmp_path, gen1):
    """AEA's and Nymeria's folders; a personalized table goes before the general one."""
    folder = tmp_path / "loc1_script1"
    table(folder, GENERAL, "mps/eye_gaze/general_eye_gaze.csv")
    with pytest.raises(FileNotFoundError, match=r"no such file \*.vrs .* say where it is with vrs"):
        read(folder)
    (folder / "recording.vrs").touch()
    for place in (folder, folder / "mps", folder / "mps" / "eye_gaze"):
        assert read(place).notes[1] == f"calibration: {folder / 'recording.vrs'}"
    assert SOURCES["aria"].find(tmp_path, "loc1_script1") == folder / "mps" / "eye_gaze"
    (folder / "other.vrs").touch()
    with pytest.raises(ValueError, match=r"other.vrs, .*recording.vrs: which is the recording's\? Say it with vrs"):
        read(folder)
    table(folder, GENERAL.replace("-0.36566", "-0.3"), "mps/eye_gaze/personalized_eye_gaze.csv")
    samples = read(folder, vrs="a.vrs")
    assert (
        samples.source.endswith("personalized_eye_gaze.csv")
        and "personalized_eye_gaze.csv is read" in samples.notes[0]
    )

    nymeria = tmp_path / "20230607_s0" / "recording_head"
    table(nymeria, GENERAL, "mps/eye_gaze/general_eye_gaze.csv")
    (nymeria / "data").mkdir()
    (nymeria / "data" / "data.vrs").touch()
    assert SOURCES["aria"].find(tmp_path, "20230607_s0") == nymeria / "mps" / "eye_gaze"
    assert read(nymeria).notes[1] == f"calibration: {nymeria / 'data' / 'data.vrs'}"
    table(tmp_path, GENERAL, "SLAM-and-Gaze/P01/GAZE_HAND/mps_P01-1_vrs/eye_gaze/general_eye_gaze.csv")
    assert SOURCES["aria"].find(tmp_path, "P01-1").parts[-2:] == ("mps_P01-1_vrs", "eye_gaze")
    with pytest.raises(FileNotFoundError, match="no such file personalized_eye_gaze.csv or general_eye_gaze.csv"):
        read(tmp_path / "20230607_s0" / "recording_head" / "data")


# ------------------------------------------------------------------ the VRS file
def fake_tools(monkeypatch, provider):
    """Stand in for Project Aria's package, which is no part of the tests' environment."""
    core = SimpleNamespace(
        data_provider=SimpleNamespace(create_vrs_data_provider=lambda path: provider),
        sensor_data=SimpleNamespace(TimeDomain=SimpleNamespace(DEVICE_TIME="device")),
    )
    monkeypatch.setitem(sys.modules, "projectaria_tools", SimpleNamespace(core=core))
    monkeypatch.setitem(sys.modules, "projectaria_tools.core", core)
    monkeypatch.setitem(sys.modules, "projectaria_tools.core.data_provider", core.data_provider)
    monkeypatch.setitem(sys.modules, "projectaria_tools.core.sensor_data", core.sensor_data)


def fake_provider(model: str = "CameraModelType.FISHEYE624", version: str = "DeviceVersion.Gen1"):
    def matrix(values):
        return SimpleNamespace(to_matrix=lambda: np.array(values))

    camera = SimpleNamespace(
        get_model_name=lambda: model,
        get_image_size=lambda: np.array([1408, 1408]),
        get_valid_radius=lambda: 707.5,
        get_max_solid_angle=lambda: 1.0,
        get_projection_params=lambda: PARAMETERS,
    )
    device = SimpleNamespace(
        get_camera_calib=lambda label: camera if label == "camera-rgb" else None,
        get_transform_device_sensor=lambda label: matrix(DEVICE_CAMERA),
        get_transform_device_cpf=lambda: matrix(DEVICE_CPF),
        get_device_version=lambda: version,
    )
    return SimpleNamespace(
        get_device_calibration=lambda: device,
        get_stream_id_from_label=lambda label: "214-1",
        get_num_data=lambda stream: len(FRAMES_NS),
        get_timestamps_ns=lambda stream, domain: FRAMES_NS.tolist(),
    )


def test_the_camera_of_a_vrs_file(tmp_path, monkeypatch):
    vrs = tmp_path / "a.vrs"
    with pytest.raises(FileNotFoundError, match="a.vrs: no such file"):
        aria.read_camera(vrs)
    vrs.touch()
    monkeypatch.setitem(sys.modules, "projectaria_tools", None)
    with pytest.raises(ImportError, match="a.vrs: to read it needs pip install --no-deps projectaria-tools"):
        aria.read_camera(vrs)
    fake_tools(monkeypatch, None)
    with pytest.raises(ValueError, match="a.vrs: not a VRS file of Project Aria with the calibration of camera-rgb"):
        aria.read_camera(vrs)
    fake_tools(monkeypatch, fake_provider("CameraModelType.LINEAR"))
    with pytest.raises(ValueError, match="a.vrs: camera-rgb is calibrated as LINEAR, expected FISHEYE624"):
        aria.read_camera(vrs)
    fake_tools(monkeypatch, fake_provider())
    samples = read(table(tmp_path, GENERAL))
    np.testing.assert_allclose(pixels(samples, 1408)[0], [1407 - 444.45551, 713.63749], atol=1e-3)
    np.testing.assert_allclose(samples.times_s[0], 0.05005996, atol=1e-7)
    fake_tools(monkeypatch, fake_provider(version="DeviceVersion.Gen2"))
    np.testing.assert_allclose(pixels(read(table(tmp_path, GENERAL)), 1408)[0], SENSOR_PX[0], atol=1e-3)


RECORDING = REAL / "aria_everyday_activities_test_data"


@pytest.mark.skipif(not (RECORDING / "recording.vrs").exists(), reason="in addition, where the recording is")
def test_the_real_recording():
    pytest.importorskip("projectaria_tools.core", reason="the extra `aria` is not installed")
    np.testing.assert_allclose(pixels(read(RECORDING, upright=False), 1408), SENSOR_PX, atol=1e-3)
