"""The engine of one rank: loop, optimizer, checkpoints, signals. Imports nothing here: name its modules.

`python -m allranks.train` is one rank, and `allranks.train(config)` is the public function: Python makes an imported
package an attribute of the one above it, so this one answers for both.
"""

import sys
from types import ModuleType
from typing import Any


class _TrainPackage(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """`allranks.api.train`; see its docstring."""
        from allranks.api import train

        return train(*arguments, **options)


sys.modules[__name__].__class__ = _TrainPackage
