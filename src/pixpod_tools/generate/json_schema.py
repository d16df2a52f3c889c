"""The contract as JSON Schema documents, which ship in `pixpod/contract/schema/`."""

from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from pixpod.contract.job_input import JobInput
from pixpod.contract.reply import ErrorReply, Reply


class _ReadableSchema(GenerateJsonSchema):
    """A generator that keeps the order of fields and omits titles that repeat their names; `type`
    lists null.
    """

    def sort(self, value: JsonSchemaValue, parent_key: str | None = None) -> JsonSchemaValue:
        return value

    def field_title_should_be_set(self, schema: object) -> bool:
        return False

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        """Omit the defaults, each of which is null for "the model's default"."""
        return self.generate_inner(schema["schema"])

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        inner = self.generate_inner(schema["schema"])
        if isinstance(inner.get("type"), str) and "enum" not in inner:
            return {**inner, "type": [inner["type"], "null"]}
        return super().nullable_schema(schema)


class _ReplySchema(_ReadableSchema):
    """A generator for replies, in which a field that has no value is absent and never null."""

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        inner = schema["schema"]
        return self.generate_inner(inner["schema"] if inner["type"] == "nullable" else inner)


def json_schemas() -> dict[str, dict[str, Any]]:
    """Return the schemas that ship, by file name. Any: a JSON document."""
    request = JobInput.model_json_schema(schema_generator=_ReadableSchema)
    replies: TypeAdapter[Reply | ErrorReply] = TypeAdapter(Reply | ErrorReply)
    reply = replies.json_schema(schema_generator=_ReplySchema)
    dialect = {"$schema": GenerateJsonSchema.schema_dialect}
    title = {"title": "What a pixpod job returns"}
    return {"request.json": {**dialect, **request}, "reply.json": {**dialect, **title, **reply}}
