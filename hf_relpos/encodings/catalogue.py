"""Every method of the package: importing this module registers them all."""

from .alibi import Alibi
from .kerple_log import KerpleLog
from .none import NoEncoding
from .relative_key import RelativeKey
from .relative_key_query import RelativeKeyQuery
from .rope import Rope
from .shaw import Shaw
from .sinusoidal import Sinusoidal
from .sinusoidal_bias import SinusoidalBias
from .t5 import T5Bias
from .transformer_xl import TransformerXL

METHODS = (
    Alibi,
    KerpleLog,
    NoEncoding,
    RelativeKey,
    RelativeKeyQuery,
    Rope,
    Shaw,
    Sinusoidal,
    SinusoidalBias,
    T5Bias,
    TransformerXL,
)
