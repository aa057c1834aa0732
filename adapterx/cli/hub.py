"""Whether the hub can be reached: asked once and shortly, where its libraries would try again for half a minute."""

import functools
import os
import socket
import threading
from contextlib import suppress
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, getproxies, proxy_bypass, urlopen

ENDPOINT = "https://huggingface.co"
PATIENCE = 1.5  # seconds until a connection must stand
PROXY_PATIENCE = 5.0  # seconds for the answer of a proxy, which has to connect in its turn
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")  # set by those who want no network


@functools.cache
def reachable() -> bool:
    """Return whether the hub answers. False also where the environment asks to stay offline; never raises.

    Who finds it out of reach passes `local_files_only=True` on: what is in the cache still loads.
    """
    if any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in OFFLINE):
        return False
    found: list[bool] = []
    # In a thread, because nothing else bounds the time in which a name is looked up.
    thread = threading.Thread(target=lambda: found.append(_answers()), daemon=True)
    thread.start()
    thread.join(PROXY_PATIENCE if getproxies() else PATIENCE)
    return found == [True]


def may_be_cached(name: str) -> bool:
    """Return whether something of that name was downloaded before; if not, its library need not be imported to look."""
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    datasets = os.environ.get("HF_DATASETS_CACHE") or os.path.join(home, "datasets")
    files = os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")
    for folder in map(os.path.expanduser, (datasets, files)):
        with suppress(OSError):  # `datasets--owner--name` and `owner___name`, with other ideas of capitals
            if any(_letters(entry).endswith(_letters(name)) for entry in os.listdir(folder)):
                return True
    return False


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))


def _answers() -> bool:
    endpoint = os.environ.get("HF_ENDPOINT") or ENDPOINT
    try:
        parts = urlsplit(endpoint)
        proxies = {} if proxy_bypass(parts.hostname or "") else getproxies()
        proxy = proxies.get(parts.scheme) or proxies.get("all")
        if proxy is not None and proxy.startswith("http"):
            urlopen(Request(endpoint, method="HEAD"), timeout=PROXY_PATIENCE).close()
            return True
        host = urlsplit(proxy or endpoint)  # of a SOCKS proxy nothing but that it stands can be asked
        port = host.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((host.hostname or "", port), timeout=PATIENCE).close()
    except HTTPError as error:
        return error.code < 500 and error.code != 407  # 407: the proxy wants a password
    except (OSError, ValueError) as error:
        return "CERTIFICATE_VERIFY_FAILED" in str(error)  # then somebody answered, and the libraries know better whom
    return True
