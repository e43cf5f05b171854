"""The paths of a model's modules, without the names of what only wraps a module.

torch.compile, DataParallel, DistributedDataParallel, FSDP and checkpoint wrappers hold a module and pass calls on to
it. A layer has the same name with and without them, so that records, baselines and checkpoints fit.
"""

from torch import nn

from clearhead.errors import InputError, nearest

_INNER = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Where wrappers of torch.compile, FSDP and activation checkpointing keep the module."""


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside all wrappers, or the module itself."""
    while (name := _inner(model)) is not None:
        model = model._modules[name]  # type: ignore[assignment]
    return model


def paths_of(model: nn.Module) -> dict[nn.Module, str]:
    """Return the path of each module of `model`; a wrapper has that of the module in it. Of several, the first."""
    paths, full = dict[nn.Module, str](), dict[str, nn.Module]()
    for path, module in model.named_modules():
        full[path] = module
        above, _, name = path.rpartition(".")
        if not path:
            paths[module] = ""
        elif _inner(full[above]) == name:
            paths[module] = paths[full[above]]
        else:
            paths[module] = f"{paths[full[above]]}.{name}".removeprefix(".")
    return paths


def shown(model: nn.Module, path: str) -> str:
    """Return the path, or how a model that attends itself is named."""
    return path or type(unwrapped(model)).__name__


def module_at(model: nn.Module, path: str) -> nn.Module:
    """Return the module that a finding or a call names. Raises InputError for a path that does not exist."""
    modules = {at: module for module, at in paths_of(model).items()}  # of a wrapper and its module, the module
    if path in modules:
        return modules[path]
    if path == shown(model, ""):
        return modules[""]
    raise InputError(f"{shown(model, '')} has no module {path!r}{nearest(path, modules)}")


def _inner(module: nn.Module) -> str | None:
    """Return under which name a wrapper holds its module; None for any other module."""
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return "module"
    return next((name for name in _INNER if name in module._modules), None)
