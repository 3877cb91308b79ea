"""Protocol machines that are broken in one place each. The simulator has to find every one of them out."""

from __future__ import annotations

from typing import Any, TypeAlias

Mutation: TypeAlias = tuple[Any, str, Any]
"""Whose attribute, which, and what stands there instead."""
