"""The app's web server: Streamlit's, behind a guard that refuses requests of pages of other sites."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from streamlit import App

from app import ahead

# Streamlit's own scripts make functions out of text, its components run from blobs; nothing comes from another site.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; connect-src 'self' data: blob:; "
    "frame-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_ANY_ADDRESS = ("0.0.0.0", "::")


class Guard:
    """Refuses requests of pages of another origin, and tells browsers to isolate this page.

    Another port of this machine is another origin: Streamlit itself lets every page of ``localhost`` open a session.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or open one websocket."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != headers.get("host"):
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})  # before it is accepted: status 403
            else:
                await PlainTextResponse("another origin", 403)(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self.app(scope, receive, send_guarded)


def serve(host: str, port: int) -> None:
    """Serve the app until a signal comes."""
    script = Path(__file__).with_name("streamlit_app.py")
    App(script, middleware=[Middleware(Guard)], lifespan=_begin).run(config=server_options(host, port))


@asynccontextmanager
async def _begin(app: App) -> AsyncIterator[None]:
    """Begin with what pages need, once the server can answer."""
    ahead.start()
    yield


def server_options(host: str, port: int) -> dict[str, Any]:
    """Streamlit's options for serving the app to this machine alone, unless ``host`` says otherwise.

    They win over any Streamlit config file of the user.
    """
    return {
        "server.address": host,
        "server.port": port,
        "server.headless": True,  # opens no browser and asks for no e-mail address
        "server.fileWatcherType": "none",
        "server.enableCORS": True,
        "server.enableXsrfProtection": True,
        "server.enableAgentApi": False,
        "server.allowedHosts": allowed_hosts(host),
        "browser.gatherUsageStats": False,
        "client.showErrorDetails": "none",  # errors are shown in the terminal only
        "client.toolbarMode": "viewer",
        "logger.hideWelcomeMessage": True,
        "logger.level": "warning",
        "runner.magicEnabled": False,  # pages show what they show by calls
    }


def allowed_hosts(host: str) -> list[str]:
    """Host names under which browsers may request the page; others are refused, against DNS rebinding."""
    names = ["localhost", "127.0.0.1", host]
    if host in _ANY_ADDRESS:
        names += [socket.gethostname(), socket.getfqdn()]
        names += [address.address for card in psutil.net_if_addrs().values() for address in card]
    return list(dict.fromkeys(name for name in names if name not in _ANY_ADDRESS))
