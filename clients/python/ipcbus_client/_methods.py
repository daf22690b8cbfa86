"""A service's methods from annotated functions: which there are, what introspection says of them (PROTOCOL.md B-3), and how a request
becomes a call of one. For serve() of both shells; it does no I/O.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from typing import Any, NamedTuple

from ipcbus.protocol.limits import METHOD_MAX_BYTES
from ipcbus.protocol.payloads import PayloadError, decode_value

from ._arguments import arguments_of
from ._convert import Convert, checker
from ._errors import BadArguments
from ._hints import UNIONS, MismatchError, text_of
from ._message import Request
from ._packing import pack_typed

#: B-3 bounds what is said of a method; a docstring is cut below that.
_DOC_MAX_CHARACTERS = 12_000
_DEFAULT_MAX_BYTES = 1024
_SHOWN_MAX_CHARACTERS = 60  #: of a default, in a signature
#: Of a signature, in an error's text: beside it there must be room (E-1) for what is wrong.
_SIGNATURE_MAX_CHARACTERS = 500

#: What a method returns that answers with many values.
_STREAMS = (Iterator, Generator, AsyncIterator, AsyncGenerator)
_P = inspect.Parameter


class Parameter(NamedTuple):
    """One parameter of a method."""

    name: str
    kind: Any
    convert: Convert
    type: str
    default: Any  #: inspect.Parameter.empty: there is none


class Method:
    """One method: a bound function with its signature."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name = name
        self.function = function
        hints = _hints_of(name, function)
        self.is_async = (
            inspect.iscoroutinefunction(function)
            or inspect.isasyncgenfunction(function)
            or _many(hints.get("return")) in (AsyncIterator, AsyncGenerator)
        )
        #: whether it answers with many values, one after the other
        self.streams = (
            inspect.isgeneratorfunction(function)
            or inspect.isasyncgenfunction(function)
            or _value_of(hints.get("return")) is not None
        )
        self.request_name: str | None = None  #: of the parameter that takes the Request
        self.parameters: list[Parameter] = []
        shown = []
        self._whole = inspect.signature(function)
        for found in self._whole.parameters.values():
            hint = hints.get(found.name, Any)
            if _is_request(hint):
                self.request_name = found.name
                continue
            try:
                convert = checker(hint)
            except TypeError as error:
                raise TypeError(f"{name}: parameter {found.name!r}: {error}") from error
            self.parameters.append(Parameter(found.name, found.kind, convert, text_of(hint), found.default))
            default = found.default if found.default is _P.empty else _Shown(_clipped(repr(found.default), _SHOWN_MAX_CHARACTERS))
            shown.append(found.replace(annotation=_Shown(text_of(hint)) if found.name in hints else _P.empty, default=default))
        returns = hints.get("return", _P.empty)
        self.returns = "" if returns is _P.empty else text_of(returns)
        self._signature = inspect.Signature(shown)
        arrow = f" -> {self.returns}" if self.returns else ""
        self.signature = f"{name}{self._signature}{arrow}"

    def handler(self, trace: Callable[[BaseException], str] | None) -> Callable[[Request], Any]:
        """The handler for respond(). With *trace* requesters see the traceback of what the method raises."""
        bind, function, streams = self.bind, self.function, self.streams

        def handle(request: Request) -> Any:
            request.trace = trace
            arguments, named = bind(request)
            value = function(*arguments, **named)  # a value, or a coroutine or generator that has not begun
            return _generator(value) if streams else value

        return handle

    def about(self) -> dict[str, Any]:
        """What introspection says of it (B-3)."""
        said: dict[str, Any] = {"signature": self.signature, "arguments": {one.name: _describe(one) for one in self.parameters}}
        doc = inspect.getdoc(self.function)
        if doc:
            said["doc"] = _clipped(doc, _DOC_MAX_CHARACTERS)
        if self.returns:
            said["returns"] = self.returns
        if self.streams:
            said["streams"] = True
        return said

    def bind(self, request: Request) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments that *request* gives, as the hints say. Raises BadArguments, with the signature and what is wrong."""
        try:
            positional, keywords = arguments_of(request.data)
            if self.request_name in keywords:
                raise BadArguments(f"got an unexpected keyword argument {self.request_name!r}")
            given = self._signature.bind(*positional, **keywords).arguments
            for one in self.parameters:
                if one.name in given:
                    given[one.name] = _converted(one, given[one.name])
        except MismatchError as error:
            raise self._bad(error.describe("").lstrip(".")) from error
        except BadArguments as error:
            raise self._bad(error.text) from error
        except (PayloadError, TypeError) as error:
            raise self._bad(str(error)) from error
        except RecursionError as error:
            raise self._bad("the arguments are nested too deeply") from error
        if self.request_name is not None:
            given[self.request_name] = request
        bound = inspect.BoundArguments(self._whole, given)
        return bound.args, bound.kwargs

    def _bad(self, text: str) -> BadArguments:
        return BadArguments(f"{_clipped(self.signature, _SIGNATURE_MAX_CHARACTERS)}: {text}")


class _Shown(str):
    """A hint in a signature, without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _is_request(hint: Any) -> bool:
    """Whether it is the Request, or that or None: a method may be called without the bus too."""
    if typing.get_origin(hint) in (typing.Annotated, *UNIONS):
        return any(map(_is_request, typing.get_args(hint)))
    return isinstance(hint, type) and issubclass(hint, Request)


