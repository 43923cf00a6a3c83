"""Names of version 0.1.0, which scripts may still import from here; their homes are codecs/ and rundir/codecs.py."""

from ggm_lightning.codecs.codec import BLANK, Codec, dict_hash
from ggm_lightning.codecs.pictures import MASKED_GREY, MIDDLE_GREY, Images
from ggm_lightning.codecs.text import END_OF_TEXT, PRINTABLE, REPLACEMENT, Bytes, Characters, Integers, Subwords
from ggm_lightning.rundir.codecs import codec_from_dict

__all__ = [
    "BLANK",
    "END_OF_TEXT",
    "MASKED_GREY",
    "MIDDLE_GREY",
    "PRINTABLE",
    "REPLACEMENT",
    "Bytes",
    "Characters",
    "Codec",
    "Images",
    "Integers",
    "Subwords",
    "codec_from_dict",
    "dict_hash",
]
