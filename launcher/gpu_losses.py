"""Which answers of the driver mean that a GPU is gone. Pure.

What serves on a lost GPU is stopped, so an odd answer alone does not make it lost: the driver says
so itself, or it answers oddly several times in a row. All GPUs at once are not lost either: then it
is this process that the driver no longer serves, as in a container whose devices were taken away.
Called by `launcher.gpus` with what each GPU answered; asks nobody.
"""

from collections.abc import Collection, Mapping

from launcher.gpu_faults import GPU_IS_LOST, NOT_FOUND, RESET_REQUIRED

LOOKS = 3  # in a row, until an odd answer counts
_PLAIN = (GPU_IS_LOST, RESET_REQUIRED, NOT_FOUND)


class Losses:
    """What is known of each GPU, by UUID, from one look at all of them to the next."""

    def __init__(self) -> None:
        self._odd_looks: dict[str, int] = {}
        self._blind_looks = 0
        self._lost: set[str] = set()

    @property
    def is_blind(self) -> bool:
        """No GPU answers, though none is known to be lost: nothing can be told of any."""
        return self._blind_looks >= LOOKS

    def newly_lost(self, uuids: Collection[str], refusals: Mapping[str, int]) -> list[str]:
        """Those lost by this look at all of `uuids`; `refusals` are the codes of those that failed.

        Each once, and again only if it answered in between.
        """
        odd = {uuid for uuid, code in refusals.items() if code not in _PLAIN}
        if len(odd) > 1 and len(refusals) == len(uuids):
            self._blind_looks += 1
            self._odd_looks.clear()
        else:
            self._blind_looks = 0
            self._odd_looks = {uuid: self._odd_looks.get(uuid, 0) + 1 for uuid in odd}
        now = {uuid for uuid in refusals if uuid not in odd or self._is_long_odd(uuid)}
        new = [uuid for uuid in uuids if uuid in now - self._lost]
        self._lost = (self._lost & refusals.keys()) | now
        return new

    def _is_long_odd(self, uuid: str) -> bool:
        return self._odd_looks.get(uuid, 0) >= LOOKS
