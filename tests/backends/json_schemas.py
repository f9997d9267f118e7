"""Random JSON schemas whose every instance is short, from a seed."""

import random
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]

NAMES = ["id", "größe", "a b", 'say "hi"', "x/y", "名", "back\\slash", "<|end|>", "_", "n-1"]
PATTERNS = ["^[a-c]{2,4}$", "^(ab|cd)+e$", "^\\d{3}-\\d{2}$", "^[^x]?z$"]
CONSTANTS = [None, True, 7, -0.5, "<|end|>", [1, {"a": 2}], {"k": []}]
FORMATS = ["date", "time", "uuid", "ipv4", "email"]


class SchemaGenerator:
    """Draws schemas of all types; `$ref` goes to definitions beside them, also back to the root."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def schema(self) -> Schema:
        """One schema with its definitions."""
        self._definitions: dict[str, Schema] = {}
        root = self._any(depth=self._random.randint(0, 3))
        return {**root, "$defs": self._definitions} if self._definitions else root

    def _any(self, depth: int) -> Schema:
        leaves: list[Callable[[], Schema]] = [
            self._string, self._string, self._number, self._integer, self._enum,
            lambda: {"type": self._random.choice(["boolean", "null"])},
            lambda: {"const": self._random.choice(CONSTANTS)},
            lambda: {"type": ["null", "boolean"]},
        ]  # fmt: skip
        inner: list[Callable[[int], Schema]] = [
            self._object, self._object, self._array, self._tuple, self._union, self._both, self._reference,
        ]  # fmt: skip
        return self._random.choice(inner)(depth - 1) if depth > 0 else self._random.choice(leaves)()

    def _string(self) -> Schema:
        kind = self._random.random()
        if kind < 0.3:
            return {"type": "string", "pattern": self._random.choice(PATTERNS)}
        if kind < 0.5:
            return {"type": "string", "format": self._random.choice(FORMATS)}
        low = self._random.randint(0, 3)
        return {"type": "string", "minLength": low, "maxLength": low + self._random.randint(0, 8)}

    def _integer(self) -> Schema:
        low = self._random.randint(-2000, 2000)
        high = low + self._random.randint(0, 5000)
        return self._random.choice(
            [
                {"type": "integer", "minimum": low, "maximum": high},
                {"type": "integer", "exclusiveMinimum": low, "exclusiveMaximum": high + 2},
                {
                    "type": "integer",
                    "minimum": 0,
                    "maximum": 10_000,
                    "multipleOf": self._random.choice([2, 5, 7]),
                },
            ]
        )

    def _number(self) -> Schema:
        low = round(self._random.uniform(-100, 100), 2)
        return {"type": "number", "minimum": low, "maximum": low + self._random.choice([0.5, 3, 1000])}

    def _enum(self) -> Schema:
        values = [1, "1", 2.5, None, False, "red", "größer", "", [1, 2], {"a": 1}, "a\nb", "<|start|>"]
        return {"enum": self._random.sample(values, self._random.randint(1, 5))}

    def _object(self, depth: int) -> Schema:
        names = self._random.sample(NAMES, self._random.randint(0, 4))
        schema: Schema = {
            "type": "object",
            "properties": {name: self._any(depth) for name in names},
            "required": [name for name in names if self._random.random() < 0.6],
            "additionalProperties": False,
        }
        if self._random.random() < 0.2:
            schema |= {"title": "T", "description": "what it is", "default": {}}
        return schema

    def _array(self, depth: int) -> Schema:
        low = self._random.randint(0, 2)
        return {
            "type": "array",
            "items": self._any(depth),
            "minItems": low,
            "maxItems": low + self._random.randint(0, 2),
        }

    def _tuple(self, depth: int) -> Schema:
        items = [self._any(depth) for _ in range(self._random.randint(1, 3))]
        return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}

    def _union(self, depth: int) -> Schema:
        return {"anyOf": [self._any(depth) for _ in range(self._random.randint(1, 3))]}

    def _both(self, depth: int) -> Schema:
        first, second = self._random.sample(NAMES, 2)
        return {
            "allOf": [
                {"type": "object", "properties": {first: self._any(depth)}, "required": [first]},
                {"properties": {second: self._any(depth)}, "required": [second]},
            ],
            "additionalProperties": False,
            "properties": {first: {}, second: {}},
        }

    def _reference(self, depth: int) -> Schema:
        name = f"d{len(self._definitions)}"
        self._definitions[name] = {}
        tail = (
            {"anyOf": [{"type": "null"}, {"$ref": f"#/$defs/{name}"}]} if self._random.random() < 0.5 else {}
        )
        body = self._any(depth)
        self._definitions[name] = (
            {
                "type": "object",
                "properties": {"value": body, "next": tail},
                "required": ["value", "next"],
                "additionalProperties": False,
            }
            if tail
            else body
        )
        return {"$ref": f"#/$defs/{name}"}
