"""Everything an operator can set, read once from the command line and the environment.

`Settings` (model.py) has one field for each setting, and each field carries its `Option`: the
environment variables it is read from, its command-line flag, its meaning and its values. `--help`,
the checks, the error messages and the reference all come from there, so adding a setting is adding
a field.
"""

from queue_server.settings.cpus import usable_cpu_count
from queue_server.settings.load import load_settings
from queue_server.settings.misspelt import misspelt_variables
from queue_server.settings.model import (
    CONNECTIONS_PER_WORKER_MIN,
    SECRETS,
    Settings,
    options,
)
from queue_server.settings.setting import Option, SettingsError

__all__ = [
    "CONNECTIONS_PER_WORKER_MIN",
    "SECRETS",
    "Option",
    "Settings",
    "SettingsError",
    "load_settings",
    "misspelt_variables",
    "options",
    "usable_cpu_count",
]
