"""What may be shown of an address."""

import re


def public_address(text: str) -> str:
    """An address, or a text that holds some, with user names, passwords and secret query values masked."""
    text = re.sub(r"://[^/\s'\"]*@", "://***@", text)
    return re.sub(r"([?&][\w.-]*(?:password|passwd|token|secret|key)[\w.-]*=)[^&\s'\"]+", r"\1***", text, flags=re.I)
