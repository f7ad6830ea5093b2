"""The one exception for what a user can put right.

Library code raises ``UserError``; ``rnnt_kd.bin`` prints its single line and
exits with status 1, without a traceback.
"""


class UserError(ValueError):
    """Something outside this program is wrong: a file, an option, a model.

    Args:
      where:     the file, option or object at fault, e.g. "data/train/text:17".
      problem:     what is there.
      expected:  what should be there.
      next_step: what the user can do now.
    """

    def __init__(self, where: object, problem: str, expected: str = "", next_step: str = ""):
        self.where, self.problem = str(where), problem
        self.expected, self.next_step = expected, next_step
        parts = [f"{where}: {problem}"]
        if expected:
            parts.append(f"expected {expected}")
        if next_step:
            parts.append(next_step)
        super().__init__(" ".join("; ".join(parts).split()))

    def __reduce__(self):
        """Raised in one process, shown by another."""
        return type(self), (self.where, self.problem, self.expected, self.next_step)
