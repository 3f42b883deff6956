"""Credentials of a source: put into its address when it is read, and taken out of what its errors say."""

import os
import re
import traceback
from collections.abc import Callable
from urllib.parse import unquote

from contracts.core.errors import PerennialError, SourceFailed
from contracts.core.sources import BLOCK, PASSWORD_PARAMETER, USER_PASSWORD, VARIABLE, passwords_in

Secret = Callable[[str], str]  # the value of a secret block by its name
SHORTEST = 4  # characters of a variable's value that is hidden wherever it stands
MASK = "***"
# In a message a password may hold an @ of its own: it ends at the last one.
USER_PASSWORD_TO_LAST = re.compile(r"(://[^:/@\s]*:)[^\s]+@")


class Credentials:
    """The secrets of one reading of a source."""

    def __init__(self, secret: Secret):
        self._secret = secret
        self._hidden: set[str] = set()

    def expanded(self, address: str) -> str:
        """The address with its environment variables, or its secret block, put in.

        Raises PerennialError for a variable that is not set, SourceFailed for a block that can't be read.
        """
        if address.startswith(BLOCK):
            address = self._block(address.removeprefix(BLOCK))
            self._hide(address)
        else:
            address = VARIABLE.sub(self._variable, address)
        self._hide(*passwords_in(address))
        return address

    def masked(self, text: str) -> str:
        """A text without what is secret, on one line."""
        return " ".join(self._masked(text).split())

    def cause(self, error: BaseException) -> BaseException | None:
        """An error as the cause of another; None if its traceback would print a credential."""
        text = "".join(traceback.format_exception(error))
        return error if self._masked(text) == text else None

    def _masked(self, text: str) -> str:
        for value in sorted(self._hidden, key=len, reverse=True):
            text = text.replace(value, MASK)
        text = USER_PASSWORD_TO_LAST.sub(rf"\1{MASK}@", text) if USER_PASSWORD.search(text) else text
        return PASSWORD_PARAMETER.sub(lambda found: found[0].removesuffix(found[1]) + MASK, text)

    def _hide(self, *values: str) -> None:
        self._hidden |= {form for value in values for form in (value, unquote(value)) if form}

    def _variable(self, match: re.Match[str]) -> str:
        name = match[1]
        if name not in os.environ:
            raise PerennialError(f"the source's address names ${{{name}}}, which is not set: set it where "
                                 f"flows run")
        value = os.environ[name]
        if match.start() > 0 and len(value) >= SHORTEST:  # at the start stands a folder, or a whole URL
            self._hide(value)
        return value

    def _block(self, name: str) -> str:
        try:
            return self._secret(name)
        except PerennialError:
            raise
        except Exception as error:  # Prefect's, of a server or a block
            raise SourceFailed(f"the secret block {name!r} can't be read: {type(error).__name__}: "
                               f"{self.masked(str(error))}; create it in Prefect as a Secret, or correct the "
                               f"source's address") from self.cause(error)
