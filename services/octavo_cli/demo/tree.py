"""A trace as a tree for people: who called whom, when it began and how long it took."""

from rich.text import Text
from rich.tree import Tree

from octavo_cli.demo.receiver import Span


def trace_tree(spans: list[Span]) -> Tree:
    """Return the tree of one trace; spans whose parent is missing hang from the root."""
    known = {span.span_id for span in spans}
    ordered = sorted(spans, key=lambda span: span.start_ns)
    begin_ns = ordered[0].start_ns if ordered else 0
    trace_id = ordered[0].trace_id if ordered else "empty"
    root = Tree(Text(f"trace {trace_id}", style="bold"))

    def grow(branch: Tree, parent_id: str | None) -> None:
        for span in ordered:
            is_child = span.parent_id == parent_id if parent_id else span.parent_id not in known
            if is_child:
                grow(branch.add(_label(span, begin_ns)), span.span_id)

    grow(root, None)
    return root


def _label(span: Span, begin_ns: int) -> Text:
    label = Text()
    label.append(f"{span.service} ", style="cyan")
    label.append(span.name, style="bold")
    label.append(f"  at {(span.start_ns - begin_ns) / 1e6:.1f} ms, took {span.duration_ms:.1f} ms", style="dim")
    return label
