"""Every codec by its id in a header (SPEC §7): the one list that readers and writers go by.

Columns: bit of the required features, bits of a code, dtype of a code, compiled loop.
"""

from __future__ import annotations

from tolpack.codecs.codec import Codec
from tolpack.codecs.float8 import Float8Codec, PowerFloat8Codec, StepFloat8Codec
from tolpack.codecs.floats import BFloat16Codec, FloatCodec
from tolpack.codecs.ggml_blocks import GgmlCodec
from tolpack.codecs.grouped_integers import GroupedIntegerCodec
from tolpack.codecs.step_integers import StepIntegerCodec

CODECS: dict[str, Codec] = {
    "f32": FloatCodec(0, 32, "float32"),
    "f16": FloatCodec(1, 16, "float16"),
    "bf16": BFloat16Codec(2, 16, "bfloat16"),
    "f8e4m3": Float8Codec(3, 8, "float8_e4m3fn", "decode_f8e4m3"),
    "int8": GroupedIntegerCodec(4, 8, "int8", "decode_int8"),
    "int4": GroupedIntegerCodec(5, 4, "int4", "decode_int4"),
    "step8": StepIntegerCodec(6, 8, "int8", "decode_step8"),
    "step16": StepIntegerCodec(7, 16, "int16", "decode_step16"),
    "f8e4m3-e8m0": PowerFloat8Codec(32, 8, "float8_e4m3fn", "decode_f8e4m3_e8m0"),
    "f8e4m3-step": StepFloat8Codec(33, 8, "float8_e4m3fn", "decode_f8e4m3_step"),
    "q8_0": GgmlCodec(34, 8, "int8", "decode_q8_0"),
    "q4_0": GgmlCodec(35, 4, "int4", "decode_q4_0"),
}
