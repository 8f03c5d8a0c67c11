"""An embedder as LangChain's ``Embeddings``; the only module of embedders that needs langchain-core (0.3 or 1.x)."""

from typing import TYPE_CHECKING

from langchain_core.embeddings import Embeddings

if TYPE_CHECKING:
    from runtime.adapters.embedder import LocalEmbedder


class LocalEmbeddings(Embeddings):  # type: ignore[misc]  # langchain-core isn't installed where types are checked
    """A loaded embedder behind ``embed_documents``, ``embed_query`` and, on LangChain's threads, ``aembed_*``.

    Errors are raised as the adapter raises them. Texts that are cut are reported as a warning in the log.

    Args:
        adapter: The embedder; several of these may share one.
    """

    def __init__(self, adapter: "LocalEmbedder") -> None:
        self.adapter = adapter

    @property
    def model(self) -> str:
        """The model's name."""
        return self.adapter.info.name

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return one dense vector per text, in order.

        Raises:
            AdapterError: As the adapter's ``embed``.
        """
        return self.adapter.embed_documents(texts)

    def embed_query(self, text: str) -> list[float]:
        """Return the dense vector of one query.

        Raises:
            AdapterError: As the adapter's ``embed``.
        """
        return self.adapter.embed_query(text)
