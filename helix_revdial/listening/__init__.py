"""
How the server is reached: ports and unix sockets, PROXY headers, TLS.

This room puts together what stands between a socket and the protocol that
serves it.  It knows no HTTP, no users and no settings file; what it shares
with them (the count of strangers, the protocol's factory) is handed in.
"""
