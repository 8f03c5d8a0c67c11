"""The clients that people point at an OpenAI-compatible server, in an environment of their own, unmodified."""

from typing import Final

from tests.factories_langchain import Environment, peer_venv

CLIENTS: Final = (
    "openai>=2,<3",
    "langchain-openai>=1,<2",
    "litellm>=1.80,<2",
    "ragas>=0.4,<0.5",
    "langchain-community==0.4.1",  # ragas 0.4 imports what 0.4.2 lost
)


def client_venv() -> Environment:
    """Return an environment with openai, langchain-openai, litellm and ragas; made if it isn't there yet."""
    return peer_venv("clients", CLIENTS)
