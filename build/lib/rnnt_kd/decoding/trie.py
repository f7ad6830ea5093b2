"""A tree of sequences that share their beginnings: of letters, or of tokens."""

from typing import Dict, Generic, Hashable, Iterable, List, Optional, TypeVar

Symbol = TypeVar("Symbol", bound=Hashable)


class Trie(Generic[Symbol]):
    """Nodes are beginnings, numbered as they come; 0 is the empty one, and a child comes behind its parent.

    Attributes:
      children: of each node, symbol -> node.
    """

    def __init__(self) -> None:
        self.children: List[Dict[Symbol, int]] = [{}]

    def __len__(self) -> int:
        return len(self.children)

    def add(self, symbols: Iterable[Symbol]) -> List[int]:
        """The nodes of all beginnings of ``symbols``, the empty one and the whole included."""
        path = [0]
        for symbol in symbols:
            node = self.children[path[-1]].setdefault(symbol, len(self.children))
            if node == len(self.children):
                self.children.append({})
            path.append(node)
        return path

    def find(self, symbols: Iterable[Symbol]) -> Optional[int]:
        """The node of ``symbols``, None where no sequence begins like this."""
        node: Optional[int] = 0
        for symbol in symbols:
            node = self.children[node].get(symbol) if node is not None else None
        return node

    def by_depth(self) -> List[int]:
        """All nodes, shorter beginnings first."""
        order = [0]
        for node in order:
            order += self.children[node].values()
        return order
