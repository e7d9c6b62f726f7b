"""Any decoded audio as mono float32, mixed by libavfilter as the `ffmpeg` command does.

One filter graph per input format: `abuffer`, a channel map where the stream only counts its channels, `aresample`
(whose matrix is normalised, so that a mix cannot clip) and `aformat`. It is rebuilt when rate, sample format or
channels change. Samples leave it packed, since PyAV 18 reads past the planes of planar audio of eight or more channels.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import av
import numpy as np
from av.filter import Graph
from numpy.typing import NDArray

Float = NDArray[np.float32]

UNNAMED = "NONE"  # FFmpeg's name of a channel that is only counted
OMNI = "AMBI0"  # the ambisonic channel that records all directions alike


def keep_alive(layout: Any) -> Any:
    """The layout, kept from being freed where that would abort the process.

    PyAV 18.1 copies a custom channel order without copying its map, and each copy frees the map. Such a copy (a few
    dozen bytes) is leaked on purpose.
    """
    if "+" in layout.name:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(layout))
    return layout


def channels_of(layout: Any) -> tuple[str, ...]:
    """Names of a layout's channels; guessed from their number where the stream does not name them."""
    names = tuple(channel.name for channel in keep_alive(layout).channels)
    if set(names) == {UNNAMED}:
        try:
            return tuple(channel.name for channel in av.AudioLayout(f"{len(names)}c").channels)
        except ValueError:  # so many that FFmpeg has no guess
            return names
    return names


class Mixer:
    """Mixes the pieces of one stream to mono."""

    def __init__(self) -> None:
        self._graphs: dict[tuple[Any, ...], Graph] = {}

    def mono(self, frame: Any) -> Float:
        """A decoded frame -> `[n]`, full scale 1.0, at its own rate; raises `av.FFmpegError`."""
        return self._run_graph("mono", frame, channels_of(frame.layout))

    def loudest(self, frame: Any) -> float:
        """The largest sample of any channel of a decoded frame."""
        found = self._run_graph("all", frame, channels_of(frame.layout))
        return float(np.abs(found).max(initial=0.0))

    def _run_graph(self, wanted: str, frame: Any, names: Sequence[str]) -> Float:
        key = (wanted, frame.format.name, frame.layout.name, frame.sample_rate)
        if key not in self._graphs:
            # those of another format are done with: the stream has changed
            self._graphs = {k: graph for k, graph in self._graphs.items() if k[1:] == key[1:]}
            self._graphs[key] = _build_graph(wanted, frame, names)
        graph = self._graphs[key]
        graph.push(frame)
        pulled: Any = graph.pull()
        samples: Float = pulled.to_ndarray()[0]
        return samples


def mix_to_mono(samples: Float, channels: Sequence[str], rate_hz: int) -> tuple[Float, float]:
    """Samples `[C, n]` of named channels -> mono `[n]`, and the largest sample of any channel."""
    packed = np.ascontiguousarray(samples.T, dtype=np.float32).reshape(1, -1)
    frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=f"{len(samples)} channels")
    frame.sample_rate = rate_hz
    names = channels if len(channels) == len(samples) else (UNNAMED,) * len(samples)
    mono = Mixer()._run_graph("mono", frame, names)
    return mono, float(np.abs(samples).max(initial=0.0))


def mix_gain(channels: Sequence[str]) -> float:
    """How much louder FFmpeg's mix of these channels to mono is when it is not normalised."""
    ones = np.ones((1, 64 * len(channels)), dtype=np.float32)
    frame = av.AudioFrame.from_ndarray(ones, format="flt", layout=f"{len(channels)} channels")
    frame.sample_rate = 16000
    return float(Mixer()._run_graph("loud", frame, channels)[0])


def _build_graph(wanted: str, frame: Any, names: Sequence[str]) -> Graph:
    """A graph from frames like `frame` to packed float32: `mono`, `loud` (mono, not normalised) or `all` channels."""
    try:
        return _configure(wanted, frame, names)
    except av.FFmpegError:  # FFmpeg has no matrix for this layout, such as binaural
        return _configure(wanted, frame, (UNNAMED,) * len(names))


def _configure(wanted: str, frame: Any, names: Sequence[str]) -> Graph:
    rate, layout = str(frame.sample_rate), frame.layout.name
    graph = Graph()
    nodes = [
        graph.add(
            "abuffer",
            sample_rate=rate,
            sample_fmt=frame.format.name,
            channel_layout="+".join(channels_of(frame.layout)) if "+" in layout else layout,
            time_base=f"1/{rate}",
        )
    ]
    output = {"sample_fmts": "flt", "sample_rates": rate}
    if wanted != "all":
        nodes += [
            graph.add(name, **settings) for name, settings in _mono_filters(layout, names, wanted == "mono")
        ]
        output["channel_layouts"] = "mono"
    nodes += [graph.add("aformat", **output), graph.add("abuffersink")]
    graph.link_nodes(*nodes).configure()
    return graph


def _mono_filters(layout: str, names: Sequence[str], normalised: bool) -> list[tuple[str, dict[str, str]]]:
    count = len(names)
    if names and names[0] == OMNI:
        return [("pan", {"args": "mono|c0=c0"})]
    if UNNAMED in names:  # more channels than FFmpeg has a guess for
        return [("pan", {"args": "mono|c0=" + "+".join(f"{1 / count:.9f}*c{n}" for n in range(count))})]
    steps = []
    if layout.endswith("channels") and count > 1:  # the stream only counts them
        numbers = "|".join(map(str, range(count)))
        steps.append(("channelmap", {"map": numbers, "channel_layout": "+".join(names)}))
    return [*steps, ("aresample", {"rematrix_maxval": "1" if normalised else "0"})]
