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
from ._hints import MismatchError, text_of
from ._message import Request
from ._packing import pack_typed

#: B-3 bounds what is said of a method; a docstring is cut below that.
_DOC_MAX_CHARACTERS = 12_000
_DEFAULT_MAX_BYTES = 1024

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
        self.is_async = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
        #: whether it answers with many values, one after the other
        self.streams = (
            inspect.isgeneratorfunction(function)
            or inspect.isasyncgenfunction(function)
            or typing.get_origin(hints.get("return")) in _STREAMS
        )
        self.request_name: str | None = None  #: of the parameter that takes the Request
        self.parameters: list[Parameter] = []
        shown = []
        self._whole = inspect.signature(function)
        for found in self._whole.parameters.values():
            hint = hints.get(found.name, Any)
            if isinstance(hint, type) and issubclass(hint, Request):
                self.request_name = found.name
                continue
            try:
                convert = checker(hint)
            except TypeError as error:
                raise TypeError(f"{name}: parameter {found.name!r}: {error}") from error
            self.parameters.append(Parameter(found.name, found.kind, convert, text_of(hint), found.default))
            shown.append(found.replace(annotation=_Shown(text_of(hint)) if found.name in hints else _P.empty))
        returns = hints.get("return", _P.empty)
        self.returns = "" if returns is _P.empty else text_of(returns)
        self._signature = inspect.Signature(shown)
        arrow = f" -> {self.returns}" if self.returns else ""
        self.signature = f"{name}{self._signature}{arrow}"

    def handler(self, trace: Callable[[BaseException], str] | None) -> Callable[[Request], Any]:
        """The handler for respond(). With *trace* requesters see the traceback of what the method raises."""
        bind, function = self.bind, self.function

        def handle(request: Request) -> Any:
            request.trace = trace
            arguments, named = bind(request)
            return function(*arguments, **named)  # a value, or a coroutine or generator that has not begun

        return handle

    def about(self) -> dict[str, Any]:
        """What introspection says of it (B-3)."""
        said: dict[str, Any] = {"signature": self.signature, "arguments": {one.name: _describe(one) for one in self.parameters}}
        doc = inspect.getdoc(self.function)
        if doc:
            said["doc"] = doc if len(doc) <= _DOC_MAX_CHARACTERS else f"{doc[:_DOC_MAX_CHARACTERS]}…"
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
        return BadArguments(f"{self.signature}: {text}")


class _Shown(str):
    """A hint in a signature, without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


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
    """The public methods of an object or module: functions with annotations, whose names begin with no underscore.

    Raises TypeError where there are none, or where one of them has a hint that no payload can become.
    """
    if isinstance(service, type):
        raise TypeError(f"{service.__qualname__} is a class: serve an instance of it, {service.__qualname__}(…)")
    is_module = isinstance(service, types.ModuleType)
    found = []
    for name in vars(service) if is_module else dir(type(service)):
        if name.startswith("_"):
            continue
        function = inspect.getattr_static(service, name, None)
        if isinstance(function, (staticmethod, classmethod)):
            function = function.__func__
        if not inspect.isfunction(function) or not getattr(inspect.unwrap(function), "__annotations__", None):
            continue  # (a property is not looked at: that would call it)
        if is_module and function.__module__ != service.__name__:
            continue  # what the module imported
        if len(name) > METHOD_MAX_BYTES or not name.isascii():
            raise TypeError(f"{name}: a method's name is at most {METHOD_MAX_BYTES} characters of ASCII (T-5)")
        found.append(Method(name, getattr(service, name)))
    if not found:
        raise TypeError(f"{service!r:.100} has no public method with annotations, so there is nothing to serve: def now(self) -> str: …")
    return found


def returns_of(interface: Any, name: str) -> tuple[Any, Any]:
    """The types of the answer of the method *name* of the class *interface*, and of each value that it streams; None where it does not
    say.

    Raises AttributeError where there is no such method.
    """
    hint = _hints_of(name, inspect.unwrap(getattr(interface, name))).get("return")
    if typing.get_origin(hint) not in _STREAMS:
        return hint, None
    value = typing.get_args(hint)[0]
    return list[value], value  # type: ignore[valid-type]  # it is one, at run time