def _clipped(text: str, characters: int) -> str:
    return text if len(text) <= characters else f"{text[:characters]}…"


def _converted(parameter: Parameter, value: Any) -> Any:
    if parameter.kind is _P.VAR_KEYWORD:
        return {key: _at(parameter, one, key) for key, one in value.items()}
    if parameter.kind is _P.VAR_POSITIONAL:
        return tuple(_at(parameter, one, number, parameter.name) for number, one in enumerate(value))
    return _at(parameter, value, parameter.name)


def _at(parameter: Parameter, value: Any, *path: Any) -> Any:
    try:
        return parameter.convert(value)
    except MismatchError as error:
        error.path += path
        raise


def _describe(parameter: Parameter) -> dict[str, Any]:
    mark = {_P.VAR_POSITIONAL: "*", _P.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    required = parameter.default is _P.empty and not mark
    said: dict[str, Any] = {"type": mark + parameter.type, "required": required}
    if not required and not mark:
        try:
            packed = pack_typed(parameter.default)
            if len(packed) <= _DEFAULT_MAX_BYTES:
                said["default"] = decode_value(None, packed)
        except PayloadError:
            pass  # a default that no payload can have is the service's own affair
    return said


def _hints_of(name: str, function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise TypeError(f"{name}: its annotations cannot be read here: {error}") from error


def methods_of(service: Any) -> list[Method]:
    """The public methods of an object or module: functions with annotations, whose names begin with no underscore. Warns of those that it
    defines without any.

    Raises TypeError where there are none, or where one of them has a hint that no payload can become.
    """
    if isinstance(service, type):
        raise TypeError(f"{service.__qualname__} is a class: serve an instance of it, {service.__qualname__}(…)")
    home = service.__name__ if isinstance(service, types.ModuleType) else type(service).__module__
    found, left_out = [], []
    for name, function in _functions(service):
        if getattr(function, "__annotations__", None):
            if len(name) > METHOD_MAX_BYTES or not name.isascii():
                raise TypeError(f"{name}: a method's name is at most {METHOD_MAX_BYTES} characters of ASCII (T-5)")
            found.append(Method(name, getattr(service, name)))
        elif function.__module__ == home:  # (what comes from a base class elsewhere was perhaps never meant)
            left_out.append(name)
    if not found:
        raise TypeError(f"{service!r:.100} has no public method with annotations, so there is nothing to serve: def now(self) -> str: …")
    if left_out:
        import warnings  # here: it is not needed where nothing is forgotten

        text = f"{', '.join(left_out)} of {service!r:.100} will not be served: annotate what callers may call (-> None is enough), and"
        warnings.warn(f"{text} begin the names of others with an underscore", stacklevel=4)  # at who called serve() of a bus
    return found


def _functions(service: Any) -> Iterator[tuple[str, Any]]:
    """The public functions of an object's classes or of a module, also decorated ones, without what decorates them."""
    is_module = isinstance(service, types.ModuleType)
    for name in vars(service) if is_module else dir(type(service)):
        if name.startswith("_"):
            continue
        function = inspect.getattr_static(service, name, None)  # (a property is not asked for: that would call it)
        if isinstance(function, (staticmethod, classmethod)):
            function = function.__func__
        if callable(function) and not isinstance(function, type):
            function = inspect.unwrap(function)
            if inspect.isfunction(function) and not (is_module and function.__module__ != service.__name__):  # (not what it imported)
                yield name, function


def returns_of(interface: Any, name: str) -> tuple[Any, Any]:
    """The types of the answer of the method *name* of the class *interface*, and of each value that it streams; None where it does not
    say.

    Raises AttributeError where there is no such method.
    """
    hint = _hints_of(name, inspect.unwrap(getattr(interface, name))).get("return")
    value = _value_of(hint)
    return (hint, None) if value is None else (list[value], value)  # type: ignore[valid-type]  # it is one, at run time


def _generator(values: Any) -> Any:
    """*values* as a generator where they are another iterator: one that a method returns, which is none."""
    if isinstance(values, Iterator) and not isinstance(values, Generator):
        return (value for value in values)
    if isinstance(values, AsyncIterator) and not isinstance(values, AsyncGenerator):
        return (value async for value in values)
    return values


def _value_of(hint: Any) -> Any:
    """The type of each value where *hint* is of what a generator returns, else None."""
    return None if _many(hint) is None else (*typing.get_args(hint), Any)[0]


def _many(hint: Any) -> Any:
    """Which of the classes of what a generator returns *hint* is of, if any."""
    cls = typing.get_origin(hint) or hint
    return cls if cls in _STREAMS else None
