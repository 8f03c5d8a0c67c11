"""Model adapters: a folder of weights in, vectors or text out, and never the network.

Importing this package imports no torch; an adapter's own module is imported when one is loaded.
"""

from importlib import import_module
from typing import Final, cast

from manifests.errors import AdapterError
from manifests.fields import nearest_hint
from runtime.adapters.base import Adapter, ModelConfig

ADAPTERS: Final = {
    "bge-m3": ("runtime.adapters.bge_m3", "BgeM3Adapter"),
    "causal-lm": ("runtime.adapters.causal_lm", "CausalLmAdapter"),
    "hcx": ("runtime.adapters.causal_lm", "HcxAdapter"),
    "sentence-transformer": ("runtime.adapters.sentence_transformer", "SentenceTransformerAdapter"),
}
"""Adapter name in a spec -> (module, class); every class has ``from_config(ModelConfig)``."""


def load_adapter(config: ModelConfig) -> Adapter:
    """Load one model and return what answers for it.

    Raises:
        AdapterError: Unknown adapter or setting, no such folder, a file missing or unusable.
    """
    if config.adapter not in ADAPTERS:
        msg = f"model {config.name!r}: unknown adapter {config.adapter!r}"
        raise AdapterError(msg, hint=nearest_hint(config.adapter, sorted(ADAPTERS)))
    module, name = ADAPTERS[config.adapter]
    try:
        factory = getattr(import_module(module), name)
    except ImportError as error:
        msg = (
            f"model {config.name!r}: adapter {config.adapter!r} needs {error.name or error}, which isn't installed here"
        )
        raise AdapterError(msg, hint="run it with the release's own venv/bin/python") from error
    return cast("Adapter", factory.from_config(config))
