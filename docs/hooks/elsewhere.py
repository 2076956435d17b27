"""MkDocs hook: where the names of other projects are documented, so that signatures link to them.

Their inventories are files on their servers, and the site builds offline; these are the names that our signatures use.
"""

from typing import Any

PYTHON = "https://docs.python.org/3/library/"
TORCH = "https://docs.pytorch.org/docs/stable/"

_BUILTINS = {
    "functions": ("bool", "float", "int", "object", "property", "slice", "type"),
    "stdtypes": ("bytes", "dict", "frozenset", "list", "set", "str", "tuple"),
    "exceptions": (
        "FileExistsError",
        "FileNotFoundError",
        "ImportError",
        "KeyError",
        "ModuleNotFoundError",
        "NotImplementedError",
        "OSError",
        "RuntimeError",
        "TypeError",
        "UserWarning",
        "ValueError",
    ),
}
_PYTHON_MODULES = {
    "collections.abc": ("Callable", "Collection", "Generator", "Iterable", "Iterator", "Mapping", "Sequence"),
    "pathlib": ("Path",),
    "typing": ("Any", "ClassVar", "Generic", "Literal", "NamedTuple", "Protocol", "Self", "TypeVar"),
    "contextlib": ("AbstractContextManager", "ExitStack"),
    "abc": ("ABC",),
    "types": ("MappingProxyType",),
}
_TORCH_PAGES = {
    "torch.Tensor": "tensors.html",
    "torch.device": "tensor_attributes.html",
    "torch.dtype": "tensor_attributes.html",
    "torch.nn.Module": "generated/torch.nn.Module.html",
    "torch.nn.Parameter": "generated/torch.nn.parameter.Parameter.html",
    "torch.nn.Linear": "generated/torch.nn.Linear.html",
    "torch.nn.LayerNorm": "generated/torch.nn.LayerNorm.html",
    "torch.nn.BatchNorm1d": "generated/torch.nn.BatchNorm1d.html",
    "torch.nn.SyncBatchNorm": "generated/torch.nn.SyncBatchNorm.html",
    "torch.Generator": "generated/torch.Generator.html",
    "torch.distributed.tensor.parallel.ParallelStyle": "distributed.tensor.parallel.html",
    "torch.distributed.device_mesh.DeviceMesh": "distributed.html",
    "torch.distributed.ProcessGroup": "distributed.html",
    "torch.float32": "tensor_attributes.html",
    "torch.float64": "tensor_attributes.html",
    "torch.no_grad": "generated/torch.no_grad.html",
}
_OTHERS = {
    "matplotlib.axes.Axes": "https://matplotlib.org/stable/api/_as_gen/matplotlib.axes.Axes.html",
    "numpy.typing.NDArray": "https://numpy.org/doc/stable/reference/typing.html#numpy.typing.NDArray",
    "pandas.DataFrame": "https://pandas.pydata.org/docs/reference/api/pandas.DataFrame.html",
}
_TENSORLY = "https://tensorly.org/stable/modules/api.html"
_TENSORLY_TORCH = "https://tensorly.org/torch/"


def addresses() -> dict[str, str]:
    """The address of each name, by the name in full."""
    python = {name: f"{PYTHON}{page}.html#{name}" for page, names in _BUILTINS.items() for name in names}
    for module, names in _PYTHON_MODULES.items():
        python |= {f"{module}.{name}": f"{PYTHON}{module}.html#{module}.{name}" for name in names}
    torch = {name: f"{TORCH}{page}#{name}" for name, page in _TORCH_PAGES.items()}
    tensorly = dict.fromkeys(("CPTensor", "TuckerTensor", "TTTensor", "TRTensor"), _TENSORLY)
    tensorly["tltorch.factorized_tensors.core.FactorizedTensor"] = _TENSORLY_TORCH
    for hook in ("dropout.TensorDropout", "lasso.TensorLasso"):
        tensorly[f"tltorch.tensor_hooks._tensor_{hook}"] = _TENSORLY_TORCH
    return python | torch | tensorly | _OTHERS


def on_config(config: Any, **_: Any) -> None:
    """Tell the plug-in that resolves cross-references."""
    for name, address in addresses().items():
        config.plugins["autorefs"].register_url(name, address)
