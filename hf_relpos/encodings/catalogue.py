"""Every method of the package: importing this module registers them all."""

from .alibi import Alibi
from .bipe import Bipe
from .cable import Cable
from .cope import Cope
from .dape import Dape
from .dape_v2 import DapeV2
from .deberta import Deberta
from .deberta_v2 import DebertaV2
from .fire import Fire
from .fox import Fox
from .huang_m1 import HuangM1
from .huang_m2 import HuangM2
from .huang_m3 import HuangM3
from .kerple_log import KerpleLog
from .kerple_power import KerplePower
from .log_cpb import LogCpb
from .mlp_bias import MlpBias
from .music_transformer import MusicTransformer
from .none import NoEncoding
from .pope import Pope
from .query_bank import QueryBank
from .randomized import Randomized
from .registry import registered_encodings
from .relation import Relation
from .relative_key import RelativeKey
from .relative_key_query import RelativeKeyQuery
from .rerope import Rerope
from .rope import Rope
from .sandwich import Sandwich
from .scalar import Scalar
from .self_extend import SelfExtend
from .shaw import Shaw
from .sinusoidal import Sinusoidal
from .sinusoidal_bias import SinusoidalBias
from .t5 import T5Bias
from .tener import Tener
from .tisa import Tisa
from .transformer_xl import TransformerXL
from .tupe import Tupe
from .wavlm import WavLMBias
from .xlnet import XLNet
from .xpos import Xpos

METHODS = registered_encodings()
