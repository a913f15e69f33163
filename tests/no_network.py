"""Refuse every connection that leaves this machine. Imported by conftest.py and by the processes that the tests start."""
import os, socket

os.environ |= dict(HF_HUB_OFFLINE='1', TRANSFORMERS_OFFLINE='1', PIP_NO_INDEX='1', PIP_DISABLE_PIP_VERSION_CHECK='1')

class NetworkUsed(RuntimeError):
    "Not an OSError: code that survives a missing network must not survive this."

def _local(address): return not isinstance(address, tuple) or str(address[0]) in ('', 'localhost', '::1', '0.0.0.0', '::') or str(address[0]).startswith('127.')

def block():
    "Patch socket; loopback (Jupyter kernels, test servers) stays open."
    def guarded(name):
        real = getattr(socket.socket, name)
        def call(self, address, *a):
            if self.family in (socket.AF_INET, socket.AF_INET6) and not _local(address): raise NetworkUsed(f'a test tried to reach {address}')
            return real(self, address, *a)
        setattr(socket.socket, name, call)
    for name in ('connect', 'connect_ex'): guarded(name)
    resolve = socket.getaddrinfo
    def getaddrinfo(host, *a, **kw):
        h = host.decode() if isinstance(host, bytes) else host
        if h not in (None, socket.gethostname()) and not _local((h,)): raise NetworkUsed(f'a test tried to resolve {h}')
        return resolve(host, *a, **kw)
    socket.getaddrinfo = getaddrinfo
