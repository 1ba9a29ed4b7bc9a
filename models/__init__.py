"""The bundled model: where its checkpoint lies. Importing this loads neither torch nor transformers."""

from pathlib import Path

BUNDLED = Path(__file__).parent / "percept-tiny"
