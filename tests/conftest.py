"""The node tests, one long test here, go first: other processes do the rest beside it."""


def pytest_configure(config):
    """Keep that order in pytest-xdist, which would begin with the files of most tests."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """Tests inside ComfyUI before all others; else as they were."""
    items.sort(key=lambda item: item.get_closest_marker("comfy") is None)
