"""Recordings and films as files that anybody could send.

Knows file formats. Knows nothing about what they show or say.
"""

import io
from fractions import Fraction

import av
import numpy as np
import soundfile

from models.senses.films import Film
from models.senses.speech import RATE, Samples
from models.training.drawing import draw

FRAMES_PER_SECOND = 8
_QUALITY = {"crf": "12", "preset": "fast"}


def wav(recording: Samples) -> bytes:
    """A WAV file of 16 bits."""
    written = io.BytesIO()
    soundfile.write(written, recording, RATE, format="WAV", subtype="PCM_16")
    return written.getvalue()


def mp4(film: Film) -> bytes:
    """An MP4 file, H.264, of as many seconds as the film has moments; sides are even numbers."""
    first = draw(film.scenes[0])
    written = io.BytesIO()
    with av.open(written, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(FRAMES_PER_SECOND), options=_QUALITY)
        stream.width, stream.height = first.width // 2 * 2, first.height // 2 * 2
        stream.pix_fmt = "yuv420p"
        for number in range(len(film.scenes) * FRAMES_PER_SECOND):
            picture = draw(film.at(number / FRAMES_PER_SECOND))
            frame = av.VideoFrame.from_ndarray(np.asarray(picture.convert("RGB")), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return written.getvalue()
