"""
What an operator decides: typed settings from a YAML file and the environment.

``values`` and ``model`` say what there is, ``fields`` puts it in words, ``environment`` and ``load`` read it,
``checks`` holds it together, ``reference`` (imported by who needs it) prints it.
"""

from proxy.settings.checks import TOKENS_FILE, ProviderReference, Warned, check, provider_references
from proxy.settings.environment import CONFIG_VARIABLE, TEST_TOKEN_VARIABLE
from proxy.settings.load import EXPECTED_IN_FILE, load, load_rules, read_secret
from proxy.settings.model import (
    Action,
    Actions,
    Http,
    Limits,
    Listener,
    Log,
    Login,
    LossClass,
    Probes,
    Relay,
    Rules,
    Settings,
    Shutdown,
    Smtp,
    Tls,
    Token,
)
from proxy.settings.values import Network, Secret, Source

__all__ = [
    "CONFIG_VARIABLE",
    "EXPECTED_IN_FILE",
    "TEST_TOKEN_VARIABLE",
    "TOKENS_FILE",
    "Action",
    "Actions",
    "Http",
    "Limits",
    "Listener",
    "Log",
    "Login",
    "LossClass",
    "Network",
    "Probes",
    "ProviderReference",
    "Relay",
    "Rules",
    "Secret",
    "Settings",
    "Shutdown",
    "Smtp",
    "Source",
    "Tls",
    "Token",
    "Warned",
    "check",
    "load",
    "load_rules",
    "provider_references",
    "read_secret",
]
