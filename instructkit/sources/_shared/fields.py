"""Types of raw-record fields that several sources share: what a value must look like to be decoded at all."""

from __future__ import annotations

from typing import Annotated

import msgspec

Text = Annotated[str, msgspec.Meta(pattern=r"\S")]
"""A string that is not blank."""

Natural = Annotated[int, msgspec.Meta(ge=0)]
"""An index or id, 0 or above."""

Key = Annotated[str, msgspec.Meta(pattern=r"\A[\w.-]+\Z")]
"""An id that may stand in a path: no blank, no slash."""

PictureName = Annotated[str, msgspec.Meta(pattern=r"\A\w[\w.-]*\.(?:jpg|jpeg|png)\Z")]
"""The name of a picture's file, without a folder."""
