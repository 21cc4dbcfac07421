"""How revisions descend from one another, as text for Mermaid or Graphviz. Pure."""

from collections.abc import Callable, Mapping
from enum import StrEnum

from octavo_shared.messages.provenance import Lineage, LineageNode

_SHORT_DIGEST = slice(len("sha256:"), len("sha256:") + 12)


class GraphForm(StrEnum):
    MERMAID = "mermaid"
    DOT = "dot"


def draw(lineage: Lineage, form: GraphForm) -> str:
    """Return the drawing: an arrow from each parent, solid where something was trained and dashed for a branch.

    A parent that is older than what was asked for is drawn without anything said of it.
    """
    return _FORMS[form](lineage)


def _mermaid(lineage: Lineage) -> str:
    ids = _ids(lineage)
    lines = ["graph TD"]
    for node in lineage.nodes:
        # Quotes are the one thing that ends a label; Mermaid reads entities in it.
        label = "<br/>".join(_label(node)).replace('"', "#quot;")
        lines.append(f'  {ids[_reference(node)]}["{label}"]')
    shown = {_reference(node) for node in lineage.nodes}
    lines += [f'  {one_id}["{reference}"]' for reference, one_id in ids.items() if reference not in shown]
    for node in lineage.nodes:
        if node.parent:
            arrow = "-. branch .->" if node.is_branch else "-->"
            lines.append(f"  {ids[node.parent]} {arrow} {ids[_reference(node)]}")
    return "\n".join(lines) + "\n"


def _dot(lineage: Lineage) -> str:
    lines = ["digraph lineage {", "  node [shape=box];"]
    for node in lineage.nodes:
        label = "\\n".join(_quoted(line) for line in _label(node))
        lines.append(f'  "{_quoted(_reference(node))}" [label="{label}"];')
    for node in lineage.nodes:
        if node.parent:
            style = ' [style=dashed, label="branch"]' if node.is_branch else ""
            lines.append(f'  "{_quoted(node.parent)}" -> "{_quoted(_reference(node))}"{style};')
    return "\n".join([*lines, "}"]) + "\n"


_FORMS: Mapping[GraphForm, Callable[[Lineage], str]] = {GraphForm.MERMAID: _mermaid, GraphForm.DOT: _dot}


def _ids(lineage: Lineage) -> dict[str, str]:
    """Return a name without special characters for each revision and each parent."""
    names = dict.fromkeys(_reference(node) for node in lineage.nodes)
    names |= dict.fromkeys(node.parent for node in lineage.nodes if node.parent)
    return {name: f"r{number}" for number, name in enumerate(names)}


def _label(node: LineageNode) -> list[str]:
    state = ", ".join((node.state, *node.aliases)) if node.aliases else node.state
    signed = "signed" if node.is_signed_by_pusher else "not signed by its pusher"
    return [_reference(node), f"{node.digest[_SHORT_DIGEST]}, {state}", f"by {node.actor}, {signed}"]


def _reference(node: LineageNode) -> str:
    return f"{node.name}@{node.number}"


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
