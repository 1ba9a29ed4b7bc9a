"""Writes docs/configuration.md from the settings: `python -m percept.configuration_page FILE`.

Knows how a settings class looks as a table. A test holds the page to the code.
"""

from __future__ import annotations

import sys
from pathlib import Path

from percept.options import fields_of, is_switch, shown_default, type_name
from percept.up_settings import DECIDED_BY_UP, settings_classes
from shared.settings import ServiceSettings, flag_name, variable_name

_HEAD = """\
# Configuration

This page is written by `make docs` from the settings' declarations, and a test holds it to them.

One declaration gives each setting four names: a flag (`--max-num-seqs 64`), a variable
(`PERCEPT_MAX_NUM_SEQS=64`), a key of the `--config` file (`max-num-seqs = 64`, TOML or YAML) and a field
in the code (`max_num_seqs`). A flag goes before a variable, a variable before the file, the file before
the default. An empty variable counts as unset.

What is unknown or malformed ends the command with status 2 and a line that names it. Settings are read
once, at the start.

One file may serve all services: its top level is for every service that knows the name, and a table
(`[up]`, `[encoder]`, `[llm]`, `[gateway]`) goes before it for that service alone.

```toml
model = "percept-tiny"
max-num-seqs = 64

[encoder]
device = "cpu"
```
"""

_UP_NOTE = """\
`percept up` also takes every setting of the services below and hands it to those that have it. It decides
{decided} itself: inner services listen on free loopback ports; encoders and LLMs each have all cores,
evenly divided among the encoders (`--encoder-threads`) and among the LLMs (`--llm-threads`), one at least
each, and share them by who computes at the time.
"""


def page() -> str:
    """The whole page."""
    parts = [_HEAD, _section("Every command", ServiceSettings, frozenset())]
    inherited = frozenset(ServiceSettings.model_fields)
    for name, settings_class in settings_classes().items():
        parts.append(_section(f"`percept {name}`", settings_class, inherited))
        if name == "up":
            decided = ", ".join(f"`{flag_name(field)}`" for field in sorted(DECIDED_BY_UP))
            parts.append(_UP_NOTE.format(decided=decided))
    return "\n".join(parts)


def _section(title: str, settings_class: type[ServiceSettings], without: frozenset[str]) -> str:
    lines = [f"## {title}", "", "| flag | variable | takes | default | |", "| --- | --- | --- | --- | --- |"]
    for name, info in fields_of(settings_class, without=without).items():
        flag = flag_name(name)
        shown = f"`{flag}`" if not is_switch(info.annotation) else f"`{flag}` / `--no-{flag[2:]}`"
        cells = [shown, f"`{variable_name(name)}`", type_name(info.annotation), shown_default(info)]
        text = " ".join((info.description or "").split())
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in (*cells, text)) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
