"""`launcher schema`: the cluster config as JSON Schema, for editors that complete keys.

Prints and returns an exit code. The same text is kept in `configs/schema.json`, which the examples
name in their first line.
"""

import json
from typing import Any

_VARIABLE = {"type": "string", "pattern": r"\$\{"}


def run() -> int:
    print(schema_text(), end="")
    return 0


def schema_text() -> str:
    """The JSON Schema (draft 2020-12) of a cluster config, with a final newline."""
    return json.dumps(cluster_schema(), indent=2, ensure_ascii=False) + "\n"


def cluster_schema() -> dict[str, Any]:
    """Takes what the loader takes: short forms, `${NAME}` for any value, `x-` keys for anchors."""
    from launcher.config import ClusterConfig

    schema: dict[str, Any] = _with_variables(ClusterConfig.model_json_schema())
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "GPU Fleet cluster config",
        "patternProperties": {"^x-": {"description": "Not read: a place for YAML anchors."}},
    }


def _with_variables(schema: Any) -> Any:
    """Lets `${NAME}` stand where a number, a boolean or one of a few texts is expected."""
    if isinstance(schema, list):
        return [_with_variables(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kind = schema.get("type")
    is_narrow = kind in ("integer", "number", "boolean") or (
        kind == "string" and not schema.keys().isdisjoint({"enum", "const", "pattern"})
    )
    if not is_narrow:
        return {key: _with_variables(item) for key, item in schema.items() if key != "title"}
    about = {key: schema[key] for key in ("description", "default") if key in schema}
    value = {key: item for key, item in schema.items() if key not in about and key != "title"}
    return {**about, "anyOf": [value, _VARIABLE]}
