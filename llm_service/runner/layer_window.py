"""How far back a layer's rows look.

Knows where the modeling code keeps it. Does not attend.
"""

from __future__ import annotations

from typing import Any


def layer_window(attention: Any) -> int | None:
    """Keys that a row of this layer sees, its own included; None: all before it.

    A layer that has no window of its own has none, whatever a configuration says beside, but for
    Mistral's: there the configuration's holds for all layers.
    """
    source = attention.config if type(attention).__name__ == "MistralAttention" else attention
    window = getattr(source, "sliding_window", None)
    return None if window is None else int(window)
