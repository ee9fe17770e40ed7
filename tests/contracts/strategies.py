"""Values of any message type, made from the type itself: a field that is added later is generated at once."""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from hypothesis import strategies as st
from msgspec import inspect

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_INSTANTS = st.integers(0, 2**57).map(lambda microseconds: _EPOCH + timedelta(microseconds=microseconds))


def values_of(type_: Any) -> st.SearchStrategy[Any]:
    """Return a strategy for `type_`, a message of the contracts or a union of them."""
    return _values(inspect.type_info(type_))


def _values(info: inspect.Type) -> st.SearchStrategy[Any]:
    match info:
        case inspect.Metadata():
            return _values(info.type)
        case inspect.StructType():
            # A default is chosen often: what matters is which fields are set together.
            fields = {field.name: _field(field) for field in info.fields}
            return st.builds(info.cls, **fields)
        case inspect.UnionType():
            return st.one_of([_values(each) for each in info.types])
        case inspect.StrType():
            assert info.pattern is not None
            longest = info.max_length
            texts = st.from_regex(info.pattern, fullmatch=True)
            return texts if longest is None else texts.filter(lambda text: len(text) <= longest)
        case inspect.IntType():
            return st.integers(min_value=info.ge, max_value=info.le)
        case inspect.FloatType():
            return st.floats(min_value=info.ge, max_value=info.le, allow_nan=False)
        case inspect.ListType():
            return st.lists(_values(info.item_type), min_size=info.min_length or 0, max_size=min(info.max_length, 4))  # type: ignore[type-var]
        case inspect.VarTupleType():
            most = min(info.max_length or 4, 4)
            return st.lists(_values(info.item_type), min_size=info.min_length or 0, max_size=most).map(tuple)
        case inspect.DictType():
            return st.dictionaries(_values(info.key_type), _values(info.value_type), max_size=3)
        case inspect.EnumType():
            return st.sampled_from(info.cls)
        case inspect.DateTimeType():
            return _INSTANTS
        case inspect.BoolType():
            return st.booleans()
        case inspect.NoneType():
            return st.none()
    raise TypeError(f"no values for {info}")


def _field(field: inspect.Field) -> st.SearchStrategy[Any]:
    if field.required:
        return _values(field.type)
    if field.default is field.default_factory is msgspec.NODEFAULT:
        # A field that a document need not have at all. An empty value would come back as one that is not there.
        return st.just(msgspec.UNSET) | _values(field.type).filter(bool)
    default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    return st.just(default) | _values(field.type)
