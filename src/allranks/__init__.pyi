from allranks.api import TrainingError as TrainingError
from allranks.api import TrainResult as TrainResult
from allranks.api import load_config as load_config
from allranks.api import read_events as read_events
from allranks.api import train as train
from allranks.config import RunConfig as RunConfig
from allranks.errors import AllranksError as AllranksError
from allranks.errors import CheckpointError as CheckpointError
from allranks.errors import ConfigError as ConfigError
from allranks.errors import DataError as DataError
from allranks.errors import DiskError as DiskError
from allranks.errors import OutOfMemoryError as OutOfMemoryError
from allranks.errors import RefusedError as RefusedError
from allranks.errors import UsageError as UsageError
from allranks.observe.events import CheckpointEvent as CheckpointEvent
from allranks.observe.events import CommunicationEvent as CommunicationEvent
from allranks.observe.events import ErrorEvent as ErrorEvent
from allranks.observe.events import EvalEvent as EvalEvent
from allranks.observe.events import Event as Event
from allranks.observe.events import ExitEvent as ExitEvent
from allranks.observe.events import MemoryEvent as MemoryEvent
from allranks.observe.events import PhaseEvent as PhaseEvent
from allranks.observe.events import StepEvent as StepEvent
from allranks.observe.events import TimeLimitEvent as TimeLimitEvent
from allranks.observe.events import UnknownEvent as UnknownEvent
from allranks.observe.events import WarningEvent as WarningEvent

__version__: str
