"""What a rank may fall into, whatever trains in it; imported by ranks, so nothing else is here."""

import threading
import time
from typing import NoReturn


def deadlock() -> None:
    one, other, met = threading.Lock(), threading.Lock(), threading.Barrier(2)

    def take(first: threading.Lock, second: threading.Lock) -> None:
        with first:
            met.wait()
            with second:
                pass

    threading.Thread(target=take, args=(other, one), daemon=True).start()
    take(one, other)


def tokenizes() -> NoReturn:
    while True:
        " ".join(str(number) for number in range(1000)).split()


def eats_memory() -> NoReturn:
    eaten = []
    while True:
        eaten.append(b"x" * 2**24)
        time.sleep(0.01)
