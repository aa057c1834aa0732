"""Choose the modules that adapters hang on: by the user's names, by a table per model type, or by structure."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from adapterx.config import AdapterConfig
from adapterx.errors import TargetError, speaker
from adapterx.targets import layouts
from adapterx.targets.ports import Input, NormedOutput, NormedSum, Output, Port, ResidualSum
from adapterx.targets.sharing import shared_modules
from adapterx.targets.structure import Site, find_by_structure, find_repeated


@dataclass(frozen=True)
class Target:
    """One module to adapt, measured.

    Attributes:
        module: its qualified name.
        position: `"attention"`, `"cross_attention"`, `"feed_forward"`, or `"named"` when `target_modules` chose it.
        block: index of the block it belongs to, or None.
        port: what the adapter reads and what it adds to.
        input_size: width of what the adapter reads, in elements.
        hidden_size: width of what it adds to, in elements.
    """

    module: str
    position: str
    block: int | None
    port: Port
    input_size: int
    hidden_size: int

    @property
    def input_module(self) -> str | None:
        """Qualified name of another module whose input the adapter reads, or None."""
        return self.port.source

    def renamed(self, old: str, new: str) -> "Target":
        """Return the target with a prefix of all its names exchanged, as a module sees it that encloses the model."""
        port = self.port if self.port.source is None else replace(self.port, source=new + self.port.source[len(old) :])
        return replace(self, module=new + self.module[len(old) :], port=port)


def find_targets(
    modules: Mapping[str, nn.Module], config: AdapterConfig, *, saved: Sequence[str] | None = None
) -> tuple[tuple[Target, ...], str, tuple[str, ...]]:
    """Choose the modules to adapt.

    Args:
        modules: qualified name to module, the model itself under `""`, without anything that adapterx added.
        config: says by `target_modules`, or by `positions`, which modules; by `layers`, of which blocks.
        saved: qualified names of the modules that a checkpoint adapts. They stand for `target_modules`, which may speak
            of names that differ by a prefix.

    Returns:
        The targets in the model's order; in words, the rule that chose them, and what was left out or is shared.

    Raises:
        TargetError: nothing, or something unsuitable, is chosen; the message lists what there is.
    """
    if config.target_modules is None:
        sites, rule, notes = _find_by_position(modules, config.positions)
    else:
        sites, notes = _find_by_name(modules, config.target_modules, saved), ()
        rule = f"target_modules={config.target_modules!r}"
    if config.layers is not None:
        sites = _keep_blocks(sites, config.layers)
        rule += f", layers={list(config.layers)}"
    targets, narrow = _wide_enough([_measure(modules, site, config) for site in sites], config)
    return targets, rule, (*notes, *narrow, *shared_modules(modules, targets))


def find_blocks(modules: Mapping[str, nn.Module]) -> dict[str, int]:
    """Return qualified name and index of the model's blocks: those of its table, else the repeated ones."""
    patterns = [layout.block_pattern() for layout in layouts.layouts_of(modules)[0]]
    matches = {name: match for name in modules for pattern in patterns if (match := pattern.fullmatch(name))}
    return {name: int(match[2]) for name, match in matches.items()} or find_repeated(modules)


def block_of(name: str, blocks: Mapping[str, int]) -> int | None:
    """Return the index of the block that a module is in; outside all blocks, the first number in its name, or None.

    Args:
        name: qualified name of the module.
        blocks: name and index of the blocks, as `find_blocks` returns them.
    """
    block = enclosing_block(name, blocks)
    return next((int(part) for part in name.split(".") if part.isdecimal()), None) if block is None else blocks[block]


def enclosing_block(name: str, blocks: Mapping[str, int]) -> str | None:
    """Return the name of the innermost block that a module is in, or is; arguments as in `block_of`."""
    parts = name.split(".")
    return next((path for depth in range(len(parts), 0, -1) if (path := ".".join(parts[:depth])) in blocks), None)


