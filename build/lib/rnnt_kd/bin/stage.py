"""Finished stages are skipped; a changed setting runs a stage again."""

from rnnt_kd.record import Record


class Stage(Record):
    """The record of one command."""

    def is_finished(self) -> bool:
        """True, and one line that says so, if nothing has changed since ``finish``."""
        why = self.why_not()
        if why:
            if self.path.exists():
                print(f"{self.name}: runs again, because {why}", flush=True)
            return False
        print(f"{self.name}: finished already, skipped ({self.folder})", flush=True)
        return True
