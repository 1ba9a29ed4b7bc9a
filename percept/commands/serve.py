"""`percept encoder`, `percept llm` and `percept gateway`: one service in this process.

Knows how settings are read and how a service's coroutine is run. Does not know
what the services do.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from percept.options import fields_of, with_options
from percept.services import SERVICES, ServiceEntry, load_service_settings
from percept.up_settings import settings_classes
from shared.errors import PerceptError
from shared.settings import (
    ConfigFile,
    ServiceSettings,
    SettingsError,
    check_names,
    read_config_file,
)


def serve_command(name: str) -> Callable[..., None]:
    """The command that starts the service `name`."""
    entry = SERVICES[name]

    def run(flags: dict[str, Any], config_file: Path | None) -> None:
        settings = read_settings(entry, flags, config_file)
        run_service(entry, settings)

    return with_options(run, fields_of(entry.settings_class()))


def read_settings(entry: ServiceEntry, flags: Mapping[str, Any], config_file: Path | None) -> ServiceSettings:
    """Reads a service's settings, or ends the process with status 2 and the reasons."""
    try:
        return load_service_settings(entry, flags, read_config(config_file))
    except SettingsError as error:
        refuse(error)


def read_config(config_file: Path | None) -> ConfigFile:
    """Reads the --config file and refuses names that no service knows, in it and in the environment.

    Raises:
        SettingsError: says what is wrong.
    """
    classes = settings_classes()
    config = read_config_file(config_file, classes) if config_file else ConfigFile()
    check_names(classes, config=config)
    return config


def refuse(error: SettingsError) -> NoReturn:
    """Prints each mistake and ends the process with status 2."""
    for line in error.mistakes:
        print(f"percept: {line}", file=sys.stderr)
    raise SystemExit(2)


def run_service(entry: ServiceEntry, settings: ServiceSettings) -> None:
    """Runs a service until it ends; a mistake that it can name is status 1 and one line."""
    import uvloop

    try:
        uvloop.run(entry.serve()(settings))
    except PerceptError as error:
        print(f"percept {entry.name}: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except ModuleNotFoundError as error:
        extra = entry.name if entry.name in ("encoder", "llm") else "all"
        print(
            f"percept {entry.name}: {error}. Install what it needs: pip install 'percept[{extra}]'",
            file=sys.stderr,
        )
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    end_process()


def end_process() -> NoReturn:
    """Ends the process now that the service has closed all that it had open.

    Tearing the interpreter down as well took the encoder service ten seconds
    (measured: its main thread sat in the last garbage collection), for memory that
    the kernel takes back at once.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
