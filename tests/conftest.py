"""No network in tests; data and text encoder come from the cache that the set-up fills (make test, or: llmers data)."""
import no_network

no_network.block()

import pytest

@pytest.fixture(scope='session')
def ml100k():
    "The default split of MovieLens-100K."
    from llmers_nb.datasets import load_split
    return load_split('ml-100k', offline=True)
