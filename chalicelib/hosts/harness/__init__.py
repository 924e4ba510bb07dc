"""The streaming harness: the registry's functions behind an HTTP server, for any machine.

A supervisor (``supervisor``) binds the address and forks workers (``worker``). In each, one event
loop (uvloop) accepts, parses (httptools) and sends: ``connection`` is HTTP/1.1 on one socket. The
functions may block, so they run on threads (``threads``). The loop gathers what arrives of a body
and hands it to a thread in big pieces; what leaves comes from the file to the socket without
passing through Python (``sending``). Nobody who is slow or silent holds a thread.

Two more processes serve nobody: ``jobs`` does what happens later, and ``exporter`` tells Prometheus
what all have counted (``reports``). What is shown to clients that speak TLS is in ``certificates``,
and ``acme`` where the registry gets it itself.
"""
