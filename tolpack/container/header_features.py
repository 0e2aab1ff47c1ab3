"""Which features a pack uses, as its preamble states them (SPEC §9)."""

from __future__ import annotations

from tolpack.container.header import CODED_FRAME, Header
from tolpack.container.preamble import FEATURES, SECTION_ALIGNMENT


def required_features(header: Header) -> int:
    """Bit mask of what a reader must know to read the pack of `header`."""
    encodings = header.encodings
    names = {f"codec:{p.codec}" for e in encodings for parts in e.fields for p in parts}
    names |= {f"frame:{e.frame}" for e in encodings if e.is_compressed}
    names |= _table_features(header)
    names |= _array_features(header)
    names |= {"section_alignment"} if header.alignment != SECTION_ALIGNMENT else set()
    names |= {"part_file"} if header.file[1] != 1 else set()
    return sum(1 << FEATURES[name] for name in names)


def _table_features(header: Header) -> set[str]:
    tables = header.tables
    fields = [field for table in tables for field in table.fields]
    names = {"basis" for field in fields if field.basis is not None}
    names |= {"mean" for field in fields if field.mean is not None}
    names |= {"token_map" for table in tables if table.token_map is not None}
    names |= {"multiplier" for table in tables if table.multiplier != 1.0}
    names |= {"edits" for table in tables if table.edits is not None}
    names |= {"multiple_tables"} if len(tables) != 1 else set()
    widths = [{field.width for field in table.fields} for table in tables]
    names |= {"mixed_widths" for found in widths if len(found) > 1}
    return names | {"other_layers" for table in tables if table.has_other_layers}


def _array_features(header: Header) -> set[str]:
    sections = header.sections
    kinds = {section.kind for section in sections}
    dtypes = {(section.kind, section.dtype) for section in sections}
    names = kinds & {"coded_basis", "id_map"}
    names |= {f"frame:{CODED_FRAME}"} if kinds & {"code_models", "code_classes"} else set()
    names |= {"edits"} if "token_ids" in kinds else set()
    names |= {"entropy_coded_basis" for section in sections if section.coder is not None}
    names |= {"token_chunks"} if ("token_map", "uint8") in dtypes else set()
    names |= {"short_token_map"} if ("token_map", "uint16") in dtypes else set()
    return names