def _wide_enough(targets: list[Target], config: AdapterConfig) -> tuple[tuple[Target, ...], tuple[str, ...]]:
    """Leave out modules, chosen by position, that are narrower than the bottleneck, unless all are; say which."""
    if config.bottleneck_dim is None:  # a reduction factor below 1 means what it says
        return tuple(targets), ()
    narrow = [t for t in targets if config.resolve_bottleneck_dim(t.hidden_size, t.block) > t.hidden_size]
    if config.target_modules is not None or not narrow or len(narrow) == len(targets):
        return tuple(targets), ()
    notes = (f"{t.module} is left out: it is {t.hidden_size} wide, less than the bottleneck" for t in narrow)
    return tuple(target for target in targets if target not in narrow), tuple(notes)


def _find_by_position(
    modules: Mapping[str, nn.Module], positions: tuple[str, ...]
) -> tuple[list[Site], str, tuple[str, ...]]:
    known, model_type = layouts.layouts_of(modules)
    if sites := _find_by_tables(modules, known, positions):
        return sites, f"table for model type {model_type!r}", _cross_left_out(modules, known, positions)
    reason = "has a table that does not fit this model" if known else "has no table"
    rule = f"structure of the repeated blocks (model type {model_type!r} {reason})"
    sites, notes = find_by_structure(modules, positions)
    return sites, rule, notes


def _find_by_tables(
    modules: Mapping[str, nn.Module], known: Sequence[layouts.Layout], positions: tuple[str, ...]
) -> list[Site]:
    """Return the sites that the tables of a model's lists of blocks name; none where a table does not fit."""
    sites = [site for layout in known for site in _sites_of(modules, layout, positions)]
    if any(site.input_module not in modules for site in sites):
        return []
    order = {name: number for number, name in enumerate(modules)}
    fits = {site.position for site in sites} == set(positions)
    return sorted(sites, key=lambda site: order[site.module]) if fits else []


def _cross_left_out(
    modules: Mapping[str, nn.Module], known: Sequence[layouts.Layout], positions: tuple[str, ...]
) -> tuple[str, ...]:
    """Say where blocks have a cross-attention that was not asked for."""
    if "cross_attention" in positions:
        return ()
    found = [layout for layout in known if layout.cross_attention and _sites_of(modules, layout, ("cross_attention",))]
    return tuple(f"{layout.blocks}: {layout.cross_attention.output} (cross_attention) is left out" for layout in found)


def _sites_of(modules: Mapping[str, nn.Module], layout: layouts.Layout, positions: tuple[str, ...]) -> list[Site]:
    # The whole name is matched: in BERT the suffix `output.dense` alone would also take `attention.output.dense`.
    pattern = re.compile(rf"{layout.block_pattern().pattern}\.(.*)")
    sublayers = {position: sublayer for position in positions if (sublayer := getattr(layout, position))}
    outputs = {sublayer.output: position for position, sublayer in sublayers.items()}
    sites = []
    for name in modules:
        match = pattern.fullmatch(name)
        if match and match[3] in outputs:
            position = outputs[match[3]]
            sublayer = sublayers[position]
            inside = {part: f"{match[1]}.{part}" for part in (sublayer.input, sublayer.norm, sublayer.stream) if part}
            found = {part: full for part, full in inside.items() if full in modules}
            sites.append(
                Site(
                    module=name,
                    position=position,
                    block=int(match[2]),
                    input_module=inside[sublayer.input],
                    norm=found.get(sublayer.norm),
                    residual=found.get(sublayer.stream),
                )
            )
    return sites


def _find_by_name(
    modules: Mapping[str, nn.Module], target_modules: str | tuple[str, ...], saved: Sequence[str] | None
) -> list[Site]:
    blocks = find_blocks(modules)
    # What was recorded wins, also over an expression that would take for ever to match.
    known = None if saved is None else set(saved)
    chosen = _match(modules, target_modules) if known is None else [name for name in modules if name in known]
    return [Site(name, "named", block_of(name, blocks)) for name in chosen]


