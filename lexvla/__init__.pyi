from lexvla.config import LexVLAConfig as LexVLAConfig
from lexvla.encoder import Encoder as Encoder
from lexvla.encoding import Encoding as Encoding
from lexvla.model import LexVLA as LexVLA
from lexvla.vocabulary import Vocabulary as Vocabulary
