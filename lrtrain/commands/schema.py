"""`lrtrain schema` prints the config's JSON Schema."""

from __future__ import annotations

import json
from typing import Any

from lrtrain import lookup
from lrtrain.config.schema import RunConfig

_KINDS: dict[str, lookup.Kind] = {
    "Model": "model",
    "Dataset": "dataset",
    "Optimizer": "optimizer",
    "Phase": "scheduler",
}


def run() -> None:
    """Print it."""
    print(json.dumps(config_schema(), indent=1))  # noqa: T201


def config_schema() -> dict[str, Any]:
    """The config's JSON Schema (draft 2020-12), with every name and its arguments as choices."""
    schema = RunConfig.model_json_schema(by_alias=True)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "lrtrain config"
    definitions = schema["$defs"]
    for title, kind in _KINDS.items():
        _offer_names(definitions[title], kind)
    for section in ("model", "dataset"):
        title = section.capitalize()
        schema["properties"][section] = {
            "anyOf": [{"$ref": f"#/$defs/{title}/properties/name"}, {"$ref": f"#/$defs/{title}"}]
        }
    phase = {"anyOf": [{"$ref": "#/$defs/Phase/properties/name"}, {"$ref": "#/$defs/Phase"}]}
    schema["properties"]["schedule"] = {
        "description": schema["properties"]["schedule"]["description"],
        "anyOf": [*phase["anyOf"], {"type": "array", "items": phase}],
    }
    named = {"anyOf": [{"type": "string", "examples": list(lookup.names("transform"))}, {"$ref": "#/$defs/Named"}]}
    for split in ("train", "val"):
        definitions["Transforms"]["properties"][split] = {"type": "array", "items": named}
    return schema


def _offer_names(definition: dict[str, Any], kind: lookup.Kind) -> None:
    """Offer the kind's names, and each name's arguments where it stands."""
    known = list(lookup.names(kind))
    patterns = [r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$"] + ([r"^timm/"] if kind == "model" else [])
    definition["properties"]["name"] = {
        "description": definition["properties"]["name"].get("description", ""),
        "anyOf": [{"enum": known}, *({"type": "string", "pattern": p} for p in patterns)],
    }
    choices = []
    for name in known:
        takes = lookup.arguments(kind, name)
        own = {
            key: {"description": "required" if default is None else f"default {default}"}
            for key, default in (takes.defaults if takes else {}).items()
            if key not in definition["properties"]
        }
        if own:
            choices.append({"if": {"properties": {"name": {"const": name}}}, "then": {"properties": own}})
    if choices:
        definition["allOf"] = choices
