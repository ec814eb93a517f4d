"""Set-up that every test shares: no network, fresh memory full of NaN, quiet progress bars."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
import transformers

# tiny models lose more by waiting for a second thread than it computes, most of all on a busy machine
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def no_progress_bars():
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture(autouse=True, scope="session")
def uninitialised_memory_is_nan():
    """What a program reads without having written it shows up as NaN instead of as lucky zeros."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
