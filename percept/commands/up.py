"""`percept up`: all services on this machine, in one terminal.

Knows the order of things: settings, plan, start, ready line, end.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from percept.commands.serve import read_config, refuse
from percept.launcher.console import UpConsole
from percept.launcher.plan import Plan, make_plan
from percept.launcher.ready import ready_line
from percept.launcher.served import served_modalities
from percept.launcher.shared_paths import shared_paths
from percept.launcher.supervisor import ServiceDiedError, Supervisor
from percept.options import fields_of, with_options
from percept.services import SERVICES
from percept.up_settings import DECIDED_BY_UP, UpSettings
from shared.settings import SettingsError, load_settings


def up_command() -> Callable[..., None]:
    """The command, with the options of `up` and of all services."""
    classes = [entry.settings_class() for entry in SERVICES.values()]
    return with_options(_run, fields_of(UpSettings, *classes, without=DECIDED_BY_UP))


def _run(flags: dict[str, Any], config_file: Path | None) -> None:
    try:
        config = read_config(config_file)
        up = load_settings(UpSettings, _own(flags), section="up", config=config)
        with shared_paths() as shared:
            plan = make_plan(up, flags, config, shared)
            status = asyncio.run(run_plan(plan, up.start_timeout_s))
    except SettingsError as error:
        refuse(error)
    raise SystemExit(status)


def _own(flags: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if name in UpSettings.model_fields}


async def run_plan(plan: Plan, start_timeout_s: float) -> int:
    """Starts the plan and keeps it up. Returns the exit status: 1 when a service died for good."""
    with UpConsole(tuple(service.name for service in plan.services)) as console:
        supervisor = Supervisor(plan, console, start_timeout_s)
        life = asyncio.create_task(_live(plan, supervisor, console))
        _stop_on_signals(life, supervisor)
        try:
            await life
        except asyncio.CancelledError:
            console.end_bars()
            console.say("Stopping: requests in flight may finish; press Ctrl-C again to stop at once.")
            return 0
        except ServiceDiedError as error:
            console.end_bars()
            _explain(console, error)
            return 1
        finally:
            await supervisor.stop()
            console.say("Stopped.")
    return 0


async def _live(plan: Plan, supervisor: Supervisor, console: UpConsole) -> None:
    await supervisor.start()
    console.end_bars()
    console.say(ready_line(plan, await served_modalities(plan)))
    await supervisor.watch()


def _stop_on_signals(life: asyncio.Task[None], supervisor: Supervisor) -> None:
    """The first Ctrl-C or SIGTERM stops in order, the second at once."""
    stopping = False

    def stop() -> None:
        nonlocal stopping
        if stopping:
            supervisor.kill()
        stopping = True
        life.cancel()

    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signal_number, stop)


def _explain(console: UpConsole, error: ServiceDiedError) -> None:
    console.say(f"Stopping everything: {error}.")
    if error.tail:
        console.say("Its last lines:")
        for line in error.tail:
            console.say(f"    {line}")