def _match(modules: Mapping[str, nn.Module], target_modules: str | tuple[str, ...]) -> list[str]:
    """Return the names of the modules that the user's suffixes or regular expression mean."""
    names = [name for name in modules if name]
    if isinstance(target_modules, str):
        chosen = [name for name in names if re.fullmatch(target_modules, name)]
        unused = () if chosen else (target_modules,)
    else:
        chosen = [name for name in names if any(_has_suffix(name, suffix) for suffix in target_modules)]
        unused = [suffix for suffix in target_modules if not any(_has_suffix(name, suffix) for name in names)]
    if unused:
        hint = "; one string is a regular expression for the whole name, a tuple holds suffixes"
        raise TargetError(
            f"{speaker()}: target_modules must match modules of the model, nothing matches "
            f"{', '.join(map(repr, unused))}; the nearest names are {', '.join(_nearest(unused, names)) or 'none'}"
            + (hint if isinstance(target_modules, str) else "")
        )
    return chosen


def _has_suffix(name: str, suffix: str) -> bool:
    return name == suffix or name.endswith(f".{suffix}")


def _nearest(wanted: Iterable[str], names: list[str]) -> list[str]:
    """Return up to five module names like `wanted`, comparing as many of the last components as it has."""
    found: dict[str, None] = {}
    for pattern in wanted:
        plain = re.sub(r"\\\.", ".", re.sub(r"\(\?:|[\^$()*+?]", "", pattern))
        depth = plain.count(".") + 1
        tails = {".".join(name.split(".")[-depth:]): name for name in reversed(names)}
        close = difflib.get_close_matches(plain, tails, n=5, cutoff=0.3)
        found |= dict.fromkeys(tails[tail] for tail in close)
    return list(found)[:5]


def _keep_blocks(sites: list[Site], blocks: tuple[int, ...]) -> list[Site]:
    known = {site.block for site in sites} - {None}
    missing = sorted(set(blocks) - known)
    if missing:
        raise TargetError(
            f"{speaker()}: layers must be block indices of the model, got {missing}; "
            f"there are {sorted(known) or 'none'}"
        )
    return [site for site in sites if site.block in blocks]


def _measure(modules: Mapping[str, nn.Module], site: Site, config: AdapterConfig) -> Target:
    """Give a site its port, and ask the port for the sizes."""
    module, port = _port_of(site, config)
    return Target(module, site.position, site.block, port, *port.sizes(modules, module))


def _port_of(site: Site, config: AdapterConfig) -> tuple[str, Port]:
    """Return the module that the adapter hangs on, and its port there."""
    placement, added_to = config.placement, config.added_to
    if placement == "sequential":
        return site.module, Output()
    if placement == "parallel":
        return site.module, Input(site.input_module)
    if placement == "parallel_residual":
        return site.module, Input(_residual_of(site, config))
    if placement == "residual_sum":
        return site.module, ResidualSum(added_to, _residual_of(site, config))
    module = site.module if site.position == "named" else site.norm
    if module is None:
        raise _no_table(site, placement, "a norm behind each sublayer", "name the norms in target_modules", "norm")
    if added_to == "normed":
        return module, NormedOutput()
    return module, NormedSum(added_to, None if added_to == "sum" else _residual_of(site, config))


def _residual_of(site: Site, config: AdapterConfig) -> str:
    """Return the module that receives the residual stream of a sublayer."""
    if site.position == "named":
        asked = f"placement={config.placement!r}"
        asked = asked if config.placement != "normed_sum" else f"added_to={config.added_to!r}"
        raise TargetError(
            f"{speaker()}: target_modules must not be given with {asked}, which needs the residual stream of a "
            f"sublayer; choose by positions, got {config.target_modules!r}"
        )
    if site.residual is None:
        other = "choose placement 'sequential' or 'parallel'"
        raise _no_table(site, config.placement, "the residual stream of each sublayer", other, "stream")
    return site.residual


def _no_table(site: Site, placement: str, needed: str, other: str, part: str) -> TargetError:
    known = sorted(
        model_type
        for model_type, tables in layouts.LAYOUTS.items()
        if all(getattr(table.attention, part) is not None for table in tables)
    )
    return TargetError(
        f"{speaker()}: placement {placement!r} needs {needed} that a table names, got none for {site.module}; "
        f"tables that name it: {', '.join(known)}; or {other}"
    )
