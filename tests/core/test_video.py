"""Videos: round trip, orientation, and damage reported with the number of frames."""

import errno
import os

import pytest
import torch

from v3d_core.formats import video
from v3d_core.formats.atomic import OutputError
from v3d_core.formats.video import read_video_frames, write_video

av = pytest.importorskip("av")


def moving_gradient(count: int = 10, width: int = 96, height: int = 64) -> torch.Tensor:
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    return torch.stack([torch.stack([x, y, x * 0 + k / count], -1) for k in range(count)])


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip.mp4"
    write_video(path, moving_gradient(), fps=12)
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_frames_survive_the_round_trip(tmp_path, suffix):
    frames = moving_gradient()
    write_video(tmp_path / f"a{suffix}", frames, fps=12.5)
    back = read_video_frames(tmp_path / f"a{suffix}")
    assert back.shape == frames.shape and back.dtype == torch.float32
    assert float((back - frames).abs().mean()) < 0.01
    assert float((back - frames).mean().abs()) < 0.01  # no shift of range or matrix
    with av.open(str(tmp_path / f"a{suffix}")) as container:
        assert float(container.streams.video[0].average_rate) == 12.5


def test_odd_sizes_get_their_last_row_and_column_twice(tmp_path):
    write_video(tmp_path / "a.mp4", moving_gradient(3, 95, 63))
    back = read_video_frames(tmp_path / "a.mp4")
    assert back.shape == (3, 64, 96, 3)
    assert float((back[:, :63, :95] - moving_gradient(3, 95, 63)).abs().mean()) < 0.01


def test_a_turned_video_is_read_as_players_show_it(clip):
    upright = read_video_frames(clip)
    data = bytearray(clip.read_bytes())
    matrix = data.index(b"tkhd") + 44  # of the track header, ISO 14496-12: 3 x 3 fixed-point
    quarter_turn = [0, 0x10000, 0, 0xFFFF0000, 0, 0, 0, 0, 0x40000000]  # 90 degrees clockwise
    data[matrix : matrix + 36] = b"".join(x.to_bytes(4, "big") for x in quarter_turn)
    clip.write_bytes(data)
    turned = read_video_frames(clip)
    assert torch.equal(turned, torch.rot90(upright, -1, (1, 2)))


@pytest.mark.parametrize("share", [0.5, 0.9])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_truncated_video_says_how_many_frames_could_be_decoded(tmp_path, suffix, share):
    path = tmp_path / f"clip{suffix}"
    write_video(path, moving_gradient(48), fps=12)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match=r"cut off .* \d+ of 4\d frames could be decoded"):
        read_video_frames(path)


@pytest.mark.parametrize("content", [b"", b"not a video", b"\0" * 10_000])
def test_rubbish_is_refused(tmp_path, content):
    (tmp_path / "rubbish.mp4").write_bytes(content)
    with pytest.raises(ValueError, match=r"rubbish\.mp4: the video is damaged.* 0 frames"):
        read_video_frames(tmp_path / "rubbish.mp4")
    with pytest.raises(FileNotFoundError, match="absent"):
        read_video_frames(tmp_path / "absent.mp4")


def test_sound_alone_is_refused(tmp_path):
    path = tmp_path / "sound.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame(format="s16", layout="mono", samples=800)
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(ValueError, match="no video stream"):
        read_video_frames(path)


def test_more_pixels_than_the_limit_are_refused(clip, monkeypatch):
    monkeypatch.setattr(video, "MAX_TOTAL_PIXELS", 96 * 64 * 5)
    with pytest.raises(ValueError, match="6 frames of 96x64 are 36864 pixels, at most 30720"):
        read_video_frames(clip)


def test_wrong_shapes_and_rates_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\[F, H, W, 3\], got \[0, 4, 4, 3\]"):
        write_video(tmp_path / "a.mp4", torch.zeros(0, 4, 4, 3))
    with pytest.raises(ValueError, match="fps must be positive, got 0"):
        write_video(tmp_path / "a.mp4", torch.zeros(1, 4, 4, 3), fps=0)
    assert os.listdir(tmp_path) == []


def test_an_unknown_container_is_named_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"'\.xyz'; known are \.mp4"):
        write_video(tmp_path / "a.xyz", moving_gradient(2))
    assert os.listdir(tmp_path) == []


def test_a_full_disk_and_a_cancelled_write_leave_nothing(tmp_path, monkeypatch):
    def full(image):
        raise OSError(errno.ENOSPC, "No space left on device")

    def cancelled(image):
        raise KeyboardInterrupt

    for interruption, expected in ((full, OutputError), (cancelled, KeyboardInterrupt)):
        monkeypatch.setattr(video, "to_uint8", interruption)
        with pytest.raises(expected):
            write_video(tmp_path / "a.mp4", moving_gradient(2))
        assert os.listdir(tmp_path) == []
