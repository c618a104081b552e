"""EMIT-Diff: labelled medical images out of text and edges. README begins with five lines that use these names."""

from importlib import import_module

__version__ = "0.6.0"
HOMES = {  # name: the module that it is loaded from when it is first asked for
    "EmitDiff": "emit.model",
    "Sampling": "emit.model",
    "load_hed": "emit.model",
    "find_edges": "emit.model",
    "read_picture": "emit.data.cache",
    "make_hint": "emit.data.edges",
    "edge_condition": "emit.data.edges",
    "q_sample": "emit.diffusion.schedule",
    "eps_to_z0": "emit.diffusion.schedule",
    "side_by_side": "emit.generated",
}
__all__ = ["__version__", *HOMES]


def __getattr__(name):
    if name not in HOMES:
        raise AttributeError(f"module emit has no {name}")
    return getattr(import_module(HOMES[name]), name)
