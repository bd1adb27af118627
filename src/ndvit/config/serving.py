"""Options of the HTTP service."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from ndvit.config.bounds import MOST, Cap, Count, NonNegative, Options, Positive

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Names of addresses that only programs of this machine reach."""
TOKEN = "NDVIT_TOKEN"
"""Environment variable of the token, which a command line would show to every user of the machine."""


@dataclass(frozen=True, kw_only=True)
class AccessOptions(Options):
    """Access."""

    host: str = "127.0.0.1"
    """Address to listen on: 127.0.0.1 for this machine alone, 0.0.0.0 for every network."""
    port: Annotated[int, Ge(0), Cap(65535)] = 8000
    """Port to listen on; 0 takes a free one."""
    token: str | None = None
    """Secret that clients send as "Authorization: Bearer TOKEN". Set the environment variable NDVIT_TOKEN instead,
    because other users of the machine can see the flags of its programs."""
    cors: tuple[str, ...] = ()
    """Origins of other pages whose scripts may read answers, such as https://lab.example; none by default."""
    hosts: tuple[str, ...] = ()
    """Names under which clients may call a service on the loopback address, beside localhost, such as that of a proxy
    that passes on the name of the request."""
    root_path: str = ""
    """Path under which a proxy offers the service, such as /vit."""


@dataclass(frozen=True, kw_only=True)
class LoadOptions(Options):
    """Load."""

    batch_size: Annotated[int, Ge(1), Cap(4096)] = 32
    """Largest number of examples that are computed together; fewer, where a measurement at the start shows that they
    cost less."""
    max_wait: NonNegative = 10.0
    """Milliseconds that a batch waits for examples of other requests that are being read; without such, none."""
    queue: Count = 512
    """Examples that may wait for the network. Requests beyond get the status 429."""
    requests: Count = 256
    """Requests that are handled at one time. Those beyond get the status 429."""
    timeout: Positive = 30.0
    """Seconds after which a request ends with the status 503 (408 while its body is read)."""
    readers: Annotated[int, Ge(1), Cap(64)] = 2
    """Threads that read uploads."""
    optimize: bool = True
    """Measure at the start which of PyTorch, ONNX Runtime and OpenVINO needs the least processor time for the same
    answers."""
    reload: NonNegative = 2.0
    """Seconds between looks for a new model in the run folders; 0 never looks."""


@dataclass(frozen=True, kw_only=True)
class LimitOptions(Options):
    """Limits of a request."""

    max_bytes: Annotated[int, Ge(1), Cap(2**40)] = 2**25
    """Bytes of a request (32 MiB)."""
    max_files: Annotated[int, Ge(1), Cap(10_000)] = 64
    """Files in a request."""
    max_examples: Count = 256
    """Examples, or windows of recordings, in a request."""
    max_pixels: Annotated[int, Ge(1), Cap(MOST)] = 40_000_000
    """Pixels of a picture."""
    max_samples: Annotated[int, Ge(1), Cap(MOST)] = 20_000_000
    """Values of a recording or another array: samples of all channels."""
    max_explained: Annotated[int, Ge(1), Cap(1000)] = 32
    """Examples, or windows of recordings, in a request for explanations."""


@dataclass(frozen=True, kw_only=True)
class ServingOptions(LimitOptions, LoadOptions, AccessOptions):
    """Options of `ndvit serve`."""

    @property
    def local(self) -> bool:
        """Whether only programs of this machine reach the service."""
        return self.host in LOOPBACK
