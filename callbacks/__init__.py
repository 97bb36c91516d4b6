"""Everything in `keras.callbacks`, made so that a killed run continues as if uninterrupted.

A class of the same name as Keras's takes the same arguments and adds `get_state` and `set_state`,
through which `BackupAndRestore` saves and restores it. Only the chief writes. Names that need no
change are Keras's own objects. May import all of `distrib` but `launch`.
"""

from __future__ import annotations

import keras
from keras.callbacks import Callback, CallbackList, History

from .backup_and_restore import BackupAndRestore
from .csv_logger import CSVLogger
from .early_stopping import EarlyStopping
from .lambda_callback import LambdaCallback
from .learning_rate_scheduler import LearningRateScheduler
from .learning_rate_warmup import LearningRateWarmup
from .loss_history import LossHistory
from .model_checkpoint import ModelCheckpoint
from .progbar_logger import ProgbarLogger
from .reduce_lr_on_plateau import ReduceLROnPlateau
from .remote_monitor import RemoteMonitor
from .swap_ema_weights import SwapEMAWeights
from .tensorboard import TensorBoard
from .terminate_on_nan import TerminateOnNaN

__all__ = [
    "BackupAndRestore",
    "CSVLogger",
    "Callback",
    "CallbackList",
    "EarlyStopping",
    "History",
    "LambdaCallback",
    "LearningRateScheduler",
    "LearningRateWarmup",
    "LossHistory",
    "ModelCheckpoint",
    "ProgbarLogger",
    "ReduceLROnPlateau",
    "RemoteMonitor",
    "SwapEMAWeights",
    "TensorBoard",
    "TerminateOnNaN",
]

if hasattr(keras.callbacks, "OrbaxCheckpoint"):  # From Keras 3.14 on.
    from .orbax_checkpoint import OrbaxCheckpoint as OrbaxCheckpoint

    __all__ += ["OrbaxCheckpoint"]

# A newer Keras may have callbacks that are not named above. A loop at the end, and no module
# `__getattr__`, which would make a type checker accept any misspelt name.
for _name in dir(keras.callbacks):
    if not _name.startswith("_") and _name not in __all__:
        globals()[_name] = getattr(keras.callbacks, _name)
        __all__ += [_name]
